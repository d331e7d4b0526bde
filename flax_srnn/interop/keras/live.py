"""Keras's layers that are alive in this process: read through the methods that every Keras layer has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_srnn import SimpleRNNCell, StackedRNNCells, identifiers
from flax_srnn.interop.keras import structure, weights
from flax_srnn.interop.keras.config import layer_from
from flax_srnn.layers import states

__all__ = ["from_keras"]


def from_keras(layer: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A live Keras layer as a layer of this library, with its variables.

    Args:
      layer: a built SimpleRNN, RNN of SimpleRNNCells, or Bidirectional of them; of Keras 3 on any backend, or of tf.keras.

    Returns:
      (layer, variables), with the recorded states of a stateful layer in "carry".

    Raises:
      TypeError: it is no Keras layer.
      ValueError: it is not built yet, or cannot be represented (see `from_config`).

    >>> from_keras("simple_rnn")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    TypeError:
    """
    kind = type(layer)
    if not hasattr(layer, "get_config") or not hasattr(layer, "get_weights"):
        raise TypeError(f"`layer` must be a Keras layer, got {layer!r}.")
    config = {"class_name": kind.__name__, "module": kind.__module__, "config": _completed(layer, layer.get_config())}
    identifiers.check_depth(config, "layer")
    converted = layer_from(config, None)
    if isinstance(converted, (SimpleRNNCell, StackedRNNCells)):
        raise ValueError(f"`layer` must be a layer over time, got the cell {kind.__name__}: wrap it in an RNN.")
    slots = list(structure.slots(structure.from_config(config)))
    arrays = layer.get_weights()
    if len(arrays) != len(slots):
        raise ValueError(
            f"`layer` has {len(arrays)} arrays, expected {len(slots)}: build it first, by calling it on an input."
        )
    found = weights.checked(slots, {slot.path: np.asarray(array) for slot, array in zip(slots, arrays, strict=True)})
    variables = {"params": weights.nested({path: jnp.asarray(array) for path, array in found.items()})}
    if carry := _recorded(layer):
        variables[states.COLLECTION] = carry
    return converted, variables


def _completed(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with what Keras does not write: the dropout seeds of a SimpleRNN, and which cells are the same."""
    for attribute, key in (("forward_layer", "layer"), ("backward_layer", "backward_layer")):
        if hasattr(layer, attribute) and isinstance(config.get(key), Mapping):
            inner = config[key]
            config = {**config, key: {**inner, "config": _completed(getattr(layer, attribute), inner["config"])}}
    cell = getattr(layer, "cell", None)
    if cells := getattr(cell, "cells", None):
        stack = config["cell"]["config"]
        noted = [{**each, "shared_object_id": id(live)} for each, live in zip(stack["cells"], cells, strict=True)]
        config = {**config, "cell": {**config["cell"], "config": {**stack, "cells": noted}}}
    seed = getattr(cell, "seed", None)
    return {**config, "seed": seed} if "units" in config and seed is not None else config


def _recorded(layer: Any) -> dict[str, Any]:
    """The recorded states of a live layer, as the collection "carry" has them."""
    if hasattr(layer, "forward_layer"):
        both = {name: _recorded(getattr(layer, name)) for name in ("forward_layer", "backward_layer")}
        return both if any(both.values()) else {}
    recorded = jax.tree.leaves(getattr(layer, "states", None)) if layer.stateful else []
    return {states.NAME: tuple(jnp.asarray(np.asarray(state)) for state in recorded)} if recorded else {}
