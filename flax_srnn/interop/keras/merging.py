"""Layers of several inputs: `step` takes a list of arrays, and a list of their masks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn import validation
from flax_srnn.interop.keras.arguments import Arguments
from flax_srnn.interop.keras.shared import Masked, affordable, cast, unit

__all__ = ["Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract"]


class _Elementwise(nn.Module):
    """A merging of one element of each input.

    Inputs of lower rank get dimensions of size 1 behind the batch. A step of the result is masked
    where all inputs are; where one has no mask, it has none.
    """

    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(**given.uncounted)

    def step(self, inputs: Any, mask: Any, training: bool) -> Masked:
        inputs = _several(inputs)
        rank = max(x.ndim for x in inputs)
        aligned = [cast(x, self.dtype).reshape(x.shape[:1] + (1,) * (rank - x.ndim) + x.shape[1:]) for x in inputs]
        affordable(jnp.broadcast_shapes(*(x.shape for x in aligned)))
        # Keras loses sight of the mask of an input whose shape it changes, until it masks the result.
        used = [None if m is None or x.ndim < rank else _over_features(m, x) for x, m in zip(inputs, mask, strict=True)]
        some_unmasked = any(m is None for m in mask)
        return self.merged(aligned, used), None if some_unmasked else functools.reduce(jnp.logical_or, mask)

    def merged(self, inputs: list[jax.Array], used: list[Any]) -> jax.Array:
        raise NotImplementedError  # every layer below has its own


class Add(_Elementwise):
    """The sum."""

    def merged(self, inputs: list[jax.Array], used: list[Any]) -> jax.Array:
        return functools.reduce(jnp.add, inputs)


class Subtract(_Elementwise):
    """The difference of two."""

    def merged(self, inputs: list[jax.Array], used: list[Any]) -> jax.Array:
        first, second = _two(inputs)
        return first - second


class Average(_Elementwise):
    """The mean."""

    def merged(self, inputs: list[jax.Array], used: list[Any]) -> jax.Array:
        return functools.reduce(jnp.add, inputs) / len(inputs)


class Multiply(_Elementwise):
    """The product of the used ones; 0 where all have masks and none is used."""

    def merged(self, inputs: list[jax.Array], used: list[Any]) -> jax.Array:
        factors = [x if m is None else jnp.where(m, x, 1) for x, m in zip(inputs, used, strict=True)]
        product = functools.reduce(jnp.multiply, factors)
        if any(m is None for m in used):
            return product
        return jnp.where(functools.reduce(jnp.logical_or, used), product, 0)


class Maximum(_Elementwise):
    """The larger one; a masked one yields to the other, as long as no input without a mask has come before."""

    _of_two = staticmethod(jnp.maximum)

    def merged(self, inputs: list[jax.Array], used: list[Any]) -> jax.Array:
        largest, known = inputs[0], used[0]
        for x, own in zip(inputs[1:], used[1:], strict=True):
            x = x if own is None else jnp.where(own, x, largest)
            largest = largest if known is None else jnp.where(known, largest, x)
            known = None if known is None or own is None else known | own
            largest = self._of_two(largest, x)
        return largest


class Minimum(Maximum):
    """The smaller one, in the same way."""

    _of_two = staticmethod(jnp.minimum)


class Concatenate(nn.Module):
    """One input after the other along an axis. A step is masked where no input uses it at any feature."""

    axis: int = -1
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        axes = given.axes()
        if len(axes) != 1:
            raise ValueError(f"`axis` must be one axis, got {axes}.")
        return cls(*axes, **given.uncounted)

    def step(self, inputs: Any, mask: Any, training: bool) -> Masked:
        inputs = [cast(x, self.dtype) for x in _several(inputs)]
        affordable((1, sum(math.prod(x.shape[1:]) for x in inputs)))
        if range(inputs[0].ndim)[self.axis] == 0:
            raise ValueError(f"`axis`={self.axis} is the batch, along which nothing is joined.")
        outputs = jnp.concatenate(inputs, self.axis)
        if all(m is None for m in mask):
            return outputs, None
        used = [
            jnp.ones(x.shape, bool) if m is None else _over_features(m, x) for x, m in zip(inputs, mask, strict=True)
        ]
        return outputs, jnp.any(jnp.concatenate(used, self.axis), axis=-1)


class Dot(nn.Module):
    """Sums of products along an axis of each of two inputs, which may be brought to length 1 there."""

    axes: tuple[int, int]
    normalize: bool = False
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        axes = given.integers("axes")
        if len(axes) not in (1, 2) or 0 in axes:
            raise ValueError(f"`axes` must be one or two integers other than 0, the batch, got {axes}.")
        return cls((axes[0], axes[-1]), given.flag("normalize", False), **given.uncounted)

    def step(self, inputs: Any, mask: Any, training: bool) -> Masked:
        x, y = (cast(each, self.dtype) for each in _two(_several(inputs)))
        along_x, along_y = range(x.ndim)[self.axes[0]], range(y.ndim)[self.axes[1]]
        kept = [
            n for each, along in ((x, along_x), (y, along_y)) for i, n in enumerate(each.shape) if i not in (0, along)
        ]
        affordable((x.shape[0], *kept))
        if self.normalize:
            x, y = unit(x, (along_x,), 1e-7), unit(y, (along_y,), 1e-7)
        sums = jax.lax.dot_general(x, y, (((along_x,), (along_y,)), ((0,), (0,))))
        return sums[:, None] if sums.ndim == 1 else sums, None


def _several(inputs: Any) -> list[jax.Array]:
    """A list of arrays: of one array a batch would be merged into an example."""
    if not isinstance(inputs, (list, tuple)) or not inputs:
        raise ValueError(f"needs a list of inputs, got {validation.describe(inputs)}.")
    return list(inputs)


def _two(inputs: Sequence[jax.Array]) -> Sequence[jax.Array]:
    if len(inputs) != 2:
        raise ValueError(f"needs 2 inputs, got {len(inputs)}.")
    return inputs


def _over_features(mask: jax.Array, x: jax.Array) -> jax.Array:
    """The mask of steps for every element of x."""
    return jnp.broadcast_to(mask if mask.ndim == x.ndim else mask[..., None], x.shape)
