"""Keras's penalties: w -> scalar.

All are frozen dataclasses: hashable, and equal when their arguments are. Source: `keras.regularizers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flax_srnn import identifiers

__all__ = ["L1", "L1L2", "L2", "OrthogonalRegularizer", "get", "to_config"]

Regularizer = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class L1:
    """l1 · Σ|w|.

    Args:
      l1: the factor, 0 or more.

    Raises:
      TypeError, ValueError: `l1` is negative or no finite number.

    >>> float(L1(0.5)(jnp.array([1.0, -2.0])))
    1.5
    """

    l1: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "l1", identifiers.number("l1", self.l1, at_least=0))

    def __call__(self, w: ArrayLike) -> jax.Array:
        return self.l1 * jnp.sum(jnp.abs(w))


@dataclasses.dataclass(frozen=True)
class L2:
    """l2 · Σw², without a factor ½.

    Args:
      l2: the factor, 0 or more.

    Raises:
      TypeError, ValueError: `l2` is negative or no finite number.

    >>> float(L2(0.5)(jnp.array([1.0, -2.0])))
    2.5
    """

    l2: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "l2", identifiers.number("l2", self.l2, at_least=0))

    def __call__(self, w: ArrayLike) -> jax.Array:
        return self.l2 * jnp.sum(jnp.square(w))


@dataclasses.dataclass(frozen=True)
class L1L2:
    """l1 · Σ|w| + l2 · Σw². Both factors are 0 unless given; the name "l1_l2" stands for L1L2(0.01, 0.01).

    Args:
      l1, l2: the factors, 0 or more.

    Raises:
      TypeError, ValueError: a factor is negative or no finite number.

    >>> float(L1L2(l1=0.5, l2=0.5)(jnp.array([1.0, -2.0])))
    4.0
    """

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "l1", identifiers.number("l1", self.l1, at_least=0))
        object.__setattr__(self, "l2", identifiers.number("l2", self.l2, at_least=0))

    def __call__(self, w: ArrayLike) -> jax.Array:
        return self.l1 * jnp.sum(jnp.abs(w)) + self.l2 * jnp.sum(jnp.square(w))


@dataclasses.dataclass(frozen=True)
class OrthogonalRegularizer:
    """factor · the mean of |cos| over all pairs of rows (or columns): pushes them to be orthogonal.

    With Ŵ the rows scaled to length 1 and P = Ŵ Ŵᵀ, it is factor · ½ Σ|P ∘ (1 - I)| / (n (n - 1) / 2). A row of zeros counts
    as orthogonal to all, with finite gradients, and a single row has no penalty; Keras gives NaN for both, and in mode
    "columns" it fails.

    Args:
      factor: 0 or more.
      mode: "rows" or "columns".

    Raises:
      TypeError, ValueError: `factor` is negative or no finite number; unknown `mode`; the weight is no matrix.

    >>> float(OrthogonalRegularizer(0.5)(jnp.array([[1.0, 0.0], [2.0, 0.0]])))
    0.5
    """

    factor: float = 0.01
    mode: Literal["rows", "columns"] = "rows"

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", identifiers.number("factor", self.factor, at_least=0))
        if self.mode not in ("rows", "columns"):
            raise ValueError(f"`mode` must be 'rows' or 'columns', got {self.mode!r}.")

    def __call__(self, w: ArrayLike) -> jax.Array:
        w = jnp.asarray(w)
        if w.ndim != 2:
            raise ValueError(f"OrthogonalRegularizer needs a matrix, got a weight of shape {w.shape}.")
        rows = w if self.mode == "rows" else w.T
        n = rows.shape[0]
        if n < 2:
            return jnp.zeros((), w.dtype)
        squares = jnp.sum(jnp.square(rows), axis=1, keepdims=True)
        # The inner `where` keeps the derivative of the root finite in rows of zeros.
        inverse_norm = jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)
        unit = rows * inverse_norm
        cosines = (unit @ unit.T) * (1 - jnp.eye(n, dtype=w.dtype))
        return self.factor * 0.5 * jnp.sum(jnp.abs(cosines)) / (n * (n - 1) / 2)


def _l1_l2(l1: float = 0.01, l2: float = 0.01) -> L1L2:
    return L1L2(l1, l2)


_TABLE: dict[str, Callable[..., Regularizer]] = {
    "l1": L1,
    "l2": L2,
    "l1_l2": _l1_l2,
    "orthogonal_regularizer": OrthogonalRegularizer,
    "L1": L1,
    "L2": L2,
    "L1L2": L1L2,
    "OrthogonalRegularizer": OrthogonalRegularizer,
}


def get(identifier: Any, *, argument: str = "regularizer") -> Regularizer | None:
    """Returns the regularizer that a Keras name, a Keras configuration, a callable or None (no penalty) stands for.

    Args:
      identifier: Keras name, Keras configuration dict, callable w -> scalar, or None.
      argument: how messages call it.

    Raises:
      ValueError: unknown name or argument, or no identifier at all.

    >>> get({"class_name": "L2", "config": {"l2": 0.1}}), get("l1_l2")
    (L2(l2=0.1), L1L2(l1=0.01, l2=0.01))
    """
    if isinstance(identifier, str) and identifier == "L1L2":
        identifier = "l1_l2"  # as a bare name the class would be a penalty of nothing
    return identifiers.resolve(identifier, _TABLE, argument)


def to_config(identifier: Any, *, argument: str = "regularizer") -> dict[str, Any] | None:
    """Returns a regularizer as Keras 3 serialises it: the inverse of `get`. None stays None.

    Raises:
      ValueError: a callable that is not one of Keras's regularizers.

    >>> to_config("l2")
    {'module': 'keras.regularizers', 'class_name': 'L2', 'config': {'l2': 0.01}, 'registered_name': None}
    """
    if identifier is None:
        return None
    return identifiers.to_config(get(identifier, argument=argument), _TABLE, "keras.regularizers", argument)
