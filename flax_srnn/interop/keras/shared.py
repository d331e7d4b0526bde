"""What the layers of Keras's models share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_srnn import validation

__all__ = ["MAX_ELEMENTS", "MAX_RANK", "Masked", "affordable", "cast", "of_rank", "on_device", "unit"]

Masked = tuple[Any, Any]  # (outputs, mask or None)

MAX_ELEMENTS = 2**28
"""The most that a layer makes of one example where it may make more than it was given, 1 GiB in float32: what repeats, pads or
joins would otherwise turn a few bytes of a configuration into more than any memory holds."""


MAX_RANK = 16
"""The most dimensions of an array between layers: NumPy has no more than 64."""


def affordable(shape: Sequence[int]) -> None:
    """Raises ValueError if an example in an array of this shape, batch first, has more than `MAX_ELEMENTS` or dimensions beyond
    `MAX_RANK`."""
    if len(shape) > MAX_RANK:
        raise ValueError(f"would make an array of {len(shape)} dimensions; at most {MAX_RANK} are made.")
    if (count := math.prod(shape[1:])) > MAX_ELEMENTS:
        raise ValueError(
            f"would make {count} elements of one example, {tuple(shape)}; at most {MAX_ELEMENTS} are made."
        )


def on_device(array: Any, dtype: Any = None) -> jax.Array:
    """JAX's form of an array of a file, of any numbers: what a narrower type cannot hold is infinite there."""
    with np.errstate(all="ignore"):
        return jnp.asarray(array, dtype)


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """What Keras does to the inputs of every layer: integers stay integers."""
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def of_rank(x: jax.Array, letters: str) -> jax.Array:
    """`x`, of as many dimensions as "BTF" has letters; Flax's layers would take fewer for one example."""
    if x.ndim != len(letters):
        raise ValueError(f"needs inputs of the shape ({', '.join(letters)}), got {validation.describe(x)}.")
    return x


def unit(x: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    """x divided by its length over some axes, or by `epsilon` where it is shorter."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axes, keepdims=True), epsilon**2))
