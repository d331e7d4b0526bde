"""Gradients: the hand-written backward pass against JAX's own of the plain scan, and both against finite differences."""

import dataclasses
import functools
import itertools
import re
from typing import Any

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.flatten_util import ravel_pytree
from programs import assert_close, assert_derivative, call, compiled, cotangents, gradients, plain

from flax_srnn import RNN, Bidirectional, Scan, SimpleRNN, SimpleRNNCell, activations, simple_rnn
from flax_srnn.core.tuning import Tuning

pytestmark = pytest.mark.usefixtures("x64")
replace = functools.partial(cases.EVERYTHING, reset_state=True)
EVERYTHING = replace()


# --- every combination of options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases.thinned(cases.SINGLE[:3] + cases.DRAWN[30:], 2), ids=str)
def test_every_gradient(case):
    problem = case.problem()
    returned, grads = compiled(problem, unroll=case.unroll)
    assert_close(returned, call(reference.simple_rnn, problem), 1e-12)
    assert_close(grads, plain(problem)[1], 1e-11)
    assert_derivative(problem, grads)


def test_the_plain_implementation_compiled():
    problem = EVERYTHING.problem()
    returned, grads = compiled(problem, implementation="autodiff", unroll=2)
    assert_close(returned, call(reference.simple_rnn, problem), 1e-12)
    assert_derivative(problem, grads)


# --- blocks and recomputation ------------------------------------------------------------------------------------------

SEVERAL_BLOCKS = [
    replace(sizes=(6, 2, 4)),
    replace(go_backwards=True, activation="silu"),
    replace(sizes=cases.WIDE, time_major=True, activation="softmax", unroll=True),
    replace(sizes=cases.WIDE, time_major=True, mask=False, go_backwards=True),
]
"""Two whole blocks; two and a rest of one step; one and a rest."""
of_blocks = pytest.mark.parametrize(
    "tuning",
    [cases.SMALL_BLOCKS, pytest.param(cases.COPIED_BLOCKS, marks=pytest.mark.slow)],
    ids=["in place", "copied"],
)


@pytest.mark.parametrize("case", cases.thinned(SEVERAL_BLOCKS, 3), ids=str)
@of_blocks
def test_several_blocks(case, tuning):
    problem = case.problem()
    returned, grads = compiled(problem, unroll=case.unroll, implementation=Scan(tuning=tuning))
    assert_close(returned, call(reference.simple_rnn, problem), 1e-12)
    assert_close(grads, plain(problem)[1], 1e-11)


@pytest.mark.parametrize("remat", cases.thinned([True, False], 1))
@pytest.mark.parametrize("case", cases.thinned(SEVERAL_BLOCKS[1:3], 1), ids=str)
@of_blocks
def test_recomputed_states(case, remat, tuning):
    """Only the final state is returned: the states between are stored, or one in every block is."""
    problem = dataclasses.replace(case, return_sequences=False).problem()
    returned, grads = compiled(problem, implementation=Scan(remat, tuning))
    assert_close(returned, call(reference.simple_rnn, problem), 1e-12)
    assert_close(grads, plain(problem)[1], 1e-11)


def test_small_blocks_are_several():
    """The tuning does what the tests above rely on: there is a loop over blocks."""

    problem = SEVERAL_BLOCKS[0].problem()
    small = Scan(tuning=cases.SMALL_BLOCKS)
    program = str(jax.make_jaxpr(lambda: gradients(problem, implementation=small))())
    assert set(re.findall(r"\blength=(\d+)", program)) == {"2", "3"}


def test_large_states_are_recomputed():
    """Without a word from the user the size decides, and recomputing takes less memory."""
    problem = cases.Case(batch=(8,), sizes=(4096, 2, 64), return_sequences=False).problem()

    def memory(**options):
        run = functools.partial(gradients, problem, implementation=Scan(**options))
        program = jax.jit(run).lower(problem[:3]).compile()
        return program.memory_analysis().temp_size_in_bytes

    stored, recomputed = memory(remat=False), memory(remat=True)
    assert recomputed < stored / 2
    assert memory() == stored
    assert memory(tuning=Tuning(checkpoint_bytes=10**6)) == recomputed


# --- higher derivatives and forward mode -------------------------------------------------------------------------------

SMALL = replace(batch=(2,), sizes=(3, 2, 3))
SECOND_ORDER = [
    SMALL,
    dataclasses.replace(SMALL, activation="silu", go_backwards=True, time_major=True),
    dataclasses.replace(SMALL, activation="softmax", return_sequences=False),
]


def flat_loss(problem, **options):
    """A scalar of everything returned, as a function of one vector, and the vector."""
    weights = cotangents(problem)
    vector, unravel = ravel_pytree(jax.tree.map(jnp.asarray, problem[:3]))

    def loss(vector):
        returned = call(simple_rnn, problem, unravel(vector), **options)
        return sum((w * x**2).sum() for w, x in zip(weights, returned, strict=True))

    return loss, vector


PAIRS = [
    (SECOND_ORDER[place], remat) for place, remat in ((0, None), (0, True), (1, None), (1, True), (2, None), (2, True))
]


@pytest.mark.parametrize("pair", cases.thinned(PAIRS, 1), ids=str)
def test_second_derivatives(pair):
    case, remat = pair
    problem = case.problem()
    loss, vector = flat_loss(problem, implementation=Scan(remat))
    plain_loss, _ = flat_loss(problem, implementation="autodiff")
    expected = jax.jit(jax.hessian(plain_loss))(vector)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(jax.jit(jax.jacrev(jax.grad(loss)))(vector), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
def test_third_derivative():
    slopes = []
    for implementation in ("scan", "autodiff"):
        loss, vector = flat_loss(SMALL.problem(), implementation=implementation)
        for _ in range(2):
            loss = functools.partial(lambda f, v: (jax.grad(f)(v) ** 3).sum(), loss)
        slopes.append(jax.jit(jax.grad(loss))(vector))
    np.testing.assert_allclose(*slopes, rtol=1e-9)


FORWARD = {
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "linearize": lambda f, x: jax.linearize(f, x)[1](x),
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "hessian": lambda f, x: jax.hessian(f)(x),
    "jvp of grad": lambda f, x: jax.jvp(jax.grad(f), (x,), (x,)),
    "jacfwd under jit": lambda f, x: jax.jit(jax.jacfwd(f))(x),
    "jacfwd under vmap": lambda f, x: jax.vmap(jax.jacfwd(f))(x[None]),
}


@pytest.mark.parametrize("mode", FORWARD)
@pytest.mark.parametrize("implementation", [None, "scan"])
def test_forward_mode_is_refused_by_name(mode, implementation):
    loss, vector = flat_loss(SMALL.problem(), implementation=implementation)
    with pytest.raises(TypeError, match=r"'chunked' and 'native' have .* pass implementation='autodiff'"):
        FORWARD[mode](loss, vector)


def test_forward_mode_of_the_plain_implementation():
    loss, vector = flat_loss(SMALL.problem(), implementation="autodiff")
    _, slope = jax.jit(lambda v: jax.jvp(loss, (v,), (v,)))(vector)
    scan_loss, _ = flat_loss(SMALL.problem(), implementation="scan")
    np.testing.assert_allclose(slope, jax.jit(jax.grad(scan_loss))(vector) @ vector, rtol=1e-11)


# --- whatever stands in masked steps -----------------------------------------------------------------------------------


def soiled(inputs, mask):
    """The inputs with zeros at masked steps, and with NaN, infinities and huge numbers there."""
    dirt = np.resize([np.nan, np.inf, -np.inf, 1e30], inputs.shape).astype(inputs.dtype)
    return (np.where(mask[..., None], inputs, filling).astype(inputs.dtype) for filling in (0, dirt))


@pytest.mark.parametrize("activation", cases.thinned(activations.NAMES, 3))
def test_masked_steps_reach_nothing(activation):
    """Outputs and all gradients are finite, and the same as with zeros there to the last bit."""
    case = replace(activation=activation, go_backwards=activation < "m", return_sequences=activation != "tanh")
    problem = case.problem()
    clean, dirty = ((problem.params, x, problem.arrays) for x in soiled(problem.inputs, problem.flags["mask"]))
    run = jax.jit(functools.partial(gradients, problem))
    result = run(dirty)
    jax.tree.map(np.testing.assert_array_equal, result, run(clean))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))
    np.testing.assert_array_equal(result[1][1][~problem.flags["mask"]], 0)
    with jax.disable_jit():
        expected = gradients(problem, jax.tree.map(jnp.asarray, dirty), implementation="autodiff")
    assert_close(result, expected, 1e-10)


LAYERS = {
    "SimpleRNN, unrolled": SimpleRNN(4, activation="silu", unroll=True, zero_output_for_mask=True),
    "SimpleRNN, autodiff": SimpleRNN(4, activation="gelu", implementation="autodiff"),
    "RNN of an LSTM cell": RNN(nn.LSTMCell(4), return_sequences=True),
    "RNN of two cells": RNN([SimpleRNNCell(3), nn.GRUCell(4)], return_state=True, go_backwards=True),
    "Bidirectional": Bidirectional(SimpleRNN(4, activation="softmax", return_sequences=True), merge_mode="mul"),
    "Bidirectional LSTM": Bidirectional(RNN(nn.LSTMCell(4)), merge_mode=None),
}


@pytest.mark.parametrize("name", cases.thinned(LAYERS, 2))
def test_masked_steps_reach_nothing_in_layers(name):
    """Padding on the right, on the left, between, and rows without a used step."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(5, 6, 3)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 0, 0, 1, 0, 1], [0] * 6, [1] * 6], bool)
    layer = LAYERS[name]
    clean, dirty = soiled(inputs, mask)
    variables = layer.init(jax.random.key(0), clean, mask=mask)

    @jax.jit
    def run(variables, inputs):
        def loss(variables, inputs):
            returned = layer.apply(variables, inputs, mask=mask)
            return sum((x * jnp.cos(x)).sum() for x in jax.tree.leaves(returned)), returned

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables, inputs)

    result = run(variables, dirty)
    jax.tree.map(np.testing.assert_array_equal, result, run(variables, clean))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))
    assert all(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(result[1]))


# --- what masked steps compute -----------------------------------------------------------------------------------------


def root(a):
    return jnp.sign(a) * jnp.sqrt(jnp.abs(a))


# The first input, the recurrent weight: in the masked step after it, or before, a value is infinite or NaN, or a derivative.
POISON = {"overflow": (jnp.exp, 4.7, 15), "root of 0": (root, 2.0, 15), "root of -30": (jnp.sqrt, 4.0, -15)}
ONE = np.ones((1, 1))


def after_poison(name):
    """A sequence with masked steps of which every derivative is infinite or NaN, and the same without these steps."""
    activation, first, recurrent = POISON[name]
    x, used = np.array([[[first], [0.0], [0.0]]]), np.array([[True, False, False]])
    padded = (x[:, ::-1], used[:, ::-1]) if activation is root else (x, used)
    return activation, (ONE, recurrent * ONE), padded, x[:, :1]


@pytest.mark.parametrize("pair", cases.thinned(itertools.product(POISON, ["scan", "chunked", "autodiff"]), 3))
def test_what_a_masked_step_computes_reaches_nothing(pair):
    """Gradients, their gradients and, where there is one, the forward mode are those of the used steps alone."""
    name, implementation = pair
    activation, weights, (x, mask), short = after_poison(name)

    def final(kernel, recurrent_kernel, x, mask):
        params = {"kernel": kernel, "recurrent_kernel": recurrent_kernel}
        options = {"activation": activation, "implementation": implementation, "return_sequences": False}
        return simple_rnn(params, x, mask=mask, **options)[0].sum()

    def derivatives(x, mask):
        once = jax.value_and_grad(final, argnums=(0, 1))
        twice = jax.grad(lambda kernel: once(kernel, weights[1], x, mask)[1][0].sum())
        forward = jax.jvp(lambda *w: final(*w, x, mask), weights, (ONE, ONE)) if implementation == "autodiff" else 0
        return once(*weights, x, mask), twice(ONE), forward

    result = jax.jit(derivatives)(x, mask)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    assert_close(result, jax.jit(derivatives)(short, None), 1e-12)


class PoisonedCell(nn.RNNCellBase):
    """Any cell: `act(W x + U h)`, where the output is not the state."""

    activation: Any

    @nn.compact
    def __call__(self, carry, x):
        h = self.activation(nn.Dense(1, use_bias=False)(x) + nn.Dense(1, use_bias=False)(carry))
        return h, 2 * h

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], 1))

    @property
    def num_feature_axes(self):
        return 1


@pytest.mark.parametrize("name", ["overflow", "root of 0"])
def test_what_a_masked_step_of_another_cell_computes_reaches_nothing(name):
    activation, weights, (x, mask), short = after_poison(name)
    layer = RNN(PoisonedCell(activation))
    variables = {"params": {f"Dense_{i}": {"kernel": kernel} for i, kernel in enumerate(weights)}}

    def loss(variables, x, mask):
        return layer.apply(variables, x, mask=mask).sum()

    result = jax.value_and_grad(loss)(variables, x, mask)
    assert_close(result, jax.value_and_grad(loss)(variables, short, None), 1e-12)
