"""Layers that look at several steps, or change what the dimensions mean: all of them end the mask."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn import activations, validation
from flax_srnn.interop.keras.arguments import Arguments
from flax_srnn.interop.keras.shared import Masked, affordable, cast, of_rank

__all__ = [
    "AveragePooling1D", "Conv1D", "Flatten", "GlobalAveragePooling1D", "GlobalMaxPooling1D", "MaxPooling1D", "Permute",
    "RepeatVector", "Reshape", "ZeroPadding1D",
]  # fmt: skip


class Conv1D(nn.Conv):
    """act(Σ_k x_{t+k} W_k + b): a window that moves along time."""

    kernel_size: tuple[int]
    kernel_dilation: int = 1
    activation: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        given.channels_last()
        return cls(
            given.size("filters"),
            (given.extent("kernel_size"),),
            strides=given.extent("strides", 1),
            padding=given.choice("padding", "valid", "same", "causal").upper(),
            kernel_dilation=given.extent("dilation_rate", 1),
            feature_group_count=given.size("groups", 1),
            use_bias=given.flag("use_bias", True),
            activation=given.activation(),
            **given.common,
        )

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        batch, steps, features = of_rank(x, "BTF").shape
        affordable((batch, steps + self.kernel_dilation * (self.kernel_size[0] - 1), features))  # when padded
        return activations.get(self.activation)(self(x)), None


class _Pooling1D(nn.Module):
    """One number for each window that moves along time, and each feature."""

    _pool: ClassVar[Callable[..., jax.Array]]  # of (x, window, strides, padding)

    pool_size: int
    strides: int
    padding: str
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        given.channels_last()
        pool_size = given.extent("pool_size", 2)
        strides = given.extent("strides", pool_size)
        return cls(pool_size, strides, given.choice("padding", "valid", "same").upper(), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        batch, steps, features = of_rank(x, "BTF").shape
        affordable((batch, steps + self.pool_size, features))  # when padded
        return self._pool(cast(x, self.dtype), (self.pool_size,), (self.strides,), self.padding), None


class MaxPooling1D(_Pooling1D):
    """The largest one in each window."""

    _pool = staticmethod(nn.max_pool)


class AveragePooling1D(_Pooling1D):
    """The mean of each window, of which padding is no part."""

    _pool = staticmethod(functools.partial(nn.avg_pool, count_include_pad=False))


class _GlobalPooling1D(nn.Module):
    """One number for all steps, and each feature."""

    keepdims: bool = False
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        given.channels_last()
        return cls(given.flag("keepdims", False), **given.uncounted)


class GlobalMaxPooling1D(_GlobalPooling1D):
    """The largest one of all steps, masked ones too."""

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = cast(of_rank(x, "BTF"), self.dtype)
        # A model is tried on few steps, of which a convolution may leave none.
        return jnp.max(x, axis=1, keepdims=self.keepdims, initial=-jnp.inf), None


class GlobalAveragePooling1D(_GlobalPooling1D):
    """The mean of the used steps; NaN, as in Keras, where none is."""

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = cast(of_rank(x, "BTF"), self.dtype)
        used = validation.step_flags("mask", mask, x.shape[:1], x.shape[1])
        where = None if used is None else used[..., None]
        return jnp.mean(x, axis=1, keepdims=self.keepdims, where=where), None


class ZeroPadding1D(nn.Module):
    """Steps of zeros before and after the others."""

    padding: tuple[int, int]
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        given.channels_last()
        padding = given.integers("padding", 1)
        if len(padding) not in (1, 2) or min(padding) < 0:
            raise ValueError(f"`padding` must be one or two integers of at least 0, got {padding}.")
        return cls((padding[0], padding[-1]), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        batch, steps, features = of_rank(x, "BTF").shape
        affordable((batch, sum(self.padding) + steps, features))
        return jnp.pad(cast(x, self.dtype), ((0, 0), self.padding, (0, 0))), None


class RepeatVector(nn.Module):
    """The same at n steps."""

    n: int
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(given.size("n"), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        batch, features = of_rank(x, "BF").shape
        affordable((batch, self.n, features))
        return jnp.broadcast_to(cast(x, self.dtype)[:, None], (batch, self.n, features)), None


class Reshape(nn.Module):
    """Another shape of every example; one size may be -1, which is what is left."""

    target_shape: tuple[int, ...]
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        target = given.integers("target_shape")
        if any(size < 1 and size != -1 for size in target) or target.count(-1) > 1:
            raise ValueError(f"`target_shape` must be positive integers, one of which may be -1, got {target}.")
        return cls(target, **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return cast(x, self.dtype).reshape(x.shape[0], *self.target_shape), None


class Permute(nn.Module):
    """Another order of the dimensions of every example, the first of which is 1."""

    dims: tuple[int, ...]
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        dims = given.integers("dims")
        if sorted(dims) != list(range(1, len(dims) + 1)):
            raise ValueError(f"`dims` must be 1, 2, … in some order, got {dims}.")
        return cls(dims, **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return cast(x, self.dtype).transpose(0, *self.dims), None


class Flatten(nn.Module):
    """Everything but the batch in one dimension."""

    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        given.channels_last()
        return cls(**given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return cast(x, self.dtype).reshape(x.shape[0], math.prod(x.shape[1:])), None
