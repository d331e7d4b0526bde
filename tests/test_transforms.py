"""`simple_rnn` and the layers under the transformations of JAX and Flax, and dropout, which must not change under them."""

import functools

import cases
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_srnn import RNN, Bidirectional, SimpleRNN, SimpleRNNCell, dropout_masks, init_params, simple_rnn

pytestmark = pytest.mark.usefixtures("x64")
close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
both = pytest.mark.parametrize("implementation", cases.thinned(["scan", "autodiff"], 1))
CASE = cases.Case(
    initial_state=True,
    mask=True,
    seq_lengths=True,
    resets=True,
    input_dropout_mask=True,
    recurrent_dropout_mask=True,
    zero_output_for_mask=True,
)


def same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(close, actual, expected)


def problem(implementation=None):
    """A function of (params, inputs, float arrays, flags) and these arguments, every option in use."""
    made = CASE.problem()

    def function(params, inputs, arrays, flags):
        return simple_rnn(params, inputs, **arrays, **flags, **made.options, implementation=implementation)

    return function, tuple(jax.tree.map(jnp.asarray, made[:4]))


def total(function):
    """A scalar of everything that `function` returns."""
    return lambda *arguments: sum(jnp.sin(x + 1).sum() for x in jax.tree.leaves(function(*arguments)))


def gradients(function):
    return jax.grad(total(function), argnums=(0, 1, 2))


# --- JAX ---------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.slow
def test_vmap_over_rows(implementation):
    """Row by row, all arrays mapped: the same outputs, and gradients for every row on its own."""
    function, (params, *rows) = problem(implementation)
    axes = (None, 0, 0, 0)
    same(jax.jit(jax.vmap(function, in_axes=axes))(params, *rows), function(params, *rows))
    of_params, *of_rows = jax.jit(jax.vmap(gradients(function), in_axes=axes))(params, *rows)
    wanted_params, *wanted_rows = jax.jit(gradients(function))(params, *rows)
    same(jax.tree.map(lambda grad: grad.sum(0), of_params), wanted_params)
    same(of_rows, wanted_rows)


def test_vmap_of_nothing():
    params, x = init_params(jax.random.key(0), 3, 4), jnp.zeros((0, 2, 5, 3))
    assert jax.vmap(lambda x: simple_rnn(params, x)[1])(x).shape == (0, 2, 5, 4)


@pytest.mark.slow
@both
def test_vmap_over_params(implementation):
    """An ensemble on the same data."""
    function, (params, *data) = problem(implementation)
    members = [jax.tree.map(lambda p, scale=scale: p * scale, params) for scale in (1.0, 0.5, -1.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    compiled = jax.jit(gradients(function))
    expected = [compiled(member, *data) for member in members]
    actual = jax.jit(jax.vmap(gradients(function), in_axes=(0, None, None, None)))(stacked, *data)
    same(actual, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))


def test_gradient_of_vmap():
    """The other order: the mapped function is differentiated."""
    function, arguments = problem()
    mapped = jax.vmap(function, in_axes=(None, 0, 0, 0))
    same(jax.jit(gradients(mapped))(*arguments), jax.jit(gradients(function))(*arguments))


def test_jacobian():
    function, arguments = problem()
    plain, _ = problem("autodiff")
    same(jax.jit(jax.jacrev(function))(*arguments), jax.jit(jax.jacfwd(plain))(*arguments))


@both
def test_checkpoint(implementation):
    function, arguments = problem(implementation)
    recomputed = jax.checkpoint(function)
    same(jax.jit(gradients(recomputed))(*arguments), jax.jit(gradients(function))(*arguments))


@both
def test_scan_over_calls(implementation):
    """Pieces of a sequence in a loop, the state handed on: the whole sequence, backwards through the loop too."""
    params, inputs, arrays, *_ = cases.Case(sizes=(8, 2, 4), initial_state=True).problem()

    def whole(params, inputs, h0):
        return simple_rnn(params, inputs, initial_state=h0)

    def in_pieces(params, inputs, h0):
        def piece(h, x):
            return simple_rnn(params, x, initial_state=h, implementation=implementation)

        pieces = jnp.moveaxis(inputs.reshape(3, 4, 2, 2), 1, 0)
        final, outputs = jax.lax.scan(piece, h0, pieces)
        return final, jnp.moveaxis(outputs, 0, 1).reshape(3, 8, 4)

    arguments = (params, jnp.asarray(inputs), arrays["initial_state"])
    same(jax.jit(in_pieces)(*arguments), whole(*arguments))
    same(jax.jit(gradients(in_pieces))(*arguments), jax.jit(gradients(whole))(*arguments))


@both
@pytest.mark.slow
def test_repeated_calls_compile_once(implementation):
    """Other values of the same shapes: under the user's jit nothing is traced again, and eagerly only the activation, alone."""
    traces = []

    def activation(a):
        traces.append(a)
        return jnp.tanh(a)

    params, inputs, arrays, flags, _ = CASE.problem()
    options = {"activation": activation, "implementation": implementation}

    def function(params, inputs, arrays, flags):
        return simple_rnn(params, inputs, **arrays, **flags, **options)

    layer = SimpleRNN(4, **options)
    for run, again in (
        (function, 1),
        (gradients(function), 1),
        (jax.jit(gradients(function)), 0),
        (lambda params, inputs, *_: layer.apply({"params": params}, inputs, mask=flags["mask"]), 1),
    ):
        jax.block_until_ready(run(params, inputs, arrays, flags))
        first = len(traces)
        other = {name: flag[::-1].copy() for name, flag in flags.items()}
        run(*jax.tree.map(lambda x: x + 0.25, (params, inputs, arrays)), other)
        assert first > 0
        assert len(traces) == first + again


# --- Flax --------------------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(3, 5, 4))
MASK = np.random.default_rng(1).random((3, 5)) < 0.7


def layer(**options):
    return SimpleRNN(4, return_sequences=True, dtype=jnp.float64, param_dtype=jnp.float64, **options)


def variables_of(model, *arguments):
    """Variables with random numbers in them."""
    rng = np.random.default_rng(2)
    made = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), *arguments)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 2, made)


class Block(nn.Module):
    """A layer in the form that `nn.scan` asks for."""

    @nn.compact
    def __call__(self, x, mask):
        return layer()(x, mask=mask), None


@pytest.mark.slow
def test_flax_scan_over_layers():
    """A deep stack in one loop: the layers one after the other, with the parameters of each."""
    deep = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=3)()
    variables = variables_of(deep, X, MASK)

    def loop(variables, x):
        for number in range(3):
            params = jax.tree.map(lambda leaf, number=number: leaf[number], variables["params"]["SimpleRNN_0"])
            x = layer().apply({"params": params}, x, mask=MASK)
        return x

    def scanned(variables, x):
        return deep.apply(variables, x, MASK)[0]

    for transform in (jax.jit, lambda function: jax.jit(jax.grad(total(function), argnums=(0, 1)))):
        same(transform(scanned)(variables, X), transform(loop)(variables, X))


def test_flax_remat():
    variables = variables_of(layer(), X)
    recomputed = nn.remat(SimpleRNN)(4, return_sequences=True, dtype=jnp.float64, param_dtype=jnp.float64)

    def grads(model):
        return jax.jit(jax.grad(total(lambda v, x: model.apply(v, x, mask=MASK)), argnums=(0, 1)))(variables, X)

    same(grads(recomputed), grads(layer()))


def test_flax_vmap():
    """An ensemble of layers: parameters and dropout masks of their own, the same inputs."""
    ensemble = nn.vmap(
        SimpleRNN, in_axes=None, axis_size=3, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}
    )
    members = ensemble(4, return_sequences=True, dtype=jnp.float64, param_dtype=jnp.float64)
    variables = variables_of(members, X)
    actual = jax.jit(members.apply)(variables, X)
    for number, outputs in enumerate(actual):
        close(outputs, layer().apply(jax.tree.map(lambda leaf, n=number: leaf[n], variables), X))
    fresh = members.init(jax.random.key(0), X)["params"]["kernel"]
    assert len({member.tobytes() for member in np.asarray(fresh)}) == 3


# --- dropout -----------------------------------------------------------------------------------------------------------


def test_dropout_masks_are_inverted_bernoulli():
    x_mask, h_mask = dropout_masks(jax.random.key(0), (200,), 30, 40, dropout=0.2, recurrent_dropout=0.75)
    for mask, rate in ((x_mask, 0.2), (h_mask, 0.75)):
        assert set(np.unique(mask)) == {0.0, np.float32(1 / (1 - rate))}
        np.testing.assert_allclose((mask == 0).mean(), rate, atol=0.02)
    assert dropout_masks(jax.random.key(0), (2,), 3, 4) == (None, None)
    other, _ = dropout_masks(jax.random.key(1), (200,), 30, 40, dropout=0.2)
    assert 0.2 < (other != x_mask).mean() < 0.45  # 0.32 of independent masks


COPY = {"kernel": jnp.eye(64), "recurrent_kernel": jnp.eye(64)}  # h_t = d_x x_t + d_h h_tm1
DROPPING = SimpleRNN(
    64, activation=None, use_bias=False, return_sequences=True, dropout=0.5, recurrent_dropout=0.5, dtype=jnp.float32
)


@pytest.mark.parametrize("unroll", cases.thinned([False, True], 1))
def test_dropout_is_constant_over_time(unroll):
    """The outputs show both masks at every step; the same key gives the same result scanned and unrolled."""
    key = {"dropout": jax.random.key(3)}
    model = DROPPING.clone(unroll=unroll)
    apply = jax.jit(lambda x: model.apply({"params": COPY}, x, training=True, rngs=key))
    outputs = apply(np.ones((2, 5, 64), np.float32))
    d_x, d_h = outputs[:, 0], (outputs[:, 1] - outputs[:, 0]) / np.where(outputs[:, 0], outputs[:, 0], np.nan)
    assert set(np.unique(d_x)) == {0.0, 2.0}
    assert set(np.unique(d_h[~np.isnan(d_h)])) == {0.0, 2.0}
    for t in range(1, 5):
        np.testing.assert_array_equal(outputs[:, t], d_x + np.nan_to_num(d_h) * outputs[:, t - 1])
    np.testing.assert_array_equal(
        outputs, DROPPING.apply({"params": COPY}, np.ones((2, 5, 64)), training=True, rngs=key)
    )


def test_dropout_of_everything():
    """Rate 1: neither inputs nor states pass, and their gradients are 0, not NaN."""
    model = layer(dropout=1.0, recurrent_dropout=1.0)
    variables = variables_of(layer(), X)

    def run(variables, x):
        return model.apply(variables, x, training=True, rngs={"dropout": jax.random.key(0)})

    outputs = run(variables, X)
    close(outputs, np.broadcast_to(np.tanh(variables["params"]["bias"]), outputs.shape))
    grads, of_inputs = jax.grad(total(run), argnums=(0, 1))(variables, jnp.asarray(X))
    np.testing.assert_array_equal(of_inputs, np.zeros_like(X))
    np.testing.assert_array_equal(grads["params"]["kernel"], np.zeros((4, 4)))
    np.testing.assert_array_equal(grads["params"]["recurrent_kernel"], np.zeros((4, 4)))
    assert np.all(grads["params"]["bias"] != 0)


def test_inference_reads_no_key():
    """With and without keys the same, and the stream is not advanced: what follows draws what it drew before."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            outputs = layer(dropout=0.5, recurrent_dropout=0.5)(x) if x is not None else None
            return outputs, self.make_rng("dropout")

    variables = variables_of(layer(), X)
    dropping = layer(dropout=0.5, recurrent_dropout=0.5)
    rngs = {"dropout": jax.random.key(5)}
    expected = layer().apply(variables, X)
    np.testing.assert_array_equal(dropping.apply(variables, X), expected)
    np.testing.assert_array_equal(dropping.apply(variables, X, rngs=rngs), expected)
    inside = {"params": {"SimpleRNN_0": variables["params"]}}
    outputs, key = Model().apply(inside, X, rngs=rngs)
    np.testing.assert_array_equal(outputs, expected)
    _, untouched = Model().apply(inside, None, rngs=rngs)
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(untouched))


def test_training_without_a_key_is_flaxs_error():
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        layer(dropout=0.5).apply(variables_of(layer(), X), X, training=True)


def test_masks_are_independent_between_cells_and_directions():
    """The same parameters everywhere: only the masks can differ."""
    ones = np.ones((8, 1, 64), np.float32)
    options = {"activation": None, "use_bias": False, "dropout": 0.5}
    rngs = {"dropout": jax.random.key(0)}
    sides = Bidirectional(SimpleRNN(64, **options), merge_mode=None)
    forward, backward = sides.apply(
        {"params": {"forward_layer": COPY, "backward_layer": COPY}}, ones, training=True, rngs=rngs
    )
    assert 0.4 < (forward != backward).mean() < 0.6
    cells = RNN([SimpleRNNCell(64, **options), SimpleRNNCell(64, **options)])
    outputs = cells.apply({"params": {"cells_0": COPY, "cells_1": COPY}}, ones, training=True, rngs=rngs)
    assert set(np.unique(outputs)) == {0.0, 4.0}  # 0, 2 and 4 would be one mask and none
    assert 0.15 < (outputs == 4).mean() < 0.35  # a half if the masks were one


def test_every_call_draws_anew():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            model = layer(dropout=0.5)
            return model(x, training=True), model(x, training=True)

    variables = {"params": {"SimpleRNN_0": variables_of(layer(), X)["params"]}}
    first, second = Twice().apply(variables, X, rngs={"dropout": jax.random.key(0)})
    assert not np.array_equal(first, second)
