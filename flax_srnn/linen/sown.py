"""The penalties of a pass: scalars in the collection "losses", which are there to be added to.

A penalty that is there is added to, one that is not begins: that holds whatever lifts or copies the layer, because the
collection goes wherever the layer goes. What is left is to begin anew in a pass whose variables still hold the penalties of
an earlier one. They are set to 0 when the layer is bound. A value is a leftover if it is the same object that every scope of
this pass held at its place when the pass began; a lifted transform has scopes of its own inside, which begin with what the
outer ones hold. (Under `nn.jit` this is found out when it is traced. A module of your own under nn.remat(nn.jit(...)) that is
called twice in a pass is traced once for both calls: do not pass "losses" on to it.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.core import Scope
from flax.linen import module as flax_module

from flax_srnn.layers import options

__all__ = ["COLLECTION", "forget", "sow"]

COLLECTION = "losses"
NAMES = ("kernel_regularizer", "recurrent_regularizer", "bias_regularizer", "activity_regularizer")


def sow(module: nn.Module, penalties: Mapping[str, jax.Array | None]) -> None:
    """Records penalties: the sum over calls of the activity's; those on weights, which every call finds alike, once."""
    if module.is_initializing():
        return
    for name, value in penalties.items():
        if value is not None:
            reduce = _sum if name == "activity_regularizer" else _latest
            module.sow(COLLECTION, name, value, reduce_fn=reduce, init_fn=lambda: jnp.zeros((), jnp.float32))


def _sum(earlier: jax.Array, new: jax.Array) -> jax.Array:
    return options.total([earlier, new])


def _latest(earlier: jax.Array, new: jax.Array) -> jax.Array:
    return new


def forget(module: Any) -> None:
    """Sets to 0 what an earlier pass left at the place of a module that has just been bound."""
    if module.scope is None or not module.scope.is_mutable_collection(COLLECTION):
        return
    scopes = [(scope, _at_first(scope)) for scope in _scopes(module.scope)]
    for name in NAMES:
        place = (*module.scope.path, name)
        if module.scope.has_variable(COLLECTION, name) and all(
            _at(scope, place) is first.get(place) for scope, first in scopes
        ):
            module.scope.put_variable(COLLECTION, name, jnp.zeros_like(_at(module.scope.root, place)))


def _scopes(scope: Scope) -> Iterator[Scope]:
    """The scopes that hold variables of this pass: the module's, and those outside of every transform that lifts it."""
    yield scope.root
    outside = [module.scope for module in flax_module._context.module_stack if module is not None and module.scope]
    while _is_lifted(scope.root) and outside:
        outer: Scope = outside.pop()
        if outer.root is not scope.root:
            scope = outer
            yield scope.root


def _is_lifted(root: Scope) -> bool:
    return bool(root.path or root.debug_path)


def _at_first(root: Scope) -> dict[tuple[str, ...], Any]:
    """The penalties that a scope held when this pass first came to it."""
    return root.__dict__.setdefault("_flax_srnn_at_first", _flat(root))


def _at(root: Scope, place: tuple[str, ...]) -> Any:
    return _flat(root).get(place)


def _flat(root: Scope) -> dict[tuple[str, ...], Any]:
    held = root._variables.get(COLLECTION) or {}
    return {(*root.path, *path): leaf for path, leaf in traverse_util.flatten_dict(held).items()}
