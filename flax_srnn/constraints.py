"""Keras's weight constraints: w -> w, applied after an optimizer's update.

With n = √Σw² over `axis` and ε = 1e-7; `axis` 0 of a kernel (F, U) takes the weights that come into one unit, and the whole
of a bias (U,). All are frozen dataclasses: hashable, and equal when their arguments are. Source: `keras.constraints`.

`Stacked` is none of Keras's: it says which axes of a parameter belong to a stack of layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flax_srnn import identifiers, validation
from flax_srnn.dtypes import at_least_float32

__all__ = ["MaxNorm", "MinMaxNorm", "NonNeg", "Stacked", "UnitNorm", "get", "to_config"]

Constraint = Callable[[jax.Array], jax.Array]

_EPSILON = 1e-7


@dataclasses.dataclass(frozen=True)
class MaxNorm:
    """w · min(n, max_value) / (ε + n): no column is longer than `max_value`.

    Args:
      max_value: the largest norm, 0 or more.
      axis: an integer or several, along which norms are taken.

    Raises:
      TypeError, ValueError: `max_value` is negative or no finite number; `axis` has no integers or does not fit the weight.

    >>> print(MaxNorm(1.0)(jnp.array([3.0, 4.0])).round(3), MaxNorm(1.0)(jnp.array([0.3, 0.4])).round(3))
    [0.6 0.8] [0.3 0.4]
    """

    max_value: float = 2.0
    axis: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_value", identifiers.number("max_value", self.max_value, at_least=0))
        object.__setattr__(self, "axis", _axes(self.axis))

    def __call__(self, w: ArrayLike) -> jax.Array:
        w = jnp.asarray(w)
        wide, norm = _norm(w, self.axis)
        return (wide * (jnp.minimum(norm, self.max_value) / (_EPSILON + norm))).astype(w.dtype)


@dataclasses.dataclass(frozen=True)
class MinMaxNorm:
    """w · (rate · clip(n, min_value, max_value) + (1 - rate) · n) / (ε + n): norms move into an interval.

    Args:
      min_value: the smallest norm, 0 or more.
      max_value: the largest norm, `min_value` or more.
      rate: from 0, leave the weights alone, to 1, move into the interval at once.
      axis: an integer or several, along which norms are taken.

    Raises:
      TypeError, ValueError: an argument is no number or outside its range; `axis` does not fit the weight.

    >>> print(MinMaxNorm(1.0, 2.0)(jnp.array([3.0, 4.0])).round(3), MinMaxNorm(1.0, 2.0)(jnp.array([0.3, 0.4])).round(3))
    [1.2 1.6] [0.6 0.8]
    """

    min_value: float = 0.0
    max_value: float = 1.0
    rate: float = 1.0
    axis: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_value", identifiers.number("min_value", self.min_value, at_least=0))
        object.__setattr__(self, "max_value", identifiers.number("max_value", self.max_value, at_least=self.min_value))
        object.__setattr__(self, "rate", identifiers.number("rate", self.rate, at_least=0, at_most=1))
        object.__setattr__(self, "axis", _axes(self.axis))

    def __call__(self, w: ArrayLike) -> jax.Array:
        w = jnp.asarray(w)
        wide, norm = _norm(w, self.axis)
        wanted = self.rate * jnp.clip(norm, self.min_value, self.max_value) + (1 - self.rate) * norm
        return (wide * (wanted / (_EPSILON + norm))).astype(w.dtype)


@dataclasses.dataclass(frozen=True)
class NonNeg:
    """max(w, 0).

    >>> NonNeg()(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    def __call__(self, w: ArrayLike) -> jax.Array:
        return jnp.maximum(w, 0)


@dataclasses.dataclass(frozen=True)
class UnitNorm:
    """w / (ε + n): every column has length 1.

    Args:
      axis: an integer or several, along which norms are taken.

    Raises:
      TypeError, ValueError: `axis` has no integers or does not fit the weight.

    >>> print(UnitNorm()(jnp.array([3.0, 4.0])).round(3))
    [0.6 0.8]
    """

    axis: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", _axes(self.axis))

    def __call__(self, w: ArrayLike) -> jax.Array:
        w = jnp.asarray(w)
        wide, norm = _norm(w, self.axis)
        return (wide / (_EPSILON + norm)).astype(w.dtype)


@dataclasses.dataclass(frozen=True)
class Stacked:
    """A constraint on each member of a stack by itself, as made by `nn.vmap`, `nnx.vmap`, `nn.scan` or `jax.vmap`.

    Args:
      constraint: a callable w -> w of JAX operations, for the parameter of one member.
      axes: an integer or several, the stack's axes in the whole parameter; with none, `()`, the constraint gets all of it.

    Raises:
      TypeError, ValueError: `constraint` is no callable; `axes` has no integers, one twice, or does not fit the weight.

    >>> kernels = jnp.array([[[3.0], [4.0]], [[0.0], [2.0]]])  # two of shape (2, 1)
    >>> Stacked(UnitNorm(), axes=0)(kernels).round(3).tolist()
    [[[0.6...], [0.8...]], [[0.0], [1.0]]]
    """

    constraint: Any
    axes: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        if not callable(self.constraint):
            raise TypeError(f"`constraint` must be a callable w -> w, got {validation.describe(self.constraint)}.")
        whole = isinstance(self.axes, (list, tuple)) and not self.axes
        axes = () if whole else _axes(self.axes, "axes")
        object.__setattr__(self, "axes", (axes,) if isinstance(axes, int) else axes)

    def __call__(self, w: ArrayLike) -> jax.Array:
        w = jnp.asarray(w)
        axes = _axes_of(w, self.axes, "axes")
        front = tuple(range(len(axes)))
        project = functools.reduce(lambda inner, _: jax.vmap(inner), axes, self.constraint)
        return jnp.moveaxis(project(jnp.moveaxis(w, axes, front)), front, axes)


_TABLE: dict[str, Callable[..., Constraint]] = {
    "max_norm": MaxNorm,
    "min_max_norm": MinMaxNorm,
    "non_neg": NonNeg,
    "unit_norm": UnitNorm,
    "MaxNorm": MaxNorm,
    "MinMaxNorm": MinMaxNorm,
    "NonNeg": NonNeg,
    "UnitNorm": UnitNorm,
    "maxnorm": MaxNorm,
    "nonneg": NonNeg,
    "unitnorm": UnitNorm,
}


def get(identifier: Any, *, argument: str = "constraint") -> Constraint | None:
    """Returns the constraint that a Keras name, a Keras configuration, a callable or None (no constraint) stands for.

    Args:
      identifier: Keras name, Keras configuration dict, callable w -> w, or None.
      argument: how messages call it.

    Raises:
      ValueError: unknown name or argument, or no identifier at all.

    >>> get({"class_name": "MaxNorm", "config": {"max_value": 3, "axis": [0, 1]}})
    MaxNorm(max_value=3.0, axis=(0, 1))
    """
    return identifiers.resolve(identifier, _TABLE, argument)


def to_config(identifier: Any, *, argument: str = "constraint") -> dict[str, Any] | None:
    """Returns a constraint as Keras 3 serialises it: the inverse of `get`. None stays None.

    Raises:
      ValueError: a callable that is not one of Keras's constraints.

    >>> to_config("non_neg")
    {'module': 'keras.constraints', 'class_name': 'NonNeg', 'config': {}, 'registered_name': None}
    """
    if identifier is None:
        return None
    return identifiers.to_config(get(identifier, argument=argument), _TABLE, "keras.constraints", argument)


def _norm(w: jax.Array, axis: int | Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """w and its norm over `axis`, in float32 at least: squares, and what is divided by ε, leave the range of float16."""
    axes = _axes_of(w, axis, "axis")
    wide = w.astype(at_least_float32(w.dtype))
    return wide, jnp.sqrt(jnp.sum(jnp.square(wide), axis=axes, keepdims=True))


def _axes_of(w: jax.Array, axes: int | Sequence[int], argument: str) -> tuple[int, ...]:
    """The axes of `w` that `axes` means."""
    several = (axes,) if isinstance(axes, int) else tuple(axes)
    if any(not -w.ndim <= a < w.ndim for a in several) or len({a % w.ndim for a in several}) < len(several):
        raise ValueError(
            f"`{argument}` must lie between {-w.ndim} and {w.ndim - 1} for a weight of shape {w.shape}, none twice, "
            f"got {axes}."
        )
    return several


def _axes(axis: Any, argument: str = "axis") -> int | tuple[int, ...]:
    """An integer, or a tuple of different ones."""
    several = isinstance(axis, (list, tuple))
    found = [validation.integer(argument, a) for a in (axis if several else [axis])]
    axes = tuple(a for a in found if a is not None)
    if len(axes) < len(found):
        raise TypeError(f"`{argument}` must be an integer or a sequence of integers, got {validation.describe(axis)}.")
    if not axes or len(set(axes)) != len(axes):
        raise ValueError(f"`{argument}` must name at least one axis and none twice, got {axis!r}.")
    return axes if several else axes[0]
