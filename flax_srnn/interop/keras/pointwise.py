"""Layers that act on each step, or each element, by itself."""

from __future__ import annotations

from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn import activations, identifiers, regularizers
from flax_srnn.interop.keras.arguments import Arguments
from flax_srnn.interop.keras.shared import Masked, cast, of_rank
from flax_srnn.layers import options
from flax_srnn.linen import sown
from flax_srnn.linen.cells import Checked

__all__ = [
    "ELU", "Activation", "ActivityRegularization", "Dense", "Dropout", "Embedding", "GaussianNoise", "LeakyReLU", "Masking",
    "PReLU", "ReLU", "Rescaling", "Softmax", "SpatialDropout1D",
]  # fmt: skip


class Dense(nn.Dense):
    """act(x W + b) on the last axis."""

    activation: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        activation, use_bias = given.activation(), given.flag("use_bias", True)
        return cls(given.size("units"), use_bias=use_bias, activation=activation, **given.common)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return activations.get(self.activation)(self(x)), mask


class Embedding(nn.Embed):
    """Row x of a table for every integer x; with `mask_zero`, 0 is padding."""

    mask_zero: bool = False

    @classmethod
    def read(cls, given: Arguments) -> Self:
        mask_zero = given.flag("mask_zero", False)
        return cls(given.size("input_dim"), given.size("output_dim"), mask_zero=mask_zero, **given.common)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = x if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(jnp.int32)
        return self(x), x != 0 if self.mask_zero else None


class Masking(nn.Module):
    """Masks the steps at which every feature is `mask_value`, and makes them 0."""

    mask_value: float = 0.0
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(given.number("mask_value", 0.0), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = cast(x, self.dtype)
        used = jnp.any(x != self.mask_value, axis=-1)
        return jnp.where(used[..., None], x, 0), used


# What acts in training alone. Random numbers come from the stream "dropout".


class Dropout(nn.Dropout):
    """Drops elements in training."""

    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(given.number("rate", at_least=0, at_most=1), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return self(cast(x, self.dtype), deterministic=not training), mask


class SpatialDropout1D(Dropout):
    """Drops features of a sequence in training, each at all steps or at none."""

    broadcast_dims: Any = (1,)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return super().step(of_rank(x, "BTF"), mask, training)


class GaussianNoise(nn.Module):
    """Adds normal noise in training."""

    stddev: float
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(given.number("stddev", at_least=0), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = cast(x, self.dtype)
        if training and self.stddev > 0:
            x = x + self.stddev * jax.random.normal(self.make_rng("dropout"), x.shape, self.dtype)
        return x, mask


class ActivityRegularization(Checked):
    """Leaves everything as it is; its penalty on it, divided by the batch size, is sown in the collection "losses"."""

    activity_regularizer: Any
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        l1, l2 = (given.number(name, 0.0, at_least=0) for name in ("l1", "l2"))
        return cls(regularizers.L1L2(l1, l2), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = cast(x, self.dtype)
        sown.sow(self, {"activity_regularizer": options.activity_penalty(self, x, x.shape[:1])})
        return x, mask


# Activations


class Activation(nn.Module):
    """An activation by itself."""

    activation: Any
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(given.activation(), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return activations.get(self.activation)(cast(x, self.dtype)), mask


class ReLU(Activation):
    """`activations.ReLU`."""

    @classmethod
    def read(cls, given: Arguments) -> Self:
        slope, threshold = (given.number(name, 0.0, at_least=0) for name in ("negative_slope", "threshold"))
        most = identifiers.plain(given.take("max_value"))
        return cls(activations.ReLU(most, slope, threshold), **given.uncounted)


class LeakyReLU(Activation):
    """`activations.LeakyReLU`, whose slope was called `alpha` in tf.keras 2."""

    @classmethod
    def read(cls, given: Arguments) -> Self:
        slope = given.number("negative_slope", given.number("alpha", 0.3, at_least=0), at_least=0)
        return cls(activations.LeakyReLU(slope), **given.uncounted)


class ELU(Activation):
    """`activations.ELU`."""

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(activations.ELU(given.number("alpha", 1.0)), **given.uncounted)


class PReLU(nn.Module):
    """x, and alpha · x below 0; alpha has the shape of an example, but for size 1 on `shared_axes` (1 is the first one)."""

    shared_axes: tuple[int, ...] = ()
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @classmethod
    def read(cls, given: Arguments) -> Self:
        shared = given.integers("shared_axes")
        if any(axis < 1 for axis in shared):
            raise ValueError(f"`shared_axes` must be 1 or more, got {shared}.")
        return cls(shared, **given.common)

    @nn.compact
    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = cast(x, self.dtype)
        shape = tuple(1 if axis in self.shared_axes else n for axis, n in enumerate(x.shape[1:], 1))
        alpha = self.param("alpha", nn.initializers.zeros, shape, self.param_dtype).astype(self.dtype)
        return jax.nn.relu(x) - alpha[None] * jax.nn.relu(-x), mask


class Softmax(nn.Module):
    """exp, divided by its sum over the axes; 0 where a mask of the shape of the inputs says so."""

    axes: tuple[int, ...] = (-1,)
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(given.axes(), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = cast(x, self.dtype)
        if mask is None:
            return jax.nn.softmax(x, self.axes), mask
        used = jnp.broadcast_to(mask, x.shape)  # not by steps: Keras fails on a (B, T) for (B, T, F)
        lowest = -3e4 if x.dtype == jnp.float16 else -1e9
        return jnp.where(used, jax.nn.softmax(jnp.where(used, x, lowest), self.axes), 0), mask


class Rescaling(nn.Module):
    """x · scale + offset, each a number or an array for the last dimensions."""

    scale: Any
    offset: Any = 0.0
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(given.numbers("scale"), given.numbers("offset", 0.0), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        scale, offset = (jnp.broadcast_to(jnp.asarray(each, self.dtype), x.shape) for each in (self.scale, self.offset))
        return x.astype(self.dtype) * scale + offset, mask
