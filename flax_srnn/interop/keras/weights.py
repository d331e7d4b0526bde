"""The arrays of Keras's files, read and written by the structure of the model that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flax_srnn.interop.keras.hdf5 import Dataset, Group
from flax_srnn.interop.keras.structure import (
    NO_LAYERS,
    Layer,
    Path,
    Slot,
    array_name,
    join,
    slots,
    slots_named,
    trainable_first,
)

if TYPE_CHECKING:
    import h5py

__all__ = ["checked", "nested", "read_groups", "read_legacy", "write_groups"]


def read_groups(root: Group, layer: Layer) -> dict[Path, np.ndarray]:
    """The arrays of a model in a `.weights.h5` file, by their paths in the parameters.

    Raises:
      ValueError: an array is missing, has the wrong shape or type, or belongs to no layer that is known here.
    """
    found: dict[Path, np.ndarray] = {}
    expected = list(slots(layer))
    for slot in expected:
        dataset = root.dataset(join(slot.group, f"vars/{slot.number}"))
        if dataset is None:
            raise ValueError(f"the array {slot.array.name!r} of {slot.group!r} is missing.")
        found[slot.path] = dataset.array()
    known = {f"/{join(slot.group, f'vars/{slot.number}')}" for slot in expected}
    for dataset in _datasets(root):
        if dataset.path not in known:
            raise ValueError(f"{dataset.path!r} belongs to a layer that is not known here.")
    return checked(expected, found)


def read_legacy(group: Group, layers: Mapping[str, Layer] | None) -> dict[Path, np.ndarray]:
    """The arrays of a legacy file, by their paths in the parameters.

    Args:
      group: what has the attribute "layer_names".
      layers: the model's layers by name, from its configuration; None if the file has none.

    Raises:
      ValueError: as in `read_groups`.
    """
    found: dict[Path, np.ndarray] = {}
    expected: list[Slot] = []
    for name in _listed(group, "layer_names"):
        inside = group.group(name)
        if inside is None:
            raise ValueError(f"the layer {name!r} is missing.")
        names = _listed(inside, "weight_names")
        if layers is None and not names:
            continue
        if layers is not None and name not in layers:
            raise ValueError(f"the layer {name!r} is not in the model's configuration.")
        here = slots_named(names, name) if layers is None else trainable_first(layers[name])
        if [slot.array.name for slot in here] != [array_name(each) for each in names]:
            raise ValueError(
                f"the layer {name!r} has the arrays {names[:6]}, expected {[slot.array.name for slot in here][:6]}."
            )
        for slot, path in zip(here, names, strict=True):
            dataset = inside.dataset(path)
            if dataset is None:
                raise ValueError(f"the array {path!r} of the layer {name!r} is missing.")
            found[slot.path] = dataset.array()
        expected += here
    for name, layer in (layers or {}).items():
        if any(slot.path not in found for slot in slots(layer)):
            raise ValueError(f"the layer {name!r} is missing.")
    return checked(expected, found)


def checked(expected: Iterable[Slot], arrays: Mapping[Path, Any]) -> dict[Path, Any]:
    """`arrays` at the paths of `expected`, each once, with shapes that fit each other.

    Raises:
      ValueError: they do not.
    """
    expected = list(expected)
    sizes: dict[tuple[Path, str], int] = {}
    for slot in expected:
        owner, shape = slot.path[:-1], tuple(arrays[slot.path].shape)
        letters = "ABCDEFGH"[: len(shape)] if slot.array.sizes is None else slot.array.sizes
        fits = len(letters) == len(shape) and min(shape, default=0) > 0
        if not fits or any(sizes.setdefault((owner, letter), n) != n for letter, n in zip(letters, shape, strict=True)):
            known = {letter: n for (who, letter), n in sizes.items() if who == owner}
            raise ValueError(
                f"{slot.array.name!r} of {'/'.join(owner) or slot.kind!r} has the shape {shape}, expected "
                f"({', '.join(letters)}) with {known}."
            )
    paths = [slot.path for slot in expected]
    taken = {path[:depth] for path in paths for depth in range(1, len(path))}
    for path in paths:
        if path in taken:
            raise ValueError(f"two layers are called {'/'.join(path[:-1])!r}.")
        taken.add(path)
    return {path: arrays[path] for path in paths}


def nested(arrays: Mapping[Path, Any]) -> dict[str, Any]:
    """Nested dicts with a level for each part of a path."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = array
    return tree


def write_groups(file: h5py.File, layer: Layer, arrays: Mapping[Path, np.ndarray]) -> None:
    """Writes the arrays of a model as Keras does, with the names of its layers."""
    _note_names(file, layer, "")
    for slot in slots(layer):
        array = arrays[slot.path]
        dataset = file.create_dataset(join(slot.group, f"vars/{slot.number}"), data=array)
        if array.dtype.name == "bfloat16":  # which HDF5 stores as two opaque bytes
            dataset.attrs["dtype"] = "bfloat16"


def _note_names(file: h5py.File, layer: Layer, group: str) -> None:
    group = join(group, layer.group)
    noted = file.create_group(join(group, "vars"))
    if layer.key:
        noted.attrs["name"] = layer.key
    for child in layer.children:
        _note_names(file, child, group)


def _datasets(group: Group) -> Iterator[Dataset]:
    for name, node in group.members.items():
        if isinstance(node, Dataset):
            yield node
        elif isinstance(node, Group) and (name == "vars" or name not in NO_LAYERS):
            yield from _datasets(node)


def _listed(group: Group, attribute: str) -> list[str]:
    """The strings of an attribute, which Keras splits into several with counters when they take more than 64 KiB."""
    if attribute in group or f"{attribute}0" not in group:
        return group.strings(attribute)
    strings: list[str] = []
    counter = 0
    while f"{attribute}{counter}" in group:
        strings += group.strings(f"{attribute}{counter}")
        counter += 1
    return strings
