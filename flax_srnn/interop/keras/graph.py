"""The graph of a model: which layer is called on which results, in an order in which it can be run.

A layer that is called twice has two nodes. Keras 3 writes a node as the arguments of a call, with results of other nodes in it:

    {"args": [tensor or a list of some], "kwargs": {...}}      tensor: {"class_name": "__keras_tensor__", "config":
                                                                        {"keras_history": [layer, node, output], ...}}
Keras 2 writes a list of such results, and keyword arguments beside each:

    [[layer, node, output, {...}], ...]

Nodes are counted by layer. A model inside another one has, to Keras 2, a node of its own before those, which stands for the
model as it was built; Keras 3 counts it in the model's outputs only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from flax_srnn import validation
from flax_srnn.interop.keras import structure
from flax_srnn.interop.keras.arguments import MAX_DIMENSION

__all__ = [
    "ARGUMENTS",
    "MAX_NODES",
    "Graph",
    "Input",
    "Node",
    "Ref",
    "Shape",
    "chain",
    "cost",
    "functional",
    "shape_of",
]

MAX_NODES = 2048
"""Calls of layers in a model, those of nested models counted each time: each costs milliseconds when the model is traced."""
ARGUMENTS = 8
"""So many arguments of a call are one more call in the count."""
MAX_RANK = 8

Shape = tuple[int | None, ...]


class Ref(NamedTuple):
    """A result: of the input or node with this number, the output with this one; None: all of them."""

    node: int
    output: int | None


class Input(NamedTuple):
    """An input's name, and the shape that is declared, None for a free dimension; the batch is the first one."""

    name: str
    shape: Shape | None


class Node(NamedTuple):
    """A call of the layer with this number; `leaves` and `tree` make (arguments, keyword arguments), `Ref`s among the leaves."""

    layer: int
    leaves: tuple[Any, ...]
    tree: Any


@dataclasses.dataclass(frozen=True)
class Graph:
    """A model without its layers.

    Attributes:
      inputs: in their order.
      nodes: each after those whose results it needs; to a `Ref`, the first of them has the number of inputs.
      outputs: results of the model.
      input_tree, output_tree: how Keras nests inputs and outputs: one, a list, a mapping; None: all outputs of the last node.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Ref, ...]
    input_tree: Any
    output_tree: Any


def chain(count: int, name: str, shape: Shape | None) -> Graph:
    """One layer after the other."""
    one = jax.tree.structure(([0], {}))
    nodes = tuple(Node(i, (Ref(i, None),), one) for i in range(count))
    return Graph((Input(name, shape),), nodes, (Ref(count, None),), jax.tree.structure(0), None)


def cost(leaves: Sequence[Any]) -> int:
    """What a call counts, by its arguments."""
    return 1 + len(leaves) // ARGUMENTS


def functional(given: Mapping[str, Any]) -> tuple[Graph, list[Any]]:
    """The graph of a functional model with these arguments, and its layers' configurations in the order of their numbers.

    Raises:
      ValueError: it is none: cyclic, with calls that lead nowhere, too large.
    """
    configs = dict(structure.named(given["layers"]))
    if len(configs) > MAX_NODES:
        raise ValueError(f"the model has {len(configs)} layers and operations; at most {MAX_NODES} are read.")
    kinds = {name: structure.parse(config)[0] for name, config in configs.items()}
    calls = {name: _calls(name, config) for name, config in configs.items()}
    if called := [name for name, kind in kinds.items() if kind == "InputLayer" and calls[name]]:
        raise ValueError(f"the InputLayer {called[0]!r} is called, and computes nothing.")
    starts, ends = (_nested(given.get(key), key) for key in ("input_layers", "output_layers"))
    waiting = {(name, i): _flat(call) for name, its in calls.items() for i, call in enumerate(its)}
    if (count := sum(cost(leaves) for leaves, _ in waiting.values())) > MAX_NODES or len(ends[0]) > MAX_NODES:
        raise ValueError(
            f"the model has {count} calls of layers, {ARGUMENTS} arguments counted as one more, and {len(ends[0])} outputs; at most "
            f"{MAX_NODES} are read."
        )
    before_calls, before_outputs = _own_nodes(kinds, configs, [*(leaves for leaves, _ in waiting.values()), ends[0]])
    waiting = {key: ([_later(each, before_calls) for each in leaves], tree) for key, (leaves, tree) in waiting.items()}
    outputs = [_later(each, before_outputs) for each in ends[0]]

    places: dict[tuple[str, int], int] = {}  # of inputs and calls, in the order of a run
    for result in starts[0]:
        if kinds.get(result.layer) != "InputLayer" or result.node or result.output or result.call in places:
            raise ValueError(f"the model's input {list(result)} is not one of its InputLayers, each once.")
        places[result.call] = len(places)
    for results in (*(leaves for leaves, _ in waiting.values()), outputs):
        for result in filter(_is_result, results):
            if result.call not in waiting and result.call not in places:
                raise ValueError(f"the result {list(result)} is used, and nothing computes it.")
    number = {name: i for i, name in enumerate(name for name in configs if kinds[name] != "InputLayer")}
    nodes: list[Node] = []
    while waiting:
        ready = [
            key for key, (leaves, _) in waiting.items() if all(r.call in places for r in filter(_is_result, leaves))
        ]
        if not ready:
            raise ValueError(f"the calls of {sorted({name for name, _ in waiting})[:4]} wait for each other: a cycle.")
        for key in ready:
            leaves, tree = waiting.pop(key)
            nodes.append(Node(number[key[0]], tuple(_ref(each, places) for each in leaves), tree))
            places[key] = len(places)
    inputs = tuple(Input(result.layer, shape_of(structure.parse(configs[result.layer])[1])) for result in starts[0])
    ends_here = tuple(_ref(each, places) for each in outputs)
    return Graph(inputs, tuple(nodes), ends_here, starts[1], ends[1]), [configs[name] for name in number]


def shape_of(given: Mapping[str, Any]) -> Shape | None:
    """The shape in the arguments of an InputLayer, or of a first layer that has them.

    Raises:
      ValueError: it is no shape; inputs are to be sparse or ragged.
    """
    if given.get("sparse") or given.get("ragged"):
        raise ValueError("sparse and ragged inputs cannot be represented.")
    shape = given.get("batch_shape") or given.get("batch_input_shape")
    if shape is None:
        return None
    sizes = [n if n is None else validation.integer("shape", n) for n in shape] if isinstance(shape, list) else []
    if not sizes or len(sizes) > MAX_RANK or any(n is not None and not 0 < n <= MAX_DIMENSION for n in sizes):
        raise ValueError(f"the model declares inputs of the shape {shape!r}.")
    return tuple(sizes)


def _own_nodes(
    kinds: Mapping[str, str], configs: Mapping[str, Any], results: Iterable[Iterable[Any]]
) -> tuple[dict[str, int], dict[str, int]]:
    """By nested model, how many nodes of its own are counted before its calls: where calls, and where outputs name it."""
    if any(isinstance(node, Mapping) for config in configs.values() for node in config.get("inbound_nodes", [])):
        return {}, {name: 1 for name, kind in kinds.items() if kind == "Functional"}
    highest = dict.fromkeys((name for name, kind in kinds.items() if kind in structure.MODELS), 0)
    for result in filter(_is_result, (each for several in results for each in several)):
        if result.layer in highest:
            highest[result.layer] = max(highest[result.layer], result.node)
    # Every call is named by something; a Sequential that had no inputs of its own has no such node.
    own = {
        name: int(number > 0 and number == len(configs[name].get("inbound_nodes", [])))
        for name, number in highest.items()
    }
    return own, own


class _Result(NamedTuple):
    """An output of a call of a layer, as the file has it."""

    layer: str
    node: int
    output: int

    @property
    def call(self) -> tuple[str, int]:
        return self.layer, self.node


def _is_result(value: Any) -> bool:
    return isinstance(value, (_Result, Ref))


def _later(value: Any, own: Mapping[str, int]) -> Any:
    return value._replace(node=value.node - own[value.layer]) if _is_result(value) and value.layer in own else value


def _ref(value: Any, places: Mapping[tuple[str, int], int]) -> Any:
    return Ref(places[value.call], value.output) if _is_result(value) else value


def _flat(call: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(call, is_leaf=_is_result)


def _calls(name: str, config: Mapping[str, Any]) -> list[tuple[list[Any], dict[str, Any]]]:
    """(arguments, keyword arguments) of every call of a layer."""
    nodes = config.get("inbound_nodes", [])
    if not isinstance(nodes, list) or not all(isinstance(node, (list, Mapping)) for node in nodes):
        raise ValueError(f"the calls of the layer {name!r} must be a list, got {str(nodes)[:80]!r}.")
    if len(nodes) > MAX_NODES:
        raise ValueError(f"the layer {name!r} has {len(nodes)} calls; at most {MAX_NODES} are read.")
    return [_call_3(node) if isinstance(node, Mapping) else _call_2(node) for node in nodes]


def _call_3(node: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = _value(node.get("args", [])), _value(node.get("kwargs", {}))
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not args:
        raise ValueError(f"a call must have 'args', a list, and 'kwargs', got {str(node)[:80]!r}.")
    # Keras 3 writes down with what a layer was traced, and lets the call of the model overrule it; Keras 2 obeys it.
    return args, {name: value for name, value in kwargs.items() if name != "training"}


def _value(value: Any) -> Any:
    """An argument of a call: results, numbers, text, slices, and lists and mappings of them."""
    if isinstance(value, list):
        return [_value(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    kind, inner = value.get("class_name"), value.get("config")
    if kind is None or not isinstance(inner, Mapping):
        return {key: _value(each) for key, each in value.items()}
    if kind == "__keras_tensor__":
        return _result(inner.get("keras_history"))
    if kind == "__tuple__" and isinstance(inner.get("items"), list):
        return _value(inner["items"])
    if kind == "__slice__":
        return Slice(*(validation.integer(key, inner.get(key)) for key in ("start", "stop", "step")))
    if kind == "__ellipsis__":
        return ...
    raise ValueError(f"a call has an argument of the class {kind!r}, which cannot be represented.")


@dataclasses.dataclass(frozen=True)
class Slice:
    """Python's own cannot be hashed before 3.12."""

    start: int | None
    stop: int | None
    step: int | None


def _call_2(node: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    results: list[_Result] = []
    kwargs: dict[str, Any] = {}
    for entry in node:
        if not isinstance(entry, list) or not 3 <= len(entry) <= 4 or not isinstance((*entry, {})[3], Mapping):
            raise ValueError(f"a call must list [layer, node, output, options], got {str(entry)[:80]!r}.")
        results.append(_result(entry[:3]))
        kwargs |= (*entry, {})[3]
    if not results:
        raise ValueError("a layer is called on nothing.")
    return [results[0] if len(results) == 1 else results], dict(kwargs)


def _result(history: Any) -> _Result:
    if (
        isinstance(history, list)
        and len(history) == 3
        and isinstance(history[0], str)
        and all(type(number) is int and 0 <= number < MAX_DIMENSION for number in history[1:])
    ):
        return _Result(*history)
    raise ValueError(f"expected a layer, the number of a call and that of an output, got {str(history)[:80]!r}.")


def _nested(value: Any, key: str) -> tuple[list[_Result], Any]:
    """The inputs or outputs of a model: one, a list or a mapping of some."""

    def read(value: Any) -> Any:
        if isinstance(value, list) and not (value and isinstance(value[0], str)):
            if len(value) > MAX_NODES:
                raise ValueError(f"the model has {len(value)} {key!r}; at most {MAX_NODES} are read.")
            return [read(each) for each in value]
        return {name: read(each) for name, each in value.items()} if isinstance(value, Mapping) else _result(value)

    leaves, tree = _flat(read(value))
    if not leaves:
        raise ValueError(f"the model must have {key!r}, got {str(value)[:80]!r}.")
    return leaves, tree
