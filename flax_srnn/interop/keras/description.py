"""What is in a Keras file, layer by layer, and what of it can be loaded here: nothing in it is run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flax_srnn.interop.keras import build, files, model_files, reading, structure

__all__ = ["MAX_DESCRIBED", "LayerInfo", "describe", "summary"]


MAX_DESCRIBED = 4096
"""Layers of one file: each is tried by itself."""


class LayerInfo(NamedTuple):
    """A layer of a file, see `describe`.

    Args:
      name: its name; of a layer inside another model "model/layer".
      class_name: Keras's; "" where the file holds weights only and does not tell.
      arrays: its arrays, Keras's names to shapes.
      supported: whether it can be loaded here.
      reason: why not; "" if it is.

    >>> LayerInfo("head", "Dense", {"kernel": (3, 2), "bias": (2,)}, True, "").arrays["kernel"]
    (3, 2)
    """

    name: str
    class_name: str
    arrays: dict[str, tuple[int, ...]]
    supported: bool
    reason: str


def describe(path: files.AnyPath) -> list[LayerInfo]:
    """Every layer of a Keras file, in order, those of nested models behind these.

    Args:
      path: what `load_weights` reads.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged or beyond the limits. What is only not supported is no error.

    Source: Keras `Model.summary`.

    >>> describe("absent.keras")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: 'absent.keras'
    """
    with reading.blaming(path):
        return _layers(model_files.open_model(path))


def summary(path: files.AnyPath) -> str:
    """What `flax-srnn show` prints about a file: a table, and whether `load_model` reads it.

    Raises:
      FileNotFoundError, ValueError: as in `describe`.
    """
    with reading.blaming(path):
        opened = model_files.open_model(path)
        layers = _layers(opened)
    rows = [("layer", "class", "arrays", "parameters", "supported")]
    for each in layers:
        arrays = ", ".join(f"{name} {' x '.join(map(str, shape)) or '1'}" for name, shape in each.arrays.items())
        rows.append((each.name, each.class_name, arrays, f"{_count(each):,}", each.reason or "yes"))
    widths = [max(len(_plain(row[column])) for row in rows) for column in range(4)]
    lines = ["  ".join([*map(str.ljust, map(_plain, row[:4]), widths), _plain(row[4], 200)]).rstrip() for row in rows]
    total = f"{len(layers)} layers, {sum(map(_count, layers)):,} parameters"
    if opened.config is None:
        return "\n".join([f"weights without a model: {total}", "", *lines, "", "`load_weights` reads it."])
    kind, version = str(opened.config.get("class_name")), opened.version or "an unknown version"
    return "\n".join([f"{_plain(kind)} of Keras {_plain(version)}: {total}", "", *lines, "", _verdict(path)])


def _verdict(path: files.AnyPath) -> str:
    try:
        files.load_model(path)
    except ValueError as error:
        return f"`load_weights` reads it; `load_model` does not: {_plain(str(error), 400)}"
    return "`load_model` and `load_weights` read it; `flax-srnn convert` converts it."


def _count(layer: LayerInfo) -> int:
    return sum(math.prod(shape) for shape in layer.arrays.values())


def _plain(text: str, most: int = 60) -> str:
    """In ASCII, without control characters: what a file holds must not steer a terminal."""
    text = text.encode("unicode_escape").decode()
    return text if len(text) <= most else f"{text[: most - 3]}..."


Shapes = dict[structure.Path, tuple[int, ...]]  # of arrays, by place and Keras's name


def _layers(opened: model_files.Opened) -> list[LayerInfo]:
    layout = model_files.declared(opened.config)
    found = opened.arrays(layout)
    names = {slot.path: slot.array.name for slot in found.slots}
    shapes = {(*at[:-1], names.get(at, at[-1])): tuple(array.shape) for at, array in found.arrays.items()}
    if layout is None or opened.config is None:
        return list(_of_weights(shapes, found.slots))
    below: dict[structure.Path, Shapes] = {}
    for at, shape in shapes.items():
        for depth in range(1, len(at)):
            below.setdefault(at[:depth], {})[at] = shape
    layers = list(itertools.islice(_of_model(opened.config, opened.version, below, ()), MAX_DESCRIBED + 1))
    if len(layers) > MAX_DESCRIBED:
        raise ValueError(f"the model has more than {MAX_DESCRIBED} layers.")
    return layers


def _of_model(
    config: Mapping[str, Any], version: str | None, below: Mapping[structure.Path, Shapes], above: structure.Path
) -> Iterator[LayerInfo]:
    for name, each in structure.named(structure.parse(config)[1]["layers"]):
        path, reason = (*above, name), ""
        kind = structure.parse(each)[0]
        try:
            if kind != "InputLayer":
                build.layer(each, version)
        except ValueError as error:
            reason = str(error)
        nested = kind in structure.MODELS
        if reason or not structure.is_operation(each):
            inside = {} if nested else below.get(path, {})
            yield LayerInfo("/".join(path), kind, _below(inside, len(path)), not reason, reason)
        if nested:
            yield from _of_model(each, version, below, path)


def _of_weights(shapes: Shapes, slots: Sequence[structure.Slot]) -> Iterator[LayerInfo]:
    """Where there is no model, a layer is what has a name of its own."""
    kinds: dict[str, set[str]] = {}
    for slot in slots:
        kinds.setdefault(slot.path[0], set()).add(slot.kind.partition(",")[0])
    by_name: dict[str, Shapes] = {}
    for at, shape in shapes.items():
        by_name.setdefault(at[0], {})[at] = shape
    for name, inside in by_name.items():
        several = kinds.get(name, set())
        kind = next(iter(several)).removesuffix("Cell") if len(several) == 1 else ""
        reason = "" if several or not slots else "not known here: its arrays have the file's names"
        yield LayerInfo(name, kind, _below(inside, 1), not reason, reason)


def _below(shapes: Shapes, depth: int) -> dict[str, tuple[int, ...]]:
    return {"/".join(at[depth:]): shape for at, shape in shapes.items()}
