"""Keras's files, configurations and live layers, and ours: read and written without Keras or TensorFlow.

A model file is data from a stranger. Nothing in it is executed or unpickled: of a configuration only the classes and
arguments below are understood, and arrays are only numbers. What is damaged, hostile or cannot be represented is a
ValueError when it is read. The limits are the named constants of `_files` (sizes, archive members, JSON), `_hdf5` (objects,
nesting) and `_build` (layers).

    read       .keras (Keras 3, tf.keras 2.12 and later), .weights.h5, legacy .h5 (of whole models and of weights)
    written    .weights.h5, which needs h5py: pip install 'flax-srnn[interop]'
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util
from flax.core import meta

from flax_srnn import states
from flax_srnn.interop import _build, _config, _files, _keras_model, _model_files, _structure, _weights
from flax_srnn.layers import RNN, Bidirectional, SimpleRNN, SimpleRNNCell, StackedRNNCells

__all__ = ["convert", "from_config", "from_keras", "load_model", "load_weights", "save_weights", "to_config"]

AnyPath = str | os.PathLike[str]


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
      ValueError: what cannot be represented: another class, a custom object, an unknown argument, a frozen layer.

    Source: Keras `Layer.from_config`, `keras.saving.deserialize_keras_object`.

    >>> layer = from_config({"class_name": "SimpleRNN", "config": {"units": 8, "return_sequences": True}})
    >>> type(layer).__name__, layer.units, layer.return_sequences
    ('SimpleRNN', 8, True)
    """
    return _config.from_config(config)


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
    return _config.to_config(layer)


def load_weights(path: AnyPath) -> dict[str, Any]:
    """The arrays of a Keras file by layer, in layer order.

    Args:
      path: a `.keras`, `.weights.h5` or legacy `.h5` file, of a Sequential, Functional or subclassed model; or a folder that
        `convert` wrote.

    Returns:
      `{layer name: params}` of the layers that have arrays. A SimpleRNN, or an RNN of one cell: `{"kernel",
      "recurrent_kernel", "bias"}`; an RNN of several: `{"cells_0": params, "cells_1": params, …}`; a Bidirectional:
      `{"forward_layer": params, "backward_layer": params}`: each is `variables["params"]` of that layer here. A nested model:
      such a mapping itself. Dense `{"kernel", "bias"}`, also inside TimeDistributed; Embedding `{"embedding"}`;
      LayerNormalization `{"scale", "bias"}`; BatchNormalization also `{"mean", "var"}`.
      Before Keras 3.6 a `.weights.h5` file does not hold the layers' names; it is then Keras's name for the class with a
      counter. float64 needs `jax_enable_x64`, as everywhere in JAX.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, beyond the limits, or has arrays of a layer that is not known here.

    Source: Keras `Model.load_weights`.

    >>> load_weights("absent.keras")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: 'absent.keras'
    """
    with _files.blaming(path):
        opened = _model_files.open_model(path)
        return _weights.nested(
            {at: jnp.asarray(array) for at, array in opened.arrays(_model_files.declared(opened.config)).items()}
        )


def save_weights(path: AnyPath, model: nn.Module, variables: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Writes a `.weights.h5` file that Keras's own `load_weights` accepts, whole or not at all.

    Args:
      path: where to; it must end in ".weights.h5", as Keras demands.
      model: a module that `load_model` returned, for the model that it was; or a SimpleRNN, RNN or Bidirectional of this
        library, for `keras.Sequential([keras.Input(…), that layer])`.
      variables: the model's, with "params" and, for batch normalisation, "batch_stats".
      overwrite: replace an existing file.

    Raises:
      TypeError: `model` or `variables` is something else.
      ValueError: the file exists or has another ending; arrays are missing, too many, or not of floats.
      ImportError: h5py is not installed.

    Source: Keras `Model.save_weights`.

    >>> import pathlib, tempfile
    >>> import jax, jax.numpy as jnp
    >>> from flax_srnn import SimpleRNN
    >>> layer, folder = SimpleRNN(4), pathlib.Path(tempfile.mkdtemp())
    >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> save_weights(folder / "model.weights.h5", layer, variables)
    >>> {name: sorted(params) for name, params in load_weights(folder / "model.weights.h5").items()}
    {'simple_rnn': ['bias', 'kernel', 'recurrent_kernel']}
    """
    if not os.fspath(path).endswith(".weights.h5"):
        raise ValueError(f"`path` must end in '.weights.h5' for Keras to read it, got {os.fspath(path)!r}.")
    structure, variables = _in_model(model, variables)
    arrays: dict[_structure.Path, np.ndarray] = {}
    for collection in ("params", "batch_stats"):
        tree = meta.unbox(variables.get(collection, {}))
        arrays |= {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(tree).items()}
    slots = list(_structure.slots(structure))
    wanted = {slot.path for slot in slots}
    for paths, problem in (
        (wanted - arrays.keys(), "lacks"),
        (arrays.keys() - wanted, "has, and Keras has no place for,"),
    ):
        if paths:
            raise ValueError(f"`variables` {problem} {sorted('/'.join(path) for path in paths)[:4]}.")
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"`variables` must hold floats, got {array.dtype} at {'/'.join(name)!r}.")
    _weights.checked(slots, arrays)
    h5py = _h5py()
    with _files.writing_file(path, overwrite=overwrite) as unfinished, h5py.File(unfinished, "w") as file:
        _weights.write_groups(file, structure, arrays)


def load_model(path: AnyPath) -> tuple[_keras_model.Sequential, dict[str, Any]]:
    """A Keras model as a Linen module, with its variables: `module.apply(variables, x)` is Keras's prediction.

    Args:
      path: a `.keras` file, a legacy `.h5` file of a whole model, or a folder that `convert` wrote.

    Returns:
      (module, variables). The model is a Sequential, nested ones included, of InputLayer, Embedding, Masking, SimpleRNN, RNN,
      Bidirectional, TimeDistributed(Dense), Dropout, Dense, Activation, Flatten, BatchNormalization and LayerNormalization.
      Masks go from layer to layer inside it. `variables["params"][name]` are those of the layer with that name;
      "batch_stats" is there for batch normalisation, "carry" for stateful layers.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, beyond the limits, or holds what cannot be represented. What loads, applies.

    Source: Keras `keras.saving.load_model`.

    >>> load_model("no such file.keras")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    FileNotFoundError:
    """
    with _files.blaming(path):
        return _module(_model_files.open_model(path))


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
    config = {"class_name": kind.__name__, "module": kind.__module__, "config": _with_seeds(layer, layer.get_config())}
    converted = _config.from_config(config)
    if isinstance(converted, (SimpleRNNCell, StackedRNNCells)):
        raise ValueError(f"`layer` must be a layer over time, got the cell {kind.__name__}: wrap it in an RNN.")
    slots = list(_structure.slots(_structure.from_config(config)))
    arrays = layer.get_weights()
    if len(arrays) != len(slots):
        raise ValueError(
            f"`layer` has {len(arrays)} arrays, expected {len(slots)}: build it first, by calling it on an input."
        )
    found = _weights.checked(slots, {slot.path: np.asarray(array) for slot, array in zip(slots, arrays, strict=True)})
    variables = {"params": _weights.nested({path: jnp.asarray(array) for path, array in found.items()})}
    if carry := _recorded(layer):
        variables[states.COLLECTION] = carry
    return converted, variables


def convert(input_path: AnyPath, output_path: AnyPath) -> None:
    """Converts a Keras model to a folder for Flax, and its weights back to a file for Keras.

    The folder holds `variables.msgpack`, which is `flax.serialization.to_bytes(variables)` and may be replaced by others after
    training, and Keras's `config.json` and `metadata.json`.

    Args:
      input_path: what `load_model` reads: a Keras file, or such a folder.
      output_path: a new folder, or a new `.weights.h5` file.

    Raises:
      FileNotFoundError: there is no such input.
      ValueError: as in `load_model`; the output exists, or is to be another kind of file.

    >>> convert("no such file.keras", "out")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    FileNotFoundError:
    """
    if os.fspath(output_path).endswith(".weights.h5"):
        save_weights(output_path, *load_model(input_path))
        return
    if os.fspath(output_path).endswith((".h5", ".keras")):
        raise ValueError(f"{os.fspath(output_path)}: only .weights.h5 files and folders are written.")
    _files.refuse_existing(Path(output_path))
    with _files.blaming(input_path):
        opened = _model_files.open_model(input_path)
        _, variables = _module(opened)
    kept = {name: tree for name, tree in variables.items() if name != states.COLLECTION}  # Keras does not store states
    with _files.writing_folder(output_path) as folder:
        (folder / "config.json").write_text(json.dumps(opened.config))
        (folder / "metadata.json").write_text(json.dumps({"keras_version": opened.version}))
        (folder / _model_files.VARIABLES).write_bytes(serialization.to_bytes(kept))


# Layers


def _module(opened: _model_files.Opened) -> tuple[_keras_model.Sequential, dict[str, Any]]:
    if opened.config is None:
        raise ValueError("holds weights and no model: `load_weights` reads them.")
    keras_2 = None if opened.version is None else opened.version.startswith("2.")
    module = _build.sequential(opened.config, keras_2)
    return module, _build.variables_for(module, opened.arrays(module.structure))


def _h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "writing Keras's files needs h5py: pip install 'flax-srnn[interop]'", name="h5py"
        ) from error
    return h5py


def _in_model(model: Any, variables: Any) -> tuple[_structure.Layer, Mapping[str, Any]]:
    """The model that a file is written for, and its variables: a layer becomes a Sequential of itself."""
    if not isinstance(variables, Mapping):
        raise TypeError(f"`variables` must be a mapping with the key 'params', got {variables!r}.")
    if isinstance(model, _keras_model.Sequential) and model.structure is not None:
        return model.structure, variables
    if type(model) not in (SimpleRNN, RNN, Bidirectional):
        raise TypeError(
            "`model` must be a SimpleRNN, RNN or Bidirectional of this library, or a module that `load_model` returned, got "
            f"{model!r}."
        )
    outline = _outline(model)
    name = model.name or _structure.group_names([outline["class_name"]])[0]
    outline["config"]["name"] = name
    structure = _structure.from_config({"class_name": "Sequential", "config": {"layers": [outline]}})
    return structure, {"params": {name: variables.get("params", {})}}


def _outline(layer: Any) -> dict[str, Any]:
    """As much of a layer's configuration as its arrays depend on: a layer with options that Keras lacks has arrays too."""
    if isinstance(layer, Bidirectional):
        backward = None if layer.backward_layer is None else _outline(layer.backward_layer)
        config: dict[str, Any] = {"layer": _outline(layer.layer), "backward_layer": backward}
    elif isinstance(layer, RNN):
        cells = [_outline(cell) for cell in _config.cells_of(layer)]
        alone = isinstance(layer.cell, SimpleRNNCell)
        config = {"cell": cells[0] if alone else {"class_name": "StackedRNNCells", "config": {"cells": cells}}}
    else:
        config = {"use_bias": layer.use_bias}
    return {"class_name": type(layer).__name__, "config": config}


def _with_seeds(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the dropout seeds that Keras's SimpleRNN does not write."""
    for attribute, key in (("forward_layer", "layer"), ("backward_layer", "backward_layer")):
        if hasattr(layer, attribute) and isinstance(config.get(key), Mapping):
            inner = config[key]
            config = {**config, key: {**inner, "config": _with_seeds(getattr(layer, attribute), inner["config"])}}
    seed = getattr(getattr(layer, "cell", None), "seed", None)
    return {**config, "seed": seed} if "units" in config and seed is not None else config


def _recorded(layer: Any) -> dict[str, Any]:
    """The recorded states of a live layer, as the collection "carry" has them."""
    if hasattr(layer, "forward_layer"):
        both = {name: _recorded(getattr(layer, name)) for name in ("forward_layer", "backward_layer")}
        return both if any(both.values()) else {}
    recorded = jax.tree.leaves(getattr(layer, "states", None)) if layer.stateful else []
    return {states.NAME: tuple(jnp.asarray(np.asarray(state)) for state in recorded)} if recorded else {}
