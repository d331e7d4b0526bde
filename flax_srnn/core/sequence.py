"""A whole sequence through a recurrence: what a user gives is checked once, packed, run and unpacked.

    check    arguments of any form        -> `Steps` (inputs, mask and lengths joined, resets), `Cell`, states
    pack     these, in the user's layout  -> `Problem`: (B, T, F) or (T, B, F), one dtype, nothing left to check
    run      by the implementation that was chosen
    unpack   back to the user's layout, dtype and order

The rule at masked steps is one for every implementation: the state stays, and the output is the state, so that
output == state always and a sequence processed in pieces equals the sequence processed whole. `scan_cell` is the same for
cells that are no SimpleRNNCell: each family of layers hands it its own scan.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from flax_srnn import activations, validation
from flax_srnn.core import closed_over, implementations, mesh_axes
from flax_srnn.core.cell import HARMLESS, Cell, blanked, select, under_flags
from flax_srnn.core.implementations import Choice, Implementation
from flax_srnn.core.problem import Problem
from flax_srnn.dtypes import at_least_float32
from flax_srnn.identifiers import did_you_mean

__all__ = [
    "Call",
    "Options",
    "Steps",
    "check",
    "check_options",
    "check_steps",
    "compute_mask",
    "options_of",
    "pack",
    "run",
    "scan_cell",
    "segment_ends",
    "simple_rnn",
    "specs",
]


@dataclasses.dataclass(frozen=True)
class Options:
    """How a sequence is processed, whatever the cell; the arguments of `simple_rnn` of these names, checked."""

    go_backwards: bool = False
    keep_order: bool = False
    zero_output_for_mask: bool = False
    unroll: bool | int = False
    time_major: bool = False
    implementation: Implementation | None = None
    return_sequences: bool = True


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["inputs", "mask", "resets"], meta_fields=["batch", "options"]
)
@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a checked sequence, in the user's layout.

    Attributes:
      inputs: (*batch, T, F), or (T, *batch, F) with `options.time_major`.
      mask, resets: (*batch, T) bool, or None; lengths are part of the mask.
      batch: the leading dimensions.
      options: how the sequence is processed.
    """

    inputs: jax.Array
    mask: jax.Array | None
    resets: jax.Array | None
    batch: tuple[int, ...]
    options: Options

    @property
    def time_axis(self) -> int:
        """Of inputs and outputs."""
        return 0 if self.options.time_major else len(self.batch)

    @property
    def count(self) -> int:
        """T."""
        return self.inputs.shape[self.time_axis]

    def window(self, start: Any, count: int) -> Steps:
        """The steps [start, start + count)."""

        def cut(array: Any, axis: int) -> Any:
            return None if array is None else jax.lax.dynamic_slice_in_dim(array, start, count, axis)

        mask, resets = (cut(flags, len(self.batch)) for flags in (self.mask, self.resets))
        return dataclasses.replace(self, inputs=cut(self.inputs, self.time_axis), mask=mask, resets=resets)


class Call(NamedTuple):
    """A checked call of `simple_rnn`; states are (*batch, U), None where zeros or the initial state are meant."""

    cell: Cell
    steps: Steps
    initial_state: jax.Array | None
    reset_state: jax.Array | None


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
    implementation: Choice = None,
    return_sequences: bool = True,
    reset_state: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
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
      activation: a Keras name, a Keras config, a callable, or None (linear). A callable may hold arrays, as an `nnx.Module`
        does: gradients reach them. Outside of `jit` it is traced at every call, a lambda that is made anew too, and compiled
        where it computes something new: a Python number in it that changes costs a compilation, an array does not.
      go_backwards: process from the last step to the first, padding included, and return outputs in that order.
      keep_order: with `go_backwards`, return outputs in the order of `inputs`.
      zero_output_for_mask: outputs at masked steps are 0; the state is not touched.
      unroll: of the loop: False, True, or the number of steps an iteration takes. Results are the same.
      time_major: time is the first dimension of inputs and outputs; mask, resets and lengths stay batch-first.
      input_dropout_mask, recurrent_dropout_mask: exactly (*batch, F) and (*batch, U), see `dropout_masks`.
      precision: of the matrix products, as in `jax.numpy.dot`.
      implementation: an object or its short form. `Scan()`, "scan": the hand-written backward pass (reverse-mode gradients
        of any order). `Autodiff()`, "autodiff": the plain scan, for `jvp`, `jacfwd` and `hessian`. `Chunked()`, "chunked":
        many pieces of the sequence at once, see there for when that pays. None chooses `Scan()`. A named one runs or raises.
      return_sequences: with False, `outputs` is only the last output (*batch, U), and no array of all states is made.
      reset_state: (*batch, U): what `resets` set back to; default the initial state. Whoever processes a sequence in
        pieces, each starting from the last one's final state, passes the first piece's initial state.

    Returns:
      (final_state (*batch, U), outputs in the layout of `inputs`). The dtype is the common one of params, inputs and initial
      state; bfloat16 and float16 are computed in float32, and every output is rounded once.

    Raises:
      TypeError: an argument is no array of real numbers, `params` no mapping, an option of the wrong type, `activation` a
        `flax.linen` module or one with a derivative rule that closes over traced arrays.
      ValueError: a shape does not fit (nothing is broadcast), lengths out of range (where their values are concrete), an
        unknown activation or implementation, `unroll` with a symbolic number of steps.

    Source: Keras `SimpleRNN`; `resets` after Haiku's `ResetCore`, which goes back to the core's own initial state.

    >>> params = {"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.ones((1, 1))}
    >>> final_state, outputs = simple_rnn(params, jnp.array([[1.0], [2.0], [3.0]]), activation=None, go_backwards=True)
    >>> outputs.ravel().tolist(), final_state.tolist()
    ([3.0, 5.0, 6.0], [6.0])
    """
    call = check(
        params,
        inputs,
        initial_state=initial_state,
        mask=mask,
        seq_lengths=seq_lengths,
        resets=resets,
        activation=activation,
        go_backwards=go_backwards,
        keep_order=keep_order,
        zero_output_for_mask=zero_output_for_mask,
        unroll=unroll,
        time_major=time_major,
        input_dropout_mask=input_dropout_mask,
        recurrent_dropout_mask=recurrent_dropout_mask,
        precision=precision,
        implementation=implementation,
        return_sequences=return_sequences,
        reset_state=reset_state,
    )
    return run(*call)


# --- check -------------------------------------------------------------------------------------------------------------


def check(params: Any, inputs: Any, **keywords: Any) -> Call:
    """The arguments of `simple_rnn`, under its names and with its defaults, each checked once."""
    defaults = simple_rnn.__kwdefaults__ or {}
    for name in keywords:
        if name not in defaults:
            raise TypeError(
                f"`{name}` is no option of simple_rnn.{did_you_mean(name, defaults)} Its options: {', '.join(defaults)}."
            )
    given = defaults | keywords
    w = validation.weights(params)
    function = activations.get(given["activation"])
    validation.precision(given["precision"])
    options = check_options({field.name: given[field.name] for field in dataclasses.fields(Options)})
    steps = check_steps(inputs, given["mask"], given["seq_lengths"], given["resets"], options)
    validation.unrollable(options.unroll, steps.count)
    in_features, units = w.kernel.shape
    validation.features(steps.inputs, in_features)

    def row_vectors(name: str, width: int, letters: str) -> jax.Array | None:
        return validation.optional(name, given[name], (*steps.batch, width), f"(*batch, {letters})")

    d_x, d_h = row_vectors("input_dropout_mask", in_features, "F"), row_vectors("recurrent_dropout_mask", units, "U")
    initial, reset = row_vectors("initial_state", units, "U"), row_vectors("reset_state", units, "U")
    if initial is None and w.initial_state is not None:
        initial = jnp.broadcast_to(w.initial_state, (*steps.batch, units))
    if reset is not None and steps.resets is None:
        raise ValueError("`reset_state` was given without `resets`, which say at what steps it is used.")
    cell = Cell(w.kernel, w.recurrent_kernel, w.bias, d_x, d_h, function, given["precision"])
    return Call(cell, steps, initial, reset)


def check_options(given: Mapping[str, Any]) -> Options:
    """`Options` as a user gave them."""
    options = options_of(given)
    for field in dataclasses.fields(options):
        if isinstance(field.default, bool) and field.name != "unroll":
            validation.flag(field.name, getattr(options, field.name))
    return options


def options_of(given: Mapping[str, Any]) -> Options:
    """`Options` in the form that a program is compiled for, of values that were checked."""
    implementation, unroll = implementations.get(given["implementation"]), validation.unroll(given["unroll"])
    return Options(**{**given, "implementation": implementation, "unroll": unroll})


def check_steps(inputs: Any, mask: Any, seq_lengths: Any, resets: Any, options: Options) -> Steps:
    """The call arguments of every layer, but for its states: each checked once, masks and lengths joined."""
    x, batch, count = validation.sequence(inputs, time_major=options.time_major)
    used = validation.step_flags("mask", mask, batch, count)
    lengths = validation.lengths(seq_lengths, batch, count)
    if lengths is not None:
        within = jax.lax.broadcasted_iota(lengths.dtype, (*batch, count), len(batch)) < lengths[..., None]
        used = within if used is None else used & within
    return Steps(x, used, validation.step_flags("resets", resets, batch, count), batch, options)


# --- pack, run, unpack -------------------------------------------------------------------------------------------------


def run(
    cell: Cell, steps: Steps, initial_state: jax.Array | None, reset_state: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(final state (*batch, U), outputs) of a simple RNN: `Call`, processed."""
    return mesh_axes.compiler_divides(
        _run, (cell, steps, initial_state, reset_state), functools.partial(specs, cell, steps)
    )


def specs(cell: Cell, steps: Steps) -> tuple[PartitionSpec, PartitionSpec]:
    """How (final state, outputs) are sharded over Explicit axes: rows as the inputs, units as the recurrent kernel's."""
    entries = mesh_axes.spec(steps.inputs)
    rows = entries[1:-1] if steps.options.time_major else entries[:-2]
    taken = {axis for entry in rows for axis in (entry if isinstance(entry, tuple) else (entry,))}
    units = mesh_axes.spec(cell.recurrent_kernel)[-1]
    if not taken.isdisjoint(units if isinstance(units, tuple) else (units,)):
        units = None
    final, outputs = [*rows, units], [*rows, units]
    if steps.options.return_sequences:
        outputs.insert(steps.time_axis, None)
    return PartitionSpec(*final), PartitionSpec(*outputs)


def _run(
    cell: Cell, steps: Steps, initial_state: jax.Array | None, reset_state: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    problem, dtype = pack(cell, steps, initial_state, reset_state)
    implementation = steps.options.implementation or implementations.DEFAULT
    implementation.check(problem)
    final, states = implementation.run(problem)
    units = final.shape[-1]
    final = final.astype(dtype).reshape(*steps.batch, units)
    if not steps.options.return_sequences:
        return final, _last_shown(final, steps)
    outputs = states.astype(dtype)  # type: ignore[union-attr]  # they were asked for
    if steps.options.zero_output_for_mask and problem.mask is not None:
        outputs = blanked(outputs, problem.mask.T if steps.options.time_major else problem.mask)
    outputs = _in_order(outputs, problem.time_axis, steps.options)
    layout = (steps.count, *steps.batch) if steps.options.time_major else (*steps.batch, steps.count)
    return final, outputs.reshape(*layout, units)


def pack(
    cell: Cell, steps: Steps, initial_state: jax.Array | None, reset_state: jax.Array | None = None
) -> tuple[Problem, jnp.dtype]:
    """A call as the value that implementations take, and the dtype of what is returned."""
    options, batch, count = steps.options, steps.batch, steps.count
    in_features, units = cell.kernel.shape
    arrays = (cell.kernel, cell.recurrent_kernel, cell.bias, steps.inputs, initial_state)
    dtype = functools.reduce(jnp.promote_types, (x.dtype for x in arrays if x is not None))
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else at_least_float32(dtype)
    # The loop runs in float32 at least: rounding an output once is more accurate than rounding the state at every step. Inputs
    # and outputs keep their dtype, a block of them is converted at a time.
    loop_dtype = at_least_float32(dtype)
    rows = math.prod(batch)

    def flat(x: Any, *rest: int, to: Any = loop_dtype) -> Any:
        """(*batch, …) as (B, …), in the loop's dtype."""
        return None if x is None else x.astype(to).reshape(rows, *rest)

    initial = jnp.zeros((*batch, units), loop_dtype) if initial_state is None else initial_state
    packed = Cell(
        cell.kernel.astype(loop_dtype),
        cell.recurrent_kernel.astype(loop_dtype),
        None if cell.bias is None else cell.bias.astype(loop_dtype),
        flat(cell.input_dropout_mask, in_features),
        flat(cell.recurrent_dropout_mask, units),
        cell.activation,
        cell.precision,
    )
    problem = Problem(
        packed,
        steps.inputs.astype(dtype).reshape(*((count, rows) if options.time_major else (rows, count)), in_features),
        flat(initial, units),
        flat(steps.mask, count, to=bool),
        flat(steps.resets, count, to=bool),
        None if steps.resets is None else flat(initial if reset_state is None else reset_state, units),
        reverse=bool(options.go_backwards),
        time_axis=0 if options.time_major else 1,
        unroll=options.unroll,
        return_states=bool(options.return_sequences),
    )
    if not activations.is_named(cell.activation):
        traced, held = closed_over.trace(cell.activation, mesh_axes.alike(problem).initial_state)
        problem = dataclasses.replace(problem, cell=dataclasses.replace(packed, activation=traced, held=held))
    return problem, dtype


def _last_shown(last: jax.Array, steps: Steps) -> jax.Array:
    """The last output (*batch, U) as it is returned."""
    if not steps.options.zero_output_for_mask or steps.mask is None or not steps.count:
        return last
    return blanked(last, steps.mask[..., 0 if steps.options.go_backwards else -1])


def _in_order(outputs: jax.Array, axis: int, options: Options) -> jax.Array:
    """Outputs in the order in which they are returned."""
    return jnp.flip(outputs, axis) if options.go_backwards and not options.keep_order else outputs


def scan_cell(
    scan: Callable[..., tuple[tuple[Any, jax.Array], jax.Array]],
    state: Any,
    reset_state: Any,
    output: jax.ShapeDtypeStruct,
    steps: Steps,
    variables: Any,
    shown: Callable[[Any], jax.Array] | None = None,
) -> tuple[Any, jax.Array]:
    """(final state, outputs) of any cell over a sequence, with the rules of `simple_rnn`.

    A cell whose output is not its state holds its previous output at masked steps, zeros before the first used step; one that
    tells what it puts out in a state (`shown`) puts that out.

    Args:
      scan: the family's loop, `scan(wrap, carry, xs, time_axes, **options of lax.scan)`, where `wrap(step)` is the body for
        `step(state, x) -> (state, output)`.
      state: what the cell starts from.
      reset_state: what `resets` set it back to.
      output: shape and dtype of its output at one step.
      steps: the sequence.
      variables: of the cell: inside `shard_map`, what goes from step to step varies over their mesh axes too.
    """
    options, axis = steps.options, steps.time_axis
    axes = mesh_axes.of((state, reset_state, steps, variables))

    rows = mesh_axes.rows_of(steps.inputs, (axis, -1))

    def carried(arrays: Any) -> Any:
        """Arrays (*batch, …) of the types that a loop asks of what goes from step to step."""
        return mesh_axes.sharded_by(mesh_axes.vary(arrays, axes), rows)

    def wrap(step: Callable[[Any, jax.Array], tuple[Any, jax.Array]]) -> Callable[..., Any]:
        def body(carry: tuple[Any, jax.Array], now: tuple[jax.Array, Any, Any]) -> tuple[Any, jax.Array]:
            state, held = carry
            x, used, reset = now
            x = blanked(x, used, HARMLESS)
            state, output = under_flags(
                lambda state: step(blanked(state, used, HARMLESS), x), state, used, reset, reset_state
            )
            if shown is not None:
                held = shown(state).astype(held.dtype)
            else:
                held = output if used is None else select(used, output, held)
            state, held = carried((state, held))
            return (state, held), blanked(output, used) if options.zero_output_for_mask else held

        return body

    (final, held), outputs = scan(
        wrap,
        carried((state, jnp.zeros(output.shape, output.dtype))),
        (steps.inputs, steps.mask, steps.resets),
        (axis, len(steps.batch), len(steps.batch)),
        reverse=bool(options.go_backwards),
        unroll=max(1, steps.count) if options.unroll is True else max(1, int(options.unroll)),
    )
    if not options.return_sequences:
        return final, _last_shown(held, steps)
    return final, _in_order(outputs, axis, options)


# --- flags -------------------------------------------------------------------------------------------------------------


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
