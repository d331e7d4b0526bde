"""Truncated backpropagation through time: gradients stop every K steps, the state goes on.

The forward pass is that of `simple_rnn` over the whole sequence. Backward, the state that every K steps start from is a
constant (Williams & Peng 1990, with k₁ = k₂ = K): a loss reaches back K steps at most, however long the sequence is.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flax_srnn import validation
from flax_srnn.core import mesh_axes, sequence
from flax_srnn.core.cell import Cell
from flax_srnn.core.sequence import Steps

__all__ = ["truncated_rnn"]

MEANINGLESS = ("go_backwards", "keep_order", "time_major", "return_sequences", "reset_state")
"""The options of `simple_rnn` that have no meaning piece by piece."""


def truncated_rnn(
    params: Any,
    inputs: ArrayLike,
    every: int,
    *,
    initial_state: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    seq_lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """`simple_rnn` with gradients that stop every `every` steps; without gradients it equals `simple_rnn`, and this loop::

        for t in range(0, T, every):
            state, outputs[:, t : t + every] = simple_rnn(params, inputs[:, t : t + every], initial_state=state)
            state = jax.lax.stop_gradient(state)

    It is compiled once, as a loop over the pieces.

    Args:
      params, inputs, initial_state, mask, seq_lengths, resets: as of `simple_rnn`, batch-major.
      every: K, a positive integer; where T is no multiple of it, the last piece is shorter.
      options: of `simple_rnn`, all but go_backwards, keep_order, time_major, return_sequences and reset_state.

    Returns:
      (final_state (*batch, U), outputs (*batch, T, U)).

    Raises:
      TypeError, ValueError: as `simple_rnn`; `every` is no positive integer; an option that has no meaning here.

    Source: R. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories", Neural Computation 2 (1990).

    >>> params = {"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.ones((1, 1))}
    >>> last = lambda x: truncated_rnn(params, x, 2, activation=None)[1][-1, 0]
    >>> jax.grad(last)(jnp.ones((4, 1))).ravel().tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    number = validation.integer("every", every)
    if number is None:
        raise TypeError(f"`every` must be a positive integer, got {validation.describe(every)}.")
    size = validation.positive("every", number)
    if meaningless := sorted(options.keys() & set(MEANINGLESS)):
        raise TypeError(f"truncated_rnn() has no argument `{meaningless[0]}`: it has no meaning piece by piece.")
    flags = {"mask": mask, "seq_lengths": seq_lengths, "resets": resets}
    cell, steps, initial, _ = sequence.check(params, inputs, initial_state=initial_state, **flags, **options)
    run = functools.partial(_run, size)
    return mesh_axes.compiler_divides(run, (cell, steps, initial), lambda: sequence.specs(cell, steps))


def _run(size: int, cell: Cell, steps: Steps, initial: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    # Over no steps, the final state is the initial one, wherever that comes from.
    initial, nothing = sequence.run(cell, steps.window(0, 0), initial)

    def piece(state: jax.Array, start: Any, count: int) -> tuple[jax.Array, jax.Array]:
        state = jnp.where(start == 0, state, jax.lax.stop_gradient(state))
        return sequence.run(cell, steps.window(start, count), state, initial)

    state, outputs, axis = initial, [nothing], steps.time_axis
    whole, rest = divmod(steps.count, size)
    if whole:
        state, pieces = jax.lax.scan(lambda h, k: piece(h, k * size, size), state, jnp.arange(whole))
        outputs.append(jnp.moveaxis(pieces, 0, axis).reshape(*steps.batch, whole * size, initial.shape[-1]))
    if rest:
        state, last = piece(state, whole * size, rest)
        outputs.append(last)
    return state, jnp.concatenate(outputs, axis)
