"""A whole sequence through the simple RNN: layouts, masks and lengths, direction, what is returned.

`simple_rnn` checks and casts its arguments, brings them to the layout of `recurrence` and back. The rule at masked steps
is one for every implementation: the state stays, and the output is the state, so that output == state always and a
sequence processed in pieces equals the sequence processed whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flax_srnn import activations, chunked, recurrence, validation
from flax_srnn.dtypes import at_least_float32


def simple_rnn(
    params: Mapping[str, Any],
    inputs: ArrayLike,
    *,
    initial_state: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    seq_lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    activation: Any = "tanh",
    go_backwards: bool = False,
    keep_order: bool = False,
    zero_output_for_mask: bool = False,
    unroll: bool | int = False,
    time_major: bool = False,
    input_dropout_mask: ArrayLike | None = None,
    recurrent_dropout_mask: ArrayLike | None = None,
    precision: jax.lax.PrecisionLike = None,
    implementation: str | None = None,
    return_sequences: bool = True,
    reset_state: ArrayLike | None = None,
    remat: bool | None = None,
    chunks: int | None = None,
    tol: float | None = None,
    max_sweeps: int | None = None,
    return_sweeps: bool = False,
) -> tuple[jax.Array, ...]:
    """A simple RNN over a whole sequence; without options it equals this loop::

        for t in range(T):
            state, outputs[:, t] = cell_step(params, state, inputs[:, t])

    Args:
      params: "kernel" (F, U), "recurrent_kernel" (U, U), optionally "bias" (U,) and "initial_state" (U,).
      inputs: (*batch, T, F), or (T, *batch, F) with `time_major`; any number of batch dimensions, none included.
      initial_state: (*batch, U); default `params["initial_state"]` in every row, or zeros.
      mask: (*batch, T), True = use the step. A masked step leaves the state as it is, and its output is that state.
      seq_lengths: (*batch,) integers from 0 to T: steps from there on are masked. With `mask`, both apply.
      resets: (*batch, T), True = the state is set back to the initial state before this step is processed, masked or not.
      activation: a Keras name, a Keras config, a callable, or None (linear).
      go_backwards: process from the last step to the first, padding included, and return outputs in that order.
      keep_order: with `go_backwards`, return outputs in the order of `inputs`.
      zero_output_for_mask: outputs at masked steps are 0; the state is not touched.
      unroll: of the loop: False, True, or the number of steps an iteration takes. Results are the same.
      time_major: time is the first dimension of inputs and outputs; mask, resets and lengths stay batch-first.
      input_dropout_mask, recurrent_dropout_mask: exactly (*batch, F) and (*batch, U), see `dropout_masks`.
      precision: of the matrix products, as in `jax.numpy.dot`.
      implementation: "scan" has the hand-written backward pass (reverse-mode gradients of any order); "autodiff" is the
        plain scan, for `jvp`, `jacfwd` and `hessian`; "chunked" works on many pieces of the sequence at once, see the
        module `chunked` for when that pays. None chooses "scan". A named one runs or raises.
      return_sequences: with False, `outputs` is only the last output (*batch, U), and no array of all states is made.
      reset_state: (*batch, U): what `resets` set back to; default the initial state. Whoever processes a sequence in
        pieces, each starting from the last one's final state, passes the first piece's initial state.
      remat: with return_sequences=False, whether training recomputes the states instead of storing them; None: when they
        take more than 32 MiB.
      chunks, tol, max_sweeps: of the implementation "chunked": into how many pieces it cuts the sequence, how closely they
        must agree (relative to states of size 1), and after how many sweeps it gives up, which makes outputs and gradients
        NaN. Default up to 32 chunks, 1e-6, and as many sweeps as chunks, which always suffice.
      return_sweeps: return the number of sweeps of the forward pass as well (the backward pass takes about as many).

    Returns:
      (final_state (*batch, U), outputs in the layout of `inputs`), with `return_sweeps` also an int32 number. The dtype is
      the common one of params, inputs and initial state; bfloat16 and float16 are computed in float32 and rounded once, at
      the end.

    Raises:
      TypeError: an argument is no array of real numbers, `params` no mapping, an option of the wrong type.
      ValueError: a shape does not fit (nothing is broadcast), lengths out of range (where their values are concrete), an
        unknown activation or implementation, `unroll` with a symbolic number of steps.

    Source: Keras `SimpleRNN`; `resets` as in the recurrent policies of Haiku's `ResetCore`.

    >>> params = {"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.ones((1, 1))}
    >>> final_state, outputs = simple_rnn(params, jnp.array([[1.0], [2.0], [3.0]]), activation=None, go_backwards=True)
    >>> outputs.ravel().tolist(), final_state.tolist()
    ([3.0, 5.0, 6.0], [6.0])
    """
    w = validation.weights(params)
    flags = {"go_backwards": go_backwards, "keep_order": keep_order, "zero_output_for_mask": zero_output_for_mask}
    flags |= {"time_major": time_major, "return_sequences": return_sequences, "return_sweeps": return_sweeps}
    for name, value in (flags if remat is None else flags | {"remat": remat}).items():
        validation.flag(name, value)
    validation.unroll(unroll)
    validation.implementation(implementation)
    validation.sweeping(implementation, chunks, tol, max_sweeps, return_sweeps)
    validation.precision(precision)
    function = activations.get(activation)
    inputs, batch, steps = validation.sequence(inputs, time_major=time_major)
    validation.unrollable(unroll, steps)
    in_features, units = w.kernel.shape
    validation.features(inputs, in_features)

    def row_vectors(name: str, value: ArrayLike | None, width: int, letters: str) -> jax.Array | None:
        return None if value is None else validation.shaped(name, value, (*batch, width), f"(*batch, {letters})")

    used = used_steps(mask, seq_lengths, batch, steps)
    reset_flags = validation.step_flags("resets", resets, batch, steps)
    initial = row_vectors("initial_state", initial_state, units, "U")
    reset = row_vectors("reset_state", reset_state, units, "U")
    input_dropout = row_vectors("input_dropout_mask", input_dropout_mask, in_features, "F")
    recurrent_dropout = row_vectors("recurrent_dropout_mask", recurrent_dropout_mask, units, "U")
    if reset is not None and reset_flags is None:
        raise ValueError("`reset_state` was given without `resets`, which say at what steps it is used.")

    dtype = functools.reduce(jnp.promote_types, (x.dtype for x in (*w[:3], inputs, initial) if x is not None))
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else at_least_float32(dtype)
    # The loop runs in float32 at least: half-precision loop buffers are over a hundred times slower on a CPU, and
    # rounding once is more accurate than rounding at every step.
    loop_dtype = at_least_float32(dtype)
    if initial is None:
        initial = jnp.zeros((units,), loop_dtype) if w.initial_state is None else w.initial_state
        initial = jnp.broadcast_to(initial, (*batch, units))
    if callable(activation):
        example = jax.ShapeDtypeStruct((*batch, units), loop_dtype)
        validation.activation(jax.eval_shape(function, example), example.shape, example.dtype)
    rows = math.prod(batch)

    def flat(x: Any, *rest: int, to: Any = loop_dtype) -> Any:
        """(*batch, …) as (B, …), in the loop's dtype."""
        return None if x is None else x.astype(to).reshape(rows, *rest)

    operands = recurrence.Operands(
        kernel=w.kernel.astype(loop_dtype),
        recurrent_kernel=w.recurrent_kernel.astype(loop_dtype),
        bias=None if w.bias is None else w.bias.astype(loop_dtype),
        inputs=inputs.astype(loop_dtype).reshape((*_order(steps, rows, time_major), in_features)),
        initial_state=flat(initial, units),
        mask=flat(used, steps, to=bool),
        resets=flat(reset_flags, steps, to=bool),
        reset_state=None if reset_flags is None else flat(initial if reset is None else reset, units),
        input_dropout_mask=flat(input_dropout, in_features),
        recurrent_dropout_mask=flat(recurrent_dropout, units),
    )
    options = recurrence.Options(
        activation=function,
        reverse=bool(go_backwards),
        time_axis=0 if time_major else 1,
        unroll=unroll,
        precision=precision,
        record="states" if return_sequences else "nothing",
        remat=remat,
    )
    if implementation == "chunked":
        final, states, *sweeps = chunked.solve(options, operands, chunks=chunks, tol=tol, max_sweeps=max_sweeps)
    else:
        drive = recurrence.plain if implementation == "autodiff" else recurrence.run
        final, states, *sweeps = drive(options, operands)
    sweeps = sweeps if return_sweeps else []
    final = final.astype(dtype).reshape(*batch, units)

    if not return_sequences:
        outputs = final
        if zero_output_for_mask and used is not None and steps:
            outputs = jnp.where(used[..., 0 if go_backwards else -1, None], outputs, jnp.zeros((), dtype))
        return final, outputs, *sweeps
    outputs = states.astype(dtype)
    if zero_output_for_mask and operands.mask is not None:
        shown = operands.mask.T if time_major else operands.mask
        outputs = jnp.where(shown[..., None], outputs, jnp.zeros((), dtype))
    if go_backwards and not keep_order:
        outputs = jnp.flip(outputs, options.time_axis)
    layout = (steps, *batch) if time_major else (*batch, steps)
    return final, outputs.reshape(*layout, units), *sweeps


def used_steps(mask: Any, seq_lengths: Any, batch: tuple[int, ...], steps: int) -> jax.Array | None:
    """(*batch, T), True = use the step: what `mask` and `seq_lengths` say together; None where neither is given."""
    flags = validation.step_flags("mask", mask, batch, steps)
    lengths = validation.lengths(seq_lengths, batch, steps)
    if lengths is None:
        return flags
    within = jax.lax.broadcasted_iota(lengths.dtype, (*batch, steps), len(batch)) < lengths[..., None]
    return within if flags is None else flags & within


def compute_mask(mask: ArrayLike | None, *, go_backwards: bool = False, keep_order: bool = False) -> jax.Array | None:
    """The mask that belongs to the returned sequence: reversed in time as the outputs are.

    Args:
      mask: (*batch, T), or None.
      go_backwards, keep_order: as given to the layer.

    Returns:
      (*batch, T) bool, or None for None.

    Raises:
      TypeError: `mask` is no array.
      ValueError: `mask` has no time dimension.

    Source: Keras `RNN.compute_mask`, which forgets to reverse.

    >>> compute_mask(jnp.array([[True, True, False]]), go_backwards=True).tolist()
    [[False, True, True]]
    """
    validation.flag("go_backwards", go_backwards)
    validation.flag("keep_order", keep_order)
    if mask is None:
        return None
    flags = validation.array("mask", mask)
    if flags.ndim < 1:
        raise ValueError(f"`mask` must have the shape (*batch, T), got {validation.describe(flags)}.")
    flags = flags.astype(bool)
    return jnp.flip(flags, -1) if go_backwards and not keep_order else flags


def segment_ends(starts: jax.Array | None) -> jax.Array | None:
    """(*batch, T) flags at the last step of every segment but the last, from flags at the first steps of segments."""
    if starts is None or starts.shape[-1] == 0:
        return starts
    return jnp.concatenate([starts[..., 1:], jnp.zeros_like(starts[..., :1])], -1)


def any_cell_body(
    step: Callable[[Any, jax.Array], tuple[Any, jax.Array]], reset_state: Any, zero_output_for_mask: bool
) -> Callable[[tuple[Any, jax.Array], tuple[jax.Array, Any, Any]], tuple[tuple[Any, jax.Array], jax.Array]]:
    """The body of a scan over `step(state, x) -> (new_state, output)` of any cell, with the rules of `simple_rnn`.

    Its carry is (state, last output), its inputs are (x, used or None, reset or None) of one step. At masked steps the
    state stays and the previous output is held, or 0 is put out with `zero_output_for_mask`.
    """

    def select(flag: jax.Array, new: Any, old: Any) -> Any:
        def leaf(n: jax.Array, o: jax.Array) -> jax.Array:
            return jnp.where(jnp.expand_dims(flag, range(flag.ndim, n.ndim)), n, o)

        return jax.tree.map(leaf, new, old)

    def body(carry: tuple[Any, jax.Array], now: tuple[jax.Array, Any, Any]) -> tuple[tuple[Any, jax.Array], jax.Array]:
        state, held = carry
        x, used, reset = now
        if reset is not None:
            state = select(reset, reset_state, state)
        if used is None:
            state, output = step(state, x)
            return (state, output), output
        # What stands in a masked step may be NaN; zeroed, it leaves the gradients finite too.
        new_state, output = step(state, select(used, x, jnp.zeros_like(x)))
        held = select(used, output, held)
        shown = select(used, output, jnp.zeros_like(output)) if zero_output_for_mask else held
        return (select(used, new_state, state), held), shown

    return body


def _order(steps: int, rows: int, time_major: bool) -> tuple[int, int]:
    return (steps, rows) if time_major else (rows, steps)
