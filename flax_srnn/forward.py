"""The forward pass of the layers, for both families: all that does not depend on where variables and keys are kept.

A family (Flax Linen, Flax NNX) fetches arrays and keys from its modules, calls these functions, and stores what they
return. A *drive* is what a layer does with one of its cells: the cell over a whole sequence. A stack is driven cell by
cell, which gives the same numbers as step by step and lets every SimpleRNNCell run in the fast loop.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flax_srnn import options, sequence, states, validation
from flax_srnn.cell import cell_step


class Drive(Protocol):
    """A cell over a sequence: from `start` (None: the cell's initial state), which is given or was `recorded` earlier.

    Resets go back to a given state, never to a recorded one. Returns (initial state, final state, outputs).
    """

    def __call__(
        self, x: jax.Array, batch: tuple[int, ...], start: Any, *, recorded: bool, **arguments: Any
    ) -> tuple[Any, Any, jax.Array]: ...


class Pass(NamedTuple):
    """What one call of a layer brings about."""

    returned: Any
    initial_states: tuple[Any, ...]
    final_states: tuple[Any, ...]
    activity_penalty: jax.Array | None


def cast(o: options.CellOptions, tree: Any) -> Any:
    """The arrays in the dtype of the computation, if one is set."""
    return tree if o.dtype is None else jax.tree.map(lambda leaf: jnp.asarray(leaf, o.dtype), tree)


def step(
    o: options.CellOptions, params: Mapping[str, Any], carry: Any, x: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """(h_{t-1} (*batch, U), x_t (*batch, F)) -> (h_t, h_t), with dropout if there is a key for it."""
    state = validation.shaped(
        "carry", validation.single_state(carry, "carry"), (*x.shape[:-1], int(o.units)), "(*batch, U)"
    )
    x = cast(o, x)
    return cell_step(
        cast(o, params),
        cast(o, state),
        x,
        activation=o.activation,
        precision=o.precision,
        **o.masks(key, x, x.shape[:-1]),
    )


def step_inputs(inputs: Any) -> jax.Array:
    """The inputs of one step as an array (*batch, F)."""
    x = validation.array("inputs", inputs)
    if x.ndim < 1:
        raise ValueError(f"`inputs` must have the shape (*batch, F), got {validation.describe(x)}.")
    return x


def zero_carry(o: options.CellOptions, input_shape: tuple[int, ...]) -> jax.Array:
    """Zeros (*batch, U) for inputs of `input_shape` (*batch, F)."""
    batch = validation.shape("input_shape", input_shape)[:-1]
    return jnp.zeros((*batch, int(o.units)), o.param_dtype if o.dtype is None else o.dtype)


def simple_drive(
    o: options.CellOptions,
    params: Mapping[str, Any],
    key: jax.Array | None,
    inputs: jax.Array,
    batch: tuple[int, ...],
    start: Any,
    *,
    recorded: bool,
    **arguments: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The drive of a SimpleRNNCell or SimpleRNN: `simple_rnn` with its parameters and options."""
    params, inputs = cast(o, dict(params)), cast(o, inputs)
    shape = (*batch, int(o.units))
    initial = jnp.broadcast_to(params.get("initial_state", jnp.zeros((), params["kernel"].dtype)), shape)
    if recorded and arguments["resets"] is not None:
        arguments["reset_state"] = initial
    if start is not None:
        start = validation.shaped(_state_name(recorded), validation.single_state(start), shape, "(*batch, U)")
    final, outputs = sequence.simple_rnn(
        params,
        inputs,
        initial_state=None if start is None else cast(o, start),
        activation=o.activation,
        precision=o.precision,
        **o.masks(key, inputs, batch),
        **arguments,
    )
    return initial.astype(final.dtype), final, outputs


def any_drive(
    name: str,
    initial: Any,
    output: jax.ShapeDtypeStruct,
    scan: Callable[..., tuple[tuple[Any, jax.Array], jax.Array]],
    x: jax.Array,
    batch: tuple[int, ...],
    start: Any,
    *,
    recorded: bool,
    mask: jax.Array | None,
    resets: jax.Array | None,
    go_backwards: bool,
    keep_order: bool,
    zero_output_for_mask: bool,
    unroll: bool | int,
    time_major: bool,
    implementation: str | None,
    return_sequences: bool,
    remat: bool | None,
    chunks: int | None,
    tol: float | None,
    max_sweeps: int | None,
) -> tuple[Any, Any, jax.Array]:
    """The drive of any other cell, differentiated by JAX, in every mode.

    Args:
      name: of the cell's class.
      initial: its initial state.
      output: shape and dtype of its output at one step.
      scan: the family's loop over its steps, `scan(wrap, carry, xs, time_axes, **options of lax.scan)`, where
        `wrap(step)` is the body for `step(state, x) -> (state, output)`.
    """
    if implementation not in (None, "autodiff") or remat:
        option, value = ("implementation", implementation) if implementation else ("remat", remat)
        raise ValueError(
            f"`{option}`: {option}={value!r} is for SimpleRNNCell; a {name} is driven by the plain scan: leave it None."
        )
    time = 0 if time_major else len(batch)
    steps = x.shape[time]
    validation.unrollable(unroll, steps)
    state = initial if start is None else validation.like(_state_name(recorded), start, initial)
    (final, held), outputs = scan(
        lambda step: sequence.any_cell_body(step, initial if recorded else state, zero_output_for_mask),
        (state, jnp.zeros(output.shape, output.dtype)),
        (x, mask, resets),
        (time, len(batch), len(batch)),
        reverse=bool(go_backwards),
        unroll=max(1, steps) if unroll is True else max(1, int(unroll)),
    )
    if not return_sequences:
        shown = held
        if zero_output_for_mask and mask is not None and steps:
            shown = jnp.where(mask[..., 0 if go_backwards else -1, None], held, jnp.zeros_like(held))
        return initial, final, shown
    return initial, final, jnp.flip(outputs, time) if go_backwards and not keep_order else outputs


def layer(
    o: Any,
    drives: Sequence[Drive],
    recorded: Sequence[Any] | None,
    inputs: Any,
    initial_state: Any,
    mask: Any,
    seq_lengths: Any,
    resets: Any,
    *,
    keep_order: bool,
    zero_output_for_mask: bool,
) -> Pass:
    """One call of a `SimpleRNN` or `RNN`, whose options are `o`.

    Args:
      drives: of its cells, first to last.
      recorded: the states that an earlier call left behind, one a cell, or None.
      inputs, …, resets: the call arguments, as the user gave them.
      keep_order, zero_output_for_mask: the options, or what a `Bidirectional` says.
    """
    x, batch, steps = validation.sequence(inputs, time_major=o.time_major)
    used = sequence.used_steps(mask, seq_lengths, batch, steps)
    reset_flags = validation.step_flags("resets", resets, batch, steps)
    count = len(drives)
    if initial_state is not None:
        starts = (initial_state,) if count == 1 else validation.per_cell("initial_state", initial_state, count)
        recorded = None
    else:
        starts = (None,) * count if recorded is None else recorded
    if recorded is not None:
        validation.recorded(recorded, count, batch)
    initials, finals = [], []
    for number, (drive, start) in enumerate(zip(drives, starts, strict=True), start=1):
        last = number == count
        initial, final, x = drive(
            x,
            batch,
            start,
            recorded=recorded is not None,
            mask=used,
            resets=reset_flags,
            go_backwards=o.go_backwards,
            keep_order=keep_order or not last,
            zero_output_for_mask=zero_output_for_mask and last,
            unroll=o.unroll,
            time_major=o.time_major,
            implementation=o.implementation,
            return_sequences=o.return_sequences or not last,
            remat=o.remat,
            chunks=o.chunks,
            tol=o.tol,
            max_sweeps=o.max_sweeps,
        )
        initials.append(initial)
        finals.append(final)
    returned = (x, *finals) if o.return_state else x
    return Pass(returned, tuple(initials), tuple(finals), o.activity_penalty(returned, batch))


def own(o: Any) -> dict[str, bool]:
    """The order of a layer's outputs and what it puts out at masked steps, as its options say."""
    return {"keep_order": o.keep_order, "zero_output_for_mask": o.zero_output_for_mask}


def direction(o: Any) -> dict[str, bool]:
    """The same for a layer within a `Bidirectional`: masked outputs are 0 if there are sequences, as in Keras."""
    return {"keep_order": True, "zero_output_for_mask": o.return_sequences}


def bidirectional(
    o: options.BidirectionalOptions,
    layers: Sequence[Any],
    counts: Sequence[int],
    calls: Sequence[Callable[..., Any]],
    inputs: Any,
    initial_state: Any,
    mask: Any,
    seq_lengths: Any,
    resets: Any,
) -> Any:
    """One call of a `Bidirectional`.

    Args:
      layers: the options of the forward and of the backward layer.
      counts: how many cells each has.
      calls: both layers, which take the call arguments and return outputs in the order of the inputs.
      inputs, …, resets: the call arguments, as the user gave them.
    """
    forward, _ = layers
    given: list[Any] = [None, None]
    if initial_state is not None:
        both = validation.per_cell("initial_state", initial_state, sum(counts))
        given = [list(both[: counts[0]]), list(both[counts[0] :])]
    inputs, batch, steps = validation.sequence(inputs, time_major=forward.time_major)
    starts = validation.step_flags("resets", resets, batch, steps)
    outputs: list[jax.Array] = []
    finals: list[Any] = []
    for one, call, state in zip(layers, calls, given, strict=True):
        returned = call(
            inputs,
            initial_state=state,
            mask=mask,
            seq_lengths=seq_lengths,
            resets=sequence.segment_ends(starts) if one.go_backwards else starts,
        )
        output, *final = returned if one.return_state else (returned,)
        outputs.append(output)
        finals.extend(final)
    if forward.return_sequences and forward.go_backwards and not forward.keep_order:
        # Keras returns the order in which the forward layer went.
        outputs = [jnp.flip(output, 0 if forward.time_major else len(batch)) for output in outputs]
    merged = options.merge(o.merge_mode, *outputs)
    returned = (*merged, *finals)
    return returned if len(returned) > 1 else returned[0]


def stacked_step(
    steps: Sequence[Callable[[Any, jax.Array], tuple[Any, jax.Array]]], carry: Any, inputs: jax.Array
) -> tuple[tuple[Any, ...], jax.Array]:
    """(one state a cell, x_t (*batch, F)) -> (the new states, the last cell's output)."""
    output, new = inputs, []
    for call, state in zip(steps, validation.per_cell("carry", carry, len(steps)), strict=True):
        state, output = call(state, output)
        new.append(state)
    return tuple(new), output


def check_cells(name: str, cells: Any, base: Any, library: str, *, alone: bool) -> None:
    """Raises unless `cells` is a list of cells, or with `alone` one cell."""
    expected = f"a {library}.RNNCellBase or a list of them" if alone else f"a list of {library}.RNNCellBase"
    several = isinstance(cells, (list, tuple))
    if several and not cells:
        raise ValueError(f"`{name}` must hold at least one cell, got an empty list.")
    for cell in cells if several else [cells]:
        if not isinstance(cell, base) or not (several or alone):
            raise TypeError(f"`{name}` must be {expected}, got {validation.describe(cell)}.")
        if cell.num_feature_axes != 1:
            raise ValueError(
                f"`{name}` must have cells over vectors of features, got a {type(cell).__name__} with num_feature_axes "
                f"{cell.num_feature_axes}."
            )


def check_layers(o: options.BidirectionalOptions, base: type) -> None:
    """Raises TypeError unless `layer` and, where given, `backward_layer` are layers of the family."""
    for name in ("layer", "backward_layer"):
        value = getattr(o, name)
        if not isinstance(value, base) and not (name == "backward_layer" and value is None):
            raise TypeError(f"`{name}` must be a SimpleRNN or RNN layer, got {validation.describe(value)}.")


def training_keyword(cell: Any, training: bool | None) -> dict[str, bool]:
    """`training` as a keyword argument, for a cell that accepts it."""
    accepts = "training" in inspect.signature(type(cell).__call__).parameters
    return {} if training is None or not accepts else {"training": training}


def reset(o: Any, variables: Mapping[str, Any], new: Any) -> dict[str, Any]:
    """The variables of the stateful layer `o` with its recorded states set back, or set to `new`.

    Raises:
      AttributeError: the layer is not stateful.
      ValueError: no state was recorded yet, so the batch size is unknown; `new` does not fit in count, shape or dtype.
    """
    if not o.stateful:
        raise AttributeError(
            "Layer must be stateful, got `stateful=False`: construct it with stateful=True to have recorded states."
        )
    if new is not None and not isinstance(new, Mapping):
        new = {states.NAME: tuple(new) if isinstance(new, (list, tuple)) else (new,)}
    return states.reset_states(variables, new)


def _state_name(recorded: bool) -> str:
    """How messages call the state that a cell starts from."""
    return "variables['carry']['states']" if recorded else "initial_state"
