"""What one does with Keras's files: load a model, load weights, save weights, convert."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from flax import serialization

from flax_srnn import RNN, Bidirectional, SimpleRNN, SimpleRNNCell, atomic, validation
from flax_srnn.interop.keras import build, model_files, reading, structure, weights
from flax_srnn.interop.keras.config import cells_of, configs_of
from flax_srnn.interop.keras.model import Model
from flax_srnn.interop.keras.shared import on_device
from flax_srnn.layers import states

__all__ = ["convert", "load_model", "load_weights", "save_weights"]

FILES = {
    model_files.VARIABLES: "the arrays: flax.serialization.to_bytes(variables)",
    "config.json": "the model, in Keras's words",
    "metadata.json": "the version of Keras",
}
"""What is in a folder that `convert` wrote, for the user."""
AnyPath = str | os.PathLike[str]


def load_model(path: AnyPath) -> tuple[Model, dict[str, Any]]:
    """A Keras model as a Linen module, with its variables: `module.apply(variables, x)` is Keras's prediction.

    Args:
      path: a `.keras` file, a legacy `.h5` file of a whole model, or a folder that `convert` wrote.

    Returns:
      (module, variables). The model is Sequential or functional, nested ones, shared layers and several inputs and outputs
      included, of
      InputLayer, Embedding, Masking, Dense, Activation, Flatten, Reshape, Permute, RepeatVector, ActivityRegularization;
      SimpleRNN, LSTM, GRU, RNN of their cells, Bidirectional, TimeDistributed of any layer;
      Conv1D, MaxPooling1D, AveragePooling1D, GlobalMaxPooling1D, GlobalAveragePooling1D, ZeroPadding1D;
      Dropout, SpatialDropout1D, GaussianNoise; ReLU, LeakyReLU, PReLU, ELU, Softmax;
      BatchNormalization, LayerNormalization, UnitNormalization, Normalization, Rescaling;
      Concatenate, Add, Subtract, Multiply, Average, Maximum, Minimum, Dot; Keras 3's operations for masks, sums and slices.
      What needs code of the model's author (Lambda, custom classes) is refused by name.
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
    with reading.blaming(path):
        return _module(model_files.open_model(path))


def load_weights(path: AnyPath) -> dict[str, Any]:
    """The arrays of a Keras file by layer, in layer order.

    Args:
      path: a `.keras`, `.weights.h5` or legacy `.h5` file, of a Sequential, Functional or subclassed model; or a folder that
        `convert` wrote.

    Returns:
      `{layer name: params}` of the layers that have arrays. A SimpleRNN, or an RNN of one cell: `{"kernel",
      "recurrent_kernel", "bias"}`; an RNN of several: `{"cells_0": params, "cells_1": params, …}`, where a cell that stands twice
      has the place where it stands first (a `.weights.h5` file does not tell `RNN([cell, cell])` from an RNN of one cell, and is
      read as the latter); a Bidirectional:
      `{"forward_layer": params, "backward_layer": params}`: each is `variables["params"]` of that layer here. A nested model:
      such a mapping itself. Dense `{"kernel", "bias"}`, also inside TimeDistributed; Embedding `{"embedding"}`;
      LayerNormalization `{"scale", "bias"}`; BatchNormalization also `{"mean", "var"}`. LSTM and GRU have the parameters of
      `flax.linen.LSTMCell` and `GRUCell`; a GRU with `reset_after=False` those of `flax_srnn.interop.gated.GRUCell`. A layer
      that is not known here has its arrays under the names in the file: "vars/0", or "conv_lstm2d/kernel" in a legacy one; so
      has, in a file of weights only, a normalisation without some of its arrays, since the file does not say without which.
      Before Keras 3.6 a `.weights.h5` file does not hold the layers' names; it is then Keras's name for the class with a
      counter. float64 needs `jax_enable_x64`, as everywhere in JAX.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged or beyond the limits.

    Source: Keras `Model.load_weights`.

    >>> load_weights("absent.keras")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: 'absent.keras'
    """
    with reading.blaming(path):
        opened = model_files.open_model(path)
        params = opened.arrays(model_files.declared(opened.config)).params()
        return weights.nested({at: on_device(array) for at, array in params.items()})


def save_weights(path: AnyPath, model: nn.Module, variables: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Writes a `.weights.h5` file that Keras's own `load_weights` accepts, whole or not at all.

    Args:
      path: where to; it must end in ".weights.h5", as Keras demands.
      model: a module that `load_model` returned, for the model that it was, Sequential or functional; or a SimpleRNN, RNN or Bidirectional of this
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
    layout, variables = _in_model(model, variables)
    given: dict[structure.Path, np.ndarray] = {}
    for collection in ("params", "batch_stats"):
        given |= {path: np.asarray(leaf) for path, leaf in weights.flat(variables.get(collection, {})).items()}
    slots = list(structure.slots(layout))
    arrays = weights.as_keras(slots, given)
    wanted = {slot.path for slot in slots}
    for paths, problem in (
        (wanted - arrays.keys(), "lacks"),
        (arrays.keys() - wanted, "has, and Keras has no place for,"),
    ):
        if paths:
            raise ValueError(f"`variables` {problem} {sorted('/'.join(path) for path in paths)[:4]}.")
    weights.checked(slots, arrays)
    h5py = _h5py()
    if not overwrite:
        _refuse_existing(Path(path))
    image = io.BytesIO()  # Where a disk fills up, HDF5 prints pages, and fails once more when its objects are freed.
    with h5py.File(image, "w") as file:
        weights.write_groups(file, layout, arrays)
    with atomic.writing_file(path) as unfinished:
        unfinished.write_bytes(image.getvalue())


def convert(input_path: AnyPath, output_path: AnyPath) -> None:
    """Converts a Keras model to a folder for Flax, and its weights back to a file for Keras.

    The folder holds `variables.msgpack`, which is `flax.serialization.to_bytes(variables)` and may be replaced by others after
    training, and Keras's `config.json` and `metadata.json`.

    Args:
      input_path: what `load_model` reads: a Keras file, or such a folder.
      output_path: a new folder, whose name has no ending, or a new `.weights.h5` file.

    Raises:
      FileNotFoundError: there is no such input.
      ValueError: as in `load_model`; the output exists, or has another ending.
      ImportError: h5py is not installed, and a file is to be written.

    >>> convert("no such file.keras", "out")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    FileNotFoundError:
    """
    os.stat(input_path)
    output = Path(output_path)
    if output.name.endswith(".weights.h5"):
        save_weights(output, *load_model(input_path))
        return
    if output.suffix:
        raise ValueError(
            f"{output}: the ending must be .weights.h5, for a file of Keras's, or none, for a folder; got {output.suffix!r}."
        )
    _refuse_existing(output)
    with reading.blaming(input_path):
        opened = model_files.open_model(input_path)
        _, variables = _module(opened)
    kept = {name: tree for name, tree in variables.items() if name != states.COLLECTION}  # Keras does not store states
    with atomic.unfinished_folder(output) as folder:
        (folder / "config.json").write_text(json.dumps(opened.config))
        (folder / "metadata.json").write_text(json.dumps({"keras_version": opened.version}))
        (folder / model_files.VARIABLES).write_bytes(serialization.to_bytes(kept))
        atomic.move_folder(folder, [output])


def _module(opened: model_files.Opened) -> tuple[Model, dict[str, Any]]:
    if opened.config is None:
        raise ValueError("holds weights and no model: `load_weights` reads them.")
    module = build.model(opened.config, opened.version)
    return module, build.variables_for(module, opened.arrays(module.structure).params())


def _refuse_existing(path: Path) -> None:
    """Raises a ValueError if something is at `path`, or nothing is at its parent."""
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path}: exists already, and is not overwritten.")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {str(path.parent)!r} does not exist.")


def _h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "writing Keras's files needs h5py: pip install 'flax-srnn[interop]'", name="h5py"
        ) from error
    return h5py


def _in_model(model: Any, variables: Any) -> tuple[structure.Layer, Mapping[str, Any]]:
    """The model that a file is written for, and its variables: a layer becomes a Sequential of itself."""
    if not isinstance(variables, Mapping) or (variables and "params" not in variables):
        raise TypeError(f"`variables` must be a mapping with the key 'params', got {validation.describe(variables)}.")
    if isinstance(model, Model) and model.structure is not None:
        return model.structure, variables
    if type(model) not in (SimpleRNN, RNN, Bidirectional):
        raise TypeError(
            "`model` must be a SimpleRNN, RNN or Bidirectional of this library, or a module that `load_model` returned, got "
            f"{model!r}."
        )
    outline = _outline(model)
    name = model.name or structure.group_names([outline["class_name"]])[0]
    outline["config"]["name"] = name
    layout = structure.from_config({"class_name": "Sequential", "config": {"layers": [outline]}})
    return layout, {"params": {name: variables.get("params", {})}}


def _outline(layer: Any) -> dict[str, Any]:
    """As much of a layer's configuration as its arrays depend on: a layer with options that Keras lacks has arrays too."""
    if isinstance(layer, Bidirectional):
        backward = None if layer.backward_layer is None else _outline(layer.backward_layer)
        config: dict[str, Any] = {"layer": _outline(layer.layer), "backward_layer": backward}
    elif isinstance(layer, RNN):
        cells = configs_of(cells_of(layer), _outline)
        alone = isinstance(layer.cell, SimpleRNNCell)
        config = {"cell": cells[0] if alone else {"class_name": "StackedRNNCells", "config": {"cells": cells}}}
    else:
        config = {"use_bias": layer.use_bias}
    return {"class_name": type(layer).__name__, "config": config}
