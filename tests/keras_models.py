"""What the tests of Keras's files and of its configurations share."""

import jax
import keras
import numpy as np
import pytest
from keras import layers

from flax_srnn.interop.keras import build

B, T, F = 3, 5, 4

MARKS = [
    # Keras warns where a mask ends, and its variables do not know NumPy's newest protocol.
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def lenient():
    """Keras relies on rank promotion, which the session forbids."""
    keras.utils.clear_session(free_memory=False)  # which numbers the names of layers anew
    with jax.numpy_rank_promotion("allow"):
        yield


def randomised(model, seed=0):
    """The model with random weights: no zero biases, no symmetric matrices."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(-1 if w.ndim > 1 else 0.2, 1, w.shape) for w in model.get_weights()])
    return model


def reals():
    """(B, T, F) with padding at the end, at the beginning and in between."""
    x = np.random.default_rng(1).normal(size=(B, T, F)).astype(np.float32)
    x[0, 3:] = x[1, 0] = x[2, 2] = 0
    return x


def real_input(*more, **options):
    return [keras.Input((T, F), **options), *more]


def word_input(*more):
    return [keras.Input((T,)), layers.Embedding(7, 3, mask_zero=True), *more]


def strictly(module, variables, *arguments, **options):
    with jax.numpy_rank_promotion("raise"):
        return module.apply(variables, *arguments, **options)


def assert_same_tree(tree, expected):
    if isinstance(expected, dict):
        assert list(tree) == list(expected)  # the order too
        for key, value in expected.items():
            assert_same_tree(tree[key], value)
    else:
        assert isinstance(tree, jax.Array)
        assert tree.dtype == expected.dtype
        np.testing.assert_array_equal(tree, expected)


def layer_of(kind, config):
    """The module for a layer inside a model."""
    return build.layer({"class_name": kind, "config": {"name": "layer", **config}}, None)
