"""From a Sequential model's configuration and arrays to a module and its variables.

What could go wrong when the module is applied is found here: arguments of every kind are checked, and the whole model is
tried on the shape of inputs that it declares, without computing anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from flax_srnn import lookup, states, validation
from flax_srnn.interop.keras import structure, weights
from flax_srnn.interop.keras.config import activation, dtypes_of, layer_from
from flax_srnn.interop.keras.model import (
    Activation,
    BatchNormalization,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    LayerNormalization,
    Masking,
    Sequential,
    TimeDistributed,
)
from flax_srnn.layers import Bidirectional

MAX_LAYERS = 256
MAX_UNROLLED_STEPS = 10_000
MAX_DIMENSION = 2**31 - 1


class _Arguments:
    """The arguments in a layer's configuration, each taken once; what is left must not matter to a prediction."""

    def __init__(self, kind: str, given: Mapping[str, Any], keras_2: bool) -> None:
        self._kind, self._given, self._keras_2 = kind, dict(given), keras_2
        self.common = {"name": self._given.pop("name", None), **dtypes_of(self._given.pop("dtype", "float32"))}
        self.uncounted = {key: value for key, value in self.common.items() if key != "param_dtype"}

    def take(self, name: str, default: Any = None) -> Any:
        return self._given.pop(name, default)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        validation.flag(name, value)
        return value

    def number(self, name: str, default: float | None = None, **bounds: float) -> float:
        return lookup.number(name, self.take(name, default), **bounds)

    def size(self, name: str) -> int:
        value = self.take(name)
        number = validation.integer(name, value)
        if number is None or not 0 < number <= MAX_DIMENSION:
            raise ValueError(f"`{name}` must be a positive integer of at most {MAX_DIMENSION}, got {value!r}.")
        return number

    def axes(self) -> tuple[int, ...]:
        value = self.take("axis", -1)
        axes = [validation.integer("axis", axis) for axis in (value if isinstance(value, list) else [value])]
        if not axes or None in axes:
            raise ValueError(f"`axis` must be an integer or a list of integers, got {value!r}.")
        return tuple(axis for axis in axes if axis is not None)

    def activation(self) -> Any:
        return activation(self.take("activation"), self._keras_2)

    def expect_nothing_left(self) -> None:
        for name, value in self._given.items():
            for_training = name.endswith(("_initializer", "_regularizer", "_constraint")) or name in _FOR_TRAINING
            if not for_training and value not in (None, False):
                raise ValueError(f"`{name}`={value!r} of a {self._kind} cannot be represented.")


AnyDense = TypeVar("AnyDense", bound=Dense)
_FOR_TRAINING = (
    "trainable",
    "seed",
    "batch_input_shape",
    "input_length",
    "synchronized",
    "renorm_momentum",
    "autocast",
)


def _batch_normalization(given: _Arguments) -> BatchNormalization:
    axes = given.axes()
    if len(axes) != 1:
        raise ValueError(f"`axis` must be one axis, got {axes}.")
    return BatchNormalization(
        axis=axes[0],
        momentum=given.number("momentum", 0.99, at_least=0, at_most=1),
        epsilon=given.number("epsilon", 1e-3, at_least=0),
        use_bias=given.flag("center", True),
        use_scale=given.flag("scale", True),
        **given.common,
    )


def _layer_normalization(given: _Arguments) -> LayerNormalization:
    axes = given.axes()
    return LayerNormalization(
        epsilon=given.number("epsilon", 1e-3, at_least=0),
        use_bias=given.flag("center", True),
        use_scale=given.flag("scale", True),
        reduction_axes=axes,
        feature_axes=axes,
        use_fast_variance=False,  # E[x²] - E[x]² loses digits that Keras has
        **given.common,
    )


def _dense(given: _Arguments, kind: type[AnyDense]) -> AnyDense:
    activation, use_bias = given.activation(), given.flag("use_bias", True)
    return kind(given.size("units"), use_bias=use_bias, activation=activation, **given.common)


def _embedding(given: _Arguments) -> Embedding:
    mask_zero = given.flag("mask_zero", False)
    return Embedding(given.size("input_dim"), given.size("output_dim"), mask_zero=mask_zero, **given.common)


def _dropout(given: _Arguments) -> Dropout:
    return Dropout(given.number("rate", at_least=0, at_most=1), **given.uncounted)


def _flatten(given: _Arguments) -> Flatten:
    if (data_format := given.take("data_format", "channels_last")) != "channels_last":
        raise ValueError(f"`data_format` must be 'channels_last', got {data_format!r}.")
    return Flatten(**given.uncounted)


_BUILDERS: dict[str, Callable[[_Arguments], nn.Module]] = {
    "Dense": lambda given: _dense(given, Dense),
    "Embedding": _embedding,
    "Masking": lambda given: Masking(given.number("mask_value", 0.0), **given.uncounted),
    "Dropout": _dropout,
    "Activation": lambda given: Activation(given.activation(), **given.uncounted),
    "Flatten": _flatten,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
}
_RECURRENT = ("SimpleRNN", "RNN", "Bidirectional")
KNOWN = ("Sequential", "InputLayer", "TimeDistributed", *_RECURRENT, *_BUILDERS)


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
    kind, given = lookup.parse({key: value for key, value in config.items() if key not in _BESIDE}, "model")
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
        kind, given = lookup.parse({key: value for key, value in config.items() if key not in _BESIDE}, "layer")
        if kind == "Sequential":
            return _model(config, keras_2)
        if kind in _RECURRENT:
            return _recurrent(config, keras_2, steps)
        if kind == "TimeDistributed":
            return _time_distributed(given, keras_2)
        if kind not in _BUILDERS:
            raise ValueError(f"the class {kind!r} cannot be represented; known are {', '.join(KNOWN)}.")
        arguments = _Arguments(kind, given, bool(keras_2))
        layer = _BUILDERS[kind](arguments)
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


def _time_distributed(given: Mapping[str, Any], keras_2: bool | None) -> TimeDistributed:
    kind, inner = lookup.parse(given["layer"], "layer")
    if kind != "Dense":
        raise ValueError(f"TimeDistributed of the class {kind!r} cannot be represented, only of Dense.")
    outer = _Arguments("TimeDistributed", given, bool(keras_2))
    outer.take("layer")
    outer.expect_nothing_left()
    arguments = _Arguments(kind, {**inner, "name": given.get("name")}, bool(keras_2))
    layer = _dense(arguments, TimeDistributed)
    arguments.expect_nothing_left()
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
    _tried(module.apply, variables, inputs)
    return variables


def _tried(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:  # whatever a layer finds wrong with what a file asks of it
        raise ValueError(
            f"the model cannot be applied to inputs of the shape {arguments[-1].shape}: {error}"
        ) from error
