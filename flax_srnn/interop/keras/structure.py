"""Where each array of a Keras layer stands: in Keras's files, in Keras's order of weights, and in the parameters here.

A `Layer` says so once, for a layer or a whole model. It is made from a configuration or, where a file holds weights only,
from that file; reading both formats, writing, and live Keras objects all go by it.

    .keras, .weights.h5   a group per layer and attribute, named by class and counter, with the arrays "vars/0", "vars/1", …
    legacy .h5            a group per layer, whose attribute "weight_names" lists the arrays, the trainable ones first
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flax_srnn.interop.keras.hdf5 import MAX_DEPTH, Dataset, Group, Node

__all__ = [
    "ARRAYS", "MODELS", "NO_LAYERS", "Array", "Layer", "Path", "Slot",
    "array_name", "first_places", "from_config", "from_group", "group_names", "join", "parse", "slots", "slots_named",
    "trainable_first",
]  # fmt: skip

Path = tuple[str, ...]

MODELS = ("Sequential", "Functional", "Model")


class Array(NamedTuple):
    """What is known of an array before a file is read.

    Attributes:
      name: Keras's.
      here: its name in the parameters.
      sizes: a letter for each dimension, equal letters of a layer are equal sizes; None: a shape that all the layer's
        arrays have.
      switch: the argument that switches it off, if there is one.
      trained: False for running statistics.
    """

    name: str
    here: str
    sizes: str | None = None
    switch: str = ""
    trained: bool = True


_KERNEL, _BIAS = Array("kernel", "kernel", "FU"), Array("bias", "bias", "U", switch="use_bias")
_GAMMA, _BETA = Array("gamma", "scale", switch="scale"), Array("beta", "bias", switch="center")
ARRAYS: dict[str, tuple[Array, ...]] = {
    "SimpleRNNCell": (_KERNEL, Array("recurrent_kernel", "recurrent_kernel", "UU"), _BIAS),
    "Dense": (_KERNEL, _BIAS),
    "Embedding": (Array("embeddings", "embedding", "VE"),),
    "BatchNormalization": (
        _GAMMA,
        _BETA,
        Array("moving_mean", "mean", trained=False),
        Array("moving_variance", "var", trained=False),
    ),
    "LayerNormalization": (_GAMMA, _BETA),
}
"""The arrays of a class's own, in Keras's order."""

# Keras's attributes that hold several layers ("_layer_checkpoint_dependencies" is 2.13's "layers"), those that hold one,
# and the class that is meant where nothing says it; and what a file holds beside layers.
_LISTS = ("layers", "cells", "_layer_checkpoint_dependencies")
_INNER = {"cell": "SimpleRNNCell", "layer": "Dense"}
_DIRECTIONS = ("forward_layer", "backward_layer")
NO_LAYERS = ("vars", "seed_generator", "optimizer", "metrics")
# What may lie directly inside, of the classes that hold others. A Bidirectional has its layer twice: one in the other, thirty
# deep, would be a billion layers.
_HOLDERS = (*MODELS, "SimpleRNN", "RNN", "StackedRNNCells", "Bidirectional", "TimeDistributed")
_INSIDE = {"Bidirectional": ("SimpleRNN", "RNN"), "RNN": ("StackedRNNCells",), "StackedRNNCells": ("StackedRNNCells",)}


class Layer(NamedTuple):
    """The arrays of one layer.

    Attributes:
      kind: its Keras class.
      key: the name under which its parameters stand in its parent's; "" where they stand beside them.
      group: the path of its group below its parent's in a `.weights.h5` file.
      arrays: its own, without those that were switched off.
      children: the layers inside it.
      trainable: False if it was frozen.
    """

    kind: str
    key: str = ""
    group: str = ""
    arrays: tuple[Array, ...] = ()
    children: tuple[Layer, ...] = ()
    trainable: bool = True


class Slot(NamedTuple):
    """The place of an array: its layer's class, its group and number in `.weights.h5`, its path in the parameters."""

    kind: str
    group: str
    number: int
    array: Array
    path: Path
    trainable: bool


def slots(layer: Layer, group: str = "", path: Path = (), trainable: bool = True) -> Iterator[Slot]:
    """Every array of a layer, in Keras's order."""
    group, path = join(group, layer.group), (*path, layer.key) if layer.key else path
    trainable = trainable and layer.trainable
    for number, array in enumerate(layer.arrays):
        yield Slot(layer.kind, group, number, array, (*path, array.here), trainable and array.trained)
    for child in layer.children:
        yield from slots(child, group, path, trainable)


def trainable_first(layer: Layer) -> list[Slot]:
    """The order of legacy files and of tf.keras's `get_weights`."""
    return sorted(slots(layer), key=lambda slot: not slot.trainable)


# Layers, from a configuration


def from_config(config: Any, key: str = "", group: str = "") -> Layer:
    """The layer or model with this Keras configuration. A class that is not known here has no arrays.

    Raises:
      ValueError: a part of it is no configuration of a layer; two layers of a model have the same name; a layer cannot lie
        inside that one.
    """
    kind, arguments = parse(config)
    children: Iterable[Layer] = ()
    if kind in MODELS:
        configs = _entry(arguments, "layers", list, kind)
        groups = group_names([parse(each)[0] for each in configs])
        places = zip(configs, _layer_names(configs), groups, strict=True)
        children = [from_config(each, name, f"layers/{place}") for each, name, place in places]
    elif kind == "SimpleRNN":
        children = [cell(arguments.get("use_bias", True))]
    elif kind == "StackedRNNCells":
        cells = _entry(arguments, "cells", list, kind)
        groups = group_names([parse(each)[0] for each in cells])
        own = sorted(set(first_places(cells)))
        children = [from_config(cells[i], _cell_key(i, len(cells)), f"cells/{groups[i]}") for i in own]
    elif kind == "Bidirectional":
        forward = _entry(arguments, "layer", Mapping, kind)
        both = (forward, arguments.get("backward_layer") or forward)
        children = [from_config(each, name, name) for each, name in zip(both, _DIRECTIONS, strict=True)]
    elif kind in ("RNN", "TimeDistributed"):
        attribute = "cell" if kind == "RNN" else "layer"
        children = [from_config(_entry(arguments, attribute, Mapping, kind), "", attribute)]
    children = tuple(children)
    for child in children:
        if child.kind in _HOLDERS and child.kind not in _INSIDE.get(kind, _HOLDERS):
            raise ValueError(f"a {child.kind} cannot lie inside a {kind}.")
    arrays = tuple(each for each in ARRAYS.get(kind, ()) if not each.switch or arguments.get(each.switch, True))
    return Layer(kind, key, group, arrays, children, bool(arguments.get("trainable", True)))


def cell(use_bias: bool) -> Layer:
    """The one cell of a SimpleRNN, or of an RNN around one."""
    arrays = ARRAYS["SimpleRNNCell"]
    return Layer("SimpleRNNCell", "", "cell", arrays if use_bias else arrays[:-1])


def first_places(cells: Sequence[Any]) -> list[int]:
    """Where in a stack each cell stands first: one that is there twice has one set of arrays, and its place's names."""
    objects = [cell.get("shared_object_id") if isinstance(cell, Mapping) else None for cell in cells]
    return [i if each is None else objects.index(each) for i, each in enumerate(objects)]


def _cell_key(number: int, count: int) -> str:
    """Several cells have a level each, one alone has its layer's."""
    return f"cells_{number}" if count > 1 else ""


def group_names(kinds: Sequence[str]) -> list[str]:
    """Keras's groups for layers of these classes: the class in snake case, with a counter from the second one on."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for kind in kinds:
        stem = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
        stem = re.sub(r"([a-z])([A-Z])", r"\1_\2", stem).lower()
        names.append(f"{stem}_{counts[stem]}" if stem in counts else stem)
        counts[stem] = counts.get(stem, 0) + 1
    return names


def parse(config: Any) -> tuple[str, Mapping[str, Any]]:
    """The class and the arguments in a layer's configuration."""
    if (
        isinstance(config, Mapping)
        and isinstance(config.get("class_name"), str)
        and isinstance(config.get("config"), Mapping)
    ):
        return config["class_name"], config["config"]
    raise ValueError(
        f"expected the configuration of a layer, with 'class_name' and 'config', got {str(config)[:80]!r}."
    )


def _entry(arguments: Mapping[str, Any], name: str, kind: Any, owner: str) -> Any:
    value = arguments.get(name)
    if value is None or not isinstance(value, kind):
        raise ValueError(f"the configuration of {owner} must have {name!r}, got {str(value)[:80]!r}.")
    return value


def _layer_names(configs: Sequence[Any]) -> list[str]:
    names: dict[str, None] = {}
    for config in configs:
        name = parse(config)[1].get("name")
        if not isinstance(name, str) or not name or name in names:
            raise ValueError(f"a layer has the name {name!r}: the names of a model's layers must be given and differ.")
        names[name] = None
    return list(names)


# Layers, from a file that holds weights only


def from_group(group: Group, key: str = "", path: str = "", guess: str = "") -> Layer:
    """The layer or model in a group of a `.weights.h5` file: the names of attributes and classes in it tell what it is.

    Args:
      group: the file's root, or the group of a layer.
      key, path: as in `Layer`.
      guess: the class where neither Keras's name of the group nor that of the layer tells it.

    Raises:
      ValueError: arrays of a layer that is not known here.
    """
    arrays = _members(group.members.get("vars"), Dataset)
    if arrays:
        return _recognised(group.path, _own_name(group), [array.shape for array in arrays.values()], key, path, guess)
    inside = {name: node for name, node in _members(group, Group).items() if name not in NO_LAYERS}
    if set(_DIRECTIONS) <= inside.keys():  # beside them 2.15 stores an empty "layer"
        inside = {name: inside[name] for name in _DIRECTIONS}
    children: list[Layer] = []
    for name, node in inside.items():
        if name in _LISTS:
            several = _in_layer_order(_members(node, Group))
            # Keras counts a cell that stands in a stack twice each time, and writes it once.
            counters = [_stem(place)[1] for place, _ in several]
            places = counters if len(set(counters)) == len(counters) else range(len(counters))
            for i, (place, each) in zip(places, several, strict=True):
                own = _cell_key(i, max(places) + 1) if name == "cells" else _own_name(each)
                children.append(from_group(each, own, f"{name}/{place}"))
        elif name in _INNER and path:
            children.append(from_group(node, "", name, _INNER[name]))
        else:
            children.append(from_group(node, name if name in _DIRECTIONS else _own_name(node), name))
    return Layer("", key, path, (), tuple(children))


def _recognised(where: str, name: str, shapes: list[tuple[int, ...]], key: str, path: str, guess: str) -> Layer:
    """The layer without others inside that has arrays of these shapes."""
    stems = {stem: kind for kind, stem in zip(ARRAYS, group_names(list(ARRAYS)), strict=True)}
    told = [stems.get(_stem(text)[0]) for text in (where.rsplit("/", 1)[-1], name)]
    kind = told[0] or told[1] or guess or ("Dense" if [len(shape) for shape in shapes] == [2, 1] else "")
    known = ARRAYS.get(kind, ())
    # A bias is the last one and may be missing; which one of several others is missing cannot be told.
    if len(shapes) != len(known) and known[len(shapes) :] != (_BIAS,):
        raise ValueError(
            f"{where!r} holds {len(shapes)} arrays of the shapes {shapes[:4]}: a layer that is not known here."
        )
    return Layer(kind, key, path, known[: len(shapes)])


def _members(node: Node | None, kind: type) -> dict[str, Any]:
    members = node.members if isinstance(node, Group) else {}
    return {name: member for name, member in members.items() if isinstance(member, kind)}


def _own_name(group: Group) -> str:
    """A layer's name, which Keras notes since 3.6; else that of its group."""
    noted = group.members.get("vars")
    name = "".join(noted.strings("name")) if noted is not None and "name" in noted else ""
    return name or group.path.rsplit("/", 1)[-1]


def _in_layer_order(groups: Mapping[str, Group]) -> list[tuple[str, Group]]:
    """As they come, for Keras makes the groups of layers one after the other; but where a counter speaks against it (the
    file was rearranged) by class and counter, "_2" before "_10"."""
    counters: dict[str, list[int]] = {}
    for name in groups:
        stem, counter = _stem(name)
        counters.setdefault(stem, []).append(counter)
    if all(numbers == sorted(numbers) for numbers in counters.values()):
        return list(groups.items())
    return sorted(groups.items(), key=lambda item: _stem(item[0]))


def _stem(name: str) -> tuple[str, int]:
    """("simple_rnn", 2) for "simple_rnn_2"; the first one of a class has no counter."""
    match = re.fullmatch(r"(.+?)_(\d{1,9})", name)
    return (match[1], int(match[2])) if match else (name, 0)


def slots_named(names: Sequence[str], key: str) -> list[Slot]:
    """What the arrays of a layer in a legacy weights file are, told by their names, in their order.

    Such a file does not say what a layer is: a nested model of one layer reads like that layer.

    Raises:
      ValueError: the names are not those of a layer that is known here.
    """
    entries = [(tuple(name.split("/")[:-1][:MAX_DEPTH]), array_name(name), i) for i, name in enumerate(names)]
    return sorted(_from_folders(entries, (key,)), key=lambda slot: slot.number)


def _from_folders(entries: list[tuple[Path, str, int]], path: Path) -> Iterator[Slot]:
    """The arrays with these folders and names; folders that differ are layers inside the layer at `path`."""
    folders = list(dict.fromkeys(folder for folder, _, _ in entries))
    depth = next((d for d in range(min(map(len, folders))) if len({folder[d] for folder in folders}) > 1), None)
    if depth is None:
        names = tuple(name for _, name, _ in entries)
        for kind, known in ARRAYS.items():
            arrays = [array for array in known if array.name in names or not array.switch]
            if len(folders) == 1 and names == tuple(array.name for array in arrays):
                for array, (_, _, number) in zip(arrays, entries, strict=True):
                    yield Slot(kind, "", number, array, (*path, array.here), True)
                return
        raise ValueError(f"the layer {'/'.join(path)!r} has the arrays {names[:6]}: it is not known here.")
    inside: dict[str, list[tuple[Path, str, int]]] = {}
    for entry in entries:
        inside.setdefault(entry[0][depth], []).append(entry)
    keys = list(inside)
    if [name.split("_")[0] for name in keys] == ["forward", "backward"]:
        keys = list(_DIRECTIONS)
    elif depth and folders[0][depth - 1].startswith("stacked_rnn_cells"):
        keys = [_cell_key(i, len(keys)) for i in range(len(keys))]
    for name, each in zip(keys, inside.values(), strict=True):
        yield from _from_folders(each, (*path, name))


def array_name(path: str) -> str:
    """ "kernel" for "rnn/simple_rnn_cell/kernel:0", and for the "kernel_1:0" of a graph that had two."""
    return re.sub(r"(_\d+)?(:\d+)?$", "", path.rsplit("/", 1)[-1])


def join(*parts: str) -> str:
    """A path in a file, without its empty parts."""
    return "/".join(part for part in parts if part)
