"""All time steps of the simple RNN, forward and backward, on whole arrays.

With the state h_0 given, for t = 1 … T (or t = T … 1 with `reverse`; `tm1` is the step processed before t):

    s_t = r where reset_t, else h_tm1                the state that step t starts from
    z_t = (x_t ∘ d_x) W + b                          the projection of the input
    a_t = z_t + (s_t ∘ d_h) U                        the pre-activation
    h_t = act(a_t) where mask_t, else s_t            output and state are one

Backward, with g_t = ∂L/∂h_t from outside and c_t what the step processed after t hands back (c of the last step is the
final state's cotangent):

    e_t = g_t + c_t                                  the whole cotangent of h_t
    δ_t = act'(a_t) e_t where mask_t, else 0         of a_t
    q_t = (δ_t Uᵀ) ∘ d_h  (+ e_t where not mask_t)   of s_t
    c_tm1 = 0 where reset_t, else q_t;   ∂h_0 = c_0;   ∂r = Σ q_t where reset_t
    ∂U = Σ (s_t ∘ d_h)ᵀ δ_t   ∂W = Σ (x_t ∘ d_x)ᵀ δ_t   ∂b = Σ δ_t   ∂x_t = (δ_t Wᵀ) ∘ d_x
    ∂d_x = Σ (δ_t Wᵀ) ∘ x_t   ∂d_h = Σ (δ_t Uᵀ) ∘ s_t

Only δ_t and c_t are sequential; the rest are large matrix products over a chunk of steps at a time. What is kept from the
forward pass is inputs and outputs: act'(a_t) follows from h_t for most activations (`activations.from_output`), and for
the others a_t is recomputed, for a whole chunk in one product. Where only the final state is asked for, above
`CHECKPOINT_BYTES` not even the states are kept, but one in every chunk, and a chunk is run again before its backward pass
(Chen et al., "Training deep nets with sublinear memory cost", 2016).

Arrays stay in the caller's layout, batch-major or time-major (`time_axis` 1 or 0): a step is read and written in place with
dynamic slices, nothing is transposed or flipped. Outputs go to a buffer of their own: a loop that overwrites its own input in
place makes XLA copy the whole array at every step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_srnn import activations, forward_mode, loops, varying
from flax_srnn.cell import cell_step

CHUNK_ELEMENTS = 2**18
"""Elements of hidden state (B·K·U) in a chunk of K steps: 1 MB in float32, so that a chunk's arrays stay in cache."""
CHUNK_STEPS = 8
"""The least number of steps in a chunk, however large a step is."""
CHECKPOINT_BYTES = 32 * 2**20
"""States larger than this are recomputed in the backward pass unless they are the output anyway."""
KERNEL_ELEMENTS = 2**16
"""F·U from which the input kernel does not stay in cache from one step to the next: 256 KB in float32."""


class Operands(NamedTuple):
    """The arrays: inputs (B, T, F) or (T, B, F), flags always (B, T), states (B, U); `reset_state` goes with `resets`."""

    kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array | None
    inputs: jax.Array
    initial_state: jax.Array
    mask: jax.Array | None = None
    resets: jax.Array | None = None
    reset_state: jax.Array | None = None
    input_dropout_mask: jax.Array | None = None
    recurrent_dropout_mask: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """What is known when the program is traced.

    Attributes:
      activation: the function itself.
      reverse: from the last step to the first; every array keeps its time order all the same.
      time_axis: of inputs and outputs, 0 or 1.
      unroll: of the loops, as in `lax.scan`.
      precision: of the matrix products.
      record: what is returned beside the final state: all states, one state at the start of every chunk, or nothing.
      remat: whether states that are not returned are recomputed in the backward pass; None decides by size.
    """

    activation: Callable[[jax.Array], jax.Array]
    reverse: bool = False
    time_axis: int = 1
    unroll: int | bool = False
    precision: Any = None
    record: Literal["states", "checkpoints", "nothing"] = "states"
    remat: bool | None = None


@functools.partial(jax.jit, static_argnums=0)
def run(options: Options, operands: Operands) -> tuple[jax.Array, Any]:
    """(final state (B, U), record) by the chunked loop with the hand-written backward pass (reverse mode only)."""
    return _scan(options, reverse_mode_only(operands))


@functools.partial(jax.jit, static_argnums=0)
def plain(options: Options, operands: Operands) -> tuple[jax.Array, jax.Array]:
    """(final state, states) by `cell_step` under a plain scan: the definition, differentiable in every mode."""
    operands = varying.alike(operands)
    params = {"kernel": operands.kernel, "recurrent_kernel": operands.recurrent_kernel}
    if operands.bias is not None:
        params["bias"] = operands.bias
    step = functools.partial(
        cell_step,
        params,
        activation=options.activation,
        input_dropout_mask=operands.input_dropout_mask,
        recurrent_dropout_mask=operands.recurrent_dropout_mask,
        precision=options.precision,
    )

    def body(h: jax.Array, now: tuple[jax.Array, jax.Array | None, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        x, mask, reset = now
        start = h if operands.reset_state is None else _select(reset, operands.reset_state, h)
        # A masked step's x may be NaN: zeroed before the product, it leaves the gradients finite too.
        _, output = step(start, _select(mask, x, jnp.zeros_like(x)))
        h = _select(mask, output, start)
        return h, h

    time_first = (
        jnp.moveaxis(operands.inputs, options.time_axis, 0),
        None if operands.mask is None else operands.mask.T,
        None if operands.resets is None else operands.resets.T,
    )
    final, states = lax.scan(body, operands.initial_state, time_first, reverse=options.reverse, unroll=options.unroll)
    return final, jnp.moveaxis(states, 0, options.time_axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(options: Options, operands: Operands) -> tuple[jax.Array, Any]:
    final, states, checkpoints = forward(options, operands, empty_states(options, operands))
    return final, {"states": states, "checkpoints": checkpoints, "nothing": None}[options.record]


def empty_states(options: Options, operands: Operands) -> jax.Array | None:
    """Where all states go, if they are recorded."""
    return _buffer(operands, _layout(options, *_sizes(options, operands)), 0.0) if options.record == "states" else None


def forward(options: Options, operands: Operands, states: jax.Array | None) -> tuple[jax.Array, Any, Any]:
    """(final state, `states` overwritten with all states, one state at the start of every chunk), the last two if recorded."""

    def chunk(carry: tuple[jax.Array, Any], start: Any, count: int, _: None) -> tuple[tuple[jax.Array, Any], Any]:
        h, states = carry
        carry = _forward_chunk(options, operands, start, count, h, states, start)
        return carry, h if options.record == "checkpoints" else None

    steps, size = operands.inputs.shape[options.time_axis], _chunk_size(options, operands)
    (final, states), checkpoints = loops.for_chunks(
        chunk, (operands.initial_state, states), steps, size, options.reverse, options.unroll
    )
    return final, states, checkpoints


def _forward_chunk(
    options: Options, operands: Operands, start: Any, count: int, h: jax.Array, buffer: Any, place: Any
) -> tuple[jax.Array, Any]:
    """Runs steps [start, start + count) from state `h`; writes their states to `buffer`, if any, from `place` on."""
    axis, o = options.time_axis, operands
    x, mask, resets = _windows(options, o, start, count)
    hoisted = _hoists(options, operands)
    z: Any = _project(options, o, x, mask, axis) if hoisted else None

    def step(k: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        h, buffer = carry
        h, m = _rows(h), loops.at_step(mask, k, 1)
        if o.reset_state is not None:
            h = _select(loops.at_step(resets, k, 1), o.reset_state, h)
        z_t = loops.at_step(z, k, axis) if hoisted else _project(options, o, loops.at_step(x, k, axis), m, None)
        if o.bias is not None:
            z_t = z_t + o.bias[None]
        recurrent = h if o.recurrent_dropout_mask is None else h * o.recurrent_dropout_mask
        a = z_t + _product(recurrent, o.recurrent_kernel, options)
        h = _select(m, options.activation(a), h)
        if buffer is not None:
            buffer = loops.put_step(buffer, h, place + k, axis)
        return _carried(h), buffer

    h, buffer = loops.for_steps(step, (_carried(h), buffer), count, options.reverse, options.unroll)
    return _rows(h), buffer


def _windows(
    options: Options, o: Operands, start: Any, count: int
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Inputs, mask and resets of the steps [start, start + count)."""
    mask, resets = (None if flags is None else loops.window(flags, start, count, 1) for flags in (o.mask, o.resets))
    return loops.window(o.inputs, start, count, options.time_axis), mask, resets


def _project(options: Options, o: Operands, x: jax.Array, mask: jax.Array | None, axis: int | None) -> jax.Array:
    """(x ∘ d_x) W for a chunk of inputs (`axis`: of time) or for one step (`axis` None); b is added inside the loop."""
    return jnp.dot(_dropped(x, mask, o.input_dropout_mask, axis), o.kernel, precision=options.precision)


def _dropped(x: jax.Array, mask: jax.Array | None, dropout_mask: jax.Array | None, axis: int | None) -> jax.Array:
    """x ∘ d_x, zero at masked steps: what stands there may be NaN and must reach no product."""
    if mask is not None:
        mask = mask.T if axis == 0 else mask
        x = jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))
    if dropout_mask is not None:
        x = x * (dropout_mask if axis is None else jnp.expand_dims(dropout_mask, axis))
    return x


def _scan_forward(options: Options, operands: Operands) -> tuple[Any, Any]:
    kept = _recording(options, operands)
    # Bound again through `_scan`, so that what is kept has the hand-written derivative too, for gradients of gradients.
    final, record = _scan(kept, operands)
    return (final, record if kept == options else None), (operands, record)


def _scan_backward(options: Options, residuals: Any, cotangents: Any) -> tuple[Operands]:
    operands, record = residuals
    final_cotangent, states_cotangent = cotangents
    if options.record != "states":
        states_cotangent = None
    return (pullback(_recording(options, operands), operands, record, final_cotangent, states_cotangent),)


_scan.defvjp(_scan_forward, _scan_backward)


def _recording(options: Options, operands: Operands) -> Options:
    """The options under which the forward pass leaves behind what the backward pass needs."""
    if options.record != "nothing":
        return options
    recompute = options.remat
    if recompute is None:
        size = operands.initial_state.size * operands.inputs.shape[options.time_axis]
        recompute = isinstance(size, int) and size * operands.initial_state.dtype.itemsize > CHECKPOINT_BYTES
    return dataclasses.replace(options, record="checkpoints" if recompute else "states")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pullback(
    options: Options, o: Operands, record: Any, final_cotangent: jax.Array, states_cotangent: jax.Array | None
) -> Operands:
    """The cotangents of all operands (None for the flags)."""
    axis = options.time_axis
    batch, steps, units = _sizes(options, o)
    from_output = activations.from_output(options.activation)
    # Transposed once: contracting the other dimension inside the loop is up to three times slower.
    kernel_t, recurrent_kernel_t = o.kernel.T, o.recurrent_kernel.T
    stacked = jnp.concatenate([o.recurrent_kernel, o.kernel, *([] if o.bias is None else [o.bias[None]])])
    dot = functools.partial(jnp.dot, precision=options.precision)

    def chunk(carry: tuple[Any, ...], start: Any, count: int, checkpoint: Any) -> tuple[tuple[Any, ...], None]:
        c, sums, weights, inputs_cotangent = carry
        x, mask, resets = _windows(options, o, start, count)
        if options.record == "states":
            states = loops.window(record, start, count, axis)
            before = _state_before(options, o, record, start, count)
        else:
            before = checkpoint
            buffer = _buffer(o, _layout(options, batch, count, units), 0.0)
            _, states = _forward_chunk(options, o, start, count, before, buffer, 0)
        s = _shifted(states, before, axis, options.reverse)
        if resets is not None and o.reset_state is not None:
            flags = resets.T if axis == 0 else resets
            s = jnp.where(flags[..., None], jnp.expand_dims(o.reset_state, axis), s)
        # [s ∘ d_h, x ∘ d_x, 1]: one product with it in place of three. Made once and whole, or else XLA fuses the shift into
        # the transposing copy for that product, number by number.
        parts = [_dropped(s, None, o.recurrent_dropout_mask, axis), _dropped(x, mask, o.input_dropout_mask, axis)]
        parts += [] if o.bias is None else [jnp.ones_like(s[..., :1])]
        joined = lax.optimization_barrier(jnp.concatenate(parts, -1))
        if from_output:
            # The loop reads the states where they stand, without a copy of the chunk's.
            kept, place = (record, start) if options.record == "states" else (states, 0)
        else:
            kept, place = dot(joined, stacked), 0

        def step(k: jax.Array, carry: tuple[jax.Array, Any, jax.Array]) -> tuple[jax.Array, Any, jax.Array]:
            c, reset_cotangent, deltas = carry
            c, m, r = _rows(c), loops.at_step(mask, k, 1), loops.at_step(resets, k, 1)
            e = c if states_cotangent is None else c + loops.at_step(states_cotangent, start + k, axis)
            y = loops.at_step(kept, place + k, axis)
            delta = from_output(y, e) if from_output else jax.vjp(options.activation, y)[1](e)[0]
            zero = jnp.zeros_like(e)
            # Used twice below: without the barrier XLA computes it twice.
            delta = lax.optimization_barrier(_select(m, delta, zero))
            back = _product(delta, recurrent_kernel_t, options)
            if o.recurrent_dropout_mask is not None:
                back = back * o.recurrent_dropout_mask
            if m is not None:
                back = back + _select(m, zero, e)
            if r is not None:
                reset_cotangent = reset_cotangent + _select(r, back, zero)
                back = _select(r, zero, back)
            return _carried(back), reset_cotangent, loops.put_step(deltas, delta, k, axis)

        deltas = _buffer(o, _layout(options, batch, count, units), 1.0)
        c, reset_cotangent, deltas = loops.for_steps(
            step, (_carried(c), sums.reset_state, deltas), count, not options.reverse, options.unroll
        )
        c = _rows(c)
        projected_back = dot(deltas, kernel_t)
        weights = weights + _contract(joined, deltas, options)
        sums = sums._replace(reset_state=reset_cotangent)
        if o.input_dropout_mask is not None:
            d = (projected_back * _dropped(x, mask, None, axis)).sum(axis)
            sums = sums._replace(input_dropout_mask=sums.input_dropout_mask + d)
        if o.recurrent_dropout_mask is not None:
            d = (dot(deltas, recurrent_kernel_t) * s).sum(axis)
            sums = sums._replace(recurrent_dropout_mask=sums.recurrent_dropout_mask + d)
        inputs_cotangent = lax.dynamic_update_slice_in_dim(
            inputs_cotangent, _dropped(projected_back, None, o.input_dropout_mask, axis), start, axis
        )
        return (c, sums, weights, inputs_cotangent), None

    others: Any = dict.fromkeys(("kernel", "recurrent_kernel", "bias", "inputs", "initial_state", "mask", "resets"))
    sums = jax.tree.map(jnp.zeros_like, o._replace(**others))
    (c, sums, weights, inputs_cotangent), _ = loops.for_chunks(
        chunk,
        (final_cotangent, sums, jnp.zeros_like(stacked), jnp.zeros_like(o.inputs)),
        steps,
        _chunk_size(options, o),
        not options.reverse,
        options.unroll,
        record if options.record == "checkpoints" else (None, None),
    )
    recurrent_kernel, kernel, bias = jnp.split(weights, (units, units + o.kernel.shape[0]))
    return sums._replace(
        kernel=kernel,
        recurrent_kernel=recurrent_kernel,
        bias=None if o.bias is None else bias[0],
        inputs=inputs_cotangent,
        initial_state=c,
    )


def _pullback_forward(options: Options, o: Operands, record: Any, *cotangents: Any) -> tuple[Operands, Any]:
    return pullback(options, o, record, *cotangents), (o, cotangents)


def _pullback_backward(options: Options, residuals: Any, outer: Operands) -> tuple[Any, ...]:
    """Second derivatives: those of the same function of operands and cotangents, written with the plain scan."""
    o, cotangents = residuals
    differentiable = o._replace(mask=None, resets=None)

    def reference(o_: Operands, final_cotangent: jax.Array, states_cotangent: jax.Array | None) -> Operands:
        (_, states), vjp = jax.vjp(lambda arrays: plain(options, arrays._replace(mask=o.mask, resets=o.resets)), o_)
        return vjp((final_cotangent, jnp.zeros_like(states) if states_cotangent is None else states_cotangent))[0]

    _, vjp = jax.vjp(reference, differentiable, *cotangents)
    operands_cotangent, *others = vjp(outer)
    return operands_cotangent, None, *others


pullback.defvjp(_pullback_forward, _pullback_backward)


def _state_before(options: Options, o: Operands, states: jax.Array, start: Any, count: int) -> jax.Array:
    """The state that the chunk [start, start + count) starts from, out of all states."""
    steps = states.shape[options.time_axis]
    place, first = (start + count, start + count == steps) if options.reverse else (start - 1, start == 0)
    if isinstance(first, bool) and first:
        return o.initial_state
    # Outside the array only for the first chunk, where the slice is not used.
    return jnp.where(first, o.initial_state, loops.at_step(states, jnp.clip(place, 0, steps - 1), options.time_axis))


def _shifted(states: jax.Array, before: jax.Array, axis: int, reverse: bool) -> jax.Array:
    """The state before every step of a chunk, from the state after every step."""
    before = jnp.expand_dims(before, axis)
    count = states.shape[axis]
    if reverse:
        return jnp.concatenate([lax.slice_in_dim(states, 1, count, axis=axis), before], axis)
    return jnp.concatenate([before, lax.slice_in_dim(states, 0, count - 1, axis=axis)], axis)


def _contract(left: jax.Array, right: jax.Array, options: Options) -> jax.Array:
    """Σ over batch and time of leftᵀ right, as one product of matrices: over two dimensions XLA may transpose a copy."""
    left, right = (x.reshape(-1, x.shape[-1]) for x in (left, right))
    return lax.dot_general(left, right, (((0,), (0,)), ((), ())), precision=options.precision)


def reverse_mode_only(operands: Operands) -> Operands:
    """The operands, ready for a custom_vjp function and marked so that forward mode ends in an error in the user's words."""
    return jax.tree.map(forward_mode.refused, varying.alike(operands))


# --- shapes and chunks -------------------------------------------------------------------------------------------------


def _chunk_size(options: Options, operands: Operands) -> int:
    """K: chunks as large as `CHUNK_ELEMENTS` allows and as equal as can be, so that hardly any rest is left."""
    batch, steps, units = _sizes(options, operands)
    if not isinstance(steps, int):
        return steps
    elements = batch * units if isinstance(batch, int) else units
    chunks = _ceil(steps, max(CHUNK_STEPS, CHUNK_ELEMENTS // max(1, elements)))
    return max(1, _ceil(steps, max(1, chunks)))


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _hoists(options: Options, operands: Operands) -> bool:
    """Whether the projection of the inputs is one product for the whole chunk, before the loop.

    It is where the kernel is too large to stay in cache: several rows' steps then share one reading of it. A smaller kernel,
    and a single row, lose nothing in the loop, and the chunk's projection is neither written nor read again.
    """
    batch, _, units = _sizes(options, operands)
    return batch != 1 and operands.inputs.shape[-1] * units >= KERNEL_ELEMENTS


def _sizes(options: Options, operands: Operands) -> tuple[int, int, int]:
    """B, T, U; B or T may be symbolic (`jax.export`), then decisions by size are skipped."""
    return operands.initial_state.shape[0], operands.inputs.shape[options.time_axis], operands.kernel.shape[1]


def _layout(options: Options, batch: int, steps: int, width: int) -> tuple[int, int, int]:
    return (batch, steps, width) if options.time_axis == 1 else (steps, batch, width)


def _product(rows: jax.Array, matrix: jax.Array, options: Options) -> jax.Array:
    return _rows(jnp.dot(_carried(rows), matrix, precision=options.precision))


def _carried(rows: jax.Array) -> jax.Array:
    """What a loop carries from step to step: a single row as a vector, which XLA would otherwise copy into a column."""
    return rows[0] if rows.shape[0] == 1 else rows


def _rows(carried: jax.Array) -> jax.Array:
    return carried[None] if carried.ndim == 1 else carried


def _select(flag: jax.Array | None, x: jax.Array, y: jax.Array) -> jax.Array:
    """x where the (B,) flag is set, else y; without flags, x."""
    return x if flag is None else jnp.where(flag[:, None], x, y)


def _buffer(operands: Operands, shape: tuple[int, ...], fill: float) -> jax.Array:
    """An array to be overwritten. Two of one program have different values to begin with, or XLA makes one and copies it."""
    return varying.like(jnp.full(shape, fill, operands.initial_state.dtype), operands.initial_state)
