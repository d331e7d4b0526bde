"""Devices as a mesh of data x model, and where the arrays of a run lie on it."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flax_srnn.training.config import Training

__all__ = ["everywhere", "global_batch", "make", "of_params", "of_rows", "rows_here", "whole"]


def make(config: Training) -> Mesh:
    """All devices, of all processes: `model_shards` of them share the units, the others the batch.

    In one process devices stay idle where their number does not divide the batch.

    Raises:
      ValueError: the number of devices does not fit.
    """
    # Those of a process side by side, so that its rows are, and the units are shared inside a process as far as they can be.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    model, batch = config.model_shards, config.batch_size
    if len(devices) % model:
        raise ValueError(f"`model_shards` must divide the number of devices, {len(devices)}, got {model}.")
    data = len(devices) // model
    if batch % data:
        if jax.process_count() > 1:
            raise ValueError(f"`batch_size` must be a multiple of the {data} devices that share it, got {batch}.")
        data = math.gcd(batch, data)
    return Mesh(
        np.array(devices[: data * model]).reshape(data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2
    )


def rows_here(mesh: Mesh, batch_size: int) -> range:
    """The rows of every batch that the devices of this process share, and so the ones it reads."""
    place = _sharding(mesh, (batch_size,), "data")
    indices: Any = place.addressable_devices_indices_map((batch_size,))
    parts = [rows.indices(batch_size) for (rows,) in indices.values()]
    return range(min(first for first, _, _ in parts), max(last for _, last, _ in parts))


def global_batch(mesh: Mesh, batch_size: int, rows: Any) -> Any:
    """Arrays over all devices, from the rows that each process read."""

    def of_one(x: np.ndarray) -> jax.Array:
        shape = (batch_size, *x.shape[1:])
        return jax.make_array_from_process_local_data(_sharding(mesh, shape, "data"), x, shape)

    return jax.tree.map(of_one, rows)


def whole(mesh: Mesh, arrays: Any) -> Any:
    """All of the arrays, on one device of this process."""
    return jax.tree.map(lambda x: x.addressable_data(0), jax.device_put(arrays, everywhere(mesh, arrays)))


def of_params(mesh: Mesh, arrays: Any) -> Any:
    """Where parameters, and the optimizer's numbers of them, lie: their last dimension, the units, over "model"."""
    return jax.tree.map(lambda x: _sharding(mesh, x.shape, *[None] * (x.ndim - 1), "model"), arrays)


def of_rows(mesh: Mesh, arrays: Any) -> Any:
    """Where arrays with a row for each example lie: rows over "data"."""
    return jax.tree.map(lambda x: _sharding(mesh, x.shape, "data"), arrays)


def everywhere(mesh: Mesh, arrays: Any) -> Any:
    """Where arrays lie that every device has."""
    return jax.tree.map(lambda x: _sharding(mesh, x.shape), arrays)


def _sharding(mesh: Mesh, shape: tuple[int, ...], *axes: str | None) -> NamedSharding:
    """The dimensions of an array over these axes of the mesh, as far as their sizes allow."""
    fitting = (axis if axis and size % mesh.shape[axis] == 0 else None for size, axis in zip(shape, axes, strict=False))
    return NamedSharding(mesh, PartitionSpec(*fitting))
