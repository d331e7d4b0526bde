"""Constraints as the last transformation of an Optax chain, for the parameters of both families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.core import meta

from flax_srnn import validation

__all__ = ["apply_constraints", "keep_constraints", "leaves_by_place"]


def apply_constraints(params: Any, tree: Mapping[str, Any]) -> Any:
    """`params` with every constrained parameter projected.

    Args:
      params: `variables["params"]`, boxed or not.
      tree: from `collect_constraints`, or nested dicts of your own with callables w -> w at the parameters' places.

    Raises:
      TypeError: `tree` is no mapping of callables.
      ValueError: `tree` names a parameter that is not in `params`, or a constraint changes a shape.

    >>> from flax_srnn.constraints import NonNeg
    >>> apply_constraints({"kernel": jnp.array([-1.0, 2.0])}, {"kernel": NonNeg()})["kernel"].tolist()
    [0.0, 2.0]
    """
    if not isinstance(tree, Mapping):
        raise TypeError(f"`tree` must be a mapping from `collect_constraints`, got {validation.describe(tree)}.")
    constraints = _by_path(tree)

    def project(path: Any, box: Any) -> Any:
        place = _place(path)
        constraint = constraints.pop(place, None)
        if constraint is None:
            return box
        w = meta.unbox(box)
        projected = constraint(w)
        if projected is None or jnp.shape(projected) != jnp.shape(w):
            raise ValueError(
                f"`tree`: the constraint of {'/'.join(place)} must keep the shape {jnp.shape(w)}, got "
                f"{validation.describe(projected)}."
            )
        return meta.replace_boxed(box, projected)

    projected = jax.tree_util.tree_map_with_path(project, params, is_leaf=_is_box)
    if constraints:
        raise ValueError(
            f"`tree` constrains {['/'.join(path) for path in constraints]}, which `params` does not have: both must come from the "
            "same model; pass variables['params']."
        )
    return projected


def keep_constraints(tree: Mapping[str, Any]) -> optax.GradientTransformation:
    """Keeps every constrained parameter within its constraint; the last transformation of an `optax.chain`.

    After `optax.apply_updates` the parameters are the projected ones, as Keras's optimizers leave them:
    u ← projection(p + u) - p. Parameters are not projected before the first update, as in Keras.

    Args:
      tree: from `collect_constraints`.

    Raises:
      TypeError: `tree` is no mapping of callables.
      ValueError: `update` was called without `params` or with others than the updates', or `tree` names a parameter that
        is not there.

    Source: Keras `Optimizer.apply_gradients`; `optax.keep_params_nonnegative` is the same idea for one constraint.

    >>> from flax_srnn.constraints import NonNeg
    >>> params = {"kernel": jnp.array([1.0, 1.0])}
    >>> optimizer = optax.chain(optax.sgd(1.0), keep_constraints({"kernel": NonNeg()}))
    >>> updates, _ = optimizer.update({"kernel": jnp.array([3.0, 0.5])}, optimizer.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [0.0, 0.5]
    """
    if not isinstance(tree, Mapping):
        raise TypeError(f"`tree` must be a mapping from `collect_constraints`, got {validation.describe(tree)}.")

    _by_path(tree)

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        if params is None:
            raise ValueError(
                "`params` must be passed to `update`, got None: keep_constraints projects the updated parameters."
            )
        expected: Any = jax.tree.structure(updates)
        if jax.tree.structure(params) != expected:
            raise ValueError(
                f"`params` must have the structure of `updates`, {expected}, got {jax.tree.structure(params)}."
            )
        projected = apply_constraints(optax.apply_updates(params, updates), tree)
        return jax.tree.map(lambda new, old: new - old, projected, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _by_path(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The constraint of every parameter, by its place."""
    found: dict[tuple[str, ...], Any] = {}
    for name, value in tree.items():
        place = (*path, str(name))
        if isinstance(value, Mapping):
            found |= _by_path(value, place)
        elif callable(value):
            found[place] = value
        elif value is not None:
            raise TypeError(
                f"`tree` must hold callables w -> w, got {validation.describe(value)} at {'/'.join(place)}: "
                "flax_srnn.constraints.get makes one of a name."
            )
    return found


def leaves_by_place(params: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The names on the way to every parameter, and the parameter without its box."""
    for path, box in jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_box):
        (leaf,) = jax.tree.leaves(box)
        yield _place(path), leaf


def _is_box(x: Any) -> bool:
    return isinstance(x, meta.AxisMetadata)


def _place(path: Any) -> tuple[str, ...]:
    """The names in a JAX key path."""
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
