"""Haiku's `VanillaRNN`: parameters in and out. Haiku itself is not needed: its parameters are plain mappings.

Haiku computes h_t = relu(x_t w_i + b_i + h_{t-1} w_h + b_h): the step with `activation="relu"` and the bias in two halves.

    here               Haiku
    kernel             vanilla_rnn/linear    w          (F, U)
    recurrent_kernel   vanilla_rnn/linear_1  w          (U, U)
    bias               the sum of the two    b          (U,)
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flax_srnn import validation

__all__ = ["from_haiku", "to_haiku"]


def from_haiku(params: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The parameters of one Haiku `VanillaRNN` under this library's names.

    Args:
      params: `{".../linear": {"w", "b"}, ".../linear_1": {"w", "b"}}` as `init` returns it, under any module name; the
        second `"b"` is not there with `double_bias=False`.

    Returns:
      `{"kernel": (F, U), "recurrent_kernel": (U, U), "bias": (U,)}`; use them with `activation="relu"`.

    Raises:
      ValueError: other names or shapes, or more modules than the one.

    >>> from_haiku({"vanilla_rnn/linear": {"w": jnp.ones((3, 1)), "b": jnp.ones(1)},
    ...             "vanilla_rnn/linear_1": {"w": jnp.ones((1, 1)), "b": jnp.ones(1)}})["bias"].tolist()
    [2.0]
    """
    given: dict[str, Any] = {}
    if isinstance(params, Mapping):
        for name, leaves in params.items():
            given[name] = sorted(leaves) if isinstance(leaves, Mapping) else validation.describe(leaves)
    inputs = next((name for name in given if f"{name}_1" in given), "vanilla_rnn/linear")
    hidden = f"{inputs}_1"
    if not inputs.endswith("linear") or given not in (
        {inputs: ["b", "w"], hidden: ["b", "w"]},
        {inputs: ["b", "w"], hidden: ["w"]},
    ):
        raise ValueError(
            "params: expected those of one haiku.VanillaRNN, {'vanilla_rnn/linear': ['b', 'w'], 'vanilla_rnn/linear_1': "
            f"['b', 'w']}}, got {given or validation.describe(params)}."
        )
    kernels = {"kernel": params[inputs]["w"], "recurrent_kernel": params[hidden]["w"]}
    biases = [params[module]["b"] for module in (inputs, hidden) if "b" in params[module]]
    for bias in biases:  # each by itself, for their sum would broadcast
        validation.weights(kernels | {"bias": bias})
    return kernels | {"bias": functools.reduce(jnp.add, biases)}


def to_haiku(
    params: Mapping[str, Any], *, name: str = "vanilla_rnn", double_bias: bool = True
) -> dict[str, dict[str, Any]]:
    """These parameters for Haiku's `VanillaRNN`, which computes the same if the activation is relu.

    Args:
      params: `{"kernel": (F, U), "recurrent_kernel": (U, U), "bias": (U,)}`, with or without `"bias"`.
      name: of the module, with the modules around it: `"my_model/vanilla_rnn"`.
      double_bias: as the module was made; the second bias is zeros.

    Returns:
      `{"<name>/linear": {"w", "b"}, "<name>/linear_1": {"w", "b"}}`, with a bias of zeros where there is none here.

    Raises:
      ValueError: other names or shapes; `"initial_state"`, which Haiku's module has not.

    >>> params = {"kernel": jnp.ones((3, 2)), "recurrent_kernel": jnp.eye(2), "bias": jnp.ones(2)}
    >>> sorted(to_haiku(params, double_bias=False)["vanilla_rnn/linear_1"])
    ['w']
    """
    weights = validation.weights(params)
    if weights.initial_state is not None:
        raise ValueError(
            "params: a VanillaRNN has no learned initial state; take 'initial_state' out and pass it as the state."
        )
    zeros = jnp.zeros_like(weights.kernel[0])
    inputs = {"w": weights.kernel, "b": zeros if weights.bias is None else weights.bias}
    hidden = {"w": weights.recurrent_kernel} | ({"b": zeros} if double_bias else {})
    return {f"{name}/linear": inputs, f"{name}/linear_1": hidden}
