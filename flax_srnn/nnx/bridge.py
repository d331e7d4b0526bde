"""Parameters between an NNX layer and its Linen twin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx, traverse_util
from flax.core import meta, unfreeze

from flax_srnn import validation
from flax_srnn.layers.driving import DIRECTIONS
from flax_srnn.nnx.cells import SimpleCellModule, StackedRNNCells, plain
from flax_srnn.nnx.layers import RNN, Bidirectional, cell_path

__all__ = ["from_linen", "to_linen"]


def to_linen(layer: nnx.Module) -> dict[str, Any]:
    """The parameters of a layer or cell of this library as `variables["params"]` of its Linen twin.

    Raises:
      ValueError: there is a cell of another library, whose twin may have other parameters.

    >>> from flax_srnn.nnx import SimpleRNNCell
    >>> rngs = nnx.Rngs(0)
    >>> sorted(to_linen(RNN([SimpleRNNCell(3, 4, rngs=rngs), SimpleRNNCell(4, 4, rngs=rngs)])))
    ['cells_0', 'cells_1']
    """
    return traverse_util.unflatten_dict(
        {(*path, name): value for path, cell in _simple_cells(layer) for name, value in cell._params().items()}
    )


def from_linen(layer: nnx.Module, params: Mapping[str, Any]) -> None:
    """Gives a layer or cell of this library the parameters of its Linen twin.

    Args:
      layer: is changed.
      params: the twin's `variables["params"]`, boxed or not; or what `flax_srnn.interop` reads of simple RNNs from files.

    Raises:
      TypeError: `params` is no mapping.
      ValueError: its names or shapes are not those of the layer; there is a cell of another library.

    >>> import jax.numpy as jnp
    >>> from flax_srnn.nnx import SimpleRNN
    >>> layer = SimpleRNN(1, 1, rngs=nnx.Rngs(0))
    >>> from_linen(layer, {"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)})
    >>> layer.kernel[...].tolist()
    [[1.0]]
    """
    if not isinstance(params, Mapping):
        raise TypeError(
            f"`params` must be a mapping, variables['params'] of a Linen layer, got {validation.describe(params)}."
        )
    given = traverse_util.flatten_dict(unfreeze(meta.unbox(params)))
    new: list[tuple[nnx.Module, dict[str, jax.Array]]] = []
    for path, cell in _simple_cells(layer):
        values = {}
        for name, old in cell._params().items():
            place = (*path, name)
            if place not in given:
                whole = " Give variables['params']." if "params" in params else ""
                raise ValueError(f"`params` has no {'/'.join(place)!r}, got {_names(given)}.{whole}")
            values[name] = validation.shaped(
                f"params[{'/'.join(place)!r}]", given.pop(place), old.shape, "of the layer's"
            )
        new.append((cell, values))
    if given:
        raise ValueError(f"`params` has {_names(given)}, which the layer does not have.")
    for changed, values in new:
        nnx.update(changed, values)


def _names(flat: Mapping[tuple[Any, ...], Any]) -> list[str]:
    return ["/".join(map(str, path)) for path in flat]


def _simple_cells(module: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], SimpleCellModule]]:
    """Every module with parameters and its place in the tree of the Linen twin."""
    if isinstance(module, SimpleCellModule):
        yield path, module
    elif isinstance(module, Bidirectional):
        for layer, name in zip((module.layer, module.backward_layer), DIRECTIONS, strict=True):
            yield from _simple_cells(layer, (*path, name))
    elif isinstance(module, (RNN, StackedRNNCells)):
        cells = module._cells() if isinstance(module, RNN) else plain(module.cells)
        for i, cell in enumerate(cells):
            if not any(cell is earlier for earlier in cells[:i]):  # one that is listed twice has one place, its first
                yield from _simple_cells(cell, (*path, *cell_path(cells, i)))
    else:
        raise ValueError(
            f"a {type(module).__name__} is no layer or cell of this library: its Linen twin is not known. Parameters of Flax's "
            "Linen cells are used in NNX by wrapping a Linen layer with them, flax.nnx.bridge.ToNNX(flax_srnn.RNN(cell))."
        )
