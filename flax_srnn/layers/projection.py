"""Constraints as the last transformation of an Optax chain, for the parameters of both families."""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta

from flax_srnn import validation
from flax_srnn.constraints import Constraint, NonNeg, Stacked

__all__ = ["apply_constraints", "by_member", "keep_constraints", "leaves_by_place", "over_stack"]

_LETTERS = {"kernel": "FU", "recurrent_kernel": "UU", "bias": "U", "initial_state": "U"}
"""The axes of the parameters of one layer; capital letters, beside which small ones stand for the axes of a stack."""
_DEEPEST = 3
"""So many stacks in each other are read off from shapes; a further one has ten times as many readings."""


def apply_constraints(params: Any, tree: Mapping[str, Any]) -> Any:
    """`params` with every constrained parameter projected.

    Args:
      params: `variables["params"]`, boxed or not. Where they are a stack of layers (by `jax.vmap` over `init`, say), each
        member is constrained as if it stood alone: the stack's axes are read off from the shapes of all parameters of the
        layer, which must be stacked alike.
      tree: from `collect_constraints`, or nested dicts of your own with callables w -> w at the parameters' places;
        `flax_srnn.constraints.Stacked` names the stack's axes itself.

    Raises:
      TypeError: `tree` is no mapping of callables.
      ValueError: `tree` names a parameter that is not in `params`, a constraint changes a shape, or the shapes do not tell
        which axes are the stack's.

    >>> from flax_srnn.constraints import NonNeg
    >>> apply_constraints({"kernel": jnp.array([-1.0, 2.0])}, {"kernel": NonNeg()})["kernel"].tolist()
    [0.0, 2.0]
    """
    if not isinstance(tree, Mapping):
        raise TypeError(f"`tree` must be a mapping from `collect_constraints`, got {validation.describe(tree)}.")
    constraints = _fitted(tree, params)

    def project(path: Any, box: Any) -> Any:
        constraint = constraints.get(_place(path))
        return box if constraint is None else meta.replace_boxed(box, constraint(meta.unbox(box)))

    return jax.tree_util.tree_map_with_path(project, params, is_leaf=_is_box)


def keep_constraints(tree: Mapping[str, Any]) -> optax.GradientTransformation:
    """Keeps every constrained parameter within its constraint; the last transformation of an `optax.chain`.

    After `optax.apply_updates` the parameters are the projected ones, as Keras's optimizers leave them:
    u ← projection(p + u) - p. Parameters are not projected before the first update, as in Keras.

    Args:
      tree: from `collect_constraints`. In a stack of layers each member is constrained as if it stood alone, see
        `apply_constraints`; an update under `jax.vmap` over the members does the same.

    Raises:
      TypeError: `tree` is no mapping of callables.
      ValueError: `update` was called without `params` or with others than the updates'; by `init` too, `tree` names a
        parameter that is not there, or the shapes do not tell which axes are a stack's.

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

    def init(params: Any) -> optax.EmptyState:
        _fitted(tree, params)
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)


def by_member(
    place: tuple[Any, ...],
    constraint: Constraint,
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    argument: str,
) -> Constraint:
    """`constraint` of the parameter at `place`, on each member by itself where its layer is stacked.

    Args:
      shapes: of all parameters of its layer.
      sizes: F and U, as far as they are known.
      argument: how messages call what the parameters are from.

    Raises:
      ValueError: not exactly one choice of axes, alike for all stacked parameters of the layer, leaves shapes of a layer.
    """
    name, path = place[-1], "/".join(map(str, place))
    # Without a recurrent kernel it is a layer of another library, whose shapes say nothing.
    letters = _LETTERS.get(name, "") if "recurrent_kernel" in shapes else ""
    depth = len(shapes[name]) - len(letters) if letters else 0
    if isinstance(constraint, Stacked):
        if letters and constraint.axes and np.size(constraint.axes) != depth:
            raise ValueError(
                f"`tree`: {constraint} is not for {path} of shape {shapes[name]}, which is {letters} and {depth} axes "
                "of stacks: a tree of the whole model takes its parameters whole, under jax.vmap take the tree of one member."
            )
        return constraint
    if depth <= 0 or over_stack(constraint, (0,)) is constraint:
        return constraint
    found = {
        tuple(i for i, letter in enumerate(reading[name]) if letter.islower())
        for reading in _readings(shapes, depth)
        if _fits(reading, shapes, sizes)
    }
    if len(found) != 1:
        raise ValueError(
            f"`{argument}`: {path} of shape {shapes[name]} is a stack, but which axes are the stack's cannot be told "
            f"from the shapes of its layer, {dict(shapes)}: {sorted(found) or 'none'} would do. Update under jax.vmap over the "
            "members, or put flax_srnn.constraints.Stacked(constraint, axes) into a tree of your own."
        )
    return over_stack(constraint, *found)


def over_stack(constraint: Constraint, axes: tuple[int, ...]) -> Constraint:
    """`constraint` on each member of a stack; itself where there is no stack, or where it acts on each number alone."""
    return constraint if not axes or isinstance(constraint, NonNeg) else Stacked(constraint, axes)


def _readings(shapes: Mapping[str, tuple[int, ...]], depth: int) -> list[dict[str, str]]:
    """What the axes of a layer's parameters may be, with the axes of `depth` stacks inserted one after the other.

    An axis is a number that holds for all: from the front, or negative from the end. A parameter without a further axis is
    one that the members share.
    """
    own = {name: letters for name, letters in _LETTERS.items() if name in shapes}
    stacked = [name for name, letters in own.items() if len(shapes[name]) > len(letters)]
    readings = [own]
    for letter in string.ascii_lowercase[: min(depth, _DEEPEST)]:
        readings = [
            reading | {name: _inserted(reading[name], letter, axis) for name in stacked}
            for reading in readings
            for rank in [min(len(reading[name]) for name in stacked)]
            for axis in range(-1 - rank, 1 + rank)
        ]
    return readings


def _inserted(letters: str, letter: str, axis: int) -> str:
    """`letters` with one more at `axis`, counted in the result."""
    place = axis % (len(letters) + 1)
    return letters[:place] + letter + letters[place:]


def _fits(reading: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]) -> bool:
    """Whether every letter has one size."""
    known = dict(sizes)
    return all(
        len(letters) == len(shapes[name])
        and all(known.setdefault(letter, size) == size for letter, size in zip(letters, shapes[name], strict=True))
        for name, letters in reading.items()
    )


def _fitted(tree: Mapping[str, Any], params: Any) -> dict[tuple[str, ...], Constraint]:
    """The constraint of every constrained parameter, as it acts on the parameters that are there."""
    constraints, leaves = _by_path(tree), dict(leaves_by_place(params))
    missing = ["/".join(place) for place in constraints if place not in leaves]
    if missing:
        raise ValueError(
            f"`tree` constrains {missing}, which `params` does not have: both must come from the same model; pass "
            "variables['params']. Where an optimizer has some parameters only, take the constraints of the others out of the tree."
        )
    fitted: dict[tuple[str, ...], Constraint] = {}
    for place, constraint in constraints.items():
        beside = {name: (*place[:-1], name) for name in (*_LETTERS, place[-1])}
        shapes = {name: np.shape(leaves[other]) for name, other in beside.items() if other in leaves}
        acting = by_member(place, constraint, shapes, {}, "params")
        if isinstance(acting, Stacked):
            fitted[place] = Stacked(functools.partial(_keeping_shape, place, acting.constraint), acting.axes)
        else:
            fitted[place] = functools.partial(_keeping_shape, place, acting)
    return fitted


def _keeping_shape(place: tuple[str, ...], constraint: Constraint, w: jax.Array) -> Any:
    """What a user's constraint makes of a parameter, or of a member's."""
    projected = constraint(w)
    if projected is None or jnp.shape(projected) != jnp.shape(w):
        raise ValueError(
            f"`tree`: the constraint of {'/'.join(place)} must keep the shape {jnp.shape(w)}, got "
            f"{validation.describe(projected)}."
        )
    return projected


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
        for leaf in jax.tree.leaves(box):  # none, where `optax.masked` took it out
            yield _place(path), leaf


def _is_box(x: Any) -> bool:
    return isinstance(x, meta.AxisMetadata)


def _place(path: Any) -> tuple[str, ...]:
    """The names in a JAX key path, to an NNX variable rather than to its value."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
