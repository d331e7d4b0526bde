"""The order of the data: by step, so that a run that goes on, and each of several processes, reads what is its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Where Grain is imported, it warns of what it lacks on an older JAX.
logging.getLogger("absl").setLevel(logging.CRITICAL)
import grain  # noqa: E402  # silenced first, see above

__all__ = ["batches", "shuffled"]


class _Steps:
    """Grain's random access to the batches of all steps, each as the rows of one process."""

    def __init__(self, batch: Callable[[int, range], Any], steps: int, rows: range) -> None:
        self._batch, self._steps, self._rows = batch, steps, rows

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Any:
        return self._batch(step, self._rows)


def batches(batch: Callable[[int, range], Any], steps: int, rows: range, first: int) -> Iterator[Any]:
    """The rows of the batches of the steps [first, steps), read ahead in a thread."""
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(_Steps(batch, steps, rows))[first:].to_iter_dataset(ahead))


def shuffled(count: int, seed: tuple[int, ...], first: int, number: int) -> np.ndarray:
    """The examples [first, first + number) of an endless sequence: all `count` of them in a new order, again and again.

    A pure function, computed for whole epochs at a time: Grain's own shuffle takes 0.1 to 3 ms for each example, more than a
    small model's step.

    >>> epochs = shuffled(3, (0,), 0, 6).reshape(2, 3)
    >>> sorted(epochs[0].tolist()), sorted(epochs[1].tolist()), shuffled(3, (0,), 2, 2).tolist() == epochs.ravel()[2:4].tolist()
    ([0, 1, 2], [0, 1, 2], True)
    """
    epochs = range(first // count, -(-(first + number) // count))
    orders = [np.random.default_rng((*seed, epoch)).permutation(count) for epoch in epochs]
    start = first - epochs.start * count
    return np.concatenate(orders)[start : start + number]
