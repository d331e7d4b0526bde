"""The one value that an implementation takes: a recurrence over a whole sequence, checked, cast and in one layout."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from flax_srnn.core import closed_over
from flax_srnn.core.cell import Cell

__all__ = ["Problem"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["cell", "inputs", "initial_state", "mask", "resets", "reset_state"],
    meta_fields=["reverse", "time_axis", "unroll", "return_states"],
)
@dataclasses.dataclass(frozen=True)
class Problem:
    """All that determines the final state and the states of a simple RNN; nothing below checks it again.

    A pytree: its arrays are leaves, the rest is static. Arrays are of one floating-point dtype of 32 bits or
    more, but for inputs (and states) of half precision, which stay so.

    Attributes:
      cell: weights, activation and precision; dropout masks (B, F) and (B, U).
      inputs: (B, T, F), or (T, B, F) with `time_axis` 0; their dtype is that of the states, too.
      initial_state: (B, U).
      mask, resets: (B, T) bool, batch first always, or None; lengths are part of the mask.
      reset_state: (B, U), what `resets` set back to; None where they are None.
      reverse: from the last step to the first; every array keeps its time order all the same.
      time_axis: of inputs and states, 0 or 1.
      unroll: of the loops: False, True, or steps per iteration.
      return_states: whether all states are wanted, or only the final one.
    """

    cell: Cell
    inputs: jax.Array
    initial_state: jax.Array
    mask: jax.Array | None = None
    resets: jax.Array | None = None
    reset_state: jax.Array | None = None
    reverse: bool = False
    time_axis: int = 1
    unroll: bool | int = False
    return_states: bool = True

    @property
    def sizes(self) -> tuple[int, int, int]:
        """B, T, U; B or T may be symbolic (`jax.export`), then decisions by size are skipped."""
        return self.initial_state.shape[0], self.inputs.shape[self.time_axis], self.initial_state.shape[1]

    @property
    def floating(self) -> Problem:
        """The arrays that have cotangents, with None in place of the others."""
        return self._with_others(None, None, closed_over.differentiable(self.cell.held))

    def completed(self, floating: Problem) -> Problem:
        """`floating`, which is made like this problem's, with the other arrays of this one."""
        return floating._with_others(self.mask, self.resets, closed_over.filled(floating.cell.held, self.cell.held))

    def _with_others(self, mask: Any, resets: Any, held: tuple[Any, ...]) -> Problem:
        return dataclasses.replace(self, mask=mask, resets=resets, cell=dataclasses.replace(self.cell, held=held))
