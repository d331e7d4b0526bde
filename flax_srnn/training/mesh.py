"""Devices as a mesh of data x model, and where the arrays of a run lie on it."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flax_srnn.training.config import Training

__all__ = ["everywhere", "global_batch", "make", "of_params", "of_rows", "rows_here"]


def make(config: Training) -> Mesh:
    """All devices: `model_shards` of them share the units, the others the batch.

    In one process devices stay idle where their number does not divide the batch.

    Raises:
      ValueError: the number of devices does not fit.
    """
    devices, model, batch = jax.devices(), config.model_shards, config.batch_size
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


def rows_here(batch_size: int) -> range:
    """The rows of every batch that this process reads."""
    count = batch_size // jax.process_count()
    return range(jax.process_index() * count, (jax.process_index() + 1) * count)


def global_batch(mesh: Mesh, rows: Any) -> Any:
    """Arrays over all devices, from the rows that each process read."""
    return jax.tree.map(jax.make_array_from_process_local_data, of_rows(mesh, rows), rows)


def of_params(mesh: Mesh, arrays: Any) -> Any:
    """Where parameters, and the optimizer's numbers of them, lie: their last dimension, the units, over "model"."""
    return jax.tree.map(lambda x: _sharding(mesh, x, *[None] * (x.ndim - 1), "model"), arrays)


def of_rows(mesh: Mesh, arrays: Any) -> Any:
    """Where arrays with a row for each example lie: rows over "data"."""
    return jax.tree.map(lambda x: _sharding(mesh, x, "data"), arrays)


def everywhere(mesh: Mesh, arrays: Any) -> Any:
    """Where arrays lie that every device has."""
    return jax.tree.map(lambda x: _sharding(mesh, x), arrays)


def _sharding(mesh: Mesh, x: Any, *axes: str | None) -> NamedSharding:
    """The dimensions of `x` over these axes of the mesh, as far as their sizes allow."""
    fitting = (
        axis if axis and size % mesh.shape[axis] == 0 else None for size, axis in zip(x.shape, axes, strict=False)
    )
    return NamedSharding(mesh, PartitionSpec(*fitting))
