"""Flax's own `SimpleCell`, of Linen and of NNX: parameters in and out.

Flax computes h_t = act(x_t W_i + b_i + h_{t-1} W_h): the same step with other names, so nothing but names changes.

    here               Linen        NNX
    kernel             i/kernel     dense_i/kernel      (F, U)
    recurrent_kernel   h/kernel     dense_h/kernel      (U, U)
    bias               i/bias       dense_i/bias        (U,)

Options are not in the parameters: `activation_fn` is `activation` here; `residual=True` has no counterpart.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from flax_srnn import validation

__all__ = ["from_linen", "from_nnx", "to_linen", "to_nnx"]


def from_linen(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a `flax.linen.SimpleCell` under this library's names.

    Args:
      params: the cell's, `{"i": {"kernel", "bias"}, "h": {"kernel"}}`; inside `flax.linen.RNN` they are
        `variables["params"]["cell"]`.

    Returns:
      `{"kernel": (F, U), "recurrent_kernel": (U, U), "bias": (U,)}`, the same arrays, boxed if they were.

    Raises:
      ValueError: other names or shapes.

    >>> import flax.linen as nn, jax
    >>> variables = nn.SimpleCell(4).init(jax.random.key(0), jnp.zeros(4), jnp.zeros(3))
    >>> {name: value.shape for name, value in from_linen(variables["params"]).items()}
    {'kernel': (3, 4), 'recurrent_kernel': (4, 4), 'bias': (4,)}
    """
    return _from(params, "i", "h", "flax.linen.SimpleCell")


def to_linen(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """These parameters for `flax.linen.SimpleCell`, whose bias is zero where there is none here.

    Args:
      params: `{"kernel": (F, U), "recurrent_kernel": (U, U), "bias": (U,)}`, with or without `"bias"`.

    Returns:
      `{"i": {"kernel", "bias"}, "h": {"kernel"}}`.

    Raises:
      ValueError: other names or shapes; `"initial_state"`, which Flax's cell has not.

    >>> to_linen({"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.ones((1, 1))})["i"]["bias"].tolist()
    [0.0]
    """
    return _to(params, "i", "h", "flax.linen.SimpleCell")


def from_nnx(cell: nnx.Module | Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a `flax.nnx.SimpleCell` under this library's names.

    Args:
      cell: the cell, its `nnx.State`, or that as a dict.

    Returns:
      `{"kernel": (F, U), "recurrent_kernel": (U, U), "bias": (U,)}`, the same arrays.

    Raises:
      ValueError: other names or shapes; a cell with `residual=True`, which computes something else.

    >>> cell = nnx.SimpleCell(3, 4, rngs=nnx.Rngs(0))
    >>> {name: value.shape for name, value in from_nnx(cell).items()}
    {'kernel': (3, 4), 'recurrent_kernel': (4, 4), 'bias': (4,)}
    """
    if isinstance(cell, nnx.Module):
        if getattr(cell, "residual", False):
            raise ValueError("cell: residual=True adds the old state to the new one, which no layer here does.")
        cell = nnx.state(cell, nnx.Param)
    if isinstance(cell, nnx.State):
        cell = nnx.to_pure_dict(cell)
    return _from(cell, "dense_i", "dense_h", "flax.nnx.SimpleCell")


def to_nnx(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """These parameters for `flax.nnx.SimpleCell`: `nnx.update(cell, to_nnx(params))`.

    Args:
      params: `{"kernel": (F, U), "recurrent_kernel": (U, U), "bias": (U,)}`, with or without `"bias"`.

    Returns:
      `{"dense_i": {"kernel", "bias"}, "dense_h": {"kernel"}}`, with a bias of zeros where there is none here.

    Raises:
      ValueError: other names or shapes; `"initial_state"`, which Flax's cell has not.

    >>> params = {"kernel": jnp.ones((3, 4)), "recurrent_kernel": jnp.eye(4), "bias": jnp.ones(4)}
    >>> cell = nnx.SimpleCell(3, 4, rngs=nnx.Rngs(0))
    >>> nnx.update(cell, to_nnx(params))
    >>> cell.dense_i.bias[...].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    return _to(params, "dense_i", "dense_h", "flax.nnx.SimpleCell")


def _from(params: Any, input_name: str, hidden_name: str, source: str) -> dict[str, Any]:
    def names(tree: Any) -> Any:
        return sorted(map(str, tree)) if isinstance(tree, Mapping) else validation.describe(tree)

    expected = {input_name: ["bias", "kernel"], hidden_name: ["kernel"]}
    given = {name: names(tree) for name, tree in params.items()} if isinstance(params, Mapping) else names(params)
    if given != expected:
        raise ValueError(f"params: expected those of one {source}, {expected}, got {given}.")
    inputs, hidden = params[input_name], params[hidden_name]
    converted = {"kernel": inputs["kernel"], "recurrent_kernel": hidden["kernel"], "bias": inputs["bias"]}
    validation.weights(converted)
    return converted


def _to(params: Mapping[str, Any], input_name: str, hidden_name: str, target: str) -> dict[str, dict[str, Any]]:
    weights = validation.weights(params)
    if weights.initial_state is not None:
        raise ValueError(
            f"params: a {target} has no learned initial state; take 'initial_state' out and pass it as the carry."
        )
    bias = params["bias"] if weights.bias is not None else jnp.zeros_like(weights.kernel[0])
    return {input_name: {"kernel": params["kernel"], "bias": bias}, hidden_name: {"kernel": params["recurrent_kernel"]}}
