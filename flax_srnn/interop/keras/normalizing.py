"""Layers that normalise."""

from __future__ import annotations

from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn.interop.keras.arguments import Arguments
from flax_srnn.interop.keras.shared import Masked, cast, unit

__all__ = ["BatchNormalization", "LayerNormalization", "Normalization", "UnitNormalization"]


class BatchNormalization(nn.BatchNorm):
    """With the running statistics, or in training, unless it is frozen, with those of the batch's used steps."""

    trainable: bool = True

    @classmethod
    def read(cls, given: Arguments) -> Self:
        axes = given.axes()
        if len(axes) != 1:
            raise ValueError(f"`axis` must be one axis, got {axes}.")
        return cls(
            axis=axes[0],
            momentum=given.number("momentum", 0.99, at_least=0, at_most=1),
            epsilon=given.number("epsilon", 1e-3, at_least=0),
            use_bias=given.flag("center", True),
            use_scale=given.flag("scale", True),
            trainable=given.flag("trainable", True),
            **given.common,
        )

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        used = None if mask is None else mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
        return self(x, use_running_average=not (training and self.trainable), mask=used), mask


class LayerNormalization(nn.LayerNorm):
    """Mean 0 and variance 1 over the given axes."""

    @classmethod
    def read(cls, given: Arguments) -> Self:
        axes = given.axes()
        return cls(
            epsilon=given.number("epsilon", 1e-3, at_least=0),
            use_bias=given.flag("center", True),
            use_scale=given.flag("scale", True),
            reduction_axes=axes,
            feature_axes=axes,
            use_fast_variance=False,  # E[x²] - E[x]² loses digits that Keras has
            **given.common,
        )

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return self(x), mask


class UnitNormalization(nn.Module):
    """Length 1 over the given axes."""

    axes: tuple[int, ...] = (-1,)
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(given.axes(), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return unit(cast(x, self.dtype), self.axes, 1e-12), mask


class Normalization(nn.Module):
    """(x - mean) / √variance, or back with `invert`: statistics of data, one for each place along the axes.

    They are given, or variables that are never updated; beside them stands how many examples Keras saw, which nothing needs.
    """

    axes: tuple[int, ...] = (-1,)
    mean: Any = None
    variance: Any = None
    invert: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @classmethod
    def read(cls, given: Arguments) -> Self:
        axes, invert = given.integers("axis", -1), given.flag("invert", False)
        mean, variance = (given.numbers(name, optional=True) for name in ("mean", "variance"))
        if (mean is None) != (variance is None):
            raise ValueError(f"`mean` and `variance` must be given both or neither, got {mean!r} and {variance!r}.")
        return cls(axes, mean, variance, invert, **given.common)

    @nn.compact
    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        axes = sorted(range(x.ndim)[axis] for axis in self.axes)
        if self.mean is None:
            shape = [x.shape[axis] for axis in axes]
            mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype).value
            variance = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype).value
            self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        else:
            mean, variance = self.mean, self.variance
        x = x.astype(self.dtype)
        mean, deviation = _along(axes, mean, x), jnp.maximum(jnp.sqrt(_along(axes, variance, x)), 1e-7)
        return mean + x * deviation if self.invert else (x - mean) / deviation, mask


def _along(axes: list[int], statistics: Any, x: jax.Array) -> jax.Array:
    """Statistics for the last ones of some axes, of the shape of x."""
    found = jnp.asarray(statistics, x.dtype)
    shape = [1] * x.ndim
    for axis, size in zip(reversed(axes), reversed(found.shape), strict=False):
        shape[axis] = size
    return jnp.broadcast_to(found.reshape(shape), x.shape)
