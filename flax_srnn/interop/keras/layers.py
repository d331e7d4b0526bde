"""The layers of Keras's models that are not recurrent: what each computes, and which of Keras's arguments it has.

Every layer takes (inputs, mask, training) and returns (outputs, mask): the mask that Keras hands from layer to layer behind
the scenes is a value here. Only prediction is promised to be Keras's; what acts in training alone (initializers,
regularizers and constraints, frozen layers) is not carried over.

A class that is to be read too needs a class here, an entry in `LAYERS`, and where it has arrays their names in
`structure.ARRAYS`.
"""

from __future__ import annotations

import math
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn import activations, identifiers, validation
from flax_srnn.interop.keras.arguments import Arguments

__all__ = ["LAYERS", "Masked"]

Masked = tuple[Any, Any]  # (outputs, mask or None)


class Dense(nn.Dense):
    """act(x W + b) on the last axis."""

    activation: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        activation, use_bias = given.activation(), given.flag("use_bias", True)
        return cls(given.size("units"), use_bias=use_bias, activation=activation, **given.common)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return activations.get(self.activation)(self(x)), mask


class TimeDistributed(Dense):
    """A Dense layer at every step, which is what it does anyway; Keras wants a time dimension."""

    @classmethod
    def read(cls, given: Arguments) -> Self:
        kind, inner = identifiers.parse(given.take("layer"), "layer")
        if kind != "Dense":
            raise ValueError(f"TimeDistributed of the class {kind!r} cannot be represented, only of Dense.")
        given.expect_nothing_left()
        arguments = given.inside(kind, {**inner, "name": given.common["name"]})
        layer = super().read(arguments)
        arguments.expect_nothing_left()
        return layer

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        if x.ndim < 3:
            raise ValueError(f"TimeDistributed needs inputs of rank 3 or more, got {validation.describe(x)}.")
        return super().step(x, mask, training)


class Embedding(nn.Embed):
    """Row x of a table for every integer x; with `mask_zero`, 0 is padding."""

    mask_zero: bool = False

    @classmethod
    def read(cls, given: Arguments) -> Self:
        mask_zero = given.flag("mask_zero", False)
        return cls(given.size("input_dim"), given.size("output_dim"), mask_zero=mask_zero, **given.common)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = x if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(jnp.int32)
        return self(x), x != 0 if self.mask_zero else None


class Masking(nn.Module):
    """Masks the steps at which every feature is `mask_value`, and makes them 0."""

    mask_value: float = 0.0
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(given.number("mask_value", 0.0), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = _cast(x, self.dtype)
        used = jnp.any(x != self.mask_value, axis=-1)
        return jnp.where(used[..., None], x, 0), used


class Dropout(nn.Dropout):
    """Drops elements in training."""

    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(given.number("rate", at_least=0, at_most=1), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return self(_cast(x, self.dtype), deterministic=not training), mask


class Activation(nn.Module):
    """An activation by itself."""

    activation: Any
    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        return cls(given.activation(), **given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return activations.get(self.activation)(_cast(x, self.dtype)), mask


class Flatten(nn.Module):
    """Everything but the batch in one dimension; the mask ends here."""

    dtype: Any = None

    @classmethod
    def read(cls, given: Arguments) -> Self:
        if (data_format := given.take("data_format", "channels_last")) != "channels_last":
            raise ValueError(f"`data_format` must be 'channels_last', got {data_format!r}.")
        return cls(**given.uncounted)

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return _cast(x, self.dtype).reshape(x.shape[0], math.prod(x.shape[1:])), None


class BatchNormalization(nn.BatchNorm):
    """With the running statistics, or in training with those of the batch's used steps."""

    @classmethod
    def read(cls, given: Arguments) -> Self:
        axes = given.axes()
        if len(axes) != 1:
            raise ValueError(f"`axis` must be one axis, got {axes}.")
        return cls(
            axis=axes[0],
            momentum=given.number("momentum", 0.99, at_least=0, at_most=1),
            epsilon=given.number("epsilon", 1e-3, at_least=0),
            use_bias=given.flag("center", True),
            use_scale=given.flag("scale", True),
            **given.common,
        )

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        used = None if mask is None else mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
        return self(x, use_running_average=not training, mask=used), mask


class LayerNormalization(nn.LayerNorm):
    """Mean 0 and variance 1 over the given axes."""

    @classmethod
    def read(cls, given: Arguments) -> Self:
        axes = given.axes()
        return cls(
            epsilon=given.number("epsilon", 1e-3, at_least=0),
            use_bias=given.flag("center", True),
            use_scale=given.flag("scale", True),
            reduction_axes=axes,
            feature_axes=axes,
            use_fast_variance=False,  # E[x²] - E[x]² loses digits that Keras has
            **given.common,
        )

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return self(x), mask


def _cast(x: jax.Array, dtype: Any) -> jax.Array:
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


# Everything that Keras writes as {"class_name": the name here, "config": the arguments that `read` takes}.
LAYERS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Dense,
        TimeDistributed,
        Embedding,
        Masking,
        Dropout,
        Activation,
        Flatten,
        BatchNormalization,
        LayerNormalization,
    )
}
