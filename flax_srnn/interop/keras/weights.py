"""The arrays of Keras's files, read and written by the structure of the model that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import meta

from flax_srnn.interop import gates
from flax_srnn.interop.keras.hdf5 import Dataset, Group
from flax_srnn.interop.keras.structure import (
    GRU_RESET_AFTER,
    NO_LAYERS,
    Layer,
    Path,
    Slot,
    array_name,
    join,
    slots,
    slots_named,
    trainable_first,
    walk,
)

if TYPE_CHECKING:
    import h5py

__all__ = [
    "GATED",
    "Found",
    "as_keras",
    "checked",
    "flat",
    "leaves",
    "listed",
    "nested",
    "read_groups",
    "read_legacy",
    "write_groups",
]

GATED = ("LSTMCell", "GRUCell", GRU_RESET_AFTER)
"""Cells whose gates lie side by side in Keras's arrays, and apart in Flax's parameters."""


class Found(NamedTuple):
    """The arrays of a file by place and Keras's names, and what is known of them; those of unknown layers have no slot."""

    slots: Sequence[Slot]
    arrays: dict[Path, np.ndarray]

    def params(self) -> dict[Path, np.ndarray]:
        """As the parameters here: what are gates side by side in Keras are parameters by themselves.

        Raises:
          ValueError: their shapes do not fit each other.
        """
        kinds = {slot.path[:-1]: slot.kind for slot in self.slots if slot.kind in GATED}
        params: dict[Path, np.ndarray] = {}
        for path, array in self.arrays.items():
            owner, name = path[:-1], path[-1]
            if owner not in kinds:
                params[path] = array
            elif name == "kernel":
                own = {each: self.arrays.get((*owner, each)) for each in ("kernel", "recurrent_kernel", "bias")}
                params |= {(*owner, *leaf): part for leaf, part in flat(_split(kinds[owner], **own)).items()}
        return params


def read_groups(root: Group, layer: Layer) -> Found:
    """The arrays of a model in a `.weights.h5` file.

    Raises:
      ValueError: an array is missing, has the wrong shape or type, or belongs to no layer.
    """
    found: dict[Path, np.ndarray] = {}
    expected, known = list(slots(layer)), set()
    for each, group, path, _ in walk(layer):
        for number, array in enumerate(each.arrays):
            dataset = root.dataset(join(group, f"vars/{number}"))
            if dataset is None:
                raise ValueError(f"the array {array.name!r} of {group!r} is missing.")
            _put(found, (*path, array.here), dataset)
            known.add(dataset.path)
        if each.raw and (inside := root.group(group)) is not None:
            for dataset in _datasets(inside):
                _put(found, (*path, dataset.path[len(inside.path) :].lstrip("/")), dataset)
                known.add(dataset.path)
    for dataset in _datasets(root):
        if dataset.path not in known:
            raise ValueError(f"{dataset.path!r} belongs to a layer that is not known here.")
    return Found(expected, checked(expected, found))


def read_legacy(group: Group, layers: Mapping[str, Layer] | None) -> Found:
    """The arrays of a legacy file.

    Args:
      group: what has the attribute "layer_names".
      layers: the model's layers by name, from its configuration; None if the file has none.

    Raises:
      ValueError: as in `read_groups`.
    """
    found: dict[Path, np.ndarray] = {}
    expected: list[Slot] = []
    for name in listed(group, "layer_names"):
        inside = group.group(name)
        if inside is None:
            raise ValueError(f"the layer {name!r} is missing.")
        names = listed(inside, "weight_names")
        datasets: dict[str, Dataset] = {}
        for each in names:
            if (dataset := inside.dataset(each)) is None:
                raise ValueError(f"the array {each!r} of the layer {name!r} is missing.")
            datasets[each] = dataset
        if layers is None and not names:
            continue
        if layers is not None and name not in layers:
            raise ValueError(f"the layer {name!r} is not in the model's configuration.")
        shapes = {each: dataset.shape for each, dataset in datasets.items()}
        here = slots_named(shapes, name) if layers is None else trainable_first(layers[name])
        named = here is not None and [slot.array.name for slot in here] == [array_name(each) for each in names]
        if here is None or (layers is not None and not named and any(each.raw for each, *_ in walk(layers[name]))):
            for each, dataset in datasets.items():
                _put(found, (name, each.partition(":")[0]), dataset)
            continue
        if not named:
            raise ValueError(
                f"the layer {name!r} has the arrays {names[:6]}, expected {[slot.array.name for slot in here][:6]}."
            )
        for slot, dataset in zip(here, datasets.values(), strict=True):
            _put(found, slot.path, dataset)
        expected += here
    for name, layer in (layers or {}).items():
        if any(slot.path not in found for slot in slots(layer)):
            raise ValueError(f"the layer {name!r} is missing.")
    return Found(expected, checked(expected, found))


def _put(found: dict[Path, np.ndarray], path: Path, dataset: Dataset) -> None:
    if path in found:
        raise ValueError(f"two layers are called {'/'.join(path[:-1])!r}.")
    found[path] = dataset.array()


def as_keras(slots: Sequence[Slot], params: Mapping[Path, np.ndarray]) -> dict[Path, np.ndarray]:
    """The inverse of `Found.params`: Keras's arrays out of the parameters here.

    Raises:
      ValueError: parameters are missing; a cell without biases has some that are not 0.
    """
    arrays = dict(params)
    for slot in slots:
        owner = slot.path[:-1]
        if slot.kind not in GATED or slot.array.name != "kernel":
            continue
        own = {path[len(owner) :]: arrays.pop(path) for path in params if path[: len(owner)] == owner}
        names = [each.array.name for each in slots if each.path[:-1] == owner]
        joined = _joined(slot.kind, nested(own))
        if "bias" not in names and np.any(joined["bias"]):
            raise ValueError(f"{'/'.join(owner)!r} was made without biases, and has some that are not 0.")
        arrays |= {(*owner, name): joined[name] for name in names}
    return arrays


def leaves(slot: Slot, params: Iterable[Path]) -> list[Path]:
    """The parameters that an array of Keras's is here: one, or one for each gate."""
    if slot.kind not in GATED:
        return [slot.path]
    owner = slot.path[:-1]
    side, leaf = {"kernel": ("i", "kernel"), "recurrent_kernel": ("h", "kernel"), "bias": ("", "bias")}[slot.array.name]
    return [p for p in params if p[:-2] == owner and p[-2].startswith(side) and p[-1] == leaf]


def _split(kind: str, kernel: Any, recurrent_kernel: Any, bias: Any) -> dict[str, Any]:
    if kind == "LSTMCell":
        return gates.split_lstm(kernel, recurrent_kernel, bias)
    if kind == "GRUCell":
        return gates.split_gru(kernel, recurrent_kernel, bias, None, "zrn")
    both = np.zeros((2, kernel.shape[-1]), kernel.dtype) if bias is None else bias
    if len(both) != 2:
        raise ValueError(f"'bias' of a GRU has the shape {both.shape}, expected one row for each of its two products.")
    return gates.split_gru(kernel, recurrent_kernel, both[0], both[1], "zrn")


def _joined(kind: str, params: dict[str, Any]) -> dict[str, np.ndarray]:
    if kind == "LSTMCell":
        return dict(zip(("kernel", "recurrent_kernel", "bias"), gates.joined_lstm(params), strict=True))
    kernel, recurrent, bias, recurrent_bias = gates.joined_gru(params, "zrn")
    if kind == GRU_RESET_AFTER:
        bias = np.stack([bias, np.zeros_like(bias) if recurrent_bias is None else recurrent_bias])
    return {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}


def checked(expected: Iterable[Slot], arrays: Mapping[Path, Any]) -> dict[Path, Any]:
    """`arrays` at the paths of `expected`, each once, with shapes that fit each other and of the right type.

    Raises:
      ValueError: they are not.
    """
    expected = list(expected)
    sizes: dict[tuple[Path, str], int] = {}
    for slot in expected:
        owner, shape = slot.path[:-1], tuple(arrays[slot.path].shape)
        letters = "ABCDEFGH"[: len(shape)] if slot.array.sizes is None else slot.array.sizes
        fits = len(letters) == len(shape) and all(n > 0 for n in shape)
        if not fits or any(sizes.setdefault((owner, letter), n) != n for letter, n in zip(letters, shape, strict=True)):
            known = {letter: n for (who, letter), n in sizes.items() if who == owner}
            raise ValueError(
                f"{slot.array.name!r} of {'/'.join(owner) or slot.kind!r} has the shape {shape}, expected "
                f"({', '.join(letters)}) with {known}."
            )
        dtype = arrays[slot.path].dtype
        if not jnp.issubdtype(dtype, jnp.integer if slot.array.integer else jnp.floating):
            raise ValueError(
                f"{slot.array.name!r} of {'/'.join(owner) or slot.kind!r} must hold "
                f"{'integers' if slot.array.integer else 'floats'}, got {dtype}."
            )
    taken = {path[:depth] for path in arrays for depth in range(1, len(path))}
    for path in arrays:
        if path in taken:
            raise ValueError(f"two layers are called {'/'.join(path[:-1])!r}.")
    return dict(arrays)


def flat(tree: Any) -> dict[Path, Any]:
    """The inverse of `nested`."""
    return traverse_util.flatten_dict(meta.unbox(tree))


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


def listed(group: Group, attribute: str) -> list[str]:
    """The strings of an attribute, which Keras splits into several with counters when they take more than 64 KiB."""
    if attribute in group or f"{attribute}0" not in group:
        return group.strings(attribute)
    strings: list[str] = []
    counter = 0
    while f"{attribute}{counter}" in group:
        strings += group.strings(f"{attribute}{counter}")
        counter += 1
    return strings
