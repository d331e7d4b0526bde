"""From a Sequential model's configuration and arrays to a module and its variables.

What could go wrong when the module is applied is found here: arguments of every kind are checked, and the whole model is
tried on the shape of inputs that it declares, without computing anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from flax_srnn import Bidirectional, identifiers, validation
from flax_srnn.interop.keras import structure, weights
from flax_srnn.interop.keras.arguments import MAX_DIMENSION, Arguments
from flax_srnn.interop.keras.config import layer_from
from flax_srnn.interop.keras.layers import LAYERS
from flax_srnn.interop.keras.model import Sequential
from flax_srnn.layers import states

__all__ = ["MAX_LAYERS", "MAX_UNROLLED_STEPS", "sequential", "variables_for"]

MAX_LAYERS = 256
MAX_UNROLLED_STEPS = 10_000

_RECURRENT = ("SimpleRNN", "RNN", "Bidirectional")


def sequential(config: Mapping[str, Any], keras_2: bool | None) -> Sequential:
    """The module for the configuration of a Sequential model.

    Raises:
      ValueError: another kind of model, or a layer in it that cannot be represented.
    """
    layout = structure.from_config(config)
    if (count := _count(layout)) > MAX_LAYERS:
        raise ValueError(f"the model has {count} layers; at most {MAX_LAYERS} are read.")
    model = _model(config, keras_2)
    return model.clone(structure=layout, name=None)


def _model(config: Mapping[str, Any], keras_2: bool | None) -> Sequential:
    kind, given = identifiers.parse({key: value for key, value in config.items() if key not in _BESIDE}, "model")
    if kind != "Sequential":
        raise ValueError(f"a model of the class {kind!r} cannot be represented: only Sequential ones.")
    configs = given["layers"]
    shape = _input_shape(configs, given)
    inner = [each for each in configs if structure.parse(each)[0] != "InputLayer"]
    if not inner:
        raise ValueError("the model has no layers.")
    steps = shape[1] if shape and len(shape) > 1 else None
    return Sequential(tuple(_layer(each, keras_2, steps) for each in inner), shape, name=given.get("name"))


# Keys beside "class_name" and "config" that say how a layer was used or trained.
_BESIDE = ("compile_config", "name", "inbound_nodes")


def _layer(config: Mapping[str, Any], keras_2: bool | None, steps: int | None) -> nn.Module:
    name = config["config"].get("name")
    try:
        kind, given = identifiers.parse({key: value for key, value in config.items() if key not in _BESIDE}, "layer")
        if kind == "Sequential":
            return _model(config, keras_2)
        if kind in _RECURRENT:
            return _recurrent(config, keras_2, steps)
        if kind not in LAYERS:
            known = ", ".join(("Sequential", "InputLayer", *_RECURRENT, *LAYERS))
            raise ValueError(f"the class {kind!r} cannot be represented; known are {known}.")
        arguments = Arguments(kind, given, bool(keras_2))
        layer = LAYERS[kind].read(arguments)
        arguments.expect_nothing_left()
        return layer
    except (TypeError, ValueError) as error:
        raise ValueError(f"layer {name!r}: {error}") from error


def _recurrent(config: Mapping[str, Any], keras_2: bool | None, steps: int | None) -> nn.Module:
    layer = layer_from(_thawed({"class_name": config["class_name"], "config": config["config"]}), keras_2)
    for each in (layer.layer, layer.backward_layer) if isinstance(layer, Bidirectional) else (layer,):
        if each is not None and each.time_major:
            raise ValueError("`time_major` cannot be represented inside a model.")
        if each is not None and each.unroll and steps is not None and steps > MAX_UNROLLED_STEPS:
            raise ValueError(f"`unroll` over {steps} steps; at most {MAX_UNROLLED_STEPS} are unrolled.")
    return layer


def _input_shape(configs: list[Any], given: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    """The declared shape of a model's inputs, batch first."""
    if not configs:
        raise ValueError("the model has no layers.")
    kind, first = structure.parse(configs[0])
    shape = first.get("batch_shape") or first.get("batch_input_shape") or given.get("build_input_shape")
    if kind == "InputLayer" and (first.get("sparse") or first.get("ragged")):
        raise ValueError("sparse and ragged inputs cannot be represented.")
    if shape is None:
        return None
    sizes = (
        [size if size is None else validation.integer("shape", size) for size in shape]
        if isinstance(shape, list)
        else []
    )
    if not sizes or len(sizes) > 8 or any(n is not None and not 0 < n <= MAX_DIMENSION for n in sizes):
        raise ValueError(f"the model declares inputs of the shape {shape!r}.")
    return tuple(sizes)


def _thawed(config: Any) -> Any:
    """A configuration without `trainable`, which does not matter to a prediction."""
    if isinstance(config, Mapping):
        return {key: _thawed(value) for key, value in config.items() if key != "trainable"}
    return [_thawed(value) for value in config] if isinstance(config, list) else config


def _count(layout: structure.Layer) -> int:
    return 1 + sum(map(_count, layout.children))


# With arrays


def variables_for(module: Sequential, arrays: Mapping[structure.Path, Any]) -> dict[str, Any]:
    """The variables of a module with these arrays, after trying it on the inputs that it declares, without computing.

    Raises:
      ValueError: it does not work on them; the arrays are not the ones that it needs.
    """
    if module.input_shape is None:
        raise ValueError("the model was saved before it was built: it declares no shape of its inputs.")
    batch, *sizes = module.input_shape
    inputs = jax.ShapeDtypeStruct((batch or 2, *(size or 3 for size in sizes)), jnp.float32)
    wanted = _tried(module.init, jax.random.key(0), inputs)
    variables: dict[str, Any] = {}
    missing = dict(arrays)
    for collection in ("params", "batch_stats"):
        found = {}
        for path, like in traverse_util.flatten_dict(wanted.get(collection, {})).items():
            array = missing.pop(path, None)
            if array is None or array.shape != like.shape:
                shape = "is missing" if array is None else f"has the shape {array.shape}"
                raise ValueError(f"the array {'/'.join(path)!r} {shape}; the model needs {like.shape}.")
            found[path] = jnp.asarray(array, like.dtype)
        if found:
            variables[collection] = weights.nested(found)
    if missing:
        raise ValueError(f"the model has no place for the arrays {['/'.join(path) for path in missing][:4]}.")
    if states.COLLECTION in wanted:
        if batch is None:
            raise ValueError("a stateful model must declare its batch size.")
        variables[states.COLLECTION] = jax.tree.map(
            lambda like: jnp.zeros(like.shape, like.dtype), wanted[states.COLLECTION]
        )
    _tried(functools.partial(module.apply, mutable=[states.COLLECTION]), variables, inputs)
    return variables


def _tried(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:  # whatever a layer finds wrong with what a file asks of it
        raise ValueError(
            f"the model cannot be applied to inputs of the shape {arguments[-1].shape}: {error}"
        ) from error
