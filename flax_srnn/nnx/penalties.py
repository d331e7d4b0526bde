"""What Optax needs of the NNX layers: the sum of their penalties, and their constraints."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from flax_srnn.layers import options
from flax_srnn.layers.projection import by_member
from flax_srnn.nnx.cells import SimpleCellModule, a_module
from flax_srnn.nnx.layers import Layer

__all__ = ["collect_constraints", "regularization_loss"]


def regularization_loss(model: nnx.Module) -> jax.Array:
    """The sum of all penalties in `model`, a scalar: on the weights as they are, and on what the layers returned.

    The activity penalties are those of all calls since this function was last called on the model; it takes them away. So call
    it after the model, and once after calls for evaluation.

    Raises:
      TypeError: `model` is no module.

    >>> from flax_srnn.nnx import SimpleRNN
    >>> layer = SimpleRNN(5, 2, kernel_initializer="ones", kernel_regularizer="l2", rngs=nnx.Rngs(0))
    >>> round(float(regularization_loss(layer)), 3)
    0.1
    """
    penalties: list[jax.Array] = []
    for _, module in nnx.iter_graph(a_module(model)):
        if isinstance(module, SimpleCellModule):
            penalties += options.weight_penalties(module, module._params()).values()
        if isinstance(module, Layer) and module.activity_loss is not None:
            penalties.append(module.activity_loss[...].sum())  # one for every copy under `nnx.vmap`
            module.activity_loss[...] = jnp.zeros_like(module.activity_loss[...])
    return options.total(penalties)


def collect_constraints(model: nnx.Module) -> dict[Any, Any]:
    """The constraints of all layers in `model`, as `keep_constraints` takes them for an `nnx.Optimizer`.

    Of layers that are stacked, by `nnx.vmap`, say, each member is constrained as if it stood alone: there the tree holds
    `flax_srnn.constraints.Stacked`. The stack's axes are read off from the shapes of all parameters of a layer, which must be
    stacked alike.

    Raises:
      TypeError: `model` is no module.
      ValueError: the shapes do not tell which axes are the stack's, as where members, F and U are equally many.

    >>> import optax
    >>> from flax_srnn import keep_constraints
    >>> from flax_srnn.nnx import SimpleRNN
    >>> layer = SimpleRNN(3, 2, kernel_constraint="non_neg", rngs=nnx.Rngs(0))
    >>> chain = optax.chain(optax.sgd(0.1), keep_constraints(collect_constraints(layer)))
    >>> optimizer = nnx.Optimizer(layer, chain, wrt=nnx.Param)
    >>> _ = optimizer.update(layer, nnx.grad(lambda layer: layer(jnp.ones((1, 4, 3))).sum())(layer))
    >>> bool((layer.kernel[...] >= 0).all())
    True
    """
    constraints = {}
    for path, module in nnx.iter_graph(a_module(model)):
        if isinstance(module, SimpleCellModule):
            shapes = {name: p.shape for name, p in module._params().items()}
            sizes = {"F": module.in_features, "U": int(module.units)}
            for name, constraint in options.constrained(module).items():
                place = (*path, name)
                constraints[place] = by_member(place, constraint, shapes, sizes, "model")
    return traverse_util.unflatten_dict(constraints)
