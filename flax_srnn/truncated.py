"""Truncated backpropagation through time: gradients stop every K steps, the state goes on.

The forward pass is that of `simple_rnn` over the whole sequence. Backward, the state that every K steps start from is a
constant (Williams & Peng 1990, with k₁ = k₂ = K): a loss reaches back K steps at most, however long the sequence is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flax_srnn import sequence, validation


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
      options: of `simple_rnn`: activation, zero_output_for_mask, unroll, input_dropout_mask, recurrent_dropout_mask,
        precision, implementation, chunks, tol, max_sweeps.

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
    allowed = {
        "activation",
        "zero_output_for_mask",
        "unroll",
        "input_dropout_mask",
        "recurrent_dropout_mask",
        "precision",
    }
    allowed |= {"implementation", "chunks", "tol", "max_sweeps"}
    if unknown := sorted(options.keys() - allowed):
        raise TypeError(f"truncated_rnn() has no argument `{unknown[0]}`; its options are {sorted(allowed)}.")
    x, batch, steps = validation.sequence(inputs)
    used = sequence.used_steps(mask, seq_lengths, batch, steps)
    reset_flags = validation.step_flags("resets", resets, batch, steps)
    axis = len(batch)
    # Over no steps, the final state is the initial one, wherever that comes from.
    initial, nothing = sequence.simple_rnn(
        params, jax.lax.slice_in_dim(x, 0, 0, axis=axis), initial_state=initial_state, **options
    )

    def piece(state: jax.Array, start: Any, count: int) -> tuple[jax.Array, jax.Array]:
        def window(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, start, count, axis)

        used_now, resets_now = (None if flags is None else window(flags) for flags in (used, reset_flags))
        state = jnp.where(start == 0, state, jax.lax.stop_gradient(state))
        back_to = None if resets_now is None else initial
        state, outputs = sequence.simple_rnn(
            params, window(x), initial_state=state, mask=used_now, resets=resets_now, reset_state=back_to, **options
        )
        return state, outputs

    state, outputs = initial, [nothing]
    whole, rest = divmod(steps, size)
    if whole:
        state, pieces = jax.lax.scan(lambda h, k: piece(h, k * size, size), state, jnp.arange(whole))
        outputs.append(jnp.moveaxis(pieces, 0, axis).reshape(*batch, whole * size, initial.shape[-1]))
    if rest:
        state, last = piece(state, whole * size, rest)
        outputs.append(last)
    return state, jnp.concatenate(outputs, axis)
