"""The simple RNN in parallel over time: chunks of the sequence as rows of one batch, swept until they agree.

Cut T steps into C chunks of K. If the state at every chunk's start were known, all chunks could run at once, as C·B rows of
one recurrence of K steps. It is not known, so it is guessed and the guess corrected (block Jacobi, or Parareal without its
coarse solver; Lions, Maday & Turinici 2001):

    s_1 = h_0 always; the others guessed             the state that chunk c starts from
    e_c = f_c(s_c) for all c at once                 one sweep: the state that chunk c ends in
    s_{c+1} = e_c                                    handed on, until no s moves by more than `tol`

After j sweeps the first j chunks are exact, so C sweeps always suffice, and then nothing was gained. A network that forgets
agrees much sooner: an error in s_c is multiplied by the Jacobian of K steps before it reaches s_{c+1}, so with the largest
Lyapunov exponent λ < 0 it shrinks by about exp(λK) a sweep. The first guess costs a
quarter of a sweep: only the last quarter of every chunk is run, from h_0. A network that forgets within that many steps
needs one sweep, which confirms the guess.

The backward pass is the same idea in reverse. The cotangent of chunk c's end is what chunk c + 1 hands back for its start,
and it decays at the same rate; once these agree, one pass over all chunks gives all gradients. Both passes are those of
`recurrence`, over the folded batch.

It pays where a step is too small to fill the processor (B of a few rows), the sequence is long and the network forgets. It
cannot pay for a network that remembers over whole chunks or is chaotic (λ ≥ 0): that takes C sweeps of the whole work.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_srnn import recurrence, validation, varying
from flax_srnn.recurrence import Operands, Options

CHUNKS = 32
"""As many chunks by default: a product of 32 rows takes little longer than a product of one."""
CHUNK_STEPS = 64
"""But no shorter ones by default: a chunk must be long enough to forget where it started."""
TOLERANCE = 1e-6
WARM_UP = 4
"""The first guess comes from the last quarter of every chunk."""


@dataclasses.dataclass(frozen=True)
class Sweeps:
    """How the solver works; see `solve`."""

    chunks: int
    tol: float
    limit: int

    @property
    def may_fail(self) -> bool:
        """Whether sweeping may end before the chunks agree; as many sweeps as chunks are always enough."""
        return self.limit < self.chunks


def solve(
    options: Options,
    operands: Operands,
    *,
    chunks: int | None = None,
    tol: float | None = None,
    max_sweeps: int | None = None,
) -> tuple[jax.Array, Any, jax.Array]:
    """All steps of the simple RNN like `recurrence.run`, chunks of time in parallel.

    Args:
      options, operands: as of `recurrence.run`.
      chunks: C, at most T are used; default 32, or fewer so that each has 64 steps.
      tol: sweeps end when no boundary state moves by more than tol · max(1, largest boundary state), in the backward pass
        by more than tol · the largest boundary cotangent; default 1e-6.
      max_sweeps: at most so many sweeps in each pass; default C, which always suffice.

    Returns:
      (final state (B, U), states in the layout of the inputs or None, the number of sweeps of the forward pass). If the
      chunks do not agree after `max_sweeps` < C sweeps, final state and states are NaN, and so are all gradients; if only
      the backward pass fails to agree, the gradients are.

    Raises:
      TypeError, ValueError: an argument out of range, `tol` below the rounding of the dtype, options that do not go with
        this solver (`remat`, a number of steps that is not known when the program is traced).

    >>> W = Operands(
    ...     kernel=jnp.ones((1, 2)),
    ...     recurrent_kernel=0.3 * jnp.eye(2),
    ...     bias=None,
    ...     inputs=jnp.ones((1, 4096, 1)),
    ...     initial_state=jnp.zeros((1, 2)),
    ... )
    >>> final_state, outputs, sweeps = solve(Options(jnp.tanh), W, chunks=16)
    >>> outputs.shape, int(sweeps)
    ((1, 4096, 2), 1)
    """
    validation.sweeping("chunked", chunks, tol, max_sweeps)
    steps = operands.inputs.shape[options.time_axis]
    dtype = operands.initial_state.dtype
    if options.remat:
        raise ValueError(
            "`remat`: True does not go with implementation='chunked', which keeps all states: leave it None."
        )
    if not isinstance(steps, int):
        raise ValueError(
            f"`implementation`: 'chunked' needs a fixed number of steps, got the symbolic T = {steps}; use 'scan'."
        )
    tol = TOLERANCE if tol is None else float(tol)
    if tol < jnp.finfo(dtype).eps:
        raise ValueError(
            f"`tol` must be at least the rounding error of {dtype}, {jnp.finfo(dtype).eps:.2g}, got {tol!r}: boundary states "
            "cannot agree more closely."
        )
    count = max(1, min(CHUNKS, steps // CHUNK_STEPS) if chunks is None else min(int(chunks), steps))
    count = max(1, -(-steps // max(1, -(-steps // count))))  # without chunks that hold padding only
    return _solve(options, Sweeps(count, tol, count if max_sweeps is None else min(int(max_sweeps), count)), operands)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _solve(options: Options, sweeps: Sweeps, operands: Operands) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    operands = recurrence.reverse_mode_only(operands)
    if options.time_axis == 0:
        # Chunks of time-major arrays are no rows of a reshaped array: one transpose there and one back.
        operands = operands._replace(inputs=jnp.swapaxes(operands.inputs, 0, 1))
        (final, states, number), _ = _swept(dataclasses.replace(options, time_axis=1), sweeps, operands)
        return final, None if states is None else jnp.swapaxes(states, 0, 1), number
    return _swept(options, sweeps, operands)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _swept(options: Options, sweeps: Sweeps, o: Operands) -> tuple[Any, Any]:
    """What `solve` returns, and for the backward pass: the starts of all chunks, all states folded, whether chunks agree."""

    def sweep(starts: jax.Array, results: Any) -> tuple[jax.Array, Any]:
        ends, states, _ = recurrence.forward(options, _folded(sweeps, o, starts), results[1])
        return ends.reshape(starts.shape), (starts, states)

    rows, units = o.initial_state.shape
    anywhere = jnp.broadcast_to(o.initial_state[:, None], (rows, sweeps.chunks, units))
    folded = _folded(sweeps, o, anywhere)
    guess, _, _ = recurrence.forward(
        dataclasses.replace(options, record="nothing"), _last_steps_of(folded, options.reverse), None
    )
    states = recurrence.empty_states(options, folded)
    ends, (starts, states), agree, number = _until_agreed(
        sweep, o.initial_state, guess.reshape(anywhere.shape), (anywhere, states), options.reverse, sweeps, least=1.0
    )
    final, outputs = ends[:, 0 if options.reverse else -1], None if states is None else _unfold(states, o)
    if sweeps.may_fail:
        final, outputs = jax.tree.map(lambda x: jnp.where(agree, x, jnp.nan), (final, outputs))
    return (final, outputs, number), (starts, states, agree)


def _swept_forward(options: Options, sweeps: Sweeps, o: Operands) -> tuple[Any, Any]:
    # Bound again through `_swept`, so that no derivative of this rule ever looks into its loop.
    (final, outputs, number), kept = _swept(dataclasses.replace(options, record="states"), sweeps, o)
    if options.record == "states":
        return ((final, outputs, number), kept), (o, kept)
    starts, _, agree = kept
    return ((final, None, number), (starts, None, agree)), (o, kept)


def _swept_backward(options: Options, sweeps: Sweeps, residuals: Any, cotangents: Any) -> tuple[Operands]:
    o, kept = residuals
    # Nobody differentiates what is kept: `_pullback` and its own derivative take it as given.
    (final_cotangent, states_cotangent, _), _ = cotangents
    return (
        _pullback(dataclasses.replace(options, record="states"), sweeps, o, kept, final_cotangent, states_cotangent),
    )


_swept.defvjp(_swept_forward, _swept_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pullback(
    options: Options, sweeps: Sweeps, o: Operands, kept: Any, final_cotangent: jax.Array, states_cotangent: Any
) -> Operands:
    """The cotangents of all operands (None for the flags)."""
    starts, states, forward_agrees = kept
    folded = _folded(sweeps, o, starts)
    g = None if states_cotangent is None else _fold(sweeps, states_cotangent)

    def sweep(ends: jax.Array, _: Any) -> tuple[jax.Array, Operands]:
        c = recurrence.pullback(options, folded, states, ends.reshape(folded.initial_state.shape), g)
        return c.initial_state.reshape(ends.shape), c

    # The steps that the backward pass comes to last, from nothing.
    backwards = not options.reverse
    guess = recurrence.pullback(
        options,
        _last_steps_of(folded, backwards),
        _last_steps(states, backwards),
        jnp.zeros_like(folded.initial_state),
        None if g is None else _last_steps(g, backwards),
    ).initial_state
    nothing = jax.tree.map(jnp.zeros_like, folded._replace(mask=None, resets=None))
    _, c, agree, _ = _until_agreed(
        sweep, final_cotangent, guess.reshape(starts.shape), nothing, backwards, sweeps, least=0.0
    )

    def over_chunks(x: jax.Array | None) -> jax.Array | None:
        """What every row's chunks hand back to that row's one array, summed."""
        return None if x is None else x.reshape(starts.shape[0], sweeps.chunks, x.shape[-1]).sum(1)

    at_starts = c.initial_state.reshape(starts.shape)
    cotangents = Operands(
        kernel=c.kernel,
        recurrent_kernel=c.recurrent_kernel,
        bias=c.bias,
        inputs=_unfold(c.inputs, o),
        initial_state=at_starts[:, -1 if options.reverse else 0],
        reset_state=over_chunks(c.reset_state),
        input_dropout_mask=over_chunks(c.input_dropout_mask),
        recurrent_dropout_mask=over_chunks(c.recurrent_dropout_mask),
    )
    if sweeps.may_fail:
        cotangents = jax.tree.map(lambda x: jnp.where(agree & forward_agrees, x, jnp.nan), cotangents)
    return cotangents


def _pullback_forward(options: Options, sweeps: Sweeps, o: Operands, kept: Any, *cotangents: Any) -> tuple[Any, Any]:
    return _pullback(options, sweeps, o, kept, *cotangents), (o, kept, cotangents)


def _pullback_backward(options: Options, sweeps: Sweeps, residuals: Any, outer: Operands) -> tuple[Any, ...]:
    """Second derivatives: those of the sequential backward pass, which computes the same function."""
    o, (_, states, _), cotangents = residuals

    def sequential(floating: Operands, *cotangents: Any) -> Operands:
        exact = floating._replace(mask=o.mask, resets=o.resets)
        return recurrence.pullback(options, exact, _unfold(states, o), *cotangents)

    _, vjp = jax.vjp(sequential, o._replace(mask=None, resets=None), *cotangents)
    operands_cotangent, *others = vjp(outer)
    return operands_cotangent, None, *others


_pullback.defvjp(_pullback_forward, _pullback_backward)


def _until_agreed(
    sweep: Callable[[jax.Array, Any], tuple[jax.Array, Any]],
    first: jax.Array,
    ends: jax.Array,
    results: Any,
    reverse: bool,
    sweeps: Sweeps,
    *,
    least: float,
) -> tuple[jax.Array, Any, jax.Array, jax.Array]:
    """Sweeps until the starts of all chunks (B, C, U) stand still: (ends, results, whether they do, number of sweeps).

    Args:
      sweep: (starts, results so far) -> (ends, results).
      first: (B, U), what the first chunk starts from.
      ends: a guess of what the chunks end in.
      results: where the results go.
      least: a change counts relative to the largest start, or to this if that is larger.
    """

    def go_on(carry: Any) -> jax.Array:
        *_, agree, number = carry
        return ~agree & (number < sweeps.limit)

    def again(carry: Any) -> Any:
        ends, results, _, number = carry
        starts = _handed_on(first, ends, reverse)
        ends, results = sweep(starts, results)
        change, size = (jnp.max(jnp.abs(x), initial=0.0) for x in (_handed_on(first, ends, reverse) - starts, starts))
        agree = (change <= sweeps.tol * jnp.maximum(size, least)) | (number + 1 >= sweeps.chunks)
        return ends, results, agree, number + 1

    agree, number = (varying.like(jnp.array(x), first) for x in (False, 0))
    return lax.while_loop(go_on, again, (ends, results, agree, number))


def _handed_on(first: jax.Array, ends: jax.Array, reverse: bool) -> jax.Array:
    """The start of every chunk (B, C, U): the end of the one processed before it."""
    if reverse:
        return jnp.concatenate([ends[:, 1:], first[:, None]], 1)
    return jnp.concatenate([first[:, None], ends[:, :-1]], 1)


def _folded(sweeps: Sweeps, o: Operands, starts: jax.Array) -> Operands:
    """The chunks as rows: B·C of them, K steps each. Steps that fill up the last chunk are masked."""
    steps = o.inputs.shape[1]
    mask = o.mask
    if mask is None and steps % sweeps.chunks:
        mask = jnp.ones(o.inputs.shape[:2], bool)

    def per_row(x: jax.Array | None) -> jax.Array | None:
        return None if x is None else jnp.repeat(x, sweeps.chunks, axis=0)

    return o._replace(
        inputs=_fold(sweeps, o.inputs),
        initial_state=starts.reshape(-1, starts.shape[-1]),
        mask=None if mask is None else _fold(sweeps, mask),
        resets=None if o.resets is None else _fold(sweeps, o.resets),
        reset_state=per_row(o.reset_state),
        input_dropout_mask=per_row(o.input_dropout_mask),
        recurrent_dropout_mask=per_row(o.recurrent_dropout_mask),
    )


def _last_steps(x: jax.Array, reverse: bool) -> jax.Array:
    """Of (B·C, K, …) the last part of the K steps, in the order of processing."""
    count = -(-x.shape[1] // WARM_UP)
    return x[:, :count] if reverse else x[:, x.shape[1] - count :]


def _last_steps_of(folded: Operands, reverse: bool) -> Operands:
    mask, resets = (None if x is None else _last_steps(x, reverse) for x in (folded.mask, folded.resets))
    return folded._replace(inputs=_last_steps(folded.inputs, reverse), mask=mask, resets=resets)


def _fold(sweeps: Sweeps, x: jax.Array) -> jax.Array:
    """(B, T, …) as (B·C, K, …), with zeros or False after the last step where T is no multiple of C."""
    rows, steps = x.shape[:2]
    length = -(-steps // sweeps.chunks)
    padding = [(0, 0), (0, length * sweeps.chunks - steps)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, padding).reshape(rows * sweeps.chunks, length, *x.shape[2:])


def _unfold(x: jax.Array, o: Operands) -> jax.Array:
    """(B·C, K, …) as (B, T, …), without what fills up the last chunk."""
    rows, steps = o.inputs.shape[:2]
    length = x.shape[0] // max(1, rows) * x.shape[1]
    return x.reshape(rows, length if rows else steps, *x.shape[2:])[:, :steps]
