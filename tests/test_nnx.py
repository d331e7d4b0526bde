"""The NNX layers against the Linen layers, to the last bit, and against Flax's own NNX cells and loops."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flax_srnn
import flax_srnn.nnx as fnnx

F, U, B, T = 3, 5, 4, 6


def _numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _randomised(tree):
    """The same tree with random numbers: a bias of zeros would hide mistakes."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([_numbers(*leaf.shape, seed=i).astype(leaf.dtype) / 2 for i, leaf in enumerate(leaves)])


def _twins(linen, layer, x=None, **call):
    """Gives both the same random parameters; returns Linen's variables."""
    variables = linen.init({"params": jax.random.key(0)}, _numbers(B, T, F) if x is None else x, **call)
    params = _randomised(variables["params"])
    fnnx.from_linen(layer, params)
    jax.tree.map(np.testing.assert_array_equal, fnnx.to_linen(layer), params)
    return {**variables, "params": params}


def _assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


# --- the same arguments ------------------------------------------------------------------------------------------------


def _arguments(function, *without):
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in parameters if p.name not in ("self", *without)]


@pytest.mark.parametrize("name", ["SimpleRNNCell", "SimpleRNN", "RNN", "StackedRNNCells", "Bidirectional"])
def test_signatures_are_those_of_linen(name):
    linen, layer = getattr(flax_srnn, name), getattr(fnnx, name)
    assert _arguments(layer.__init__, "in_features", "rngs") == _arguments(linen.__init__, "parent", "name")
    assert _arguments(layer.__call__, "training") == _arguments(linen.__call__, "training")
    kinds = [{p.name: p.kind for p in inspect.signature(cls.__call__).parameters.values()} for cls in (linen, layer)]
    assert kinds[0] == kinds[1]


_INVALID = [
    {"units": 0},
    {"units": 2.5},
    {"units": True},
    {"activation": "tanhh"},
    {"activation": "threshold"},
    {"use_bias": 1},
    {"kernel_initializer": "nothing"},
    {"recurrent_initializer": 3},
    {"bias_regularizer": "l3"},
    {"kernel_constraint": {"class_name": "Nope", "config": {}}},
    {"dropout": 1.5},
    {"recurrent_dropout": float("nan")},
    {"dropout": "half"},
    {"seed": 0.5},
    {"dtype": "int32"},
    {"param_dtype": None},
    {"activity_regularizer": "nope"},
    {"return_sequences": 1},
    {"stateful": None},
    {"unroll": -1},
    {"initial_state_initializer": "nothing"},
    {"implementation": "cuda"},
    {"time_major": "yes"},
]


@pytest.mark.parametrize("arguments", _INVALID, ids=repr)
def test_invalid_arguments_raise_as_in_linen(arguments):
    arguments = {"units": U} | arguments
    with pytest.raises((TypeError, ValueError)) as expected:
        flax_srnn.SimpleRNN(**arguments)
    with pytest.raises(expected.type) as raised:
        fnnx.SimpleRNN(F, **arguments, rngs=nnx.Rngs(0))
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("layer", [fnnx.SimpleRNNCell, fnnx.SimpleRNN])
def test_arguments_that_linen_has_not(layer):
    with pytest.raises(ValueError, match="`in_features`, expected a positive integer, got 0"):
        layer(0, U, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"`in_features` must be a positive integer, got 2\.5"):
        layer(2.5, U, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"`rngs` must be a flax.nnx.Rngs, got 0 \(int\)"):
        layer(F, U, rngs=0)
    with pytest.raises(TypeError, match="required keyword-only argument: 'rngs'"):
        layer(F, U)
    with pytest.raises(TypeError, match="unexpected keyword argument 'activaton'"):
        layer(F, U, activaton="relu", rngs=nnx.Rngs(0))


# --- the same results --------------------------------------------------------------------------------------------------

_MASK = np.random.default_rng(1).random((B, T)) > 0.3
_RESETS = np.random.default_rng(2).random((B, T)) > 0.7
_SEQUENCES = {"return_sequences": True, "return_state": True}
_CASES = {
    "last output": ({"precision": "highest"}, {}),
    "no bias, relu": ({"use_bias": False, "activation": "relu", **_SEQUENCES}, {}),
    "initial state": (_SEQUENCES, {"initial_state": _numbers(B, U, seed=9)}),
    "learned initial state": ({"initial_state_initializer": "ones", **_SEQUENCES}, {"resets": _RESETS}),
    "masked": ({"zero_output_for_mask": True, **_SEQUENCES}, {"mask": _MASK, "seq_lengths": [6, 0, 3, 5]}),
    "backwards": ({"go_backwards": True, "keep_order": True, **_SEQUENCES}, {"resets": _RESETS, "mask": _MASK}),
    "plain scan, unrolled": ({"implementation": "autodiff", "unroll": 2, **_SEQUENCES}, {}),
    "half precision": ({"dtype": jnp.bfloat16, "param_dtype": jnp.float16, **_SEQUENCES}, {}),
    "seeded dropout": ({"dropout": 0.5, "recurrent_dropout": 0.3, "seed": 7, **_SEQUENCES}, {"training": True}),
    "no dropout in inference": ({"dropout": 0.5, "recurrent_dropout": 0.3}, {"training": False}),
}


@pytest.mark.parametrize("case", _CASES)
def test_simple_rnn_equals_linen(case):
    arguments, call = _CASES[case]
    x = _numbers(B, T, F)
    linen, layer = flax_srnn.SimpleRNN(U, **arguments), fnnx.SimpleRNN(F, U, **arguments, rngs=nnx.Rngs(0))
    variables = _twins(linen, layer)

    def linen_loss(params):
        returned = linen.apply({"params": params}, x, **call)
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(returned)), returned

    def loss(layer):
        returned = layer(x, **call)
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(returned)), returned

    grads, expected = jax.grad(linen_loss, has_aux=True)(variables["params"])
    layer_grads, actual = nnx.grad(loss, has_aux=True)(layer)
    _assert_identical(actual, expected)
    _assert_identical(nnx.to_pure_dict(layer_grads), grads)


def _cells(*options, rngs=None):
    """Linen's and NNX's cells of widths 5, 6, … with the same options, the first for F features."""
    widths = [U + i for i in range(len(options))]
    features = [F, *widths]
    linen = [flax_srnn.SimpleRNNCell(u, **o) for u, o in zip(widths, options, strict=True)]
    made = [
        fnnx.SimpleRNNCell(f, u, **o, rngs=rngs or nnx.Rngs(0))
        for f, u, o in zip(features, widths, options, strict=False)
    ]
    return linen, made


_TWO = ({"dropout": 0.5, "seed": 1}, {"activation": "relu", "recurrent_dropout": 0.5, "seed": 1})


def _rnn(stack, **options):
    linen, made = _cells(*_TWO)
    if stack:
        return flax_srnn.RNN(flax_srnn.StackedRNNCells(linen), **options), fnnx.RNN(
            fnnx.StackedRNNCells(made), **options
        )
    return flax_srnn.RNN(linen, **options), fnnx.RNN(made, **options)


def _rnn_of_one(in_list, **options):
    (linen,), (made,) = _cells({"dropout": 0.5, "seed": 1})
    return flax_srnn.RNN([linen] if in_list else linen, **options), fnnx.RNN([made] if in_list else made, **options)


def _bidirectional(merge_mode="concat", **options):
    arguments = {"dropout": 0.5, "seed": 3, **options}
    rngs = nnx.Rngs(0)
    return (
        flax_srnn.Bidirectional(flax_srnn.SimpleRNN(U, **arguments), merge_mode),
        fnnx.Bidirectional(fnnx.SimpleRNN(F, U, **arguments, rngs=rngs), merge_mode, rngs=rngs),
    )


def _bidirectional_stack(**options):
    linen, layer = _rnn(False, **options)
    return flax_srnn.Bidirectional(linen), fnnx.Bidirectional(layer, rngs=nnx.Rngs(0))


def _bidirectional_pair(**options):
    pairs = [
        (
            flax_srnn.SimpleRNN(U + i, go_backwards=not i, **options),
            fnnx.SimpleRNN(F, U + i, go_backwards=not i, **options, rngs=nnx.Rngs(0)),
        )
        for i in range(2)
    ]
    (linen, layer), (linen_backward, backward) = pairs
    return (
        flax_srnn.Bidirectional(linen, backward_layer=linen_backward),
        fnnx.Bidirectional(layer, backward_layer=backward),
    )


_PAIRS = {
    "RNN of one cell": functools.partial(_rnn_of_one, False),
    "RNN of a list of one": functools.partial(_rnn_of_one, True),
    "RNN of two": functools.partial(_rnn, False),
    "RNN of stacked cells": functools.partial(_rnn, True),
    "Bidirectional": _bidirectional,
    "Bidirectional of a backward layer, sum": functools.partial(_bidirectional, "sum", go_backwards=True),
    "Bidirectional, both": functools.partial(_bidirectional, None),
    "Bidirectional of two cells": _bidirectional_stack,
    "Bidirectional, two layers": _bidirectional_pair,
}


@pytest.mark.parametrize("pair", _PAIRS)
def test_layers_of_cells_equal_linen(pair):
    linen, layer = _PAIRS[pair](**_SEQUENCES)
    variables = _twins(linen, layer)
    x = _numbers(B, T, F)
    call = {"mask": _MASK, "resets": _RESETS}
    expected = linen.apply(variables, x, **call, training=True)
    _assert_identical(layer(x, **call, training=True), expected)
    states = list(expected[-(len(jax.tree.leaves(layer(x))) - (2 if "both" in pair else 1)) :])
    _assert_identical(
        layer(x, **call, initial_state=states, training=False),
        linen.apply(variables, x, **call, initial_state=states),
    )


def test_only_the_last_output_equals_linen():
    x = _numbers(B, T, F)
    linen, layer = _bidirectional_stack()
    variables = _twins(linen, layer)
    _assert_identical(layer(x, training=False), linen.apply(variables, x))


def test_cells_equal_linen():
    linen, made = _cells(*_TWO)
    linen, cell = flax_srnn.StackedRNNCells(linen), fnnx.StackedRNNCells(made)
    carry = linen.initialize_carry(jax.random.key(0), (B, F))
    _assert_identical(cell.initialize_carry((B, F)), carry)
    x, carry = _numbers(B, F), tuple(_randomised(carry))
    params = _randomised(linen.init(jax.random.key(0), carry, x)["params"])
    fnnx.from_linen(cell, params)
    _assert_identical(cell(carry, x, training=False), linen.apply({"params": params}, carry, x))
    one, expected = made[0], flax_srnn.SimpleRNNCell(U, **_TWO[0])
    _assert_identical(
        one(carry[0], x, training=True), expected.apply({"params": params["cells_0"]}, carry[0], x, training=True)
    )


def test_time_major_and_any_batch():
    arguments = {"time_major": True, **_SEQUENCES}
    x = _numbers(T, 2, 3, F)
    linen, layer = flax_srnn.SimpleRNN(U, **arguments), fnnx.SimpleRNN(F, U, **arguments, rngs=nnx.Rngs(0))
    variables = _twins(linen, layer, x)
    _assert_identical(layer(x), linen.apply(variables, x))


@pytest.mark.parametrize(
    ("x", "call"),
    [
        (_numbers(B, T, F + 1), {}),
        (_numbers(F), {}),
        ("text", {}),
        (_numbers(B, T, F), {"mask": _MASK[:1]}),
        (_numbers(B, T, F), {"seq_lengths": [1, 2, 3, 99]}),
        (_numbers(B, T, F), {"initial_state": _numbers(B, U + 1)}),
        (_numbers(B, T, F), {"initial_state": [_numbers(B, U)] * 2}),
        (_numbers(B, T, F), {"resets": _RESETS.T}),
        (_numbers(B, T, F), {"training": 1}),
    ],
)
def test_invalid_calls_raise_as_in_linen(x, call):
    linen, layer = flax_srnn.SimpleRNN(U), fnnx.SimpleRNN(F, U, rngs=nnx.Rngs(0))
    variables = _twins(linen, layer)
    with pytest.raises((TypeError, ValueError)) as expected:
        linen.apply(variables, x, **call)
    with pytest.raises(expected.type) as raised:
        layer(x, **call)
    if x is not None and np.shape(x)[-1:] != (F + 1,):  # there Linen finds the parameters of another shape
        assert str(raised.value) == str(expected.value)


# --- dropout -----------------------------------------------------------------------------------------------------------


def test_dropout_draws_from_the_stream_and_follows_train_and_eval():
    x = _numbers(B, T, F)
    layer = fnnx.SimpleRNN(F, U, dropout=0.5, rngs=nnx.Rngs(params=0, dropout=1))
    first, second = layer(x), layer(x)  # a new module is in training mode, as nnx.Dropout is
    assert not np.array_equal(first, second)
    layer.eval()
    quiet = layer(x)
    np.testing.assert_array_equal(layer(x), quiet)
    assert not np.array_equal(layer(x, training=True), quiet)
    layer.train()
    assert not np.array_equal(layer(x), quiet)
    np.testing.assert_array_equal(layer(x, training=False), quiet)
    # The key sequence is the stream's: the same seed, the same masks, under jit too.
    again = fnnx.SimpleRNN(F, U, dropout=0.5, rngs=nnx.Rngs(params=0, dropout=1))
    forward = nnx.jit(lambda layer, x: layer(x))
    np.testing.assert_allclose(forward(again, x), first, atol=1e-6)
    np.testing.assert_allclose(forward(again, x), second, atol=1e-6)


def test_train_and_eval_reach_the_cells_of_layers():
    rngs = nnx.Rngs(0)
    _, cells = _cells({"dropout": 0.5}, {"recurrent_dropout": 0.5}, rngs=rngs)
    layer = fnnx.Bidirectional(fnnx.RNN(cells), rngs=rngs)
    x = _numbers(B, T, F)
    layer.eval()
    np.testing.assert_array_equal(layer(x), layer(x))
    layer.train()
    assert not np.array_equal(layer(x), layer(x))


def test_which_stream_dropout_uses():
    x = _numbers(B, T, F)
    with pytest.raises(KeyError, match="dropout"):
        fnnx.SimpleRNN(F, U, dropout=0.5, rngs=nnx.Rngs(params=0))
    assert fnnx.SimpleRNN(F, U, rngs=nnx.Rngs(params=0)).rngs is None
    seeded = fnnx.SimpleRNN(F, U, dropout=0.5, seed=1, rngs=nnx.Rngs(0))
    assert seeded.rngs is None
    np.testing.assert_array_equal(seeded(x), seeded(x))
    streamed = fnnx.SimpleRNN(F, U, dropout=0.5, seed=1, rngs=nnx.Rngs(0, dropout=1))
    assert not np.array_equal(streamed(x), streamed(x))


@pytest.mark.skipif(not hasattr(nnx, "view"), reason="this Flax has no nnx.view")
def test_view():
    layer = fnnx.SimpleRNN(F, U, dropout=0.5, rngs=nnx.Rngs(0))
    view = nnx.view(layer, deterministic=True)
    assert view.deterministic
    assert not layer.deterministic


# --- states between calls ----------------------------------------------------------------------------------------------


def test_stateful_layers_carry_states_as_linen_does():
    x = _numbers(B, 2 * T, F)
    for make in (functools.partial(_rnn, False), _bidirectional, _rnn_of_one):
        arguments = {} if make is not _rnn_of_one else {"in_list": False}
        linen, layer = make(**arguments, stateful=True, return_state=True)
        variables = _twins(linen, layer)
        apply = functools.partial(linen.apply, mutable=["carry"])
        run = nnx.jit(lambda layer, x: layer(x, training=False))
        for piece in (x[:, :T], x[:, T:]):
            expected, updated = apply(variables, piece)
            variables = {**variables, **updated}
            actual = run(layer, piece)
            for a, e in zip(actual, expected, strict=True):
                np.testing.assert_allclose(a, e, atol=1e-6)
        carried = nnx.state(layer, fnnx.Carry)
        assert len(jax.tree.leaves(carried)) == len(jax.tree.leaves(variables["carry"]))
        # Split, merged and set back, it starts anew.
        layer = nnx.merge(*nnx.split(layer))
        fnnx.reset_states(layer)
        expected, _ = apply(flax_srnn.reset_states(variables), x)
        for a, e in zip(layer(x, training=False), expected, strict=True):
            np.testing.assert_array_equal(a, e)


def test_reset_states():
    layer = fnnx.SimpleRNN(F, U, stateful=True, initial_state_initializer="ones", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="call the layer once"):
        layer.reset_states()
    fnnx.reset_states(layer)  # nothing to do yet
    x = _numbers(B, T, F)
    first = layer(x)
    assert not np.array_equal(layer(x), first)
    layer.reset_states()
    np.testing.assert_array_equal(layer.states[0][...], np.ones((B, U)))
    np.testing.assert_array_equal(layer(x), first)
    given = _numbers(B, U, seed=5)
    layer.reset_states(given)
    after = layer(x)
    np.testing.assert_array_equal(layer(x, initial_state=given), after)
    np.testing.assert_array_equal(layer.states[0][...], after)
    for wrong in (given[:1], [given, given], [1j * given]):
        with pytest.raises(ValueError, match="`states`"):
            layer.reset_states(wrong)
    with pytest.raises(
        ValueError,
        match=r"`inputs` has the batch shape \(2,\), but the recorded state .*: a stateful layer keeps its batch",
    ):
        layer(x[:2])
    assert layer(x[:2], initial_state=given[:2]).shape == (2, U)
    assert layer.states[0].shape == (2, U)
    with pytest.raises(AttributeError, match="Layer must be stateful"):
        fnnx.SimpleRNN(F, U, rngs=nnx.Rngs(0)).reset_states()


def test_reset_states_of_both_directions():
    _, layer = _bidirectional(stateful=True, return_state=True)
    x = _numbers(B, T, F)
    layer(x, training=False)
    given = [_numbers(B, U, seed=i) for i in range(2)]
    layer.reset_states(given)
    expected = layer(x, initial_state=given, training=False)
    layer.reset_states(given)
    _assert_identical(layer(x, training=False), expected)
    with pytest.raises(ValueError, match="`states` must hold 2 states"):
        layer.reset_states(given[:1])


# --- training ----------------------------------------------------------------------------------------------------------


def test_penalties_equal_linen():
    penalties = {"kernel_regularizer": "l2", "recurrent_regularizer": "l1", "bias_regularizer": "l1_l2"}
    arguments = {**penalties, "activity_regularizer": {"class_name": "L2", "config": {"l2": 0.5}}, **_SEQUENCES}
    linen, layer = flax_srnn.SimpleRNN(U, **arguments), fnnx.SimpleRNN(F, U, **arguments, rngs=nnx.Rngs(0))
    variables = _twins(linen, layer)
    x = _numbers(B, T, F)

    def linen_loss(params):
        _, sown = linen.apply({"params": params}, x, mutable=["losses"])
        return flax_srnn.regularization_loss(sown)

    def loss(layer):
        layer(x)
        return fnnx.regularization_loss(layer)

    expected, grads = jax.value_and_grad(linen_loss)(variables["params"])
    for _ in range(2):  # what one call left behind is not in the next
        actual, layer_grads = nnx.jit(nnx.value_and_grad(loss))(layer)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
        for name, grad in grads.items():
            np.testing.assert_allclose(layer_grads[name][...], grad, rtol=1e-5, atol=1e-6)

    # Called twice, weights count once and activities twice, as in Linen.
    weights = fnnx.regularization_loss(layer)
    layer(x), layer(x)
    np.testing.assert_allclose(fnnx.regularization_loss(layer), 2 * expected - weights, rtol=1e-6)


def test_penalties_are_found_anywhere_in_a_model():
    rngs = nnx.Rngs(0)
    _, cells = _cells({"kernel_regularizer": "l1"}, {"recurrent_regularizer": "l1"}, rngs=rngs)
    model = nnx.Sequential(fnnx.RNN(cells, return_sequences=True), nnx.RNN(nnx.SimpleCell(6, 2, rngs=rngs)))
    expected = 0.01 * (jnp.abs(cells[0].kernel[...]).sum() + jnp.abs(cells[1].recurrent_kernel[...]).sum())
    np.testing.assert_allclose(fnnx.regularization_loss(model), expected, rtol=1e-6)


def test_an_optimizer_keeps_constraints():
    rngs = nnx.Rngs(0)
    layer = fnnx.Bidirectional(
        fnnx.SimpleRNN(F, U, kernel_constraint="non_neg", recurrent_constraint="unit_norm", rngs=rngs), rngs=rngs
    )
    constraints = fnnx.collect_constraints(layer)
    assert set(constraints) == {"layer", "backward_layer"}
    optimizer = nnx.Optimizer(
        layer, optax.chain(optax.adam(0.1), flax_srnn.keep_constraints(constraints)), wrt=nnx.Param
    )
    x = _numbers(B, T, F)

    @nnx.jit
    def train_step(layer, optimizer):
        loss, grads = nnx.value_and_grad(lambda layer: jnp.mean((layer(x) - 0.5) ** 2))(layer)
        optimizer.update(layer, grads)
        return loss

    losses = [train_step(layer, optimizer) for _ in range(5)]
    assert losses[-1] < losses[0]
    for direction in (layer.layer, layer.backward_layer):
        assert (direction.kernel[...] >= 0).all()
        norms = np.linalg.norm(direction.recurrent_kernel[...], axis=0)
        np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_options_are_static_and_modules_are_compared_by_identity():
    def make():
        return fnnx.SimpleRNN(
            F,
            U,
            kernel_regularizer={"class_name": "L2", "config": {"l2": 0.1}},
            kernel_constraint={"class_name": "MaxNorm", "config": {"max_value": 2, "axis": [0]}},
            recurrent_initializer=np.eye(U),
            rngs=nnx.Rngs(0),
        )

    a, b = make(), make()
    assert a != b
    assert a == a
    assert {a, b} == {b, a}
    graphs = [nnx.split(layer)[0] for layer in (a, b)]
    assert graphs[0] == graphs[1]
    assert hash(graphs[0]) == hash(graphs[1])
    assert repr(a).startswith("SimpleRNN(")
    np.testing.assert_array_equal(a.recurrent_kernel[...], np.eye(U))


def test_jit_compiles_once():
    layer = fnnx.SimpleRNN(F, U, stateful=True, dropout=0.5, activity_regularizer="l2", rngs=nnx.Rngs(0))
    traces = []

    @nnx.jit
    def run(layer, x):
        traces.append(1)
        return layer(x), fnnx.regularization_loss(layer)

    x = _numbers(B, T, F)
    layer(x)
    for _ in range(3):
        run(layer, x)
    assert len(traces) == 1


def test_sharding_metadata():
    mesh = jax.make_mesh((2, 4), ("data", "model"), devices=jax.devices()[:8])
    partitioned = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))

    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else mesh:

        @nnx.jit
        def make():
            return fnnx.SimpleRNN(
                F, 8, kernel_initializer=partitioned, recurrent_initializer=partitioned, rngs=nnx.Rngs(0)
            )

        layer = make()
    specs = nnx.get_partition_spec(nnx.state(layer, nnx.Param))
    spec = jax.sharding.PartitionSpec(None, "model")
    leaves = {
        str(path[0].key): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            specs, is_leaf=lambda s: isinstance(s, jax.sharding.PartitionSpec)
        )
    }
    assert leaves["kernel"] == leaves["recurrent_kernel"] == spec
    plain = fnnx.SimpleRNN(F, 8, rngs=nnx.Rngs(0))
    fnnx.from_linen(plain, jax.device_get(fnnx.to_linen(layer)))
    x = _numbers(B, T, F)
    np.testing.assert_allclose(jax.device_get(nnx.jit(lambda layer, x: layer(x))(layer, x)), plain(x), atol=1e-6)


# --- Flax's own cells and loops ----------------------------------------------------------------------------------------


def test_the_cell_in_flax_rnn():
    cell = fnnx.SimpleRNNCell(F, U, kernel_regularizer="l2", rngs=nnx.Rngs(0))
    x = _numbers(B, T, F)
    expected = fnnx.RNN(cell, **_SEQUENCES)(x)
    state, outputs = nnx.RNN(cell, return_carry=True)(x)
    np.testing.assert_allclose(outputs, expected[0], atol=1e-6)
    np.testing.assert_allclose(state, expected[1], atol=1e-6)
    stacked = fnnx.StackedRNNCells([cell, fnnx.SimpleRNNCell(U, 2, rngs=nnx.Rngs(1))])
    np.testing.assert_allclose(nnx.RNN(stacked)(x), fnnx.RNN(stacked, return_sequences=True)(x), atol=1e-6)


def test_dropout_of_the_cell_in_flax_rnn():
    x = jnp.ones((B, T, F))
    cell = fnnx.SimpleRNNCell(F, U, dropout=0.5, recurrent_initializer="zeros", rngs=nnx.Rngs(0, dropout=1))
    # One mask for all steps: without recurrence, equal inputs give equal outputs.
    ours = fnnx.RNN(cell, return_sequences=True)(x)
    np.testing.assert_array_equal(ours, np.broadcast_to(ours[:, :1], ours.shape))
    theirs = nnx.RNN(cell, broadcast_rngs="dropout")(x)
    np.testing.assert_array_equal(theirs, np.broadcast_to(theirs[:, :1], theirs.shape))
    per_step = nnx.RNN(cell)(x)
    assert not np.array_equal(per_step, np.broadcast_to(per_step[:, :1], per_step.shape))


@pytest.mark.parametrize(("kind", "backwards"), [(nnx.LSTMCell, False), (nnx.LSTMCell, True), (nnx.GRUCell, False)])
def test_flax_cells_in_our_rnn(kind, backwards):
    cell = kind(F, U, rngs=nnx.Rngs(0))
    x = _numbers(B, T, F)
    lengths = jnp.array([6, 2, 3, 5])
    flax_rnn = nnx.RNN(cell, return_carry=True, reverse=backwards, keep_order=True)
    state, outputs = flax_rnn(x, seq_lengths=lengths)
    layer = fnnx.RNN(cell, go_backwards=backwards, keep_order=True, zero_output_for_mask=True, **_SEQUENCES)
    # Flax leaves padding at the end when it reverses, so that both see the same steps in the same order.
    output, *states = nnx.jit(lambda layer, x: layer(x, seq_lengths=lengths))(layer, x)
    for a, e in zip(jax.tree.leaves(states), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-6)
    used = np.arange(T) < np.asarray(lengths)[:, None]
    np.testing.assert_allclose(output, np.where(used[..., None], outputs, 0), atol=1e-6)


def test_states_of_flax_cells():
    x = _numbers(B, T, F)
    cells = [nnx.LSTMCell(F, U, rngs=nnx.Rngs(0)), fnnx.SimpleRNNCell(U, 2, rngs=nnx.Rngs(1))]
    layer = fnnx.RNN(cells, stateful=True, **_SEQUENCES)
    whole, *states = layer(x)
    layer.reset_states()
    pieces = [layer(x[:, :2])[0], layer(x[:, 2:])[0]]
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, atol=1e-6)
    for a, e in zip(jax.tree.leaves(nnx.state(layer, fnnx.Carry)), jax.tree.leaves(states), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-6)
    with pytest.raises(ValueError, match="`initial_state` must be like the cell's state"):
        layer(x, initial_state=[_numbers(B, U), _numbers(B, 2)])
    with pytest.raises(ValueError, match="implementation='scan' is for SimpleRNNCell; a LSTMCell"):
        fnnx.RNN(cells[0], implementation="scan")(x)


class _Counting(nnx.RNNCellBase):
    """A cell with everything that NNX modules may have: dropout, a statistic, and something sown."""

    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.steps = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, carry, inputs, *, training=False):
        self.steps[...] = self.steps[...] + 1
        dropped = self.dropout(jnp.ones_like(inputs), deterministic=not training)
        self.sow(nnx.Intermediate, "seen", dropped)
        return carry + inputs, dropped

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros(input_shape)

    @property
    def num_feature_axes(self):
        return 1


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_other_variables_of_a_cell():
    cell = _Counting(nnx.Rngs(0))
    layer = fnnx.RNN(cell, **_SEQUENCES)
    x = _numbers(B, T, F)
    output, state = layer(x, training=True)
    assert cell.steps[...] == T
    np.testing.assert_allclose(state, x.sum(1), atol=1e-5)
    np.testing.assert_array_equal(output, np.broadcast_to(output[:, :1], output.shape))  # one mask for all steps
    assert set(np.unique(output)) == {0, 2}
    again, _ = layer(x, training=True)
    assert not np.array_equal(again, output)  # and another in the next call
    np.testing.assert_array_equal(layer(x, training=False)[0], np.ones_like(x))
    assert not jax.tree.leaves(nnx.state(layer, nnx.Intermediate))


class _Doubling(fnnx.SimpleRNNCell):
    def __call__(self, carry, inputs, *, training=None):
        state, output = super().__call__(carry, inputs, training=training)
        return state, 2 * output


def test_a_subclass_with_its_own_step_is_used():
    cell = _Doubling(F, U, rngs=nnx.Rngs(0))
    plain = fnnx.SimpleRNNCell(F, U, rngs=nnx.Rngs(1))
    fnnx.from_linen(plain, fnnx.to_linen(cell))
    x = _numbers(B, T, F)
    np.testing.assert_allclose(fnnx.RNN(cell)(x), 2 * fnnx.RNN(plain)(x), atol=1e-6)


# --- what cannot be made -----------------------------------------------------------------------------------------------


def test_invalid_cells_and_layers():
    with pytest.raises(TypeError, match=r"`cell` must be a flax\.nnx.RNNCellBase or a list of them, got 3"):
        fnnx.RNN(3)
    with pytest.raises(TypeError, match=r"`cell` must be a flax\.nnx.RNNCellBase"):
        fnnx.RNN(flax_srnn.SimpleRNNCell(U))
    with pytest.raises(ValueError, match="`cell` must hold at least one cell"):
        fnnx.RNN([])
    with pytest.raises(TypeError, match=r"`cells` must be a list of flax\.nnx.RNNCellBase"):
        fnnx.StackedRNNCells(nnx.SimpleCell(F, U, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="`layer` must be a SimpleRNN or RNN layer"):
        fnnx.Bidirectional(nnx.SimpleCell(F, U, rngs=nnx.Rngs(0)))
    layer = fnnx.SimpleRNN(F, U, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`merge_mode` must be one of"):
        fnnx.Bidirectional(layer, "mean", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`rngs` must be given"):
        fnnx.Bidirectional(layer)
    with pytest.raises(ValueError, match="must run in opposite directions"):
        fnnx.Bidirectional(layer, backward_layer=fnnx.SimpleRNN(F, U, rngs=nnx.Rngs(1)))
    with pytest.raises(ValueError, match="`backward_layer` must be given: a LSTMCell cannot be made anew"):
        fnnx.Bidirectional(fnnx.RNN(nnx.LSTMCell(F, U, rngs=nnx.Rngs(0))), rngs=nnx.Rngs(1))


def test_the_default_backward_layer_has_parameters_of_its_own():
    linen, cells = _cells({}, {"activation": "relu"})
    layer = fnnx.Bidirectional(fnnx.RNN(fnnx.StackedRNNCells(cells)), rngs=nnx.Rngs(3))
    params = fnnx.to_linen(layer)
    expected = flax_srnn.Bidirectional(flax_srnn.RNN(linen)).init(jax.random.key(0), _numbers(B, T, F))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    assert not np.array_equal(
        params["forward_layer"]["cells_0"]["kernel"], params["backward_layer"]["cells_0"]["kernel"]
    )
    assert layer.backward_layer.go_backwards


def test_converters_refuse_what_does_not_fit():
    _, layer = _rnn(False)
    params = fnnx.to_linen(layer)
    for change, message in (
        ({"cells_1": {}}, "no 'cells_1/kernel'"),
        ({"cells_2": params["cells_0"]}, r"has \['cells_2/bias', "),
        ({"cells_1": params["cells_0"]}, r"params\['cells_1/kernel'\]` must have the shape"),
    ):
        before = fnnx.to_linen(layer)
        with pytest.raises(ValueError, match=message):
            fnnx.from_linen(layer, {**params, **change})
        _assert_identical(fnnx.to_linen(layer), before)
    with pytest.raises(TypeError, match="`params` must be a mapping"):
        fnnx.from_linen(layer, None)
    with pytest.raises(ValueError, match="LSTMCell is no layer or cell of this library"):
        fnnx.to_linen(fnnx.RNN(nnx.LSTMCell(F, U, rngs=nnx.Rngs(0))))
    boxed = flax_srnn.SimpleRNN(U, kernel_initializer=nn.with_partitioning(nn.initializers.ones, (None, "model")))
    single = fnnx.SimpleRNN(F, U, rngs=nnx.Rngs(0))
    fnnx.from_linen(single, boxed.init(jax.random.key(0), _numbers(B, T, F))["params"])
    np.testing.assert_array_equal(single.kernel[...], np.ones((F, U)))
