"""NNX layers inside programs: states that exist before a call, transformations of NNX, tables, penalties of copies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import thinned
from flax import nnx
from nnx_twins import B, F, T, U, numbers

import flax_srnn.nnx as fnnx

X = numbers(B, T, F)
MASK = np.arange(T) < np.array([[1], [T], [3], [0]])
STATEFUL = {
    "SimpleRNN": lambda **options: fnnx.SimpleRNN(F, U, stateful=True, rngs=nnx.Rngs(0), **options),
    "learned": lambda **options: fnnx.SimpleRNN(
        F, U, stateful=True, initial_state_initializer="normal", rngs=nnx.Rngs(0), **options
    ),
    "stack": lambda **options: fnnx.RNN(
        [fnnx.SimpleRNNCell(F, U, rngs=nnx.Rngs(0)), nnx.LSTMCell(U, U, rngs=nnx.Rngs(1))], stateful=True, **options
    ),
    "both": lambda **options: fnnx.Bidirectional(
        fnnx.SimpleRNN(F, U, stateful=True, rngs=nnx.Rngs(0)), "sum", rngs=nnx.Rngs(1), **options
    ),
}
every = pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)


def called(layer, times=1):
    """The layer after some calls, and the last result."""
    results = [layer(X) for _ in range(times)]
    return layer, results[-1]


def same(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-6)


# --- states before a call ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", thinned(STATEFUL.values(), 2), ids=STATEFUL)
def test_states_from_construction(make):
    _, expected = called(make(), 2)
    for layer in (make(batch_size=B), make(batch_size=(B,)), make()):
        layer.reset_states(batch_size=B)
        _, result = called(layer, 2)
        same(result, expected)


@every
def test_a_fresh_layer_is_restored(make):
    trained, _ = called(make(), 2)
    saved = nnx.to_pure_dict(nnx.state(trained))
    expected = trained(X)
    for fresh in (make(batch_size=B), make()):
        nnx.update(fresh, saved)
        same(fresh(X), expected)


@pytest.mark.parametrize("make", thinned(STATEFUL.values(), 2), ids=STATEFUL)
def test_a_fresh_layer_is_scanned(make):
    pieces = jnp.stack([X, 2 * X, -X])
    layer = make()
    expected = [layer(x) for x in pieces]
    axes = nnx.StateAxes({...: nnx.Carry})
    scanned = nnx.scan(lambda layer, x: layer(x), in_axes=(axes, 0), out_axes=0)
    made = make(batch_size=B)
    same(scanned(made, pieces), expected)
    same(made(X), layer(X))  # the states went on
    with pytest.raises(ValueError, match=r"first time inside scan.*`batch_size`"):
        scanned(make(), pieces)


@every
def test_a_fresh_layer_in_a_branch(make):
    def branch(layer, flag):
        return nnx.cond(flag, lambda layer: layer(X), lambda layer: jnp.zeros((B, U)), layer)

    fresh = make(batch_size=B)
    same(branch(fresh, False), np.zeros((B, U)))
    layer, expected = called(make(), 1)
    same(branch(fresh, True), expected)
    same(fresh(X), layer(X))
    with pytest.raises(ValueError, match=r"first time inside cond.*`batch_size`"):
        branch(make(), True)


@pytest.mark.parametrize("make", thinned(STATEFUL.values(), 2), ids=STATEFUL)
def test_a_fresh_layer_in_jit_and_grad(make):
    """Where NNX lets a call add variables, it makes the states itself."""
    expected = called(make(), 2)[1]
    layer = make()
    forward = nnx.jit(lambda layer, x: layer(x))
    forward(layer, X)
    same(forward(layer, X), expected)
    layer = make()
    nnx.grad(lambda layer: layer(X).sum())(layer)
    same(layer(X), expected)


def test_bridged_to_linen():
    module = nnx.bridge.to_linen(fnnx.SimpleRNN, F, U, stateful=True, batch_size=B)
    variables = module.init(jax.random.key(0), X)
    first, variables = module.apply(variables, X, mutable=True)
    second, variables = module.apply(variables, X, mutable=True)
    assert not np.allclose(first, second)
    layer = fnnx.SimpleRNN(F, U, stateful=True, rngs=nnx.Rngs(0))
    fnnx.from_linen(layer, {name: variables["params"][name] for name in ("kernel", "recurrent_kernel", "bias")})
    layer.reset_states(batch_size=B)
    third = module.apply(variables, X, mutable=True)[0]
    assert np.isfinite(third).all()
    assert third.shape == layer(X).shape


def test_batch_size():
    layer = STATEFUL["learned"](batch_size=2)
    np.testing.assert_array_equal(layer.states[0][...], np.broadcast_to(layer.initial_state[...], (2, U)))
    with pytest.raises(ValueError, match=r"`inputs` has the batch shape \(4,\).*reset_states\(batch_size=4\)"):
        layer(X)
    layer.reset_states(batch_size=B)
    layer(X)
    layer.reset_states(np.ones((3, U)), batch_size=3)
    np.testing.assert_array_equal(layer.states[0][...], np.ones((3, U)))
    assert STATEFUL["SimpleRNN"](batch_size=(2, 3)).states[0].shape == (2, 3, U)
    with pytest.raises(ValueError, match=r"needs to know its batch size.*`batch_size`"):
        STATEFUL["SimpleRNN"]().reset_states()
    for wrong, error in (("two", TypeError), (-1, ValueError), (True, TypeError), (2.0, TypeError)):
        with pytest.raises(error, match="`batch_size`"):
            STATEFUL["SimpleRNN"](batch_size=wrong)
    with pytest.raises(ValueError, match=r"`batch_size` .* needs stateful=True"):
        fnnx.SimpleRNN(F, U, batch_size=2, rngs=nnx.Rngs(0))


# --- transformations ---------------------------------------------------------------------------------------------------


def plain():
    return {
        "SimpleRNN": fnnx.SimpleRNN(F, U, dropout=0.5, rngs=nnx.Rngs(0)),
        "cells": fnnx.RNN(
            [fnnx.SimpleRNNCell(F, U, dropout=0.5, rngs=nnx.Rngs(0)), nnx.GRUCell(U, U, rngs=nnx.Rngs(1))]
        ),
        "both": fnnx.Bidirectional(fnnx.SimpleRNN(F, U, dropout=0.5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)),
    }


@pytest.mark.parametrize("name", thinned(plain(), 1))
def test_training_may_be_traced(name):
    layer = plain()[name]
    quiet = layer(X, training=False)

    def forward(layer, training):
        return layer(X, None, MASK, training)

    for lifted in (nnx.jit(forward), nnx.remat(forward)):
        same(lifted(layer, False), layer(X, mask=MASK, training=False))
        assert not np.allclose(lifted(layer, True), layer(X, mask=MASK, training=False))
    layer.eval()
    np.testing.assert_array_equal(layer(X), quiet)
    for wrong in (1, "yes"):
        with pytest.raises(TypeError, match="`training`"):
            layer(X, training=wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SimpleRNN", "cells", "both"])
def test_rows_and_copies_under_vmap(name):
    layer = plain()[name]
    layer.eval()
    rows = nnx.vmap(lambda layer, x, mask: layer(x, mask=mask), in_axes=(None, 0, 0))
    same(rows(layer, X, MASK), layer(X, mask=MASK))


@pytest.mark.slow
def test_penalties_of_copies():
    make = nnx.split_rngs(splits=3)(
        nnx.vmap(
            lambda rngs: fnnx.SimpleRNN(F, U, kernel_regularizer="l2", activity_regularizer="l2", rngs=rngs), in_axes=0
        )
    )
    copies = make(nnx.Rngs(0))
    nnx.vmap(lambda layer: layer(X), in_axes=0)(copies)
    total = 0.0
    graph, state = nnx.split(copies)
    for i in range(3):
        one = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], state))
        fnnx.regularization_loss(one)  # takes what was recorded
        one(X)
        total += fnnx.regularization_loss(one)
    same(fnnx.regularization_loss(copies), total)


def test_a_shared_cell():
    """One set of parameters, and its penalty once."""
    cell = fnnx.SimpleRNNCell(U, U, kernel_regularizer="l2", rngs=nnx.Rngs(0))
    layer = fnnx.RNN([cell, cell])
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(layer, nnx.Param))) == 2 * U * U + U
    same(fnnx.regularization_loss(layer), 0.01 * np.square(cell.kernel[...]).sum())
    x = numbers(B, T, U)
    first = fnnx.RNN(cell, return_sequences=True)
    same(layer(x), fnnx.RNN(cell)(first(x)))
    params = fnnx.to_linen(layer)
    assert list(params) == ["cells_0"]
    fnnx.from_linen(layer, jax.tree.map(jnp.zeros_like, params))
    assert not cell.kernel[...].any()
    turned = fnnx.Bidirectional(layer, rngs=nnx.Rngs(1))
    assert turned.backward_layer.cell[0] is turned.backward_layer.cell[1]


# --- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", thinned([*STATEFUL.values(), lambda: plain()["cells"], lambda: plain()["both"]], 3))
def test_tables(make):
    layer = make()
    text = nnx.tabulate(layer, X, console_kwargs={"width": 200, "force_terminal": False})
    assert type(layer).__name__ in text
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(layer, nnx.Param)))
    assert f"{count:,}" in text
