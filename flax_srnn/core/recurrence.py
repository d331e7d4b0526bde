"""All time steps of the simple RNN, forward and backward, on whole arrays.

With the state h_0 given, for t = 1 … T (or t = T … 1 with `reverse`; `tm1` is the step processed before t):

    s_t = r where reset_t, else h_tm1                the state that step t starts from
    z_t = (x_t ∘ d_x) W                              the projection of the input
    a_t = z_t + b + (s_t ∘ d_h) U                    the pre-activation
    h_t = act(a_t) where mask_t, else s_t            output and state are one

which is `cell.project` and `cell.advance`; both loops below run these.

Backward, with g_t = ∂L/∂h_t from outside and c_t what the step processed after t hands back (c of the last step is the
final state's cotangent):

    e_t = g_t + c_t                                  the whole cotangent of h_t
    δ_t = act'(a_t) e_t where mask_t, else 0         of a_t
    q_t = (δ_t Uᵀ) ∘ d_h  (+ e_t where not mask_t)   of s_t
    c_tm1 = 0 where reset_t, else q_t;   ∂h_0 = c_0;   ∂r = Σ q_t where reset_t
    ∂U = Σ (s_t ∘ d_h)ᵀ δ_t   ∂W = Σ (x_t ∘ d_x)ᵀ δ_t   ∂b = Σ δ_t   ∂x_t = (δ_t Wᵀ) ∘ d_x
    ∂d_x = Σ (δ_t Wᵀ) ∘ x_t   ∂d_h = Σ (δ_t Uᵀ) ∘ s_t
    ∂v = Σ (∂act(a_t)/∂v)ᵀ e_t where mask_t          of an array v that act closes over

Only δ_t and c_t are sequential; the rest are large matrix products over a block of steps at a time. What is kept from the
forward pass is inputs and outputs: act'(a_t) follows from h_t for most activations (`activations.from_output`), and for
the others a_t is recomputed, for a whole block in one product. Where only the final state is asked for, above
`Tuning.checkpoint_bytes` not even the states are kept, but one in every block, and a block is run again before its backward
pass (Chen et al., "Training deep nets with sublinear memory cost", 2016).

Arrays stay in the caller's layout, batch-major or time-major (`time_axis` 1 or 0): a step is read and written in place with
dynamic slices, nothing is transposed or flipped. Outputs go to a buffer of their own: a loop that overwrites its own input in
place makes XLA copy the whole array at every step (JAX 0.10 and 0.12; `tests/test_performance.py`: no loop touches a whole
array).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_srnn import activations, validation
from flax_srnn.core import blocks, mesh_axes, products, reverse_only
from flax_srnn.core.cell import HARMLESS, Cell, activate, advance, blanked, project, select, sheltered
from flax_srnn.core.parts import Parts, empty_states, flags_over_time
from flax_srnn.core.problem import Problem
from flax_srnn.core.row_major import row_major
from flax_srnn.core.tuning import MEASURED, Tuning
from flax_srnn.dtypes import at_least_float32

__all__ = ["Autodiff", "Record", "Scan", "forward", "plain", "pullback", "reverse_mode_only"]

Record = Literal["states", "checkpoints", "nothing"]
"""What the forward pass leaves behind: all states, one state at the start of every block, or nothing."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """The default implementation: a loop over blocks of steps with the hand-written backward pass of this file.

    Gradients are reverse-mode, of any order; forward mode ends in an error that names `Autodiff`.

    Args:
      remat: with return_sequences=False, whether training recomputes the states instead of storing them; None: when they
        take more than 32 MiB.
      tuning: how the work is cut into blocks.

    Raises:
      TypeError: `remat` is not True, False or None.

    >>> from flax_srnn import simple_rnn
    >>> params = {"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.ones((1, 1))}
    >>> simple_rnn(params, jnp.ones((3, 1)), activation=None, implementation=Scan(remat=True))[0].tolist()
    [3.0]
    """

    remat: bool | None = None
    tuning: Tuning = dataclasses.field(default=MEASURED, repr=False)

    def __post_init__(self) -> None:
        if self.remat is not None:
            validation.flag("remat", self.remat)

    def check(self, problem: Problem) -> None:
        """Every problem can be solved."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(self, problem: Problem) -> tuple[jax.Array, jax.Array | None]:
        """(final state (B, U), states in the layout of the inputs or None)."""
        p = reverse_mode_only(self.tuning.widened(problem))
        if p.return_states:
            return forward(self, "states", p, empty_states(p))
        return forward(self, "nothing", p, None)


@dataclasses.dataclass(frozen=True)
class Autodiff:
    """The plain scan over one step, differentiated by JAX in every mode: for `jvp`, `jacfwd` and `hessian`.

    >>> from flax_srnn import simple_rnn
    >>> params = {"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.ones((1, 1))}
    >>> last = lambda x: simple_rnn(params, x, activation=None, implementation=Autodiff())[0]
    >>> jax.jacfwd(last)(jnp.ones((3, 1))).ravel().tolist()
    [1.0, 1.0, 1.0]
    """

    def check(self, problem: Problem) -> None:
        """Every problem can be solved."""

    def run(self, problem: Problem) -> tuple[jax.Array, jax.Array]:
        """(final state (B, U), states in the layout of the inputs)."""
        return plain(problem)


@jax.jit
def plain(p: Problem) -> tuple[jax.Array, jax.Array]:
    """(final state, states) step by step: the definition, differentiable in every mode."""
    p = _alike(p)

    def body(h: jax.Array, now: tuple[jax.Array, jax.Array | None, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        x, used, reset = now
        h = advance(sheltered(p.cell, used), h, project(p.cell, blanked(x, used)), used, reset, p.reset_state)
        return h, h

    inputs = p.inputs.astype(p.initial_state.dtype)
    time_first = (jnp.moveaxis(inputs, p.time_axis, 0), flags_over_time(p.mask, 0), flags_over_time(p.resets, 0))
    final, states = lax.scan(body, p.initial_state, time_first, reverse=p.reverse, unroll=p.unroll)
    return final, jnp.moveaxis(states, 0, p.time_axis).astype(p.inputs.dtype)


def _tuned_where_it_runs(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(how, record, p, *others)`, which `jax.vmap` runs with what `Tuning` says for many copies of p, and a platform
    with what it says for that."""

    def on_platform(how: Scan, record: Record, *arguments: Any) -> Any:
        here = functools.partial(function, how, record)
        if (tuning := how.tuning.elsewhere(same_blocks=record == "checkpoints")) is None:
            return here(*arguments)
        elsewhere = functools.partial(function, dataclasses.replace(how, tuning=tuning), record)
        return lax.platform_dependent(*arguments, cpu=here, default=elsewhere)

    @functools.wraps(function)
    def tuned(how: Scan, record: Record, *arguments: Any) -> Any:
        one = jax.custom_batching.custom_vmap(functools.partial(on_platform, how, record))

        @one.def_vmap
        def _(copies: int, batched: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
            tuning = how.tuning.under_vmap(copies, shared=not batched[0].cell.recurrent_kernel)
            many = functools.partial(on_platform, dataclasses.replace(how, tuning=tuning), record)
            results = jax.vmap(many, jax.tree.map(lambda each: 0 if each else None, tuple(batched)))(*arguments)
            return results, jax.tree.map(lambda _: True, results)

        return one(*arguments)

    return tuned


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@_tuned_where_it_runs
def forward(how: Scan, record: Record, p: Problem, states: jax.Array | None) -> tuple[jax.Array, Any]:
    """(final state, what is recorded); `states`, None unless they are recorded, is an array to be overwritten with them."""
    parts = Parts(p, how.tuning)

    def block(carry: tuple[jax.Array, Any], start: Any, count: int, _: None) -> tuple[tuple[jax.Array, Any], Any]:
        h, states = carry
        kept = h if record == "checkpoints" else None
        here, begin = parts.block(start, count)
        if states is None or not parts.copied:
            return _forward_block(how, here, begin, count, h, states, begin), kept
        h, made = _forward_block(how, here, begin, count, h, empty_states(here, count), begin)
        return (h, parts.put(states, made, start)), kept

    (final, states), checkpoints = blocks.for_blocks(
        block, (p.initial_state, parts.pack(states)), p.sizes[1], how.tuning.block(p), p.reverse, p.unroll
    )
    return final, {"states": parts.unpack(states), "checkpoints": checkpoints, "nothing": None}[record]


def _forward_block(
    how: Scan, p: Problem, start: Any, count: int, h: jax.Array, buffer: Any, place: Any
) -> tuple[jax.Array, Any]:
    """Runs steps [start, start + count) from state `h`; writes their states to `buffer`, if any, from `place` on."""
    axis = p.time_axis
    x, mask, resets = _windows(p, start, count)
    cell, reset_state = _carried_cell(how, p), _carried(p.reset_state)
    z: Any = None
    if how.tuning.hoists(p):
        z = row_major(project(_for_block(p.cell, axis), blanked(x, flags_over_time(mask, axis))))

    def step(k: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        h, buffer = carry
        now = functools.partial(blocks.at_step, k=k)
        used, reset, x_t = _carried(now(mask, axis=1)), _carried(now(resets, axis=1)), _carried(now(x, axis=axis))
        z_t = project(cell, blanked(x_t, used)) if z is None else _carried(now(z, axis=axis))
        h = advance(cell, h, z_t, used, reset, reset_state)
        if buffer is not None:
            buffer = blocks.put_step(buffer, _rows(h), place + k, axis)
        return h, buffer

    h, buffer = blocks.for_steps(step, (_carried(h), buffer), count, p.reverse, p.unroll)
    return _rows(h), buffer


def _windows(p: Problem, start: Any, count: int) -> tuple[jax.Array, Any, Any]:
    """Inputs, mask and resets of the steps [start, start + count)."""
    mask, resets = (None if flags is None else blocks.window(flags, start, count, 1) for flags in (p.mask, p.resets))
    return blocks.window(p.inputs, start, count, p.time_axis), mask, resets


def _forward_rule(how: Scan, record: Record, p: Problem, states: jax.Array | None) -> tuple[Any, Any]:
    kept = _kept(how, record, p)
    if kept == "states" and states is None:
        states = empty_states(p)
    # Bound again through `forward`, so that what is kept has the hand-written derivative too, for gradients of gradients.
    final, recorded = forward(how, kept, p, states)
    return (final, recorded if kept == record else None), (p, recorded)


def _backward_rule(how: Scan, record: Record, residuals: Any, cotangents: Any) -> tuple[Problem, None]:
    p, recorded = residuals
    final_cotangent, states_cotangent = cotangents
    if record != "states":
        states_cotangent = None
    return pullback(how, _kept(how, record, p), p, recorded, final_cotangent, states_cotangent), None


forward.defvjp(_forward_rule, _backward_rule)


def _kept(how: Scan, record: Record, p: Problem) -> Record:
    """What the forward pass leaves behind for the backward pass."""
    if record != "nothing":
        return record
    recompute = how.remat
    if recompute is None:
        size = p.initial_state.size * p.sizes[1]
        recompute = isinstance(size, int) and size * p.inputs.dtype.itemsize > how.tuning.checkpoint_bytes
    return "checkpoints" if recompute else "states"


class _Sums(NamedTuple):
    """Cotangents that add up over time inside or beside the loop; None where there is no such array."""

    reset_state: jax.Array | None
    input_dropout_mask: jax.Array | None
    recurrent_dropout_mask: jax.Array | None
    held: tuple[jax.Array | None, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@_tuned_where_it_runs
def pullback(
    how: Scan, record: Record, p: Problem, recorded: Any, final_cotangent: jax.Array, states_cotangent: jax.Array | None
) -> Problem:
    """The cotangents of all arrays of the problem that have one, from what was recorded, "states" or "checkpoints"."""
    cell = p.cell
    held = p.floating.cell.held
    of_held = jax.tree.leaves(held) != []
    _, steps, units = p.sizes
    parts = Parts(p, how.tuning)
    all_states, all_cotangents = parts.pack(recorded) if record == "states" else None, parts.pack(states_cotangent)
    from_output = activations.from_output(cell.activation)
    # Transposed once: contracting the other dimension inside the loop is up to three times slower (JAX 0.10).
    kernel_t, recurrent_kernel_t = cell.kernel.T, cell.recurrent_kernel.T
    stacked = jnp.concatenate([cell.recurrent_kernel, cell.kernel, *([] if cell.bias is None else [cell.bias[None]])])
    # A step's products, and those of a whole block, which may be a single step.
    by_step = record == "states" and how.tuning.gathers_by_step(p)
    step_dot = products.summed if by_step else how.tuning.product(p)
    dot = products.summed if by_step else products.library
    contracted = products.contracted_by_sum if by_step else products.contracted
    d_x, d_h = cell.input_dropout_mask, cell.recurrent_dropout_mask

    def block(carry: tuple[Any, ...], start: Any, count: int, checkpoint: Any) -> tuple[tuple[Any, ...], None]:
        c, sums, weights, inputs_cotangent = carry
        here, begin = parts.block(start, count)
        axis = here.time_axis
        kept, g = parts.take(all_states, start, count), parts.take(all_cotangents, start, count)
        x, mask, resets = _windows(here, begin, count)
        x = blanked(x, flags_over_time(mask, axis))
        if record == "states":
            states, place = blocks.window(kept, begin, count, axis), begin
            before = _state_before(parts, all_states, start, count)
        else:
            before, place = checkpoint, 0
            _, states = _forward_block(how, here, begin, count, before, empty_states(here, count), 0)
            kept = states
        s = _shifted(states, before, axis, p.reverse)
        if p.reset_state is not None:
            s = select(flags_over_time(resets, axis), jnp.expand_dims(p.reset_state, axis), s)
        # [s ∘ d_h, x ∘ d_x, 1]: one product with it in place of three. Made once and whole, or else XLA fuses the shift into
        # the transposing copy for that product, number by number (JAX 0.10).
        columns = [_times(s, d_h, axis), _times(x, d_x, axis)]
        columns += [] if cell.bias is None else [jnp.ones_like(s[..., :1])]
        joined = row_major(lax.optimization_barrier(jnp.concatenate(columns, -1)))
        # The loop reads the states where they stand, without a copy of the block's.
        if not from_output:
            kept, place = dot(joined, stacked, cell.precision), 0

        def step(k: jax.Array, carry: tuple[jax.Array, Any, jax.Array, Any]) -> tuple[jax.Array, Any, jax.Array, Any]:
            c, reset_cotangent, deltas, wholes = carry
            c, m, r = _rows(c), blocks.at_step(mask, k, 1), blocks.at_step(resets, k, 1)
            e = c if g is None else c + blocks.at_step(g, begin + k, axis)
            y = blocks.at_step(kept, place + k, axis)
            delta = from_output(y, e) if from_output else jax.vjp(functools.partial(activate, cell), y)[1](e)[0]
            zero = jnp.zeros_like(e)
            # Used twice below: without the barrier XLA computes it twice (JAX 0.10).
            delta = lax.optimization_barrier(delta if m is None else select(m, delta, zero))
            back = _rows(step_dot(_carried(delta), recurrent_kernel_t, cell.precision))
            if d_h is not None:
                back = back * d_h
            if m is not None:
                back = back + select(m, zero, e)
            if r is not None:
                reset_cotangent = reset_cotangent + select(r, back, zero)
                back = select(r, zero, back)
            if wholes is not None:
                wholes = blocks.put_step(wholes, e, k, axis)
            return _carried(back), reset_cotangent, blocks.put_step(deltas, delta, k, axis), wholes

        wholes = empty_states(here, count, 2.0) if of_held else None
        c, reset_cotangent, deltas, wholes = blocks.for_steps(
            step,
            (_carried(c), sums.reset_state, empty_states(here, count, 1.0), wholes),
            count,
            not p.reverse,
            p.unroll,
        )
        c, deltas = _rows(c), row_major(deltas)
        projected_back = dot(deltas, kernel_t, cell.precision)
        weights = weights + contracted(joined, deltas, cell.precision)
        sums = sums._replace(reset_state=reset_cotangent)
        if d_x is not None:
            d = (projected_back * x).sum(axis)
            sums = sums._replace(input_dropout_mask=sums.input_dropout_mask + d)
        if d_h is not None:
            d = (dot(deltas, recurrent_kernel_t, cell.precision) * s).sum(axis)
            sums = sums._replace(recurrent_dropout_mask=sums.recurrent_dropout_mask + d)
        if of_held:
            used = flags_over_time(mask, axis)
            d = _held_cotangents(here, blanked(kept, used, HARMLESS), blanked(wholes, used))
            sums = sums._replace(held=jax.tree.map(jnp.add, sums.held, d))
        inputs_cotangent = parts.put(inputs_cotangent, _times(projected_back, d_x, axis), start)
        return (c, sums, weights, inputs_cotangent), None

    (c, sums, weights, inputs_cotangent), _ = blocks.for_blocks(
        block,
        (
            final_cotangent,
            jax.tree.map(lambda x: jnp.zeros_like(x, _wide(x)), _Sums(p.reset_state, d_x, d_h, held)),
            jnp.zeros_like(stacked),
            parts.pack(jnp.zeros_like(p.inputs)),
        ),
        steps,
        1 if by_step else how.tuning.block(p),
        not p.reverse,
        p.unroll,
        recorded if record == "checkpoints" else (None, None),
    )
    recurrent_kernel, kernel, bias = jnp.split(weights, (units, units + cell.kernel.shape[0]))
    return dataclasses.replace(
        p.floating,
        cell=dataclasses.replace(
            cell,
            kernel=kernel,
            recurrent_kernel=recurrent_kernel,
            bias=None if cell.bias is None else bias[0],
            input_dropout_mask=sums.input_dropout_mask,
            recurrent_dropout_mask=sums.recurrent_dropout_mask,
            held=jax.tree.map(lambda total, x: total.astype(x.dtype), sums.held, held),
        ),
        inputs=parts.unpack(inputs_cotangent),
        initial_state=c,
        reset_state=sums.reset_state,
    )


def _pullback_forward(how: Scan, record: Record, p: Problem, recorded: Any, *cotangents: Any) -> tuple[Problem, Any]:
    return pullback(how, record, p, recorded, *cotangents), (p, cotangents)


def _pullback_backward(how: Scan, record: Record, residuals: Any, outer: Problem) -> tuple[Any, ...]:
    """Second derivatives: those of the same function of problem and cotangents, written with the plain scan."""
    p, cotangents = residuals

    def reference(arrays: Problem, final_cotangent: jax.Array, states_cotangent: jax.Array | None) -> Problem:
        (_, states), vjp = jax.vjp(lambda arrays: plain(p.completed(arrays)), arrays)
        return vjp((final_cotangent, jnp.zeros_like(states) if states_cotangent is None else states_cotangent))[0]

    _, vjp = jax.vjp(reference, p.floating, *cotangents)
    problem_cotangent, *others = vjp(outer)
    return problem_cotangent, None, *others


pullback.defvjp(_pullback_forward, _pullback_backward)


def _held_cotangents(p: Problem, a: jax.Array, e: jax.Array) -> tuple[jax.Array | None, ...]:
    """The cotangents of what the activation holds, from its arguments in a block of steps and the cotangents of its values."""

    def values(arrays: Problem) -> jax.Array:
        return jax.vmap(functools.partial(activate, p.completed(arrays).cell), p.time_axis, p.time_axis)(a)

    return jax.vjp(values, p.floating)[1](e)[0].cell.held


def _state_before(parts: Parts, states: Any, start: Any, count: int) -> jax.Array:
    """The state that the block [start, start + count) starts from, out of all states."""
    p = parts.problem
    steps = p.sizes[1]
    place, first = (start + count, start + count == steps) if p.reverse else (start - 1, start == 0)
    if isinstance(first, bool) and first:
        return p.initial_state
    # Outside the array only for the first block, where the slice is not used.
    return jnp.where(first, p.initial_state, parts.step(states, jnp.clip(place, 0, steps - 1)))


def _shifted(states: jax.Array, before: jax.Array, axis: int, reverse: bool) -> jax.Array:
    """The state before every step of a block, from the state after every step."""
    before = jnp.expand_dims(before, axis)
    count = states.shape[axis]
    if reverse:
        return jnp.concatenate([lax.slice_in_dim(states, 1, count, axis=axis), before], axis)
    return jnp.concatenate([before, lax.slice_in_dim(states, 0, count - 1, axis=axis)], axis)


def reverse_mode_only(p: Problem) -> Problem:
    """The problem, ready for a custom_vjp function and marked so that forward mode ends in an error in the user's words."""
    return jax.tree.map(reverse_only.marked, _alike(p))


def _alike(p: Problem) -> Problem:
    """The problem, its arrays varying over the same mesh axes; but the activation was traced for what it holds as that is."""
    alike = mesh_axes.alike(p)
    return dataclasses.replace(alike, cell=dataclasses.replace(alike.cell, held=p.cell.held))


# --- shapes and blocks -------------------------------------------------------------------------------------------------


def _wide(x: jax.Array) -> Any:
    """The dtype in which cotangents of `x` add up: what an activation holds may be of half precision."""
    return at_least_float32(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype


def _carried(rows: Any) -> Any:
    """What a loop carries from step to step: a single row as a vector, which XLA would otherwise copy into a column (JAX
    0.10; the test that a step is few operations)."""
    return rows[0] if rows is not None and rows.shape[0] == 1 else rows


def _rows(carried: jax.Array) -> jax.Array:
    return carried[None] if carried.ndim == 1 else carried


def _carried_cell(how: Scan, p: Problem) -> Cell:
    """The cell for rows as the loop carries them."""
    d_x, d_h = _carried(p.cell.input_dropout_mask), _carried(p.cell.recurrent_dropout_mask)
    return dataclasses.replace(
        p.cell, input_dropout_mask=d_x, recurrent_dropout_mask=d_h, product=how.tuning.product(p)
    )


def _for_block(cell: Cell, axis: int) -> Cell:
    """The cell for the inputs of a whole block."""
    d_x = cell.input_dropout_mask
    return cell if d_x is None else dataclasses.replace(cell, input_dropout_mask=jnp.expand_dims(d_x, axis))


def _times(x: jax.Array, dropout_mask: jax.Array | None, axis: int) -> jax.Array:
    """x of a whole block, dropped where there is a mask."""
    return x if dropout_mask is None else x * jnp.expand_dims(dropout_mask, axis)
