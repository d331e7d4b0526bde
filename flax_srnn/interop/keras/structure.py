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

from flax_srnn import constraints, regularizers
from flax_srnn.interop.keras.hdf5 import MAX_DEPTH, Dataset, Group, Node

__all__ = [
    "ARRAYS", "CHECKPOINT_DEPENDENCIES", "GRU_RESET_AFTER", "MODELS", "NO_LAYERS", "Array", "Layer", "Path", "Slot",
    "array_name", "first_places", "from_config", "from_group", "group_names",
    "in_checkpoint_dependencies", "is_operation", "join", "name_of", "named", "parse", "slots",
    "slots_named", "trainable_first", "walk",
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
      instead: the argument that takes its place where it is given, if there is one.
      trained: False for running statistics.
      integer: True for what holds integers, not floats.
      regularizer, constraint: of its layer's configuration, where these were asked for.
    """

    name: str
    here: str
    sizes: str | None = None
    switch: str = ""
    instead: str = ""
    trained: bool = True
    integer: bool = False
    regularizer: Any = None
    constraint: Any = None


_KERNEL, _BIAS = Array("kernel", "kernel", "FU"), Array("bias", "bias", "U", switch="use_bias")
# G is the width of all gates together, D two.
_GATED = (Array("kernel", "kernel", "FG"), Array("recurrent_kernel", "recurrent_kernel", "UG"))
_BIAS_OF_GATES = Array("bias", "bias", "G", switch="use_bias")
GRU_RESET_AFTER = "GRUCell, reset after"  # which has a bias for each of its two products
_GATE_COUNTS = {"SimpleRNNCell": 1, "LSTMCell": 4, "GRUCell": 3, GRU_RESET_AFTER: 3}
_GAMMA, _BETA = Array("gamma", "scale", switch="scale"), Array("beta", "bias", switch="center")
ARRAYS: dict[str, tuple[Array, ...]] = {
    "SimpleRNNCell": (_KERNEL, Array("recurrent_kernel", "recurrent_kernel", "UU"), _BIAS),
    "LSTMCell": (*_GATED, _BIAS_OF_GATES),
    "GRUCell": (*_GATED, _BIAS_OF_GATES),
    GRU_RESET_AFTER: (*_GATED, Array("bias", "bias", "DG", switch="use_bias")),
    "Dense": (_KERNEL, _BIAS),
    "Embedding": (Array("embeddings", "embedding", "VE"),),
    "BatchNormalization": (
        _GAMMA,
        _BETA,
        Array("moving_mean", "mean", trained=False),
        Array("moving_variance", "var", trained=False),
    ),
    "LayerNormalization": (_GAMMA, _BETA),
    "Conv1D": (Array("kernel", "kernel", "KFU"), _BIAS),
    "PReLU": (Array("alpha", "alpha"),),
    "Normalization": (
        Array("mean", "mean", instead="mean", trained=False),
        Array("variance", "var", instead="mean", trained=False),
        Array("count", "count", "", instead="mean", trained=False, integer=True),
    ),
}
"""The arrays of a class's own, in Keras's order."""

# Keras's attributes that hold several layers ("_layer_checkpoint_dependencies" is 2.12's "layers"), those that hold one,
# and the class that is meant where nothing says it; and what a file holds beside layers.
CHECKPOINT_DEPENDENCIES = "_layer_checkpoint_dependencies"
_LISTS = ("layers", "cells", CHECKPOINT_DEPENDENCIES)
_INNER = {"cell": "SimpleRNNCell", "layer": "Dense"}
_STACK = "stacked_rnn_cells"
_DIRECTIONS = ("forward_layer", "backward_layer")
NO_LAYERS = ("vars", "seed_generator", "optimizer", "metrics")
# What may lie directly inside, of the classes that hold others. A Bidirectional has its layer twice: one in the other, thirty
# deep, would be a billion layers.
_HOLDERS = (*MODELS, "SimpleRNN", "LSTM", "GRU", "RNN", "StackedRNNCells", "Bidirectional", "TimeDistributed")
_INSIDE = {
    "Bidirectional": ("SimpleRNN", "LSTM", "GRU", "RNN"),
    "RNN": ("StackedRNNCells",),
    "StackedRNNCells": ("StackedRNNCells",),
}


class Layer(NamedTuple):
    """The arrays of one layer.

    Attributes:
      kind: its Keras class.
      key: the name under which its parameters stand in its parent's; "" where they stand beside them.
      group: the path of its group below its parent's in a `.weights.h5` file.
      arrays: its own, without those that were switched off.
      children: the layers inside it.
      trainable: False if it was frozen.
      raw: it is not known here: whatever arrays the file has in its place are its.
    """

    kind: str
    key: str = ""
    group: str = ""
    arrays: tuple[Array, ...] = ()
    children: tuple[Layer, ...] = ()
    trainable: bool = True
    raw: bool = False


class Slot(NamedTuple):
    """The place of an array: its layer's class, its group and number in `.weights.h5`, its path in the parameters."""

    kind: str
    group: str
    number: int
    array: Array
    path: Path
    trainable: bool


def walk(
    layer: Layer, group: str = "", path: Path = (), trainable: bool = True
) -> Iterator[tuple[Layer, str, Path, bool]]:
    """A layer and those inside it, each with its group, its place in the parameters, and whether it is trained."""
    group, path = join(group, layer.group), (*path, layer.key) if layer.key else path
    trainable = trainable and layer.trainable
    yield layer, group, path, trainable
    for child in layer.children:
        yield from walk(child, group, path, trainable)


def in_checkpoint_dependencies(layer: Layer) -> Layer:
    """The layer with the groups of Keras 2.12, which counts a layer that has arrays twice."""
    children = tuple(map(in_checkpoint_dependencies, layer.children))
    if layer.kind in MODELS:
        counted = [(child, first) for child in children for first in ((True, False) if any(slots(child)) else (True,))]
        names = group_names([child.kind for child, _ in counted])
        named = [name for name, (_, first) in zip(names, counted, strict=True) if first]
        children = tuple(
            child._replace(group=f"{CHECKPOINT_DEPENDENCIES}/{name}")
            for child, name in zip(children, named, strict=True)
        )
    return layer._replace(children=children)


def slots(layer: Layer) -> Iterator[Slot]:
    """Every array of a layer that is known before the file is read, in Keras's order."""
    for each, group, path, trainable in walk(layer):
        for number, array in enumerate(each.arrays):
            yield Slot(each.kind, group, number, array, (*path, array.here), trainable and array.trained)


def trainable_first(layer: Layer) -> list[Slot]:
    """The order of legacy files and of tf.keras's `get_weights`."""
    return sorted(slots(layer), key=lambda slot: not slot.trainable)


# Layers, from a configuration


def from_config(config: Any, key: str = "", group: str = "", *, rules: bool = False) -> Layer:
    """The layer or model with this Keras configuration. A class that is not known here has arrays that only the file tells.

    Args:
      key, group: see `Layer`.
      rules: read the regularizers and constraints too.

    Raises:
      ValueError: a part of it is no configuration of a layer; two layers of a model have the same name; a layer cannot lie
        inside that one.
    """
    kind, arguments = parse(config)
    kind = GRU_RESET_AFTER if kind == "GRUCell" and arguments.get("reset_after") else kind
    children: Iterable[Layer] = ()
    if kind in MODELS:
        # An operation between layers has no arrays and no group.
        layers = [
            (name, each) for name, each in named(_entry(arguments, "layers", list, kind)) if not is_operation(each)
        ]
        groups = group_names([parse(each)[0] for _, each in layers])
        children = [
            from_config(each, name, f"layers/{place}", rules=rules)
            for (name, each), place in zip(layers, groups, strict=True)
        ]
    elif f"{kind}Cell" in ARRAYS:
        children = [from_config({"class_name": f"{kind}Cell", "config": arguments}, "", "cell", rules=rules)]
    elif kind == "StackedRNNCells":
        cells = _entry(arguments, "cells", list, kind)
        groups = group_names([parse(each)[0] for each in cells])
        own = sorted(set(first_places(cells)))
        children = [from_config(cells[i], _cell_key(i, len(cells)), f"cells/{groups[i]}", rules=rules) for i in own]
    elif kind == "Bidirectional":
        forward = _entry(arguments, "layer", Mapping, kind)
        both = (forward, arguments.get("backward_layer") or forward)
        children = [from_config(each, name, name, rules=rules) for each, name in zip(both, _DIRECTIONS, strict=True)]
    elif kind in ("RNN", "TimeDistributed"):
        attribute = "cell" if kind == "RNN" else "layer"
        children = [from_config(_entry(arguments, attribute, Mapping, kind), "", attribute, rules=rules)]
    children = tuple(children)
    for child in children:
        if child.kind in _HOLDERS and child.kind not in _INSIDE.get(kind, _HOLDERS):
            raise ValueError(f"a {child.kind} cannot lie inside a {kind}.")
    raw = kind not in _HOLDERS and kind not in ARRAYS
    arrays = tuple(
        _ruled(each, arguments) if rules else each
        for each in ARRAYS.get(kind, ())
        if arguments.get(each.switch, True) and arguments.get(each.instead) is None
    )
    return Layer(kind, key, group, arrays, children, bool(arguments.get("trainable", True)), raw)


def _ruled(array: Array, arguments: Mapping[str, Any]) -> Array:
    """With the regularizer and the constraint that the layer's arguments name after the array."""
    stem = "recurrent" if array.name == "recurrent_kernel" else array.name
    regularizer, constraint = f"{stem}_regularizer", f"{stem}_constraint"
    try:
        return array._replace(
            regularizer=regularizers.get(arguments.get(regularizer), argument=regularizer),
            constraint=constraints.get(arguments.get(constraint), argument=constraint),
        )
    except TypeError as error:  # an argument of the wrong type
        raise ValueError(f"layer {arguments.get('name')!r}: {error}") from error


def first_places(cells: Sequence[Any]) -> list[int]:
    """Where in a stack each cell stands first: one that is there twice has one set of arrays, and its place's names."""
    objects = [cell.get("shared_object_id") if isinstance(cell, Mapping) else None for cell in cells]
    first: dict[Any, int] = {}
    return [first.setdefault(each, i) if isinstance(each, (int, str)) else i for i, each in enumerate(objects)]


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


def named(configs: Sequence[Any]) -> list[tuple[str, Any]]:
    """(name, configuration) of a model's layers.

    Raises:
      ValueError: a name is missing or there twice.
    """
    names: dict[str, Any] = {}
    for config in configs:
        name = name_of(config)
        if not isinstance(name, str) or not name or name in names:
            raise ValueError(f"a layer has the name {name!r}: the names of a model's layers must be given and differ.")
        names[name] = config
    return list(names.items())


def name_of(config: Mapping[str, Any]) -> Any:
    """A layer's name in its model; an operation may have it beside its arguments only."""
    own = parse(config)[1].get("name")
    return config.get("name") or own


def is_operation(config: Mapping[str, Any]) -> bool:
    """Whether it is not a layer but one of Keras 3's functions of arrays, which may have the same name as a layer."""
    _, arguments = parse(config)
    if isinstance(module := config.get("module"), str):
        return module.startswith(("keras.ops", "keras.src.ops"))
    return "inbound_nodes" in config and arguments.keys() <= {"name", "axis", "keepdims", "dtype"}


# Layers, from a file that holds weights only


def from_group(group: Group, key: str = "", path: str = "", guess: str = "") -> Layer:
    """The layer or model in a group of a `.weights.h5` file: the names of attributes and classes in it tell what it is.

    Args:
      group: the file's root, or the group of a layer.
      key, path: as in `Layer`.
      guess: the class where neither Keras's name of the group nor that of the layer tells it.

    Raises:
      ValueError: a layer has other arrays than the class has by which the file calls it.
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
            count = max(places, default=0) + 1
            for i, (place, each) in zip(places, several, strict=True):
                own = _cell_key(i, count) if name == "cells" else _own_name(each)
                children.append(from_group(each, own, f"{name}/{place}"))
        elif name in _INNER and path:
            children.append(from_group(node, "", name, _INNER[name]))
        else:
            children.append(from_group(node, name if name in _DIRECTIONS else _own_name(node), name))
    return Layer("", key, path, (), tuple(children))


def _recognised(where: str, name: str, shapes: list[tuple[int, ...]], key: str, path: str, guess: str) -> Layer:
    """The layer without others inside that has arrays of these shapes; a raw one if it is none that is known here.

    Raises:
      ValueError: the file calls it one that is known here, and these are not as many arrays as that has.
    """
    if path == "activation":  # of a layer whose arrays are its own
        raise ValueError(f"{where!r}, an activation with arrays, is not known here.")
    stems = {stem: kind for kind, stem in zip(ARRAYS, group_names(list(ARRAYS)), strict=True)}
    *_, parent, group = ("", *where.split("/"))
    told = [stems.get(text) for text in (f"{_stem(parent)[0]}_{group}", _stem(group)[0], _stem(name)[0])]
    called = next(filter(None, told), "")
    kind = called or guess or ("Dense" if [len(shape) for shape in shapes] == [2, 1] else "")
    variants = [each for each in ARRAYS if each.partition(",")[0] == called]
    candidates: Iterable[str] = variants or (_GATE_COUNTS if kind in _GATE_COUNTS else [kind])
    for candidate in candidates:
        known = ARRAYS.get(candidate, ())[: len(shapes)]
        if known and _is_complete(candidate, shapes) and _fits(candidate, known, shapes):
            return Layer(candidate, key, path, known)
    known = ARRAYS.get(called, ())
    ambiguous = sum(bool(array.switch) for array in known) > 1 and len(shapes) < len(known)
    if called and not ambiguous and not _is_complete(called, shapes):
        raise ValueError(
            f"{where!r} holds {len(shapes)} arrays of the shapes {shapes[:4]}: a layer that is not known here."
        )
    if called and not ambiguous:  # what does not fit is found wanting when the arrays are checked
        return Layer(called, key, path, known[: len(shapes)])
    return Layer(called, key, path, raw=True)


def _is_complete(kind: str, shapes: Sequence[Any]) -> bool:
    """Whether a layer may have so many arrays: a bias is the last one and may be missing. Which one of several others is missing,
    as a normalisation's, cannot be told."""
    known = ARRAYS.get(kind, ())
    return len(shapes) == len(known) or [array.name for array in known[len(shapes) :]] == ["bias"]


def _fits(kind: str, arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether arrays of this class may have these shapes, as far as their dimensions and the number of gates tell."""
    several = list(zip(arrays, shapes, strict=False))
    ranks = all(array.sizes is None or len(array.sizes) == len(shape) for array, shape in several)
    if kind not in _GATE_COUNTS or not ranks or len(shapes) < 2:
        return ranks
    units, width = shapes[1]
    return width == _GATE_COUNTS[kind] * units


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


def slots_named(arrays: Mapping[str, tuple[int, ...]], key: str) -> list[Slot] | None:
    """What the arrays of a layer in a legacy weights file are, told by their names and shapes, in their order.

    Such a file does not say what a layer is: a nested model of one layer reads like that layer. None: not one known here.
    """
    places = [(tuple(name.split("/")[:-1][:MAX_DEPTH]), array_name(name)) for name in arrays]
    if len(set(places)) < len(places):  # before tf.keras the cells of a stack had counters and no folders
        stacked = [re.search(r"(?:_(\d+))?(?::\d+)?$", name) for name in arrays]
        counters = [found[1] or "0" if found else "0" for found in stacked]
        places = [((*folder, _STACK, i), name) for (folder, name), i in zip(places, counters, strict=True)]
    entries = [(*place, shape, i) for i, (place, shape) in enumerate(zip(places, arrays.values(), strict=True))]
    found = _from_folders(entries, (key,))
    return None if found is None else sorted(found, key=lambda slot: slot.number)


def _from_folders(entries: list[tuple[Path, str, tuple[int, ...], int]], path: Path) -> list[Slot] | None:
    """The arrays with these folders, names and shapes; folders that differ are layers inside the layer at `path`."""
    folders = list(dict.fromkeys(folder for folder, *_ in entries))
    depth = next((d for d in range(min(map(len, folders))) if len({folder[d] for folder in folders}) > 1), None)
    if depth is None:
        names, shapes = [name for _, name, _, _ in entries], [shape for _, _, shape, _ in entries]
        for kind, known in ARRAYS.items():
            arrays = [array for array in known if array.name in names or not array.switch]
            if len(folders) == 1 and names == [array.name for array in arrays] and _fits(kind, arrays, shapes):
                return [
                    Slot(kind, "", number, array, (*path, array.here), True)
                    for array, (*_, number) in zip(arrays, entries, strict=True)
                ]
        return None
    inside: dict[str, list[tuple[Path, str, tuple[int, ...], int]]] = {}
    for entry in entries:
        inside.setdefault(entry[0][depth], []).append(entry)
    keys = list(inside)
    if [name.split("_")[0] for name in keys] == ["forward", "backward"]:
        keys = list(_DIRECTIONS)
    elif depth and folders[0][depth - 1].startswith(_STACK):
        keys = [_cell_key(i, len(keys)) for i in range(len(keys))]
    found: list[Slot] = []
    for name, each in zip(keys, inside.values(), strict=True):
        slots = _from_folders(each, (*path, name))
        if slots is None:
            return None
        found += slots
    return found


def array_name(path: str) -> str:
    """ "kernel" for "rnn/simple_rnn_cell/kernel:0", and for the "kernel_1:0" of a graph that had two."""
    return re.sub(r"(_\d+)?(:\d+)?$", "", path.rsplit("/", 1)[-1])


def join(*parts: str) -> str:
    """A path in a file, without its empty parts."""
    return "/".join(part for part in parts if part)
