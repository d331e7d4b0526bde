"""Keras's Sequential models as Linen modules.

The mask goes from layer to layer as it goes in Keras, also where that is questionable: a layer that runs backwards passes it
on unreversed.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from flax_srnn import RNN, Bidirectional, SimpleRNN, validation
from flax_srnn.interop.keras.layers import Masked
from flax_srnn.interop.keras.structure import Layer

__all__ = ["Sequential"]


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
