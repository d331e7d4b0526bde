"""What the types of arrays say about a mesh; where they say nothing, all of this does nothing.

Inside `shard_map`, which of its axes an array varies over. On a mesh with Explicit axes, how an array is sharded: there JAX asks
for the sharding of every result that it cannot tell. We tell that of what is returned, and leave what is between to the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

__all__ = ["alike", "compiler_divides", "like", "of", "rows_of", "sharded_by", "spec", "vary"]


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


# --- Explicit axes -----------------------------------------------------------------------------------------------------


def compiler_divides(function: Callable[..., Any], arguments: tuple[Any, ...], specs: Callable[[], Any]) -> Any:
    """`function(*arguments)`, as if the axes of the arguments' mesh were Auto.

    A cotangent is sharded as its argument: also of a custom derivative, whose functions see Auto axes only.

    Args:
      specs: the PartitionSpec of every result.
    """
    mesh = _explicit(arguments)
    if mesh is None:
        return function(*arguments)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs(), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    return jax.sharding.auto_axes(function, axes=mesh.explicit_axes, out_sharding=shardings)(*arguments)


def rows_of(x: jax.Array, others: tuple[int, ...]) -> jax.Array | None:
    """If `x` has Explicit axes, an array that is sharded as its rows are: `x` without the dimensions `others`."""
    return None if _explicit(x) is None else jnp.sum(x, others) == 0


def sharded_by(arrays: Any, rows: jax.Array | None) -> Any:
    """The arrays (*batch, …) of a tree, sharded as `rows` (*batch) if there is one, and over no other axes."""
    if rows is None:
        return arrays
    sharding = NamedSharding(jax.typeof(rows).sharding.mesh, PartitionSpec(*spec(rows)))

    def sharded(x: jax.Array) -> jax.Array:
        # What is not on the mesh yet comes there by an operation: outside of `jit` and `jax.set_mesh`, JAX needs an operand.
        x = jnp.where(jnp.expand_dims(rows, range(rows.ndim, x.ndim)), x, x)
        return jax.sharding.reshard(x, sharding)

    return jax.tree.map(sharded, arrays)


def spec(x: jax.Array) -> tuple[Any, ...]:
    """Over which Explicit axes each dimension of `x` is sharded."""
    entries = tuple(jax.typeof(x).sharding.spec)
    return entries + (None,) * (x.ndim - len(entries))


def _explicit(arrays: Any) -> Any:
    """The mesh of the arrays of a tree, or of the context (which oldest JAX gives to results only), if it has Explicit axes."""
    meshes = (*(jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arrays)), jax.sharding.get_abstract_mesh())
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)
