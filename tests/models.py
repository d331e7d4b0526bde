"""What the tests of layers share: small inputs, variables with random numbers in them, comparisons of trees."""

import functools

import jax
import numpy as np

B, T, F, U = 2, 5, 3, 4
KEY = np.array([0, 1], np.uint32)
X = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
MASK = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]], bool)
RESETS = np.array([[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]], bool)
LENGTHS = np.array([3, 5])

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
same = np.testing.assert_array_equal


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def drawn(layer, *inputs, seed=1):
    """Variables of a layer with random numbers in them; nothing is compiled."""
    rng = np.random.default_rng(seed)
    made = jax.eval_shape(layer.init, KEY, *inputs)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype) / 2, made)


def run(layer, variables, *inputs, **arguments):
    """One compiled application."""
    return jax.jit(lambda v, x, a: layer.apply(v, *x, **a))(variables, inputs, arguments)


def check_tree(actual, expected, equal=close):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(equal, actual, expected)


def parameters(in_features, units, *more):
    """Names and shapes of the parameters of a simple RNN."""
    names = {"kernel": (in_features, units), "recurrent_kernel": (units, units), "bias": (units,)}
    return names | dict.fromkeys(more, (units,))
