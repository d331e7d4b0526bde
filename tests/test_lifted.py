"""Layers inside Flax's lifted transforms and in models that share them: penalties, parameters, call arguments."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from cases import thinned
from flax.errors import InvalidRngError
from models import KEY, LENGTHS, MASK, RESETS, B, F, U, X, check_tree, close, drawn, parameters, run, same, shapes

from flax_srnn import RNN, Bidirectional, SimpleRNN, SimpleRNNCell, StackedRNNCells, regularization_loss

# --- penalties ---------------------------------------------------------------------------------------------------------

ACTIVITY = {"activity_regularizer": "l2", "return_sequences": True}
MADE = {
    "SimpleRNN": lambda **weights: SimpleRNN(F, **ACTIVITY, **weights),
    "RNN": lambda **weights: RNN([SimpleRNNCell(U), SimpleRNNCell(F, **weights)], **ACTIVITY),
    "nested cells": lambda **weights: RNN([StackedRNNCells([SimpleRNNCell(U, **weights), nn.GRUCell(F)])], **ACTIVITY),
    "both": lambda **weights: Bidirectional(SimpleRNN(F, **ACTIVITY, **weights), "sum"),
    "remat": lambda **weights: nn.remat(SimpleRNN)(F, **ACTIVITY, **weights),
    "jit": lambda **weights: nn.jit(SimpleRNN)(F, **ACTIVITY, **weights),
    "remat of both": lambda **weights: nn.remat(Bidirectional)(SimpleRNN(F, **ACTIVITY, **weights), "sum"),
    "remat of jit": lambda **weights: nn.remat(nn.jit(RNN))(SimpleRNNCell(F, **weights), **ACTIVITY),
}
LIFTS = {"": lambda cls: cls, "in remat": nn.remat, "in jit": nn.jit}


def calling(make, lift, compact=False):
    """A model that calls one layer, inside a lifted module of the user's own, on each of its inputs."""

    class Block(nn.Module):
        def setup(self):
            self.layer = make()

        def __call__(self, x):
            return self.layer(x)

    class Compact(nn.Module):
        @nn.compact
        def __call__(self, x):
            return make()(x)

    class Model(nn.Module):
        def setup(self):
            self.block = lift(Compact if compact else Block)()

        def __call__(self, *inputs):
            return sum(self.block(x) for x in inputs)

    return Model()


def loss(model, variables, *inputs):
    _, sown = model.apply(variables, *inputs, mutable=["losses"])
    return float(regularization_loss(sown)), {**variables, **sown}


PENALISED = [(name, lift, compact) for name in MADE for lift in LIFTS for compact in (False, True)]


@pytest.mark.parametrize("case", thinned(PENALISED, 4))
def test_penalties_add_up_over_the_calls_of_a_pass(case):
    """The activity's of every call, those of the weights once, as in Keras; and nothing is left of an earlier pass."""
    name, lift, compact = case
    model, without = (
        calling(lambda weights=weights: MADE[name](**weights), LIFTS[lift], compact)
        for weights in ({"kernel_regularizer": "l1", "recurrent_regularizer": "l2"}, {})
    )
    variables = drawn(model, X)
    first, second = loss(without, variables, X)[0], loss(without, variables, 2 * X)[0]
    assert 0 < first < second
    single, _ = loss(model, variables, X)
    assert single > first
    both, after = loss(model, variables, X, 2 * X)
    close(both, single + second)
    close(loss(model, after, X, 2 * X)[0], both)
    close(loss(model, after, X)[0], single)
    # Carried along, as a training loop does it.
    close(jax.jit(lambda v: loss_of_two(model, v))(after), both)


def loss_of_two(model, variables):
    return regularization_loss(model.apply(variables, X, 2 * X, mutable=["losses"])[1])


@pytest.mark.slow
def test_penalties_of_lifted_copies():
    """One for every copy under `nn.scan` and `nn.vmap`, in every call."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return SimpleRNN(F, **ACTIVITY, kernel_regularizer="l1")(x), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, *inputs):
            axes = {"variable_axes": {"params": 0, "losses": 0}, "split_rngs": {"params": True}}
            deep = nn.scan(Block, length=3, **axes)(name="deep")
            wide = nn.vmap(SimpleRNN, in_axes=None, axis_size=2, **axes)(F, **ACTIVITY, name="wide")
            return sum(deep(x, None)[0] + wide(x).sum(0) for x in inputs)

    model = Model()
    variables = drawn(model, X)
    sown = model.apply(variables, X, mutable=["losses"])[1]["losses"]
    assert {leaf.shape for leaf in jax.tree.leaves(sown["deep"])} == {(3,)}
    assert {leaf.shape for leaf in jax.tree.leaves(sown["wide"])} == {(2,)}
    both, after = loss(model, variables, X, 2 * X)
    weights = 0.01 * np.abs(variables["params"]["deep"]["SimpleRNN_0"]["kernel"]).sum()
    close(both, loss(model, variables, X)[0] + loss(model, variables, 2 * X)[0] - weights)
    close(loss(model, after, X, 2 * X)[0], both)


def test_a_pass_inside_another_has_penalties_of_its_own():
    layer = SimpleRNN(F, **ACTIVITY)
    variables = drawn(layer, X)
    alone, after = loss(layer, variables, X)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [loss(layer, after, x)[0] for _ in range(2)]

    close(Outer().apply({}, X), [alone, alone])


# --- what a model shares -----------------------------------------------------------------------------------------------

STEP = np.zeros((B, F), np.float32)


class InSetup(nn.Module):
    """An encoder, the same backwards, and a decoder step by step."""

    make: object

    def setup(self):
        self.cell = self.make()
        self.encoder = RNN(self.cell)
        self.backward = RNN([self.cell], go_backwards=True)

    def __call__(self, x):
        carry = self.cell.initialize_carry(KEY, x[:, 0].shape)
        return self.encoder(x), self.backward(x), self.cell(carry, x[:, 0])[1]


class InCompact(nn.Module):
    """The same, where the cell is made on the spot and first used by the encoder or by the decoder."""

    make: object
    decoder_first: bool

    @nn.compact
    def __call__(self, x):
        cell = self.make()
        carry = cell.initialize_carry(KEY, x[:, 0].shape)
        step = cell(carry, x[:, 0])[1] if self.decoder_first else None
        sequences = RNN(cell)(x), RNN([cell], go_backwards=True)(x)
        return *sequences, cell(carry, x[:, 0])[1] if step is None else step


CELLS = {
    "SimpleRNNCell": lambda: SimpleRNNCell(F),
    "GRUCell": lambda: nn.GRUCell(F),
    "named": lambda: SimpleRNNCell(F, name="mine"),
    "StackedRNNCells": lambda: StackedRNNCells([SimpleRNNCell(U), nn.GRUCell(F)]),
}


@pytest.mark.parametrize("lift", [lambda cls: cls, *thinned([nn.remat, nn.jit], 0)], ids=["", "remat", "jit"])
@pytest.mark.parametrize("name", thinned(CELLS, 2))
def test_a_shared_cell_has_one_set_of_parameters(name, lift):
    make = CELLS[name]
    alone = RNN(make())
    variables = drawn(alone, X)
    (carry_shape,) = [make().initialize_carry(KEY, (B, F))]
    _, step = jax.jit(lambda v: make().apply(v, carry_shape, X[:, 0]))(variables)
    expected = run(alone, variables, X), run(alone.clone(go_backwards=True), variables, X), step
    models = {"cell": InSetup(make)} if name != "named" else {}
    models |= {f"{type(make()).__name__}_0" if name != "named" else "mine": InCompact(make, True)}
    models |= {"RNN_0" if name != "named" else "mine ": InCompact(make, False)}
    for place, model in models.items():
        made = jax.eval_shape(model.init, KEY, X)["params"]
        assert list(made) == [place.strip()]
        assert shapes(made[place.strip()]) == shapes(variables["params"])
        lifted = lift(type(model))(
            *(getattr(model, field) for field in ("make", "decoder_first") if hasattr(model, field))
        )
        check_tree(run(lifted, {"params": {place.strip(): variables["params"]}}, X), expected)


def test_a_cell_that_is_listed_twice_has_one_place():
    cell = SimpleRNNCell(F)
    for layer in (RNN([cell, cell], return_sequences=True), RNN(StackedRNNCells([cell, cell]), return_sequences=True)):
        variables = drawn(layer, X)
        assert shapes(variables["params"]) == {"cells_0": parameters(F, F)}
        twice = {"cells_0": variables["params"]["cells_0"], "cells_1": variables["params"]["cells_0"]}
        apart = RNN([SimpleRNNCell(F), SimpleRNNCell(F)], return_sequences=True)
        same(layer.apply(variables, X, mask=MASK), apart.apply({"params": twice}, X, mask=MASK))
    layer = RNN([cell, nn.GRUCell(F), cell], return_state=True, stateful=True)
    assert list(jax.eval_shape(layer.init, KEY, X)["params"]) == ["cells_0", "cells_1"]
    assert len(jax.eval_shape(layer.init, KEY, X)["carry"]["states"]) == 3
    equal = RNN([SimpleRNNCell(F), SimpleRNNCell(F)])  # which are two
    assert list(jax.eval_shape(equal.init, KEY, X)["params"]) == ["cells_0", "cells_1"]
    both = jax.eval_shape(Bidirectional(RNN([cell, cell])).init, KEY, X)["params"]
    assert shapes(both) == {key: {"cells_0": parameters(F, F)} for key in ("forward_layer", "backward_layer")}


class SharedLayer(nn.Module):
    """A layer that runs alone and as the forward half of a Bidirectional."""

    layer: nn.Module

    def setup(self):
        self.both = Bidirectional(self.layer, None)

    def __call__(self, x):
        return self.layer(x), *self.both(x)


@pytest.mark.parametrize(
    "layer",
    [SimpleRNN(U), RNN(SimpleRNNCell(U)), RNN([SimpleRNNCell(U), nn.LSTMCell(F)])],
    ids=["SimpleRNN", "RNN", "stack"],
)
@pytest.mark.slow
def test_both_directions_around_a_layer_that_the_model_shares(layer):
    variables = drawn(SharedLayer(layer), X)
    own = drawn(layer, X)["params"]
    assert shapes(variables["params"]) == {"both": {"backward_layer": shapes(own)}, "layer": shapes(own)}
    alone, forward, backward = run(SharedLayer(layer), variables, X)
    same(alone, forward)
    turned = layer.clone(go_backwards=True)
    close(alone, run(layer, {"params": variables["params"]["layer"]}, X))
    close(backward, run(turned, {"params": variables["params"]["both"]["backward_layer"]}, X))


def test_the_default_backward_layer_has_cells_of_its_own():
    class Model(nn.Module):
        def setup(self):
            self.cell = SimpleRNNCell(U)
            self.both = Bidirectional(RNN(self.cell), None)

        def __call__(self, x):
            return self.both(x)

    params = jax.eval_shape(Model().init, KEY, X)["params"]
    assert shapes(params) == {"both": {"backward_layer": parameters(F, U)}, "cell": parameters(F, U)}


# --- call arguments ----------------------------------------------------------------------------------------------------

ORDER = ("initial_state", "mask", "training", "seq_lengths", "resets")
GIVEN = {"mask": MASK, "seq_lengths": LENGTHS, "resets": RESETS}
LAYERS = {
    "SimpleRNN": (SimpleRNN, (U,)),
    "RNN": (RNN, ([SimpleRNNCell(U), nn.GRUCell(2)],)),
    "both": (Bidirectional, (SimpleRNN(U),)),
}
every = pytest.mark.parametrize("name", LAYERS)


@pytest.mark.parametrize("name", thinned(LAYERS, 1))
def test_call_arguments_by_position(name):
    cls, arguments = LAYERS[name]
    layer = cls(*arguments)
    variables = drawn(layer, X)
    for kind in (layer, nn.remat(cls, static_argnums=(4,))(*arguments), nn.jit(cls, static_argnums=(4,))(*arguments)):
        by_position = kind.apply(
            variables, X, *(GIVEN.get(each, False if each == "training" else None) for each in ORDER)
        )
        close(by_position, layer.apply(variables, X, **GIVEN))
        close(kind.apply(variables, X, **GIVEN), by_position)


@pytest.mark.parametrize("name", thinned(LAYERS, 2))
@pytest.mark.parametrize("lift", thinned(["vmap", "batched copies"], 1))
def test_vmap_hands_on_what_is_given_by_name(name, lift):
    """`nn.vmap` itself drops keyword arguments, a mask, say, without a word."""
    cls, arguments = LAYERS[name]
    rows = {"variable_axes": {"params": None}, "split_rngs": {"params": False}, "in_axes": 0}
    copies = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "in_axes": 0}
    lifted = nn.vmap(cls, **(rows if lift == "vmap" else copies))(*arguments)
    layer, variables = cls(*arguments), drawn(lifted, X)
    for given in ({"mask": MASK}, {"seq_lengths": LENGTHS}, {"resets": RESETS, "mask": MASK}):
        result = lifted.apply(variables, X, **given)
        for i in range(B):
            own = variables if lift == "vmap" else jax.tree.map(lambda leaf, i=i: leaf[i], variables)
            close(result[i], layer.apply(own, X[i], **{key: value[i] for key, value in given.items()}))
    with pytest.raises(TypeError, match="unexpected keyword"):
        lifted.apply(variables, X, msk=MASK)


@every
@pytest.mark.parametrize("lift", thinned([nn.remat, nn.jit, lambda cls: cls], 1), ids=["remat", "jit", "jax.jit"])
def test_training_may_be_traced(name, lift):
    cls, _ = LAYERS[name]
    dropping = {"dropout": 0.5, "recurrent_dropout": 0.3}
    argument = {"SimpleRNN": U, "RNN": SimpleRNNCell(U, **dropping), "both": SimpleRNN(U, **dropping)}[name]
    options = dropping if cls is SimpleRNN else {}
    layer, lifted = cls(argument, **options), lift(cls)(argument, **options)
    variables, rngs = drawn(layer, X), {"dropout": jax.random.key(3)}

    @jax.jit
    def call(training):
        return lifted.apply(variables, X, mask=MASK, training=training, rngs=rngs)

    close(call(False), layer.apply(variables, X, mask=MASK))
    if lift is nn.remat or lift is nn.jit:  # which fold something into keys
        assert not np.allclose(call(True), call(False))
    else:
        close(call(True), layer.apply(variables, X, mask=MASK, training=True, rngs=rngs))
    with pytest.raises(InvalidRngError, match=r'rngs=\{"dropout": key\}.*traced'):
        jax.jit(lambda training: lifted.apply(variables, X, training=training))(True)
    # Not given, it is False, and no key is needed.
    close(lifted.apply(variables, X), layer.apply(variables, X))


def test_layers_under_scan():
    """A deep network whose layers are one layer, scanned over; the mask is the same for all."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return SimpleRNN(F, return_sequences=True)(x, mask=mask), None

    deep = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=3)()
    variables = drawn(deep, X, MASK)
    x = X
    for i in range(3):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], variables["params"]["SimpleRNN_0"])
        x = SimpleRNN(F, return_sequences=True).apply({"params": own}, x, mask=MASK)
    close(deep.apply(variables, X, MASK)[0], x)
