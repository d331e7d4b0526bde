"""How exact float32 is by the kernel: outputs and gradients within 2e-6 of float64 at the benchmark's shapes and at random ones.

`pytest native/tests/test_accuracy.py -m '' -s` prints the worst errors.
"""

import functools

import cases
import jax
import numpy as np
import pytest
from flax_srnn_native import Native
from test_values import HERE

from flax_srnn import simple_rnn
from flax_srnn.benchmark.process import GRID, OTHER, Case, problem

TOLERANCE = 2e-6
LARGE = {(64, 256, 128, 512), (128, 50, 512, 1024), (1, 10000, 8, 128)}
SHAPES = [pytest.param(s, marks=[pytest.mark.slow] * (s in LARGE), id="x".join(map(str, s))) for s in GRID + OTHER]
NAMES = ("kernel", "recurrent_kernel", "bias")
ACTIVATIONS = {  # and its derivative, of its value
    "tanh": (np.tanh, lambda h: 1 - h * h),
    "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), lambda h: h * (1 - h)),
    "relu": (lambda a: np.maximum(a, 0), lambda h: np.float64(h > 0)),
    "linear": (lambda a: a, np.ones_like),
}


def exact(given, activation):
    """In float64, all rows at once: outputs and gradients, and of each the size by which an error is judged.

    That is its largest element; but a sum that cancels, as the gradient of a single weight may, is as large as its terms let
    it be: the root of the sum of their squares. There are no gradients of relu: its derivative jumps where a rounding error
    decides.
    """
    act, derivative = ACTIVATIONS[activation]
    kernel, recurrent_kernel, bias = (given.params[0][name].astype(np.float64) for name in NAMES)
    x, cotangent = (np.swapaxes(array, 0, 1).astype(np.float64) for array in (given.inputs, given.cotangent))
    steps, rows, _ = x.shape
    h = np.zeros((steps + 1, rows, len(bias)))
    for t, projected in enumerate(x @ kernel + bias):
        h[t + 1] = act(projected + h[t] @ recurrent_kernel)

    def back(array):
        found = np.swapaxes(array, 0, 1)
        return found, np.abs(found).max()

    outputs = {"outputs": back(h[1:])}
    if activation == "relu":
        return outputs
    delta, carried = np.zeros(h[1:].shape), 0.0
    for t in reversed(range(steps)):
        delta[t] = derivative(h[t + 1]) * (cotangent[t] + carried)
        carried = delta[t] @ recurrent_kernel.T

    def total(left):
        """The sum over rows and steps of leftᵀ δ, and its size."""
        found = np.tensordot(left, delta, ((0, 1), (0, 1)))
        return found, max(np.abs(found).max(), np.tensordot(left**2, delta**2, ((0, 1), (0, 1))).max() ** 0.5)

    weights = (total(x), total(h[:-1]), total(np.ones((steps, rows, 1))))
    return outputs | {**dict(zip(NAMES, weights, strict=True)), "inputs": back(delta @ kernel.T)}


def errors(given, activation, implementation, wanted):
    """Of outputs and gradients, relative to their sizes."""

    @jax.jit
    def run(params, inputs, cotangent):
        function = functools.partial(simple_rnn, activation=activation, implementation=implementation)
        outputs, vjp = jax.vjp(lambda params, inputs: function(params, inputs)[1], params, inputs)
        return outputs, *vjp(cotangent)

    outputs, of_params, of_inputs = run(given.params[0], given.inputs, given.cotangent)
    found = {"outputs": outputs, **of_params, "inputs": of_inputs}
    return {
        name: np.abs(np.reshape(found[name], truth.shape) - truth).max() / (size or 1)
        for name, (truth, size) in wanted.items()
    }


def assert_accurate(shape, activation, what, worst, every=HERE):
    given = problem(Case(shape))
    wanted = exact(given, activation)
    for instructions in every:
        found = errors(given, activation, Native(instructions), wanted)
        for name, error in found.items():
            line = f"{what}, {instructions}, {'outputs' if name == 'outputs' else 'gradients'}"
            worst[line] = max(worst.get(line, 0), error)
        assert all(error <= TOLERANCE for error in found.values()), (instructions, found)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_the_benchmark(shape, worst):
    assert_accurate(shape, "tanh", "x".join(map(str, shape)), worst)


def drawn(count):
    rng = np.random.default_rng(7)
    for number in range(count):
        shape = tuple(int(np.exp(rng.uniform(0, np.log(most + 1)))) for most in (64, 200, 100, 300))
        # By every instruction set a few of them: of a shape, each is a program to compile.
        yield shape, ("tanh", "tanh", "sigmoid", "relu", "linear")[number % 5], HERE if number % 4 == 0 else HERE[-1:]


@pytest.mark.parametrize("case", cases.thinned(drawn(200), 10), ids=lambda case: "x".join(map(str, case[0])))
def test_random_shapes(case, worst):
    shape, activation, every = case
    assert_accurate(shape, activation, f"random shapes, {activation}", worst, every)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_activations(activation, worst):
    """Of every size of argument, in units in the last place; and of infinities and NaN."""
    small = np.geomspace(1e-30, 100, 40_001)
    x = np.concatenate([small, -small[small < 80], np.linspace(-12, 12, 60_001)]).astype(np.float32)
    wanted = ACTIVATIONS[activation][0](x.astype(np.float64))
    beyond = np.float32([np.inf, -np.inf, np.nan])
    one = {"kernel": np.float32([[1]]), "recurrent_kernel": np.float32([[0]])}
    for instructions in HERE:
        options = {"activation": activation, "implementation": Native(instructions)}
        found, others = (np.ravel(simple_rnn(one, values[:, None, None], **options)[0]) for values in (x, beyond))
        error = (np.abs(found - wanted) / np.spacing(np.abs(wanted).astype(np.float32))).max()
        worst[f"{activation}, {instructions}, units in the last place"] = error
        assert error <= 2.5
        np.testing.assert_array_equal(others, [1, -1 if activation == "tanh" else 0, np.nan])
