"""Which axes of a mesh an array varies over, inside `shard_map`. Elsewhere all of this does nothing."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

__all__ = ["alike", "like", "of", "vary"]


def alike(arrays: Any) -> Any:
    """The arrays of a tree, all varying over the axes that any of them varies over.

    Loop carries must vary alike from the first step on. Cast outside a custom derivative, a replicated parameter's gradient
    is summed over the mesh by the transpose of the cast.
    """
    return vary(arrays, of(arrays))


def like(x: jax.Array, others: Any) -> jax.Array:
    """`x`, varying over the axes that an array of the tree `others` varies over, and its own."""
    return _vary(x, of(others))


def vary(arrays: Any, axes: frozenset[str]) -> Any:
    """The arrays of a tree, all varying over these axes and their own."""
    return jax.tree.map(lambda x: _vary(x, axes), arrays)


def of(arrays: Any) -> frozenset[str]:
    """The axes that any array of a tree varies over."""
    return frozenset[str]().union(*map(_axes, jax.tree.leaves(arrays)))


def _axes(x: jax.Array) -> frozenset[str]:
    """The manual mesh axes that `x` varies over (newer JAX says so under another name)."""
    aval: Any = jax.typeof(x)
    return frozenset(aval.mat.varying if hasattr(aval, "mat") else aval.vma)


def _vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    missing = tuple(sorted(axes - _axes(x)))
    if not missing:
        return x
    either: Any = lax
    if hasattr(lax, "pcast"):
        return either.pcast(x, missing, to="varying")
    return either.pvary(x, missing)
