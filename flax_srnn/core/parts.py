"""What a block of steps works on: the whole arrays where they stand, or copies of its part of them.

On a CPU a block of a float32 problem reads and writes the whole arrays in place. Elsewhere, and for half precision everywhere,
it works on copies of its part, which are small and in the loop's dtype; those for accelerators are time-major too: a step of
them is one piece of memory, and they fit into the memory that a TPU computes from.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_srnn.core import blocks, mesh_axes
from flax_srnn.core.problem import Problem
from flax_srnn.core.row_major import row_major
from flax_srnn.core.tuning import Tuning

__all__ = ["Parts", "empty_states", "flags_over_time"]


class Parts:
    """A problem and arrays like its inputs and states, as the blocks of a loop take them apart and put them together.

    Between `pack` and `unpack` these arrays are `packed`: half precision as the integers of its bits. XLA's CPU compiler would
    convert an array of half precision to float32 and back as a whole at every block that slices or updates it (slices: JAX
    0.7 and 0.10; updates: until 0.11).
    """

    def __init__(self, p: Problem, tuning: Tuning) -> None:
        self.problem, self.copied = p, tuning.copies(p)
        self._time_axis = 0 if tuning.copies_blocks else p.time_axis
        self.dtype, self.wide = p.inputs.dtype, p.initial_state.dtype
        self._inputs = self.pack(p.inputs)

    def pack(self, whole: Any) -> Any:
        """A whole array, if there is one, as it goes through loops."""
        return whole if whole is None or self.dtype == self.wide else lax.bitcast_convert_type(whole, jnp.uint16)

    def unpack(self, whole: Any) -> Any:
        return whole if whole is None or self.dtype == self.wide else lax.bitcast_convert_type(whole, self.dtype)

    def block(self, start: Any, count: int) -> tuple[Problem, Any]:
        """The steps [start, start + count) as a problem, and its step at which they begin."""
        p = self.problem
        if not self.copied:
            return p, start
        mask, resets = (None if x is None else blocks.window(x, start, count, 1) for x in (p.mask, p.resets))
        inputs = self._copy(self._inputs, start, count)
        return dataclasses.replace(p, inputs=inputs, mask=mask, resets=resets, time_axis=self._time_axis), 0

    def take(self, whole: Any, start: Any, count: int) -> Any:
        """A packed array, if there is one, as the problem of the block has it."""
        return self._copy(whole, start, count) if self.copied and whole is not None else whole

    def put(self, whole: jax.Array, part: jax.Array, start: Any) -> jax.Array:
        """The packed array with the steps of a block, in the layout of its problem."""
        if self.copied:
            part = jnp.moveaxis(row_major(part), self._time_axis, self.problem.time_axis)
        return blocks.put_window(whole, self.pack(part.astype(self.dtype)), start, self.problem.time_axis)

    def step(self, whole: jax.Array, k: Any) -> jax.Array:
        """Step k of a packed array."""
        return self.unpack(blocks.at_step(whole, k, self.problem.time_axis)).astype(self.wide)

    def _copy(self, whole: jax.Array, start: Any, count: int) -> jax.Array:
        axis = self.problem.time_axis
        part = self.unpack(blocks.window(whole, start, count, axis)).astype(self.wide)
        return row_major(jnp.moveaxis(part, axis, self._time_axis))


def empty_states(p: Problem, steps: Any = None, fill: float = 0.0) -> jax.Array:
    """An array of `steps` states, or of all, to be overwritten.

    Two of one program have different values to begin with, or XLA makes one and copies it (JAX 0.10;
    `tests/test_performance.py`: nothing is made that nobody reads).
    """
    batch, count, units = p.sizes
    steps = count if steps is None else steps
    shape = (batch, steps, units) if p.time_axis == 1 else (steps, batch, units)
    return mesh_axes.like(jnp.full(shape, fill, p.inputs.dtype), p.initial_state)


def flags_over_time(flags: Any, axis: int) -> Any:
    """(B, K) flags in the order of arrays whose time is the dimension `axis`."""
    return flags.T if flags is not None and axis == 0 else flags
