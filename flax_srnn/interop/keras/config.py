"""Layers from Keras's configurations, and back.

The form of Keras 3 is written. That of tf.keras 2 is read too; its `hard_sigmoid` is another function, so it matters who
wrote a configuration: the file says so, or else it is told by what Keras 3 always or never writes.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_srnn import (
    RNN,
    Bidirectional,
    SimpleRNN,
    SimpleRNNCell,
    StackedRNNCells,
    activations,
    constraints,
    identifiers,
    initializers,
    regularizers,
)
from flax_srnn.interop.keras.structure import first_places

__all__ = ["CLASSES", "activation", "cells_of", "configs_of", "dtypes_of", "from_config", "layer_from", "to_config"]

CLASSES: dict[str, Any] = {
    kind.__name__: kind for kind in (SimpleRNN, SimpleRNNCell, RNN, StackedRNNCells, Bidirectional)
}

# The arguments that Keras has too, and those that it writes apart from the others.
_WEIGHTS = ("kernel", "recurrent", "bias")
_IDENTIFIERS: dict[str, Any] = {"initializer": initializers, "regularizer": regularizers, "constraint": constraints}
_FLAGS = ("return_sequences", "return_state", "go_backwards", "stateful", "unroll", "zero_output_for_mask")
_KERAS = (
    *("units", "activation", "use_bias", "dropout", "recurrent_dropout", "seed", "activity_regularizer", *_FLAGS),
    *(f"{weight}_{kind}" for weight in _WEIGHTS for kind in _IDENTIFIERS),
    *("cell", "cells", "layer", "backward_layer", "merge_mode"),
)
_APART = ("name", "parent", "dtype", "param_dtype")
# What tf.keras 2 says about a model's inputs in its first layer.
_ABOUT_INPUTS = ("batch_input_shape", "input_dim", "input_length", "implementation")
# Arguments that Keras leaves out of a configuration when they are None.
_OPTIONAL = {"SimpleRNN": ("seed",), "RNN": ("activity_regularizer",), "Bidirectional": ("backward_layer",)}
_LAYERS = ("cell", "layer", "backward_layer")


def hard_sigmoid_2(x: jax.Array) -> jax.Array:
    """clip(x / 5 + ½, 0, 1), the `hard_sigmoid` of tf.keras 2; Keras 3 has clip(x / 6 + ½, 0, 1)."""
    return jnp.clip(0.2 * x + 0.5, 0, 1)


def activation(identifier: Any, keras_2: bool, dtype: Any) -> Any:
    """An activation of a layer that computes in `dtype`, None being float32.

    It is a name, or the function where it has settings, and where its name meant another one in tf.keras 2.
    """
    written = activations.to_config(identifier)
    config = identifier.get("config") if isinstance(identifier, Mapping) else None
    if isinstance(config, Mapping) and config.get("dtype") is not None:  # a layer, which casts to a dtype of its own
        own, outer = dtypes_of(config["dtype"])["dtype"], jnp.dtype(jnp.float32 if dtype is None else dtype)
        if own != outer:
            raise ValueError(
                f"`activation` is a layer that computes in {own}, inside one that computes in {outer}: this cannot be "
                "represented, give both the same dtype."
            )
    if isinstance(written, Mapping):
        return activations.get(written)
    return hard_sigmoid_2 if keras_2 and written == "hard_sigmoid" else written


def from_config(config: Mapping[str, Any]) -> nn.Module:
    """The layer with a Keras configuration.

    Args:
      config: `{"class_name", "config"}`, with "module" and "registered_name" where Keras 3 wrote it, of a SimpleRNN,
        SimpleRNNCell, RNN, StackedRNNCells or Bidirectional. tf.keras 2's are read too.

    Returns:
      The layer. Keras's name becomes its Flax name; the dtype policy becomes `dtype` (of the computation) and `param_dtype`:
      "mixed_bfloat16" is bfloat16 and float32.

    Raises:
      TypeError: `config` is no mapping.
      ValueError: what cannot be represented: another class, a custom object, an unknown argument, a frozen layer; nested
        deeper than `identifiers.MAX_CONFIG_DEPTH`.

    Source: Keras `Layer.from_config`, `keras.saving.deserialize_keras_object`.

    >>> layer = from_config({"class_name": "SimpleRNN", "config": {"units": 8, "return_sequences": True}})
    >>> type(layer).__name__, layer.units, layer.return_sequences
    ('SimpleRNN', 8, True)
    """
    identifiers.check_depth(config, "config")
    return layer_from(config, None)


Readers = Mapping[str, Callable[[str, Mapping[str, Any], bool], Any]]


def layer_from(config: Mapping[str, Any], keras_2: bool | None, others: Readers = types.MappingProxyType({})) -> Any:
    """`from_config`, where it may be known whether tf.keras 2 wrote the configuration: None if it is not.

    Args:
      others: by class what reads other layers and cells, from (class, arguments, whether Keras 2 wrote them).
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"`config` must be the configuration of a Keras layer, a mapping, got {config!r}.")
    kind, given = identifiers.parse(config, "config")
    if kind in others:
        return others[kind](kind, given, bool(keras_2))
    if kind not in CLASSES:
        raise ValueError(f"`config` is of the class {kind!r}; only {', '.join(CLASSES)} can be represented.")
    given = {key: value for key, value in given.items() if key not in _ABOUT_INPUTS}
    if keras_2 is None:
        keras_2 = "time_major" in given or (kind == "SimpleRNNCell" and "trainable" in given and "seed" not in given)
    name, policy = given.pop("name", None), given.pop("dtype", None)
    if name is not None and (not isinstance(name, str) or not name):
        raise ValueError(f"`name` of a {kind} must be a string, got {name!r}.")
    if given.pop("trainable", True) is not True:
        raise ValueError(
            f"{kind} {name!r} is frozen (trainable=False), which a Flax layer cannot say: freeze its parameters with "
            "`optax.multi_transform`, and set it to True here."
        )
    fields = {field.name: field.default for field in dataclasses.fields(CLASSES[kind])}
    allowed = [key for key in fields if key in _KERAS or key == "time_major"]  # which only tf.keras 2 has
    for key, value in given.items():
        if key not in allowed and value is not None:
            raise ValueError(f"a {kind} has no argument {key!r} (here {value!r}); it has {', '.join(allowed)}.")
    if kind == "SimpleRNNCell" and "units" not in given:
        raise ValueError(
            f"{kind} {name!r} has no `units`: Keras before 2.1 did not write the arguments of a cell down."
        )
    dtypes = {} if policy is None else dtypes_of(policy)
    try:
        arguments = {
            key: _read(key, given[key], fields[key], keras_2, dtypes, others) for key in allowed if key in given
        }
        if "units" in fields:
            return CLASSES[kind](**arguments, **dtypes, name=name)
        layer = CLASSES[kind](**_zeroed(arguments) if kind == "Bidirectional" else arguments, name=name)
    except TypeError as error:  # an argument of the wrong type, or a missing one
        raise ValueError(f"{kind} {name!r}: {error}") from error
    if dtypes and {each or "float32" for each in _policies(layer)} != {_policy(**dtypes)}:
        raise ValueError(f"{kind} {name!r} has the dtype {policy!r} and is made of cells with another one.")
    return layer


def _read(key: str, value: Any, default: Any, keras_2: bool, dtypes: Mapping[str, Any], others: Readers) -> Any:
    """An argument of a layer. What equals the default becomes the default, so that equal layers compare so."""
    if key == "activation":
        return activation(value, keras_2, dtypes.get("dtype"))
    if key == "cells":
        cells: list[Any] = []
        for i, first in enumerate(first_places(value)):
            cells.append(cells[first] if first < i else layer_from(value[i], keras_2, others))
        return cells
    if key in _LAYERS and value is not None:
        layer = layer_from(value, keras_2, others)
        # Keras makes an unnamed list of cells into a stack of its own.
        return layer.cells if isinstance(layer, StackedRNNCells) and layer.name is None else layer
    module = _IDENTIFIERS.get(key.rsplit("_", 1)[-1])
    if module is None or value is None:
        return value
    if module is initializers and isinstance(value, Mapping) and isinstance(inner := value.get("config"), Mapping):
        # tf.keras 1 wrote the dtype of the layer here too.
        value = {**value, "config": {name: each for name, each in inner.items() if name != "dtype"}}
    built = module.get(value, argument=key)
    return default if default is not None and built == module.get(default) else built


def _zeroed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keras's Bidirectional sets `zero_output_for_mask` of its layers; tf.keras 2 does not write that down."""
    layers = {key: layer for key, layer in arguments.items() if isinstance(layer, (SimpleRNN, RNN))}
    return arguments | {key: each.clone(zero_output_for_mask=each.return_sequences) for key, each in layers.items()}


def to_config(layer: nn.Module) -> dict[str, Any]:
    """The Keras 3 configuration of a layer, the inverse of `from_config`.

    A layer without a name or a `dtype` has none in its configuration: Keras then chooses them.

    Args:
      layer: a SimpleRNN, SimpleRNNCell, RNN, StackedRNNCells or Bidirectional of this library.

    Raises:
      TypeError: it is none of those.
      ValueError: what Keras does not have: an option, a dtype, a function of the user's own.

    Source: Keras `Layer.get_config`, `keras.saving.serialize_keras_object`.

    >>> config = to_config(SimpleRNN(8, kernel_regularizer="l2", seed=1))
    >>> config["class_name"], config["config"]["kernel_regularizer"]["config"], config["config"]["seed"]
    ('SimpleRNN', {'l2': 0.01}, 1)
    """
    kind = type(layer).__name__
    if CLASSES.get(kind) is not type(layer):
        raise TypeError(f"`layer` must be one of this library's {', '.join(CLASSES)}, got {layer!r}.")
    config: dict[str, Any] = {} if layer.name is None else {"name": layer.name}
    config["trainable"] = True
    if isinstance(layer, (RNN, StackedRNNCells)):
        cells_of(layer)
    policies = _policies(layer)
    if len(policies) > 1:
        raise ValueError(
            f"the cells of a {kind} must have one `dtype` and `param_dtype` in Keras, got {sorted(map(str, policies))}."
        )
    policy = {} if policies == {None} else {"dtype": _serialised("keras", "DTypePolicy", {"name": policies.pop()})}
    config |= policy
    for field in dataclasses.fields(layer):
        key, value = field.name, getattr(layer, field.name)
        if key not in _KERAS + _APART and value != field.default:
            raise ValueError(
                f"`{key}` is an option that Keras does not have: it must be {field.default!r}, got {value!r}."
            )
        if key in _KERAS and not (value is None and key in _OPTIONAL.get(kind, ())):
            config[key] = _write(key, value)
    if isinstance(config.get("activation"), dict):  # a layer, which Keras would give its default dtype
        config["activation"]["config"] |= policy
    return _serialised("keras.layers", kind, config)


def _write(key: str, value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if key == "activation":
        return activations.to_config(value)
    if key == "cells":
        return configs_of(value, to_config)
    if key in _LAYERS:
        return to_config(StackedRNNCells(value) if isinstance(value, (list, tuple)) else value)
    if key == "unroll" and not isinstance(value, bool):
        raise ValueError(f"`unroll` must be True or False in Keras, got {value!r}.")
    module = _IDENTIFIERS.get(key.rsplit("_", 1)[-1])
    return value if module is None else module.to_config(value, argument=key)


def _serialised(module: str, kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": module, "class_name": kind, "config": config, "registered_name": None}


# Dtype policies. A layer computes in `dtype` on parameters of `param_dtype`; where Keras says nothing, None and float32.


def dtypes_of(policy: Any) -> dict[str, Any]:
    """`dtype` and `param_dtype` of a Keras dtype policy, which is a name or a configuration."""
    name = policy
    if isinstance(policy, Mapping) and policy.get("class_name") in ("DTypePolicy", "FloatDTypePolicy", "Policy"):
        name = policy["config"].get("name") if isinstance(policy.get("config"), Mapping) else None
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        for param_dtype in (dtype, "float32"):
            if isinstance(name, str) and name == _policy(jnp.dtype(dtype), jnp.dtype(param_dtype)):
                return {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
    raise ValueError(f"the dtype policy {policy!r} cannot be represented.")


def _policy(dtype: Any, param_dtype: Any) -> str | None:
    param_dtype = jnp.dtype(param_dtype)
    if dtype is None and param_dtype == jnp.float32:
        return None
    if dtype is not None and jnp.dtype(dtype) == param_dtype:
        return jnp.dtype(dtype).name
    if dtype is not None and jnp.dtype(dtype).itemsize == 2 and param_dtype == jnp.float32:
        return f"mixed_{jnp.dtype(dtype).name}"
    raise ValueError(f"Keras has no dtype policy for `dtype`={dtype!r} with `param_dtype`={param_dtype!r}.")


def _policies(layer: Any) -> set[str | None]:
    """The policies of all cells in a layer."""
    if isinstance(layer, (SimpleRNN, SimpleRNNCell)):
        return {_policy(layer.dtype, layer.param_dtype)}
    if isinstance(layer, Bidirectional):
        inside = [each for each in (layer.layer, layer.backward_layer) if each is not None]
    else:
        return {_policy(cell.dtype, cell.param_dtype) for cell in _cells(layer)}
    return set().union(*map(_policies, inside))


def configs_of(cells: Sequence[Any], config_of: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """The configurations of cells; those of one that is there twice say so, as Keras's do."""
    places = [id(cell) for cell in cells]
    shared = [{"shared_object_id": place} if places.count(place) > 1 else {} for place in places]
    return [config_of(cell) | note for cell, note in zip(cells, shared, strict=True)]


def cells_of(layer: RNN | StackedRNNCells) -> list[Any]:
    """The cells of a layer, each a SimpleRNNCell."""
    cells = _cells(layer)
    for cell in cells:
        if type(cell) is not SimpleRNNCell:
            raise ValueError(f"a cell of the class {type(cell).__name__} cannot be represented: only SimpleRNNCell.")
    return cells


def _cells(layer: RNN | StackedRNNCells) -> list[Any]:
    cells = layer.cells if isinstance(layer, StackedRNNCells) else layer.cell
    cells = cells.cells if isinstance(cells, StackedRNNCells) else cells
    return list(cells) if isinstance(cells, (list, tuple)) else [cells]
