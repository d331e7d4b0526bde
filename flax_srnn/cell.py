"""One time step of the simple RNN (Elman 1990), and the values it needs: parameters and dropout masks.

    h_t = act((x_t ∘ d_x) W + b + (h_{t-1} ∘ d_h) U)

Everything else in this library drives this function over time or stores its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from flax_srnn import activations, initializers, validation


def cell_step(
    params: Mapping[str, Any],
    state: ArrayLike,
    x: ArrayLike,
    *,
    activation: Any = "tanh",
    input_dropout_mask: ArrayLike | None = None,
    recurrent_dropout_mask: ArrayLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[jax.Array, jax.Array]:
    """One step: h_t = act((x_t ∘ d_x) W + b + (h_{t-1} ∘ d_h) U); the output is the new state.

    It has the signature that `jax.lax.scan` asks for, so a whole sequence (`xs` time-major) is
    ``jax.lax.scan(functools.partial(cell_step, params), h0, xs)``.

    Args:
      params: mapping with "kernel" W (F, U), "recurrent_kernel" U (U, U) and, if there is a bias, "bias" b (U,).
      state: h_{t-1}, (*batch, U).
      x: x_t, (*batch, F).
      activation: a Keras name, a Keras config, a callable, or None (linear).
      input_dropout_mask: d_x, exactly (*batch, F), scaled by 1/(1 - rate) already (`dropout_masks` makes it).
      recurrent_dropout_mask: d_h, exactly (*batch, U).
      precision: of the two matrix products, as in `jax.numpy.dot`.

    Returns:
      (new_state, output), both h_t (*batch, U).

    Raises:
      TypeError: an argument is no array of real numbers, or `params` no mapping.
      ValueError: a shape does not fit, `params` has a missing or an unknown key, or `activation` is unknown.

    Source: Keras `SimpleRNNCell`; J. Elman, "Finding structure in time", Cognitive Science 14 (1990).

    >>> params = {"kernel": jnp.ones((1, 2)), "recurrent_kernel": jnp.eye(2)}
    >>> new_state, output = cell_step(params, jnp.array([1.0, 2.0]), jnp.array([3.0]), activation=None)
    >>> output.tolist()
    [4.0, 5.0]
    """
    w = validation.weights(params)
    function = activations.get(activation)
    validation.precision(precision)
    x = validation.array("x", x)
    if x.ndim < 1:
        raise ValueError(f"`x` must have the shape (*batch, F), got {validation.describe(x)}.")
    validation.features(x, w.kernel.shape[0], "x")
    hidden = (*x.shape[:-1], w.kernel.shape[1])
    state = validation.shaped("state", state, hidden, "(*batch, U)")
    if input_dropout_mask is not None:
        x = x * validation.shaped("input_dropout_mask", input_dropout_mask, x.shape, "(*batch, F)")
    recurrent = state
    if recurrent_dropout_mask is not None:
        recurrent = state * validation.shaped("recurrent_dropout_mask", recurrent_dropout_mask, hidden, "(*batch, U)")
    z = jnp.dot(x, w.kernel, precision=precision)
    if w.bias is not None:
        z = z + jnp.broadcast_to(w.bias, z.shape)
    z = z + jnp.dot(recurrent, w.recurrent_kernel, precision=precision)
    output = function(z)
    validation.activation(output, z.shape)
    return output, output


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

    def mask(key: jax.Array, rate: float, width: int) -> jax.Array | None:
        if rate == 0:
            return None
        keep = jax.random.bernoulli(key, 1.0 - rate, (*batch, width))
        scale = 0.0 if rate == 1 else 1.0 / (1.0 - rate)
        return jnp.where(keep, jnp.asarray(scale, dtype), jnp.zeros((), dtype))

    input_key, recurrent_key = jax.random.split(key)
    return mask(input_key, dropout, in_features), mask(recurrent_key, recurrent_dropout, units)
