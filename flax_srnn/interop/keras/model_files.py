"""The kinds of model files: what each holds, and how its arrays are found."""

from __future__ import annotations

import functools
import itertools
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

from flax_srnn.interop.keras import hdf5, reading, structure, weights

__all__ = ["VARIABLES", "Opened", "declared", "open_model"]

VARIABLES = "variables.msgpack"  # beside config.json and metadata.json, in the folder that `convert` writes


class Opened(NamedTuple):
    """What a file holds: the model's configuration and Keras's version, where it has them, and a way to its arrays."""

    config: dict[str, Any] | None
    version: str | None
    arrays: Callable[[structure.Layer | None], weights.Found]


def open_model(path: str | os.PathLike[str]) -> Opened:
    """The kind of a file is told by its first bytes; its name does not matter."""
    if os.path.isdir(path):
        return _open_folder(Path(path))
    data = reading.read_file(path)
    if data.startswith(b"PK"):
        return _open_archive(reading.read_archive(data))
    if not data.startswith(hdf5.SIGNATURE):
        raise ValueError("is no Keras file: expected a .keras archive, or a .weights.h5 or .h5 file in HDF5.")
    root = hdf5.read(data)
    if "model_config" in root:
        config = reading.read_json("".join(root.strings("model_config", max_bytes=reading.MAX_JSON_BYTES)))
        stored = root.group("model_weights")
        if stored is None:
            raise ValueError("has a model's configuration and no 'model_weights'.")
        config = _named(config, weights.listed(stored, "layer_names"))
        config = _with_shared_cells(config)
        version = "".join(root.strings("keras_version")) if "keras_version" in root else None
        return Opened(config, version, functools.partial(_legacy_arrays, stored))
    if "layer_names" in root or "layer_names0" in root:
        return Opened(None, None, functools.partial(_legacy_arrays, root))
    return Opened(None, None, functools.partial(_group_arrays, root))


def _named(config: Any, names: Sequence[str] = ()) -> Any:
    """The configuration of a model with those inside it in the form of Keras 2.2.3 and later.

    Before, a Sequential model was the list of its layers, without a name. Where it lies in a functional model, its name stands
    beside it; in a Sequential one it is what the file calls it, `names` being its layers; below that, where no file has its
    name, it gets one.
    """
    given = (
        config.get("config") if isinstance(config, Mapping) and config.get("class_name") in structure.MODELS else None
    )
    given = {"name": config.get("name"), "layers": given} if isinstance(given, list) else given
    if not isinstance(given, Mapping) or not isinstance(given.get("layers"), list):
        return config
    layers = [_named(each) for each in given["layers"]]
    inner = [each["config"] for each in layers if isinstance(each, Mapping) and isinstance(each.get("config"), Mapping)]
    taken = {name for each in inner if isinstance(name := each.get("name"), str)}
    others = itertools.chain(names, (f"sequential_{i}" for i in itertools.count(1)))
    free = (name for name in others if name not in taken)
    for each in inner:
        if "layers" in each and each.get("name") is None:
            each["name"] = next(free)
    return {**config, "config": {**given, "layers": layers}}


def _with_shared_cells(config: Any) -> Any:
    """The configuration in a legacy file, which does not say that a cell is twice in a stack, with Keras's note of it.

    Cells of one name in a stack are the same: the arrays of two would have the same names, which no such file can hold.
    """
    if isinstance(config, list):
        return [_with_shared_cells(each) for each in config]
    if not isinstance(config, Mapping):
        return config
    config = {key: _with_shared_cells(value) for key, value in config.items()}
    if config.get("class_name") == "StackedRNNCells":
        cells = structure.parse(config)[1].get("cells")
        for cell in cells if isinstance(cells, list) else ():
            _, given = structure.parse(cell)
            cell.setdefault("shared_object_id", given.get("name"))
    return config


def _open_archive(archive: zipfile.ZipFile) -> Opened:
    config = reading.read_json(reading.read_member(archive, "config.json", reading.MAX_JSON_BYTES))
    metadata = reading.read_json(reading.read_member(archive, "metadata.json", reading.MAX_JSON_BYTES))
    root = hdf5.read(reading.read_member(archive, "model.weights.h5"))
    return Opened(config, _version(metadata), functools.partial(_group_arrays, root))


def _open_folder(folder: Path) -> Opened:
    if not (folder / VARIABLES).is_file():
        raise ValueError(f"is a folder that `convert` did not write: it has no {VARIABLES!r}.")
    config = reading.read_json(reading.read_file(folder / "config.json", reading.MAX_JSON_BYTES))
    metadata = reading.read_json(reading.read_file(folder / "metadata.json", reading.MAX_JSON_BYTES))
    data = reading.read_file(folder / VARIABLES)
    return Opened(config, _version(metadata), lambda layout: weights.Found((), _restored(data)))


def _version(metadata: Mapping[str, Any]) -> str | None:
    version = metadata.get("keras_version")
    return version if isinstance(version, str) else None


def declared(config: dict[str, Any] | None) -> structure.Layer | None:
    """The layers of a model, where its configuration lists them: a subclassed model's does not."""
    if config is None or structure.parse(config)[0] not in structure.MODELS:
        return None
    return structure.from_config(config)


def _group_arrays(root: hdf5.Group, layout: structure.Layer | None) -> weights.Found:
    if layout is None:
        layout = structure.from_group(root)
    elif structure.CHECKPOINT_DEPENDENCIES in root.members:
        layout = structure.in_checkpoint_dependencies(layout)
    return weights.read_groups(root, layout)


def _legacy_arrays(group: hdf5.Group, layout: structure.Layer | None) -> weights.Found:
    return weights.read_legacy(group, None if layout is None else {each.key: each for each in layout.children})


def _restored(data: bytes) -> dict[structure.Path, np.ndarray]:
    """The arrays in a file of `flax.serialization`, whose only types are containers, numbers, text and arrays of numbers."""
    try:
        tree = serialization.msgpack_restore(data)
        flat = {path: leaf for name in ("params", "batch_stats") for path, leaf in _flat(tree.get(name, {})).items()}
    except Exception as error:  # msgpack and Flax report damage in many ways
        raise ValueError(f"{VARIABLES} is damaged: {error}") from error
    for path, leaf in flat.items():
        if not isinstance(leaf, np.ndarray) or not jnp.issubdtype(leaf.dtype, jnp.number):
            raise ValueError(f"{VARIABLES} has at {path} no array of numbers.")
    return flat


def _flat(tree: Any) -> dict[structure.Path, Any]:
    return traverse_util.flatten_dict(tree)
