"""Layers of several inputs against Keras's, with every combination of masks."""

import itertools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from keras import layers
from keras.src.backend import get_keras_mask, set_keras_mask
from keras_models import MARKS, B, F, T, layer_of, lenient, strictly  # noqa: F401 - a fixture

from flax_srnn.interop.keras import shared

pytestmark = MARKS

N = 2
SEQUENCES, VECTORS, NESTED = (B, T, F), (B, F), (B, N, T, F)


def compared(layer, shapes, masked, seed=0):
    """The worst error, after what is returned by Keras and by ours was found to agree in shape, dtype and mask."""
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    masks = [jnp.asarray(rng.random(shape[:-1]) < 0.5) if m else None for shape, m in zip(shapes, masked, strict=True)]
    kind = type(layer).__name__
    ours = layer_of(kind, layer.get_config())
    y, mask = strictly(ours, {}, arrays, masks, False, method="step")
    for x, m in zip(arrays, masks, strict=True):
        if m is not None:
            set_keras_mask(x, m)
    expected = layer(arrays)
    kept = get_keras_mask(expected)
    assert (mask is None) == (kept is None)
    if mask is not None:
        np.testing.assert_array_equal(mask, kept)
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    return np.abs(y - expected).max()


def combinations(count):
    return list(itertools.product((False, True), repeat=count))


ELEMENTWISE = ["Add", "Average", "Multiply", "Maximum", "Minimum", "Subtract"]


@pytest.mark.parametrize("kind", ELEMENTWISE)
@pytest.mark.parametrize("count", [2, 3])
def test_elementwise(kind, count, worst):
    if kind == "Subtract" and count > 2:
        pytest.skip("of two inputs only")
    layer = getattr(layers, kind)()
    errors = [compared(layer, [SEQUENCES] * count, masked) for masked in combinations(count)]
    worst[f"{kind} of {count}"] = max(errors)
    assert max(errors) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ELEMENTWISE)
@pytest.mark.parametrize(
    "shapes",
    cases.thinned(
        [
            (VECTORS, SEQUENCES),
            (SEQUENCES, VECTORS),
            ((B, 1, F), SEQUENCES),
            ((B, T, 1), (B, 1, F)),
            (VECTORS, NESTED),
            (SEQUENCES, NESTED),
        ],
        3,
    ),
)
def test_different_ranks_and_sizes(kind, shapes, worst):
    """What is broadcast loses its mask on the way; where the masks themselves do not fit, Keras fails too."""
    layer = getattr(layers, kind)()
    errors = []
    for masked in combinations(2):
        if all(masked) and len({len(shape) for shape in shapes}) > 1:
            continue  # a mask (B,) or (B, T) and one (B, N, T)
        errors.append(compared(layer, shapes, masked))
    worst[f"{kind}, broadcast"] = max(errors)
    assert max(errors) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_concatenate(axis, worst):
    for shapes in ([(B, T, 3), (B, T, 1)] if axis != 1 else [(B, 2, F), (B, T, F)], [SEQUENCES] * 3):
        errors = [compared(layers.Concatenate(axis=axis), shapes, masked) for masked in combinations(len(shapes))]
        assert max(errors) == 0
    assert compared(layers.Concatenate(axis=1), [(B, 2), (B, 3)], (False, False)) == 0
    for masked in combinations(2):
        assert compared(layers.Concatenate(axis=axis), [NESTED, NESTED], masked) == 0


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("axes", "shapes"),
    [
        (1, [VECTORS, VECTORS]),
        (-1, [VECTORS, VECTORS]),
        (2, [(B, T, F), (B, 3, F)]),
        (-1, [(B, T, F), (B, 3, F)]),
        (1, [(B, T, F), (B, T, 3)]),
        ((2, 1), [(B, T, F), (B, F, 3)]),
        ((1, 2), [(B, T, F), (B, 3, T)]),
        ((-1, -2), [(B, T, F), (B, F, 3)]),
        ((1, 2), [VECTORS, (B, T, F)]),
        ((2, 1), [(B, T, F), VECTORS]),
        ((2, 3), [(B, 2, T, 3), (B, 4, 1, T)]),
        ((1, 1), [(B, T, 2, 3), (B, T, F)]),
    ],
)
def test_dot(axes, shapes, normalize, worst):
    layer = layers.Dot(axes=axes, normalize=normalize)
    errors = [compared(layer, shapes, masked) for masked in ((False, False), (True, True))]
    worst["Dot, normalised" if normalize else "Dot"] = max(errors)
    assert max(errors) <= 3e-6


@pytest.mark.slow
def test_of_nothing_there_is_no_direction():
    """Keras's 0; and no derivative that is not a number."""
    layer = layer_of("Dot", {"axes": 1, "normalize": True})

    def similarity(x):
        return jnp.sum(layer.apply({}, [x, jnp.ones(VECTORS)], [None, None], False, method="step")[0])

    value, gradient = jax.value_and_grad(similarity)(jnp.zeros(VECTORS))
    assert value == 0
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("kind", ["Subtract", "Dot"])
def test_of_two_inputs_only(kind):
    layer = layer_of(kind, {"axes": 1} if kind == "Dot" else {})
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"needs 2 inputs, got {count}"):
            layer.apply({}, [jnp.ones(VECTORS)] * count, [None] * count, False, method="step")


def test_small_configurations_make_no_huge_arrays(monkeypatch):
    """Joined with itself forty times, one number would be a trillion; so would products of what is repeated."""
    monkeypatch.setattr(shared, "MAX_ELEMENTS", 100)
    for kind, config, shapes in [
        ("Concatenate", {}, [(1, 51), (1, 50)]),
        ("Dot", {"axes": [1, 1]}, [(1, 1, 11), (1, 1, 10)]),
        ("Add", {}, [(1, 11, 1), (1, 1, 10)]),
        ("Maximum", {}, [(1, 11), (1, 10, 1)]),
    ]:
        layer = layer_of(kind, config)
        with pytest.raises(ValueError, match="at most 100"):
            layer.apply({}, [jnp.ones(shape) for shape in shapes], [None, None], False, method="step")


@pytest.mark.slow
def test_half_precision():
    for kind in ELEMENTWISE:
        layer = getattr(layers, kind)(dtype="mixed_bfloat16")
        assert compared(layer, [SEQUENCES] * 2, (True, False)) == 0
