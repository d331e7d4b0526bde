"""What Optax needs of the Linen layers: the sum of their penalties, and their constraints."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from flax_srnn import validation
from flax_srnn.layers import options
from flax_srnn.layers.projection import leaves_by_place, over_stack
from flax_srnn.linen import sown
from flax_srnn.linen.cells import SimpleCellModule

__all__ = ["Constrained", "collect_constraints", "regularization_loss"]


@runtime_checkable
class Constrained(Protocol):
    """A module that has the constraints of layers inside it, with the shapes of their parameters, by place below it."""

    path: tuple[str, ...]
    constrained: Callable[[], Mapping[tuple[str, ...], tuple[Any, tuple[int, ...]]]]


_PROBES = {"(probe of size 1)": 1, "(probe of size 2)": 2}
"""Variables that `collect_constraints` lays beside a layer's parameters, and the size of their axes."""
_tracing = jax.make_user_context(None)
_traces = itertools.count(1)
"""A number for every trace with probes, which is part of the keys of JAX's caches while it lasts: what is under `nn.jit` is
traced anew, and no later call finds probes in it."""


def regularization_loss(variables: Mapping[str, Any]) -> jax.Array:
    """The sum of all penalties that the layers sowed, a scalar; 0 if there are none.

    Args:
      variables: what `apply(..., mutable=["losses"])` returned beside the output.

    Raises:
      TypeError: `variables` is no mapping of collections.

    >>> from flax_srnn import SimpleRNN
    >>> layer = SimpleRNN(2, kernel_initializer="ones", kernel_regularizer="l2")
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 3, 5)))
    >>> _, mutated = layer.apply(variables, jnp.ones((1, 3, 5)), mutable=["losses"])
    >>> round(float(regularization_loss(mutated)), 3)
    0.1
    """
    if not isinstance(variables, Mapping) or not all(isinstance(each, Mapping) for each in variables.values()):
        raise TypeError(
            '`variables` must be a mapping of collections, what `apply(..., mutable=["losses"])` returned beside the output, got '
            f"{validation.describe(variables)}. For NNX there is flax_srnn.nnx.regularization_loss(model)."
        )
    penalties = jax.tree.leaves(variables.get(sown.COLLECTION, {}))
    # A layer under `nn.vmap` or `nn.scan` has one penalty for every copy.
    return options.total(validation.array("variables['losses']", penalty).sum() for penalty in penalties)


def collect_constraints(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The constraints of all layers in `model`, as a tree like `variables["params"]` with only the constrained parameters.

    Of layers that are stacked by `nn.vmap` or `nn.scan`, each member is constrained as if it stood alone: there the tree holds
    `flax_srnn.constraints.Stacked`, with the stack's axes.

    Args:
      model: a layer, or any Flax module that contains some.
      *args, **kwargs: as for `model.init`. The model is traced once, nothing is computed.

    Raises:
      TypeError: `model` is no Flax module.
      ValueError: a function that `nn.map_variables` was given changes a constrained parameter.

    >>> from flax_srnn import SimpleRNN
    >>> layer = SimpleRNN(2, kernel_constraint="non_neg")
    >>> collect_constraints(layer, jax.random.key(0), jnp.ones((1, 3, 5)))
    {'kernel': NonNeg()}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be a flax.linen.Module (flax_srnn.nnx has its own function), got {validation.describe(model)}."
        )
    found: dict[tuple[str, ...], tuple[Any, tuple[int, ...]]] = {}
    told: dict[tuple[str, ...], tuple[Any, tuple[int, ...]]] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        made = call(*args, **kwargs)
        holds = context.method_name == "__call__" and isinstance(module, Constrained)
        if holds and context.module.is_mutable_collection("params"):
            told.update({(*module.path, *place): each for place, each in module.constrained().items()})
        declares = context.method_name == "declare" and isinstance(module, SimpleCellModule)
        if declares and module.is_mutable_collection("params"):
            shapes = {name: shape for name, (_, shape) in options.parameters(module, *args).items()}
            found.update({(*module.path, name): (c, shapes[name]) for name, c in options.constrained(module).items()})
            for probe, size in _PROBES.items():
                by_rank = {str(len(shape)): jnp.zeros([size] * len(shape)) for shape in shapes.values()}
                module.put_variable("params", probe, by_rank)
        return made

    with nn.intercept_methods(intercept), _tracing(next(_traces)):
        variables = jax.eval_shape(lambda: model.init(*args, **kwargs))
    leaves = dict(leaves_by_place(variables.get("params", {})))
    constraints = {}
    for (*above, name), (constraint, shape) in found.items():
        place, rank = (*above, name), str(len(shape))
        probes = [leaves[(*above, probe, rank)].shape for probe in _PROBES if (*above, probe, rank) in leaves]
        # Only what is there: a copy of a cell, made to learn the shape of its output, declares its parameters at the top of
        # a tree of its own.
        if place in leaves and (probes or above):
            # Probes are lifted as the parameters of their rank are: their own axes differ in size, a stack's do not.
            axes = tuple(i for i, sizes in enumerate(zip(*probes, strict=True)) if len(set(sizes)) == 1)
            member = tuple(size for i, size in enumerate(leaves[place].shape) if i not in axes)
            if not probes or member != shape:
                raise _changed(place, leaves[place].shape, shape)
            constraints[place] = over_stack(constraint, axes)
    for place, (constraint, shape) in told.items():
        if leaves[place].shape != shape:
            raise _changed(place, leaves[place].shape, shape)
        constraints[place] = constraint
    return traverse_util.unflatten_dict(constraints)


def _changed(place: Sequence[str], stored: tuple[int, ...], declared: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"`model` stores the constrained parameter {'/'.join(place)}, {stored}, neither as its layer declares it, {declared}, nor "
        "as a stack of that, but through a function (`nn.map_variables`). Leave the constraint out there, and give "
        "`keep_constraints` one of your own."
    )
