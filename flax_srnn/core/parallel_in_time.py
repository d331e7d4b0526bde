"""The simple RNN in parallel over time: pieces of the sequence as rows of one batch, swept until they agree.

Cut T steps into C pieces of K. If the state at every piece's start were known, all pieces could run at once, as C·B rows of
one recurrence of K steps. It is not known, so it is guessed and the guess corrected (block Jacobi, or Parareal without its
coarse solver; Lions, Maday & Turinici 2001):

    s_1 = h_0 always; the others guessed             the state that piece c starts from
    e_c = f_c(s_c) for all c at once                 one sweep: the state that piece c ends in
    s_{c+1} = e_c                                    handed on, until no s moves by more than `tol`

After j sweeps the first j pieces are exact, so C sweeps always suffice, and then nothing was gained. A network that forgets
agrees much sooner: an error in s_c is multiplied by the Jacobian of K steps before it reaches s_{c+1}, so with the largest
Lyapunov exponent λ < 0 it shrinks by about exp(λK) a sweep. The first guess costs a quarter of a sweep
(`Tuning.warm_up`): only the last quarter of every piece is run, from h_0. A network that forgets within that many steps needs
one sweep, which confirms the guess.

The backward pass is the same idea in reverse. The cotangent of piece c's end is what piece c + 1 hands back for its start,
and it decays at the same rate; once these agree, one pass over all pieces gives all gradients. Both passes are those of
`recurrence`, over the folded batch.

It pays where a step is too small to fill the processor (B of a few rows), the sequence is long and the network forgets. It
cannot pay for a network that remembers over whole pieces or is chaotic (λ ≥ 0): that takes C sweeps of the whole work.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_srnn import validation
from flax_srnn.core import mesh_axes, recurrence
from flax_srnn.core.cell import Cell
from flax_srnn.core.parts import empty_states
from flax_srnn.core.problem import Problem
from flax_srnn.core.recurrence import Record, Scan
from flax_srnn.core.tuning import MEASURED, Tuning

__all__ = ["Chunked", "Sweeps", "solve"]

TOLERANCE = 1e-6
"""How closely pieces agree by default: about ten roundings of float32."""


@dataclasses.dataclass(frozen=True)
class Chunked:
    """The parallel solver: pieces of the sequence side by side, swept until they agree; the module says when that pays.

    Args:
      pieces: C, into how many pieces the sequence is cut, at most T; default 32, or fewer so that each has 64 steps.
      tol: sweeps end when no boundary state moves by more than tol · max(1, largest boundary state), in the backward pass
        by more than tol · the largest boundary cotangent; default 1e-6.
      max_sweeps: at most so many sweeps in each pass; default C, which always suffice. If the pieces do not agree after
        `max_sweeps` < C sweeps, final state and states are NaN, and so are all gradients; if only the backward pass fails
        to agree, the gradients are. `flax_srnn.chunked.sweeps` counts them.
      tuning: the defaults, and how the work of a sweep is cut.

    Raises:
      TypeError, ValueError: an argument that is no positive number, or no whole one; when it is run, `tol` below the
        rounding of the dtype, or a number of steps that is not known when the program is traced.

    >>> from flax_srnn import simple_rnn
    >>> params = {"kernel": jnp.ones((1, 2)), "recurrent_kernel": 0.3 * jnp.eye(2)}
    >>> final_state, outputs = simple_rnn(params, jnp.ones((4096, 1)), implementation=Chunked(pieces=16))
    >>> outputs.shape
    (4096, 2)
    """

    pieces: int | None = None
    tol: float | None = None
    max_sweeps: int | None = None
    tuning: Tuning = dataclasses.field(default=MEASURED, repr=False)

    def __post_init__(self) -> None:
        for name in ("pieces", "max_sweeps"):
            validation.positive_or_none(name, getattr(self, name))
        validation.tolerance("tol", self.tol)

    def check(self, problem: Problem) -> None:
        """Raises ValueError where the number of steps is symbolic, `tol` finer than the dtype, or devices would have to wait."""
        steps, dtype = problem.sizes[1], problem.initial_state.dtype
        if not isinstance(steps, int):
            raise ValueError(
                f"`implementation`: 'chunked' needs a fixed number of steps, got the symbolic T = {steps}; use 'scan'."
            )
        if (tol := self._tol) < jnp.finfo(dtype).eps:
            raise ValueError(
                f"`tol` must be at least the rounding error of {dtype}, {jnp.finfo(dtype).eps:.2g}, got {tol!r}: boundary "
                "states cannot agree more closely."
            )
        if any(mesh_axes.of(x) != mesh_axes.of(problem) for x in jax.tree.leaves(problem.floating.cell.held)):
            raise ValueError(
                "`implementation`: 'chunked' inside shard_map needs an activation whose arrays vary over the mesh axes "
                "that the inputs vary over, as each device sweeps as often as it must: cast them with jax.lax.pcast "
                "(pvary in older JAX) before the activation closes over them, or use 'scan'."
            )

    def run(self, problem: Problem) -> tuple[jax.Array, jax.Array | None]:
        """(final state (B, U), states in the layout of the inputs or None)."""
        return solve(self, problem)[:2]

    @property
    def _tol(self) -> float:
        return TOLERANCE if self.tol is None else float(self.tol)

    def sweeps(self, steps: int) -> Sweeps:
        """How a sequence of so many steps is solved."""
        count = min(self.tuning.pieces, steps // self.tuning.piece_steps) if self.pieces is None else self.pieces
        count = max(1, min(int(count), steps))
        count = max(1, -(-steps // max(1, -(-steps // count))))  # without pieces that hold padding only
        limit = count if self.max_sweeps is None else min(int(self.max_sweeps), count)
        return Sweeps(count, self._tol, limit, self.tuning.warm_up, Scan(tuning=self.tuning))


@dataclasses.dataclass(frozen=True)
class Sweeps:
    """How the solver works on a sequence of known length: `Chunked` with its defaults filled in."""

    pieces: int
    tol: float
    limit: int
    warm_up: int
    scan: Scan

    @property
    def may_fail(self) -> bool:
        """Whether sweeping may end before the pieces agree; as many sweeps as pieces are always enough."""
        return self.limit < self.pieces


def solve(how: Chunked, problem: Problem) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """(final state (B, U), states in the layout of the inputs or None, the number of sweeps of the forward pass)."""
    return _solve(how.sweeps(problem.sizes[1]), problem)


@functools.partial(jax.jit, static_argnums=0)
def _solve(sweeps: Sweeps, p: Problem) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    p = recurrence.reverse_mode_only(p)
    record: Record = "states" if p.return_states else "nothing"
    if p.time_axis == 0:
        # Pieces of time-major arrays are no rows of a reshaped array: one transpose there and one back.
        p = dataclasses.replace(p, inputs=jnp.swapaxes(p.inputs, 0, 1), time_axis=1)
        (final, states, number), _ = _swept(sweeps, record, p)
        return final, None if states is None else jnp.swapaxes(states, 0, 1), number
    return _swept(sweeps, record, p)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _swept(sweeps: Sweeps, record: Record, p: Problem) -> tuple[Any, Any]:
    """What `solve` returns, and for the backward pass: the starts of all pieces, all states folded, whether pieces agree."""

    def sweep(starts: jax.Array, results: Any) -> tuple[jax.Array, Any]:
        ends, states = recurrence.forward(sweeps.scan, record, _folded(sweeps, p, starts), results[1])
        return ends.reshape(starts.shape), (starts, states)

    rows, units = p.initial_state.shape
    anywhere = jnp.broadcast_to(p.initial_state[:, None], (rows, sweeps.pieces, units))
    folded = _folded(sweeps, p, anywhere)
    guess, _ = recurrence.forward(sweeps.scan, "nothing", _last_steps_of(sweeps, folded, p.reverse), None)
    states = empty_states(folded) if record == "states" else None
    ends, (starts, states), agree, number = _until_agreed(
        sweep, p.initial_state, guess.reshape(anywhere.shape), (anywhere, states), p.reverse, sweeps, least=1.0
    )
    final, outputs = ends[:, 0 if p.reverse else -1], None if states is None else _unfold(states, p)
    if sweeps.may_fail:
        final, outputs = jax.tree.map(lambda x: jnp.where(agree, x, jnp.nan), (final, outputs))
    return (final, outputs, number), (starts, states, agree)


def _swept_forward(sweeps: Sweeps, record: Record, p: Problem) -> tuple[Any, Any]:
    # Bound again through `_swept`, so that no derivative of this rule ever looks into its loop.
    (final, outputs, number), kept = _swept(sweeps, "states", p)
    if record == "states":
        return ((final, outputs, number), kept), (p, kept)
    starts, _, agree = kept
    return ((final, None, number), (starts, None, agree)), (p, kept)


def _swept_backward(sweeps: Sweeps, record: Record, residuals: Any, cotangents: Any) -> tuple[Problem]:
    p, kept = residuals
    # Nobody differentiates what is kept: `_pullback` and its own derivative take it as given.
    (final_cotangent, states_cotangent, _), _ = cotangents
    return (_pullback(sweeps, p, kept, final_cotangent, states_cotangent),)


_swept.defvjp(_swept_forward, _swept_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pullback(sweeps: Sweeps, p: Problem, kept: Any, final_cotangent: jax.Array, states_cotangent: Any) -> Problem:
    """The cotangents of all arrays of the problem that have one."""
    starts, states, forward_agrees = kept
    folded = _folded(sweeps, p, starts)
    g = None if states_cotangent is None else _fold(sweeps, states_cotangent)

    def sweep(ends: jax.Array, _: Any) -> tuple[jax.Array, Problem]:
        c = recurrence.pullback(sweeps.scan, "states", folded, states, ends.reshape(folded.initial_state.shape), g)
        return c.initial_state.reshape(ends.shape), c

    # The steps that the backward pass comes to last, from nothing.
    backwards = not p.reverse
    guess = recurrence.pullback(
        sweeps.scan,
        "states",
        _last_steps_of(sweeps, folded, backwards),
        _last_steps(sweeps, states, backwards),
        jnp.zeros_like(folded.initial_state),
        _last_steps(sweeps, g, backwards),
    ).initial_state
    nothing = jax.tree.map(jnp.zeros_like, folded.floating)
    _, c, agree, _ = _until_agreed(
        sweep, final_cotangent, guess.reshape(starts.shape), nothing, backwards, sweeps, least=0.0
    )

    def over_pieces(x: jax.Array | None) -> jax.Array | None:
        """What every row's pieces hand back to that row's one array, summed."""
        return None if x is None else x.reshape(starts.shape[0], sweeps.pieces, x.shape[-1]).sum(1)

    at_starts = c.initial_state.reshape(starts.shape)
    cotangents = dataclasses.replace(
        c,
        cell=_with_masks(c.cell, over_pieces),
        inputs=_unfold(c.inputs, p),
        initial_state=at_starts[:, -1 if p.reverse else 0],
        reset_state=over_pieces(c.reset_state),
    )
    if sweeps.may_fail:
        cotangents = jax.tree.map(lambda x: jnp.where(agree & forward_agrees, x, jnp.nan), cotangents)
    return cotangents


def _pullback_forward(sweeps: Sweeps, p: Problem, kept: Any, *cotangents: Any) -> tuple[Any, Any]:
    return _pullback(sweeps, p, kept, *cotangents), (p, kept, cotangents)


def _pullback_backward(sweeps: Sweeps, residuals: Any, outer: Problem) -> tuple[Any, ...]:
    """Second derivatives: those of the sequential backward pass, which computes the same function."""
    p, (_, states, _), cotangents = residuals

    def sequential(floating: Problem, *cotangents: Any) -> Problem:
        return recurrence.pullback(sweeps.scan, "states", p.completed(floating), _unfold(states, p), *cotangents)

    _, vjp = jax.vjp(sequential, p.floating, *cotangents)
    problem_cotangent, *others = vjp(outer)
    return problem_cotangent, None, *others


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
    """Sweeps until the starts of all pieces (B, C, U) stand still: (ends, results, whether they do, number of sweeps).

    Args:
      sweep: (starts, results so far) -> (ends, results).
      first: (B, U), what the first piece starts from.
      ends: a guess of what the pieces end in.
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
        agree = (change <= sweeps.tol * jnp.maximum(size, least)) | (number + 1 >= sweeps.pieces)
        return ends, results, agree, number + 1

    agree, number = (mesh_axes.like(jnp.array(x), first) for x in (False, np.int32(0)))
    return lax.while_loop(go_on, again, (ends, results, agree, number))


def _handed_on(first: jax.Array, ends: jax.Array, reverse: bool) -> jax.Array:
    """The start of every piece (B, C, U): the end of the one processed before it."""
    if reverse:
        return jnp.concatenate([ends[:, 1:], first[:, None]], 1)
    return jnp.concatenate([first[:, None], ends[:, :-1]], 1)


def _folded(sweeps: Sweeps, p: Problem, starts: jax.Array) -> Problem:
    """The pieces as rows: B·C of them, K steps each. Steps that fill up the last piece are masked."""
    steps = p.inputs.shape[1]
    mask = p.mask
    if mask is None and steps % sweeps.pieces:
        mask = jnp.ones(p.inputs.shape[:2], bool)

    def per_row(x: jax.Array | None) -> jax.Array | None:
        return None if x is None else jnp.repeat(x, sweeps.pieces, axis=0)

    return dataclasses.replace(
        p,
        cell=_with_masks(p.cell, per_row),
        inputs=_fold(sweeps, p.inputs),
        initial_state=starts.reshape(-1, starts.shape[-1]),
        mask=None if mask is None else _fold(sweeps, mask),
        resets=None if p.resets is None else _fold(sweeps, p.resets),
        reset_state=per_row(p.reset_state),
    )


def _with_masks(cell: Cell, change: Callable[[jax.Array | None], jax.Array | None]) -> Cell:
    """The cell with other dropout masks."""
    d_x, d_h = change(cell.input_dropout_mask), change(cell.recurrent_dropout_mask)
    return dataclasses.replace(cell, input_dropout_mask=d_x, recurrent_dropout_mask=d_h)


def _last_steps(sweeps: Sweeps, x: Any, reverse: bool) -> Any:
    """Of (B·C, K, …), if there is such an array, the last part of the K steps in the order of processing."""
    if x is None:
        return None
    count = -(-x.shape[1] // sweeps.warm_up)
    return x[:, :count] if reverse else x[:, x.shape[1] - count :]


def _last_steps_of(sweeps: Sweeps, folded: Problem, reverse: bool) -> Problem:
    inputs, mask, resets = (_last_steps(sweeps, x, reverse) for x in (folded.inputs, folded.mask, folded.resets))
    return dataclasses.replace(folded, inputs=inputs, mask=mask, resets=resets)


def _fold(sweeps: Sweeps, x: jax.Array) -> jax.Array:
    """(B, T, …) as (B·C, K, …), with zeros or False after the last step where T is no multiple of C."""
    rows, steps = x.shape[:2]
    length = -(-steps // sweeps.pieces)
    padding = [(0, 0), (0, length * sweeps.pieces - steps)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, padding).reshape(rows * sweeps.pieces, length, *x.shape[2:])


def _unfold(x: jax.Array, p: Problem) -> jax.Array:
    """(B·C, K, …) as (B, T, …), without what fills up the last piece."""
    rows, steps = p.inputs.shape[:2]
    length = x.shape[0] // max(1, rows) * x.shape[1]
    return x.reshape(rows, length if rows else steps, *x.shape[2:])[:, :steps]
