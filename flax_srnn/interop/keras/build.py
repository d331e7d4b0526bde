"""From a model's configuration and arrays to a module and its variables.

What could go wrong when the module is applied is found here: arguments of every kind are checked, and the whole model is
tried on the shape of inputs that it declares, without computing anything.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn import Bidirectional, identifiers
from flax_srnn.interop.keras import gated_layers, graph, structure, weights
from flax_srnn.interop.keras.arguments import Arguments
from flax_srnn.interop.keras.config import layer_from
from flax_srnn.interop.keras.layers import LAYERS
from flax_srnn.interop.keras.model import RECURRENT, HoldingBidirectional, Model, TimeDistributed
from flax_srnn.interop.keras.operations import Operation
from flax_srnn.interop.keras.pointwise import ActivityRegularization
from flax_srnn.interop.keras.shared import on_device
from flax_srnn.layers import states

__all__ = ["MAX_LAYERS", "MAX_STATE_ELEMENTS", "layer", "model", "variables_for"]

MAX_LAYERS = 256
MAX_STATE_ELEMENTS = 2**26
"""Of stateful layers: they are made when a model is loaded, as many as the file says."""

_RECURRENT_CALLS = 16  # as many as take the time to trace that a direction of a recurrent layer takes
_RECURRENT = ("SimpleRNN", "LSTM", "GRU", "RNN", "Bidirectional")


def model(config: Mapping[str, Any], version: str | None) -> Model:
    """The module for the configuration of a Sequential or functional model.

    Args:
      config: Keras's.
      version: of the Keras that wrote it, None if that is not known.

    Raises:
      ValueError: another kind of model, or a layer in it that cannot be represented.
    """
    layout = structure.from_config(config, rules=True)
    if (count := sum(1 for _ in structure.walk(layout))) > MAX_LAYERS:
        raise ValueError(f"the model has {count} layers; at most {MAX_LAYERS} are read.")
    built = _model(config, version)
    if (calls := _calls(built)) > graph.MAX_NODES:
        raise ValueError(f"the model has {calls} calls of layers; at most {graph.MAX_NODES} are read.")
    return built.clone(structure=layout, name=None)


def _model(config: Mapping[str, Any], version: str | None) -> Model:
    kind, given = identifiers.parse({key: value for key, value in config.items() if key not in _BESIDE}, "model")
    if kind not in structure.MODELS:
        raise ValueError(f"a model of the class {kind!r} cannot be represented: only {', '.join(structure.MODELS)}.")
    if not given["layers"]:
        raise ValueError("the model has no layers.")
    if kind == "Sequential":
        name, shape = _first_input(given)
        configs = [each for each in given["layers"] if structure.parse(each)[0] != "InputLayer"]
        its_graph = graph.chain(len(configs), name, shape)
    else:
        its_graph, configs = graph.functional(given)
    if not configs:
        raise ValueError("the model has no layers.")
    layers = tuple(layer(each, version) for each in configs)
    return Model(layers, its_graph, tuple(map(_penalty, configs)), name=given.get("name"))


def _first_input(given: Mapping[str, Any]) -> tuple[str, graph.Shape | None]:
    """The name of a Sequential model's inputs, and their shape."""
    kind, first = structure.parse(given["layers"][0])
    shape = graph.shape_of({"batch_shape": given.get("build_input_shape"), **first})
    return (structure.name_of(given["layers"][0]) if kind == "InputLayer" else "inputs"), shape


def _calls(module: Any) -> int:
    """How often layers are called in a run of a model, or of a layer with one inside; a recurrent one counts several times."""
    if isinstance(module, TimeDistributed):
        return _calls(module.layer)
    if not isinstance(module, Model):
        return _RECURRENT_CALLS * (1 + isinstance(module, Bidirectional)) if isinstance(module, RECURRENT) else 1
    each = [_calls(layer) for layer in module.layers]  # once: models in models, each called twice, are 2**depth calls
    return sum(each[node.layer] + graph.cost(node.leaves) - 1 for node in module.graph.nodes)


# Keys beside "class_name" and "config" that say how a layer was used or trained.
_BESIDE = ("compile_config", "name", "inbound_nodes")


def layer(config: Mapping[str, Any], version: str | None) -> nn.Module:
    """The module for the configuration of a layer inside a model.

    Raises:
      ValueError: it cannot be represented.
    """
    kind, given = structure.parse(config)
    try:
        if structure.is_operation(config):
            return Operation.read(kind, given, structure.name_of(config))
        kind, given = identifiers.parse({key: value for key, value in config.items() if key not in _BESIDE}, "layer")
        if kind in structure.MODELS:
            return _model(config, version)
        if kind in _RECURRENT:
            return _recurrent(config, version)
        arguments = Arguments(kind, given, bool(_is_2(version)))
        if kind == "TimeDistributed":
            built: Any = TimeDistributed(layer(arguments.take("layer"), version), name=arguments.common["name"])
        elif kind in LAYERS:
            built = LAYERS[kind].read(arguments)
        else:
            known = ", ".join((*structure.MODELS, "InputLayer", *_RECURRENT, "TimeDistributed", *LAYERS))
            raise ValueError(f"the class {kind!r} cannot be represented; known are {known}.")
        arguments.expect_nothing_left()
        return built
    except (TypeError, ValueError) as error:
        raise ValueError(f"layer {given.get('name')!r}: {error}") from error


def _penalty(config: Mapping[str, Any]) -> ActivityRegularization | None:
    """On the outputs of a layer that does not sow it."""
    kind, given = structure.parse(config)
    regularizer, name = given.get("activity_regularizer") if kind in LAYERS else None, structure.name_of(config)
    try:
        return None if regularizer is None else ActivityRegularization(regularizer, name=f"{name}_activity")
    except TypeError as error:
        raise ValueError(f"layer {name!r}: {error}") from error


def _recurrent(config: Mapping[str, Any], version: str | None) -> nn.Module:
    thawed = _thawed({"class_name": config["class_name"], "config": config["config"]})
    built = layer_from(thawed, _is_2(version), gated_layers.READERS)
    for each in (built.layer, built.backward_layer) if isinstance(built, Bidirectional) else (built,):
        if each is not None and each.time_major:
            raise ValueError("`time_major` cannot be represented inside a model.")
    if isinstance(built, Bidirectional) and version is not None and _MULTI_BACKEND.fullmatch(version):
        return HoldingBidirectional(built.layer, built.merge_mode, built.backward_layer, name=built.name)
    return built


def _is_2(version: str | None) -> bool | None:
    return None if version is None else version.startswith("2.")


_MULTI_BACKEND = re.compile(r"2\.[0-3]\.\d+")  # tf.keras calls itself 2.2.4-tf


def _thawed(config: Any) -> Any:
    """A configuration without `trainable`, which does not matter to a prediction."""
    if isinstance(config, Mapping):
        return {key: _thawed(value) for key, value in config.items() if key != "trainable"}
    return [_thawed(value) for value in config] if isinstance(config, list) else config


# With arrays


def variables_for(module: Model, arrays: Mapping[structure.Path, Any]) -> dict[str, Any]:
    """The variables of a module with these arrays, after trying it on the inputs that it declares, without computing.

    Raises:
      ValueError: it does not work on them; the arrays are not the ones that it needs.
    """
    wanted, inputs = _tried(module, [each.shape for each in module.graph.inputs], arrays)
    variables: dict[str, Any] = {}
    missing = dict(arrays)
    for collection in ("params", "batch_stats"):
        found = {}
        for path, like in weights.flat(wanted.get(collection, {})).items():
            array = missing.pop(path, None)
            if array is None or array.shape != like.shape:
                shape = "is missing" if array is None else f"has the shape {array.shape}"
                raise ValueError(f"the array {'/'.join(path)!r} {shape}; the model needs {like.shape}.")
            found[path] = on_device(array, like.dtype)
        if found:
            variables[collection] = weights.nested(found)
    if missing:
        raise ValueError(f"the model has no place for the arrays {['/'.join(path) for path in missing][:4]}.")
    if states.COLLECTION in wanted:
        if any(each.shape is None or each.shape[0] is None for each in module.graph.inputs):
            raise ValueError("a stateful model must declare its batch size.")
        if (count := sum(like.size for like in jax.tree.leaves(wanted[states.COLLECTION]))) > MAX_STATE_ELEMENTS:
            raise ValueError(f"the states of the model have {count} elements; at most {MAX_STATE_ELEMENTS} are made.")
        variables[states.COLLECTION] = jax.tree.map(
            lambda like: jnp.zeros(like.shape, like.dtype), wanted[states.COLLECTION]
        )
    _evaluated(functools.partial(module.apply, mutable=[states.COLLECTION]), variables, *inputs)
    return variables


def _tried(
    module: Model, declared: Sequence[graph.Shape | None], arrays: Mapping[structure.Path, Any]
) -> tuple[Any, list[jax.ShapeDtypeStruct]]:
    """What the module declares on inputs of these shapes, and the inputs. The error is that of the first ones tried.

    A free dimension may be any size for which the model works: it may have to be as long as that of another input, or longer
    than a convolution. Keras 2.2 loses the shape of a Sequential model that began with an InputLayer: the first kernel tells
    the features.
    """
    shapes = [[shape for shape in declared if shape is not None]]
    if len(shapes[0]) < len(declared):
        features = next((array.shape[-2] for array in arrays.values() if array.ndim > 1), None)
        if len(declared) > 1 or features is None:
            raise ValueError("the model was saved before it was built: it declares no shape of its inputs.")
        shapes = [[(None, features)], [(None, None, features)]]
    errors: list[ValueError] = []
    calls = _calls(module)
    for each in shapes:
        batch = next((shape[0] for shape in each if shape[0] is not None), 2)
        sizes = {size for shape in each for size in shape[1:] if size is not None} - {3}
        tried = (3, *sorted(sizes)[:_MAX_TRIED], *_LENGTHS)[: max(3, 2 * graph.MAX_NODES // calls)]
        for size in tried if any(None in shape[1:] for shape in each) else (3,):
            inputs = [
                jax.ShapeDtypeStruct((shape[0] or batch, *(n or size for n in shape[1:])), jnp.float32)
                for shape in each
            ]
            try:
                return _evaluated(module.init, jax.random.key(0), *inputs), inputs
            except ValueError as error:
                errors.append(error)
    raise errors[0]


_LENGTHS = (64, 1024)
_MAX_TRIED = 8  # of the sizes that a model declares


def _evaluated(function: Callable[..., Any], variables: Any, *inputs: jax.ShapeDtypeStruct) -> Any:
    try:
        return jax.eval_shape(function, variables, *inputs)
    except Exception as error:  # whatever a layer finds wrong with what a file asks of it
        shapes = " and ".join(str(each.shape) for each in inputs)
        raise ValueError(f"the model cannot be applied to inputs of the shape {shapes}: {error}") from error
