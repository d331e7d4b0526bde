"""The Linen layers: names and shapes, what is returned, inside modules, options, learned states."""

import copy
import functools
import pickle
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import thinned
from models import KEY, LENGTHS, MASK, RESETS, B, F, T, U, X, check_tree, close, drawn, parameters, run, same, shapes

import flax_srnn.nnx as fnnx
from flax_srnn import RNN, Bidirectional, SimpleRNN, SimpleRNNCell, StackedRNNCells, compute_mask, simple_rnn
from flax_srnn.layers import options

# --- parameters --------------------------------------------------------------------------------------------------------

GRU = {
    name: {"kernel": (rows, 6)} | ({"bias": (6,)} if name in ("ir", "iz", "in", "hn") else {})
    for names, rows in ((("ir", "iz", "in"), F), (("hr", "hz", "hn"), 6))
    for name in names
}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (SimpleRNN(U), parameters(F, U)),
        (SimpleRNN(units=U, use_bias=False), {"kernel": (F, U), "recurrent_kernel": (U, U)}),
        (SimpleRNN(U, initial_state_initializer="zeros"), parameters(F, U, "initial_state")),
        (RNN(SimpleRNNCell(U)), parameters(F, U)),
        (RNN([SimpleRNNCell(U)]), parameters(F, U)),
        (RNN(StackedRNNCells([SimpleRNNCell(U)])), parameters(F, U)),
        (RNN([SimpleRNNCell(U), SimpleRNNCell(6)]), {"cells_0": parameters(F, U), "cells_1": parameters(U, 6)}),
        (
            RNN(StackedRNNCells([SimpleRNNCell(U), SimpleRNNCell(U)])),
            {"cells_0": parameters(F, U), "cells_1": parameters(U, U)},
        ),
        (
            RNN([StackedRNNCells([SimpleRNNCell(2), SimpleRNNCell(6)]), SimpleRNNCell(U)]),
            {"cells_0": {"cells_0": parameters(F, 2), "cells_1": parameters(2, 6)}, "cells_1": parameters(6, U)},
        ),
        (RNN(nn.GRUCell(6)), GRU),
        (Bidirectional(SimpleRNN(U)), {"forward_layer": parameters(F, U), "backward_layer": parameters(F, U)}),
        (
            Bidirectional(RNN([SimpleRNNCell(U), SimpleRNNCell(6)]), None, SimpleRNN(2, go_backwards=True)),
            {
                "forward_layer": {"cells_0": parameters(F, U), "cells_1": parameters(U, 6)},
                "backward_layer": parameters(F, 2),
            },
        ),
    ],
)
def test_parameters(layer, expected):
    variables = jax.eval_shape(layer.init, KEY, X)
    assert list(variables) == ["params"]
    assert shapes(variables["params"]) == expected


def test_parameters_of_cells():
    carry = np.zeros((B, U))
    assert shapes(jax.eval_shape(SimpleRNNCell(U).init, KEY, carry, X[:, 0])["params"]) == parameters(F, U)
    stack = StackedRNNCells([SimpleRNNCell(U), SimpleRNNCell(6)])
    params = jax.eval_shape(stack.init, KEY, stack.initialize_carry(KEY, (B, F)), X[:, 0])["params"]
    assert shapes(params) == {"cells_0": parameters(F, U), "cells_1": parameters(U, 6)}


def test_parameters_are_drawn_from_keys_of_their_own():
    cells = [SimpleRNNCell(U, bias_initializer="normal") for _ in range(2)]
    params = jax.jit(RNN(cells).init)(KEY, X[..., [0, 1, 2, 0]])["params"]
    leaves = [np.ravel(leaf)[:U] for leaf in jax.tree.leaves(params)]
    assert len({tuple(leaf.tolist()) for leaf in leaves}) == len(leaves) == 6


def test_dtypes():
    layer = SimpleRNN(U, dtype=jnp.bfloat16, return_state=True, stateful=True)
    (y, state), variables = jax.eval_shape(layer.init_with_output, KEY, X)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {np.dtype("float32")}
    assert y.dtype == state.dtype == variables["carry"]["states"][0].dtype == jnp.bfloat16
    half = jax.eval_shape(SimpleRNN(U, param_dtype=jnp.float16).init, KEY, X)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype("float16")}
    assert SimpleRNNCell(U, dtype=jnp.bfloat16).initialize_carry(KEY, (B, F)).dtype == jnp.bfloat16
    assert SimpleRNNCell(U, param_dtype=jnp.float16).initialize_carry(KEY, (7, B, F)).shape == (7, B, U)


# --- what is returned --------------------------------------------------------------------------------------------------

LAST, ALL, PAIR = (B, U), (B, T, U), ((B, 6), (B, 6))


def returned(layer, inputs=X):
    return shapes(jax.eval_shape(layer.init_with_output, KEY, inputs)[0])


@pytest.mark.parametrize(
    ("make", "states", "width"),
    [
        (functools.partial(SimpleRNN, U), [LAST], U),
        (functools.partial(RNN, nn.LSTMCell(6)), [PAIR], 6),
        (functools.partial(RNN, [SimpleRNNCell(U), nn.LSTMCell(6)]), [LAST, PAIR], 6),
        (functools.partial(RNN, [StackedRNNCells([SimpleRNNCell(U), nn.LSTMCell(6)])]), [(LAST, PAIR)], 6),
    ],
)
@pytest.mark.parametrize("sequences", thinned([False, True], 1))
@pytest.mark.slow
def test_returns(make, states, width, sequences):
    output = (B, T, width) if sequences else (B, width)
    layer = make(return_sequences=sequences, return_state=True)
    assert returned(layer) == (output, *states)
    assert returned(Bidirectional(layer)) == ((*output[:-1], 2 * width), *states, *states)
    assert returned(Bidirectional(layer, None)) == (output, output, *states, *states)
    layer = make(return_sequences=sequences)
    assert returned(layer) == output
    assert returned(Bidirectional(layer, "sum")) == output
    assert returned(Bidirectional(layer, None)) == (output, output)


@pytest.mark.parametrize("layer", [SimpleRNN(U, return_state=True), RNN(nn.GRUCell(U), return_state=True)])
@pytest.mark.parametrize("batch", [(), (0,), (7, B)])
def test_any_number_of_batch_dimensions(layer, batch):
    assert returned(layer, np.zeros((*batch, T, F))) == ((*batch, U), (*batch, U))
    layer = layer.clone(return_sequences=True, time_major=True)
    assert returned(layer, np.zeros((T, *batch, F))) == ((T, *batch, U), (*batch, U))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_merge_modes_are_the_two_layers_merged(sequences, backwards):
    """In the order of the inputs, if the forward layer goes backwards in its order, and 0 at masked steps, as Keras does."""
    layer = SimpleRNN(U, return_sequences=sequences, go_backwards=backwards)
    variables = drawn(Bidirectional(layer), X)
    other = layer.clone(go_backwards=not backwards)
    first, second = (
        one.clone(zero_output_for_mask=sequences).apply({"params": variables["params"][name]}, X, mask=MASK)
        for one, name in ((layer, "forward_layer"), (other, "backward_layer"))
    )
    if sequences:
        second = second[:, ::-1]
    expected = {
        "concat": np.concatenate([first, second], -1),
        "sum": first + second,
        "ave": (first + second) / 2,
        "mul": first * second,
        None: (first, second),
    }
    names, _ = get_args(options.MergeMode)
    assert tuple(expected) == (*options.MERGING, None) == (*get_args(names), None)
    explained = (Bidirectional.__doc__, fnnx.Bidirectional.__doc__)
    assert all(f'"{mode}"' in text for text in explained for mode in options.MERGING)
    for mode, value in expected.items():
        check_tree(Bidirectional(layer, mode).apply(variables, X, mask=MASK), value)
        given = Bidirectional(layer, mode, other).apply(variables, X, mask=MASK)
        check_tree(given, value)


# --- inside a user's modules -------------------------------------------------------------------------------------------


class Compact(nn.Module):
    layer: nn.Module
    rounds: int = 1

    @nn.compact
    def __call__(self, x):
        layer = self.layer.clone(parent=self, name="inner")
        return [layer(x * (i + 1)) for i in range(self.rounds)]


class WithSetup(nn.Module):
    layer: nn.Module
    rounds: int = 1

    def setup(self):
        self.inner = self.layer.clone(parent=None)

    def __call__(self, x):
        return [self.inner(x * (i + 1)) for i in range(self.rounds)]


class Created(nn.Module):
    """Layers made inside `compact` take Flax's names."""

    @nn.compact
    def __call__(self, x):
        x = SimpleRNN(U, return_sequences=True)(x)
        x = RNN([SimpleRNNCell(U), SimpleRNNCell(2)], return_sequences=True)(x)
        return Bidirectional(SimpleRNN(U))(x)


LAYERS = [
    SimpleRNN(U),
    RNN(SimpleRNNCell(U)),
    RNN(nn.LSTMCell(U)),
    RNN([SimpleRNNCell(U), nn.GRUCell(2)]),
    Bidirectional(SimpleRNN(U)),
    Bidirectional(RNN([SimpleRNNCell(U), SimpleRNNCell(2)])),
]


@pytest.mark.parametrize("pair", thinned(zip([Compact, WithSetup] * 3, LAYERS, strict=True), 2))
def test_shared_layer_has_one_set_of_parameters(pair):
    model, layer = pair
    variables = drawn(layer, X)
    inside = {"params": {"inner": variables["params"]}}
    assert shapes(jax.eval_shape(model(layer, rounds=2).init, KEY, X)) == shapes(inside)
    once, twice = run(model(layer, rounds=2), inside, X)
    close(once, layer.apply(variables, X))
    close(twice, layer.apply(variables, 2 * X))


def test_layers_made_inside_compact():
    params = jax.eval_shape(Created().init, KEY, X)["params"]
    assert shapes(params) == {
        "SimpleRNN_0": parameters(F, U),
        "RNN_0": {"cells_0": parameters(U, U), "cells_1": parameters(U, 2)},
        "Bidirectional_0": {"forward_layer": parameters(2, U), "backward_layer": parameters(2, U)},
    }


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_bound_layer_table_and_text(layer):
    variables = drawn(layer, X)
    bound = layer.bind(variables)
    close(bound(X), layer.apply(variables, X))
    unbound, inside = bound.unbind()
    assert unbound == layer
    check_tree(inside, variables, same)
    assert type(layer).__name__ in repr(layer)
    assert type(layer).__name__ in repr(bound)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    table = layer.tabulate(jax.random.wrap_key_data(KEY), X, console_kwargs={"width": 200, "force_terminal": False})
    assert f"Total Parameters: {count}" in table


# --- options -----------------------------------------------------------------------------------------------------------


def test_arguments_are_attributes_under_their_keras_names():
    arguments = {
        "units": 5,
        "activation": "relu",
        "use_bias": False,
        "kernel_initializer": "ones",
        "recurrent_initializer": "identity",
        "bias_initializer": "ones",
        "kernel_regularizer": "l1",
        "recurrent_regularizer": "l2",
        "bias_regularizer": "l1_l2",
        "kernel_constraint": "max_norm",
        "recurrent_constraint": "non_neg",
        "bias_constraint": "unit_norm",
        "dropout": 0.1,
        "recurrent_dropout": 0.2,
        "seed": 3,
        "dtype": jnp.bfloat16,
        "param_dtype": jnp.float16,
        "precision": "high",
    }
    flags = {
        "return_sequences": True,
        "return_state": True,
        "go_backwards": True,
        "stateful": True,
        "unroll": True,
        "zero_output_for_mask": True,
    }
    cell, layer = SimpleRNNCell(**arguments), SimpleRNN(**arguments, activity_regularizer="l2", **flags)
    wrapped = RNN(cell, **flags)
    for name, value in arguments.items():
        assert getattr(cell, name) == getattr(layer, name) == value
    for name, value in flags.items():
        assert getattr(layer, name) is getattr(wrapped, name) is value
    assert layer.activity_regularizer == "l2"
    assert wrapped.cell == cell
    assert layer.states is None
    assert Bidirectional(layer).stateful
    assert Bidirectional(layer, None).merge_mode is None
    # In Keras's order, positionally.
    assert SimpleRNNCell(*arguments.values()) == cell
    assert RNN(cell, *flags.values()) == wrapped


CONFIG = {"class_name": "RandomNormal", "config": {"stddev": 0.1, "seed": None}}
KINDS = {
    "names": lambda: SimpleRNN(U, kernel_regularizer="l2"),
    "configs": lambda: SimpleRNN(U, kernel_initializer=copy.deepcopy(CONFIG), activation={"class_name": "relu"}),
    "configs with lists": lambda: SimpleRNN(
        U, kernel_constraint={"class_name": "MaxNorm", "config": {"max_value": 2.0, "axis": [0, 1]}}
    ),
    "arrays": lambda: SimpleRNN(U, kernel_initializer=np.ones((F, U)), bias_initializer=jnp.arange(4.0)),
    "callables": lambda: SimpleRNN(U, activation=jnp.sin, kernel_initializer=nn.initializers.ones),
    "RNN": lambda: RNN(SimpleRNNCell(U)),
    "RNN of a list": lambda: RNN([SimpleRNNCell(U), SimpleRNNCell(2, kernel_initializer=dict(CONFIG))]),
    "RNN of a stack": lambda: RNN(StackedRNNCells([SimpleRNNCell(U), SimpleRNNCell(2)])),
    "Bidirectional": lambda: Bidirectional(RNN([SimpleRNNCell(U)]), "sum", SimpleRNN(U, go_backwards=True)),
    "an array for the initial state": lambda: SimpleRNN(U, initial_state_initializer=np.arange(4.0)),
}


def test_equal_layers_share_one_compilation():
    layers = [make() for make in KINDS.values()]
    twins = [make() for make in KINDS.values()]
    variables = [drawn(layer, X) for layer in layers]
    apply = jax.jit(lambda layer, variables: layer.apply(variables, X), static_argnums=0)
    for layer, twin, v in zip(layers, twins, variables, strict=True):
        assert layer == twin
        assert hash(layer) == hash(twin)
        same(apply(layer, v), apply(twin, v))
    assert apply._cache_size() == len(layers)
    for i, layer in enumerate(layers):
        assert all(layer != other for other in layers[i + 1 :])


def test_layers_differ_where_an_option_differs():
    assert SimpleRNN(U, kernel_initializer=np.ones((F, U))) != SimpleRNN(U, kernel_initializer=np.zeros((F, U)))
    assert SimpleRNN(U) != SimpleRNN(U, unroll=True) != SimpleRNN(U, unroll=2)
    assert RNN([SimpleRNNCell(U)]) != RNN([SimpleRNNCell(U, dropout=0.1)])
    assert SimpleRNN(U) != RNN(SimpleRNNCell(U))


@pytest.mark.parametrize("make", [make for name, make in KINDS.items() if name != "callables"])
def test_copies(make):
    layer = make()
    for twin in (
        layer.clone(),
        layer.copy(),
        copy.copy(layer),
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
    ):
        assert twin == layer
        assert hash(twin) == hash(layer)


def test_a_layer_does_not_change_with_what_it_was_made_of():
    config, cells, array = copy.deepcopy(CONFIG), [SimpleRNNCell(U)], np.ones((F, U))
    layer = SimpleRNN(U, kernel_initializer=array, recurrent_initializer=config)
    wrapped = RNN(cells)
    before = hash(layer), hash(wrapped)
    config["config"]["stddev"], array[:] = 5.0, 7.0
    cells.append(SimpleRNNCell(2))
    assert (hash(layer), hash(wrapped)) == before
    assert len(wrapped.cell) == 1


# --- masks, lengths, learned states ------------------------------------------------------------------------------------


def test_mask_and_lengths_both_apply():
    layer = SimpleRNN(U, return_sequences=True, return_state=True)
    variables = drawn(layer, X)
    together = MASK & (np.arange(T) < LENGTHS[:, None])
    check_tree(
        layer.apply(variables, X, mask=MASK, seq_lengths=LENGTHS), layer.apply(variables, X, mask=together), same
    )


@pytest.mark.parametrize("options", [{}, {"go_backwards": True}, {"go_backwards": True, "keep_order": True}])
def test_the_output_mask_matches_the_outputs(options):
    layer = SimpleRNN(U, return_sequences=True, zero_output_for_mask=True, **options)
    y = layer.apply(drawn(layer, X), X, mask=MASK)
    same(np.any(y != 0, -1), compute_mask(MASK, **options))
    same(np.any(y != 0, -1), compute_mask(MASK.tolist(), **options))


LEARNED = SimpleRNN(
    U, return_sequences=True, return_state=True, initial_state_initializer="normal", activation="sigmoid"
)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"mask": MASK}, {"resets": RESETS}, {"resets": RESETS, "mask": MASK, "seq_lengths": LENGTHS}],
    ids=lambda arguments: "-".join(arguments) or "plain",
)
def test_learned_initial_state_and_its_gradient(arguments):
    """It is the same as the state given in every row, and its gradient the sum of theirs."""
    variables = drawn(LEARNED, X)
    h0 = np.broadcast_to(variables["params"]["initial_state"], (B, U))
    plain = {"params": {name: p for name, p in variables["params"].items() if name != "initial_state"}}
    given = LEARNED.clone(initial_state_initializer=None)
    weights = np.random.default_rng(3).normal(size=(B, T, U)).astype(np.float32)

    def loss(y_and_state):
        return (y_and_state[0] * weights).sum() + y_and_state[1].sum()

    value, gradients = jax.value_and_grad(lambda v: loss(LEARNED.apply(v, X, **arguments)))(variables)
    expected, (params, states) = jax.value_and_grad(
        lambda v, h: loss(given.apply(v, X, initial_state=h, **arguments)), argnums=(0, 1)
    )(plain, h0)
    close(value, expected)
    learned = gradients["params"].pop("initial_state")
    close(learned, states.sum(0))
    assert np.abs(learned).min() > 0
    check_tree(gradients, params, functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5))


def test_a_given_state_wins_over_the_learned_one():
    variables = drawn(LEARNED, X)
    other = {"params": {**variables["params"], "initial_state": np.full(U, 9.0, np.float32)}}
    zeros = np.zeros((B, U), np.float32)
    expected = LEARNED.apply(other, X, initial_state=zeros, resets=RESETS)
    check_tree(LEARNED.apply(variables, X, initial_state=zeros, resets=RESETS), expected, same)


def test_learned_initial_state_without_steps_or_rows():
    variables = drawn(LEARNED, X)
    learned = np.broadcast_to(variables["params"]["initial_state"], (B, U))
    check_tree(LEARNED.apply(variables, X[:, :0]), (np.zeros((B, 0, U)), learned), same)
    check_tree(LEARNED.apply(variables, X[:0]), (np.zeros((0, T, U)), np.zeros((0, U))), same)
    last = LEARNED.clone(return_sequences=False)
    check_tree(last.apply(variables, X[:, :0]), (learned, learned), same)


def test_learned_initial_state_in_both_directions():
    layer = Bidirectional(LEARNED, None)
    variables = drawn(layer, X)
    y, z, *states = layer.apply(variables, X[:, :0])
    assert y.shape == z.shape == (B, 0, U)
    for state, name in zip(states, ("forward_layer", "backward_layer"), strict=True):
        same(state, np.broadcast_to(variables["params"][name]["initial_state"], (B, U)))


def test_packed_segments_never_see_each_other():
    """In both directions a segment comes out as it does alone."""
    layer = Bidirectional(SimpleRNN(U, return_sequences=True), None)
    variables = drawn(layer, X)
    packed = layer.apply(variables, X, resets=np.arange(T) == np.full((B, 1), 2))
    alone = [layer.apply(variables, segment) for segment in (X[:, :2], X[:, 2:])]
    for outputs, segments in zip(packed, zip(*alone, strict=True), strict=True):
        close(outputs, np.concatenate(segments, 1))


def test_boxed_parameters_are_used_like_bare_ones():
    box = functools.partial(nn.with_partitioning, names=(None, "units"))
    init = nn.initializers.normal()
    layer = SimpleRNN(U, kernel_initializer=box(init), recurrent_initializer=box(init))
    boxed = jax.jit(layer.init)(KEY, X)
    assert isinstance(boxed["params"]["kernel"], nn.Partitioned)
    assert nn.get_partition_spec(boxed)["params"]["kernel"] == jax.sharding.PartitionSpec(None, "units")
    bare = nn.meta.unbox(boxed)
    same(layer.apply(boxed, X), layer.apply(bare, X))
    final, _ = simple_rnn(boxed["params"], X)
    close(final, layer.apply(bare, X))


# --- dropout keys ------------------------------------------------------------------------------------------------------


def test_seed_stands_in_for_a_missing_key():
    layer = SimpleRNN(U, dropout=0.5, recurrent_dropout=0.5, seed=7)
    variables = drawn(layer, X)
    seeded = layer.apply(variables, X, training=True)
    same(seeded, layer.apply(variables, X, training=True))
    given = layer.apply(variables, X, training=True, rngs={"dropout": KEY})
    same(given, layer.clone(seed=None).apply(variables, X, training=True, rngs={"dropout": KEY}))
    other = layer.clone(seed=8).apply(variables, X, training=True)
    none = layer.apply(variables, X)
    results = [seeded, given, other, none]
    assert len({np.asarray(result).tobytes() for result in results}) == len(results)


def test_one_seed_draws_other_masks_at_every_place():
    cell = SimpleRNNCell(
        F, activation=None, kernel_initializer="identity", recurrent_initializer="zeros", dropout=0.5, seed=1
    )
    ones = np.ones((16, 1, F), np.float32)
    for layer in (RNN([cell, cell.copy()]), Bidirectional(RNN(cell), None)):
        variables = jax.jit(layer.init)(KEY, ones)
        result = layer.apply(variables, ones, training=True)
        if isinstance(result, tuple):
            assert not np.array_equal(*result)
        else:  # both masks where they agree: 0 or 4; a quarter where they do not
            assert set(np.unique(result)) == {0.0, 4.0}
            assert 0.1 < np.mean(result > 0) < 0.45


def test_no_key_is_read_where_nothing_is_dropped():
    variables = drawn(SimpleRNN(U), X)
    for layer in (SimpleRNN(U), RNN(SimpleRNNCell(U)), SimpleRNN(U, dropout=0, recurrent_dropout=0.0)):
        same(layer.apply(variables, X, training=True), layer.apply(variables, X))
    dropping = SimpleRNN(U, dropout=0.5, recurrent_dropout=0.5)
    same(dropping.apply(variables, X, training=False), SimpleRNN(U).apply(variables, X))
