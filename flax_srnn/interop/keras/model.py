"""Keras's Sequential models as Linen modules.

Every layer takes (inputs, mask, training) and returns (outputs, mask): the mask that Keras hands from layer to layer behind
the scenes is a value here. It goes where it goes in Keras, also where that is questionable: a layer that runs backwards
passes it on unreversed. Only prediction is promised to be Keras's; what acts in training alone (initializers, regularizers
and constraints of layers other than recurrent ones, frozen layers) is not carried over.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn import activations, validation
from flax_srnn.interop.keras.structure import Layer
from flax_srnn.layers import RNN, Bidirectional, SimpleRNN

Masked = tuple[Any, Any]  # (outputs, mask or None)


class Dense(nn.Dense):
    """act(x W + b) on the last axis."""

    activation: Any = None

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return activations.get(self.activation)(self(x)), mask


class TimeDistributed(Dense):
    """A Dense layer at every step, which is what it does anyway; Keras wants a time dimension."""

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        if x.ndim < 3:
            raise ValueError(f"TimeDistributed needs inputs of rank 3 or more, got {validation.describe(x)}.")
        return super().step(x, mask, training)


class Embedding(nn.Embed):
    """Row x of a table for every integer x; with `mask_zero`, 0 is padding."""

    mask_zero: bool = False

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = x if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(jnp.int32)
        return self(x), x != 0 if self.mask_zero else None


class Masking(nn.Module):
    """Masks the steps at which every feature is `mask_value`, and makes them 0."""

    mask_value: float = 0.0
    dtype: Any = None

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        x = _cast(x, self.dtype)
        used = jnp.any(x != self.mask_value, axis=-1)
        return jnp.where(used[..., None], x, 0), used


class Dropout(nn.Dropout):
    """Drops elements in training."""

    dtype: Any = None

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return self(_cast(x, self.dtype), deterministic=not training), mask


class Activation(nn.Module):
    """An activation by itself."""

    activation: Any
    dtype: Any = None

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return activations.get(self.activation)(_cast(x, self.dtype)), mask


class Flatten(nn.Module):
    """Everything but the batch in one dimension; the mask ends here."""

    dtype: Any = None

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return _cast(x, self.dtype).reshape(x.shape[0], math.prod(x.shape[1:])), None


class BatchNormalization(nn.BatchNorm):
    """With the running statistics, or in training with those of the batch's used steps."""

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        used = None if mask is None else mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
        return self(x, use_running_average=not training, mask=used), mask


class LayerNormalization(nn.LayerNorm):
    """Mean 0 and variance 1 over the given axes."""

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        return self(x), mask


class Sequential(nn.Module):
    """One layer after the other; the parameters of each stand under its Keras name.

    Attributes:
      layers: the layers, named.
      input_shape: what Keras declares, None for a free dimension; the batch is the first one.
      structure: where the arrays stand in Keras's files.

    Call arguments:
      inputs: of the shape `input_shape`, with any batch size unless a layer is stateful.
      mask: (B, T), True = use the step, as if the layer before had passed it on.
      training: dropout is applied, and batch normalisation uses the batch: pass rngs={"dropout": key} and
        mutable=["batch_stats"] to `apply`.

    Returns:
      What Keras's model returns.
    """

    layers: tuple[Any, ...]
    input_shape: tuple[int | None, ...] | None = None
    structure: Layer | None = None

    preserve_adopted_names = True  # Flax would call them layers_0, layers_1, …

    def __call__(self, inputs: Any, *, mask: Any = None, training: bool = False) -> Any:
        validation.flag("training", training)
        x = validation.array("inputs", inputs)
        declared = self.input_shape or x.shape
        if len(declared) != x.ndim or any(d not in (None, n) for d, n in zip(declared[1:], x.shape[1:], strict=True)):
            raise ValueError(f"`inputs` must have the shape {declared} (None: any size), got {validation.describe(x)}.")
        flags = None if mask is None else validation.step_flags("mask", mask, x.shape[:1], x.shape[1])
        return self.step(x, flags, training)[0]

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        for layer in self.layers:
            if isinstance(layer, (SimpleRNN, RNN, Bidirectional)):
                if x.ndim != 3:  # ours would take the batch for time
                    raise ValueError(
                        f"{layer.name!r} needs inputs of the shape (B, T, F), got {validation.describe(x)}."
                    )
                sequences = (layer.layer if isinstance(layer, Bidirectional) else layer).return_sequences
                x, mask = layer(x, mask=mask, training=training), mask if sequences else None
            else:
                x, mask = layer.step(x, mask, training)
        return x, mask


def _cast(x: jax.Array, dtype: Any) -> jax.Array:
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
