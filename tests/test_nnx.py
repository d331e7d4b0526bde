"""The NNX layers against the Linen layers: the same arguments, the same results to the last bit, the same errors."""

import functools
import inspect

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from nnx_twins import (
    SEQUENCES,
    TWO_CELLS,
    B,
    F,
    T,
    U,
    assert_identical,
    bidirectional,
    cells_of,
    numbers,
    randomised,
    rnn,
    rnn_of_one,
    twins,
)

import flax_srnn
import flax_srnn.nnx as fnnx
from flax_srnn.layers.options import MERGING

# --- the same arguments ------------------------------------------------------------------------------------------------


def _arguments(function, *without):
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in parameters if p.name not in ("self", *without)]


@pytest.mark.parametrize("name", ["SimpleRNNCell", "SimpleRNN", "RNN", "StackedRNNCells", "Bidirectional"])
def test_signatures_are_those_of_linen(name):
    linen, layer = getattr(flax_srnn, name), getattr(fnnx, name)
    assert _arguments(layer.__init__, "in_features", "rngs", "batch_size") == _arguments(
        linen.__init__, "parent", "name"
    )
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
_CASES = {
    "last output": ({"precision": "highest"}, {}),
    "no bias, relu": ({"use_bias": False, "activation": "relu", **SEQUENCES}, {}),
    "initial state": (SEQUENCES, {"initial_state": numbers(B, U, seed=9)}),
    "learned initial state": ({"initial_state_initializer": "ones", **SEQUENCES}, {"resets": _RESETS}),
    "masked": ({"zero_output_for_mask": True, **SEQUENCES}, {"mask": _MASK, "seq_lengths": [6, 0, 3, 5]}),
    "backwards": ({"go_backwards": True, "keep_order": True, **SEQUENCES}, {"resets": _RESETS, "mask": _MASK}),
    "plain scan, unrolled": ({"implementation": "autodiff", "unroll": 2, **SEQUENCES}, {}),
    "half precision": ({"dtype": jnp.bfloat16, "param_dtype": jnp.float16, **SEQUENCES}, {}),
    "seeded dropout": ({"dropout": 0.5, "recurrent_dropout": 0.3, "seed": 7, **SEQUENCES}, {"training": True}),
    "no dropout in inference": ({"dropout": 0.5, "recurrent_dropout": 0.3}, {"training": False}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.thinned(_CASES, 3))
def test_simple_rnn_equals_linen(case):
    arguments, call = _CASES[case]
    x = numbers(B, T, F)
    linen, layer = flax_srnn.SimpleRNN(U, **arguments), fnnx.SimpleRNN(F, U, **arguments, rngs=nnx.Rngs(0))
    variables = twins(linen, layer)

    def linen_loss(params):
        returned = linen.apply({"params": params}, x, **call)
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(returned)), returned

    def loss(layer):
        returned = layer(x, **call)
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(returned)), returned

    grads, expected = jax.grad(linen_loss, has_aux=True)(variables["params"])
    layer_grads, actual = nnx.grad(loss, has_aux=True)(layer)
    assert_identical(actual, expected)
    assert_identical(nnx.to_pure_dict(layer_grads), grads)


def _bidirectional_stack(**options):
    linen, layer = rnn(False, **options)
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
    "RNN of one cell": functools.partial(rnn_of_one, False),
    "RNN of a list of one": functools.partial(rnn_of_one, True),
    "RNN of two": functools.partial(rnn, False),
    "RNN of stacked cells": functools.partial(rnn, True),
    "Bidirectional": bidirectional,
    "Bidirectional of a backward layer, sum": functools.partial(bidirectional, "sum", go_backwards=True),
    **{f"Bidirectional, {mode}": functools.partial(bidirectional, mode) for mode in MERGING},
    "Bidirectional, both": functools.partial(bidirectional, None),
    "Bidirectional of two cells": _bidirectional_stack,
    "Bidirectional, two layers": _bidirectional_pair,
}


@pytest.mark.parametrize("pair", cases.thinned(_PAIRS, 3))
def test_layers_of_cells_equal_linen(pair):
    linen, layer = _PAIRS[pair](**SEQUENCES)
    variables = twins(linen, layer)
    x = numbers(B, T, F)
    call = {"mask": _MASK, "resets": _RESETS}
    expected = linen.apply(variables, x, **call, training=True)
    assert_identical(layer(x, **call, training=True), expected)
    states = list(expected[-(len(jax.tree.leaves(layer(x))) - (2 if "both" in pair else 1)) :])
    assert_identical(
        layer(x, **call, initial_state=states, training=False),
        linen.apply(variables, x, **call, initial_state=states),
    )


def test_only_the_last_output_equals_linen():
    x = numbers(B, T, F)
    linen, layer = _bidirectional_stack()
    variables = twins(linen, layer)
    assert_identical(layer(x, training=False), linen.apply(variables, x))


def test_cells_equal_linen():
    linen, made = cells_of(*TWO_CELLS)
    linen, cell = flax_srnn.StackedRNNCells(linen), fnnx.StackedRNNCells(made)
    carry = linen.initialize_carry(jax.random.key(0), (B, F))
    assert_identical(cell.initialize_carry((B, F)), carry)
    x, carry = numbers(B, F), tuple(randomised(carry))
    params = randomised(linen.init(jax.random.key(0), carry, x)["params"])
    fnnx.from_linen(cell, params)
    assert_identical(cell(carry, x, training=False), linen.apply({"params": params}, carry, x))
    one, expected = made[0], flax_srnn.SimpleRNNCell(U, **TWO_CELLS[0])
    assert_identical(
        one(carry[0], x, training=True), expected.apply({"params": params["cells_0"]}, carry[0], x, training=True)
    )


def test_time_major_and_any_batch():
    arguments = {"time_major": True, **SEQUENCES}
    x = numbers(T, 2, 3, F)
    linen, layer = flax_srnn.SimpleRNN(U, **arguments), fnnx.SimpleRNN(F, U, **arguments, rngs=nnx.Rngs(0))
    variables = twins(linen, layer, x)
    assert_identical(layer(x), linen.apply(variables, x))


@pytest.mark.parametrize(
    ("x", "call"),
    [
        (numbers(B, T, F + 1), {}),
        (numbers(F), {}),
        ("text", {}),
        (numbers(B, T, F), {"mask": _MASK[:1]}),
        (numbers(B, T, F), {"seq_lengths": [1, 2, 3, 99]}),
        (numbers(B, T, F), {"initial_state": numbers(B, U + 1)}),
        (numbers(B, T, F), {"initial_state": [numbers(B, U)] * 2}),
        (numbers(B, T, F), {"resets": _RESETS.T}),
        (numbers(B, T, F), {"training": 1}),
    ],
)
def test_invalid_calls_raise_as_in_linen(x, call):
    linen, layer = flax_srnn.SimpleRNN(U), fnnx.SimpleRNN(F, U, rngs=nnx.Rngs(0))
    variables = twins(linen, layer)
    with pytest.raises((TypeError, ValueError)) as expected:
        linen.apply(variables, x, **call)
    with pytest.raises(expected.type) as raised:
        layer(x, **call)
    if x is not None and np.shape(x)[-1:] != (F + 1,):  # there Linen finds the parameters of another shape
        assert str(raised.value) == str(expected.value)


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
    linen, cells = cells_of({}, {"activation": "relu"})
    layer = fnnx.Bidirectional(fnnx.RNN(fnnx.StackedRNNCells(cells)), rngs=nnx.Rngs(3))
    params = fnnx.to_linen(layer)
    expected = flax_srnn.Bidirectional(flax_srnn.RNN(linen)).init(jax.random.key(0), numbers(B, T, F))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    assert not np.array_equal(
        params["forward_layer"]["cells_0"]["kernel"], params["backward_layer"]["cells_0"]["kernel"]
    )
    assert layer.backward_layer.go_backwards


def test_converters_refuse_what_does_not_fit():
    _, layer = rnn(False)
    params = fnnx.to_linen(layer)
    for change, message in (
        ({"cells_1": {}}, "no 'cells_1/kernel'"),
        ({"cells_2": params["cells_0"]}, r"has \['cells_2/bias', "),
        ({"cells_1": params["cells_0"]}, r"params\['cells_1/kernel'\]` must have the shape"),
    ):
        before = fnnx.to_linen(layer)
        with pytest.raises(ValueError, match=message):
            fnnx.from_linen(layer, {**params, **change})
        assert_identical(fnnx.to_linen(layer), before)
    with pytest.raises(TypeError, match="`params` must be a mapping"):
        fnnx.from_linen(layer, None)
    with pytest.raises(ValueError, match=r"Give variables\['params'\]"):
        fnnx.from_linen(layer, {"params": params})
    with pytest.raises(ValueError, match=r"LSTMCell is no layer or cell of this library.* flax.nnx.bridge.ToNNX"):
        fnnx.to_linen(fnnx.RNN(nnx.LSTMCell(F, U, rngs=nnx.Rngs(0))))
    boxed = flax_srnn.SimpleRNN(U, kernel_initializer=nn.with_partitioning(nn.initializers.ones, (None, "model")))
    single = fnnx.SimpleRNN(F, U, rngs=nnx.Rngs(0))
    fnnx.from_linen(single, boxed.init(jax.random.key(0), numbers(B, T, F))["params"])
    np.testing.assert_array_equal(single.kernel[...], np.ones((F, U)))
