"""What Optax needs of the Linen layers: the sum of their penalties, and their constraints."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from flax_srnn import validation
from flax_srnn.layers.projection import leaves_by_place
from flax_srnn.linen.cells import PENALTIES, SimpleCellModule

__all__ = ["collect_constraints", "regularization_loss"]


def regularization_loss(variables: Mapping[str, Any]) -> jax.Array:
    """The sum of all penalties that the layers sowed, a scalar; 0 if there are none.

    Args:
      variables: what `apply(..., mutable=["losses"])` returned beside the output.

    Raises:
      TypeError: `variables` is no mapping.

    >>> from flax_srnn import SimpleRNN
    >>> layer = SimpleRNN(2, kernel_initializer="ones", kernel_regularizer="l2")
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 3, 5)))
    >>> _, mutated = layer.apply(variables, jnp.ones((1, 3, 5)), mutable=["losses"])
    >>> round(float(regularization_loss(mutated)), 3)
    0.1
    """
    if not isinstance(variables, Mapping):
        raise TypeError(f"`variables` must be a mapping of collections, got {validation.describe(variables)}.")
    penalties = jax.tree.leaves(variables.get(PENALTIES, {}))
    # A layer under `nn.vmap` or `nn.scan` has one penalty for every copy.
    scalars = [validation.array("variables['losses']", penalty).sum() for penalty in penalties]
    return functools.reduce(operator.add, scalars) if scalars else jnp.zeros(())


def collect_constraints(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The constraints of all layers in `model`, as a tree like `variables["params"]` with only the constrained parameters.

    Args:
      model: a layer, or any Flax module that contains some.
      *args, **kwargs: as for `model.init`. The model is traced once, nothing is computed.

    Raises:
      TypeError: `model` is no Flax module.
      ValueError: a constrained parameter is stacked by `nn.vmap` or `nn.scan`, so that the constraint would act across the
        stack.

    >>> from flax_srnn import SimpleRNN
    >>> layer = SimpleRNN(2, kernel_constraint="non_neg")
    >>> collect_constraints(layer, jax.random.key(0), jnp.ones((1, 3, 5)))
    {'kernel': NonNeg()}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a flax.linen.Module, got {validation.describe(model)}.")
    found: dict[tuple[str, ...], tuple[Any, tuple[int, ...]]] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name == "declare" and isinstance(module, SimpleCellModule):
            table = module.parameters(*args)
            found.update({(*module.path, name): (c, table[name][1]) for name, c in module.constraints().items()})
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        variables = jax.eval_shape(lambda: model.init(*args, **kwargs))
    constraints = {}
    # Only what is there: a copy of a cell, made to learn the shape of its output, declares its parameters elsewhere.
    for place, leaf in leaves_by_place(variables.get("params", {})):
        if place in found:
            constraints[place], shape = found[place]
            if shape != leaf.shape:
                raise ValueError(
                    f"`model` stacks the constrained parameter {'/'.join(place)}: {shape} for one layer, got {leaf.shape}. "
                    "Leave the constraint out there, and give `keep_constraints` one of your own for the whole stack."
                )
    return traverse_util.unflatten_dict(constraints)
