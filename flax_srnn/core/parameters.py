"""The values that a step needs, made fresh: parameters and dropout masks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flax_srnn import initializers, validation

__all__ = ["draw_masks", "dropout_masks", "init_params"]


def init_params(
    key: jax.Array,
    in_features: int,
    units: int,
    *,
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    recurrent_initializer: Any = "orthogonal",
    bias_initializer: Any = "zeros",
    dtype: DTypeLike = jnp.float32,
) -> dict[str, jax.Array]:
    """Fresh parameters for `cell_step` and `simple_rnn`; every one draws from a key of its own.

    Args:
      key: a `jax.random` key.
      in_features: F.
      units: U.
      use_bias: whether there is a "bias".
      kernel_initializer, recurrent_initializer, bias_initializer: a Keras name, a Keras config, or a callable
        (key, shape, dtype) -> array.
      dtype: of the parameters.

    Returns:
      {"kernel": (F, U), "recurrent_kernel": (U, U), "bias": (U,)}, the last only with `use_bias`.

    Raises:
      TypeError, ValueError: `in_features` or `units` is no positive integer; an initializer is unknown.

    Source: Keras `SimpleRNNCell.build`.

    >>> {name: p.shape for name, p in init_params(jax.random.key(0), 3, 4).items()}
    {'kernel': (3, 4), 'recurrent_kernel': (4, 4), 'bias': (4,)}
    """
    validation.key("key", key)
    units = validation.units(units)
    in_features = validation.in_features(in_features)
    validation.flag("use_bias", use_bias)
    validation.dtype("dtype", dtype)
    table: dict[str, tuple[str, Any, tuple[int, ...]]] = {
        "kernel": ("kernel_initializer", kernel_initializer, (in_features, units)),
        "recurrent_kernel": ("recurrent_initializer", recurrent_initializer, (units, units)),
    }
    if use_bias:
        table["bias"] = ("bias_initializer", bias_initializer, (units,))
    params = {}
    for k, (name, (argument, identifier, shape)) in zip(jax.random.split(key, len(table)), table.items(), strict=True):
        make = validation.initializer(argument, initializers.get(identifier, argument=argument))
        params[name] = make(k, shape, dtype)
    return params


def dropout_masks(
    key: jax.Array,
    batch: tuple[int, ...],
    in_features: int,
    units: int,
    *,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array | None, jax.Array | None]:
    """The two dropout masks of a call: constant over time, scaled by 1/(1 - rate), None where the rate is 0.

    Args:
      key: a `jax.random` key; each mask draws from its own half of it, the input's first.
      batch: the batch shape.
      in_features: F.
      units: U.
      dropout, recurrent_dropout: the fraction dropped, from 0 to 1; at 1 the mask is zero.
      dtype: of the masks.

    Returns:
      (input_dropout_mask (*batch, F) or None, recurrent_dropout_mask (*batch, U) or None).

    Raises:
      TypeError, ValueError: a rate is no number from 0 to 1.

    Source: Keras `DropoutRNNCell`; Y. Gal and Z. Ghahramani, "A theoretically grounded application of dropout in
    recurrent neural networks" (2016): one mask for all steps.

    >>> masks = dropout_masks(jax.random.key(0), (2,), 3, 4, recurrent_dropout=0.5)
    >>> masks[0] is None, sorted(set(masks[1].ravel().tolist()))
    (True, [0.0, 2.0])
    """
    validation.key("key", key)
    validation.shape("batch", batch)
    validation.shape("(in_features, units)", (in_features, units))
    validation.dtype("dtype", dtype)
    validation.rate("dropout", dropout)
    validation.rate("recurrent_dropout", recurrent_dropout)
    return draw_masks(key, batch, (in_features, units), (dropout, recurrent_dropout), dtype)


def draw_masks(
    key: jax.Array, batch: tuple[int, ...], widths: tuple[int, int], rates: tuple[float, float], dtype: DTypeLike
) -> tuple[jax.Array | None, jax.Array | None]:
    """`dropout_masks`, for arguments that were checked: `widths` are (F, U), `rates` those of inputs and of states."""

    def mask(key: jax.Array, rate: float, width: int) -> jax.Array | None:
        if rate == 0:
            return None
        keep = jax.random.bernoulli(key, 1.0 - rate, (*batch, width))
        scale = 0.0 if rate == 1 else 1.0 / (1.0 - rate)
        return jnp.where(keep, jnp.asarray(scale, dtype), jnp.zeros((), dtype))

    of_inputs, of_states = map(mask, jax.random.split(key), rates, widths)
    return of_inputs, of_states
