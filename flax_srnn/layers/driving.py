"""The forward pass of the layers, for both families: all that does not depend on where variables and keys are kept.

A family (Flax Linen, Flax NNX) fetches arrays and keys from its modules, calls these functions, and stores what they
return. A layer hands down its cells: of a SimpleRNNCell how to fetch its arrays (`SimpleCell`), of any other how to drive
it over a whole sequence (`Drive`). A stack is driven cell by cell, which gives the same numbers as step by step and lets
every SimpleRNNCell run in the fast loop.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from flax_srnn import activations, validation
from flax_srnn.core import mesh_axes, sequence
from flax_srnn.core.cell import Cell, advance, project
from flax_srnn.core.implementations import short_form
from flax_srnn.core.parameters import draw_masks
from flax_srnn.core.recurrence import Autodiff
from flax_srnn.core.sequence import Steps
from flax_srnn.layers import options, states
from flax_srnn.validation import Weights

__all__ = [
    "DIRECTIONS",
    "Drive",
    "Dropout",
    "Pass",
    "SimpleCell",
    "Start",
    "bidirectional",
    "check_cells",
    "check_layers",
    "drive_any",
    "drive_simple",
    "halves",
    "is_simple",
    "layer",
    "reset",
    "stacked_carry",
    "stacked_step",
    "step",
    "steps_of",
    "training_keyword",
    "zero_carry",
]

DIRECTIONS = ("forward_layer", "backward_layer")
"""The names of the two layers of a `Bidirectional`."""


class Start(NamedTuple):
    """What a cell starts from: a state that was given or `recorded` by an earlier call; None: the cell's initial state.

    Resets go back to a given state, never to a recorded one.
    """

    state: Any
    recorded: bool

    @property
    def name(self) -> str:
        """How messages call the state."""
        return "variables['carry']['states']" if self.recorded else "initial_state"


class Dropout(NamedTuple):
    """What a call drops by: a key, and whether it is a training call, True or a traced boolean."""

    key: jax.Array
    training: Any


class SimpleCell(NamedTuple):
    """A SimpleRNNCell or SimpleRNN of a family: its options, and `fetch(inputs)`, its weights and how the call drops."""

    options: options.CellOptions
    fetch: Callable[[jax.Array], tuple[Weights, Dropout | None]]


class Drive(Protocol):
    """Any cell over a sequence: (initial state, final state, outputs)."""

    def __call__(self, steps: Steps, start: Start) -> tuple[Any, Any, jax.Array]: ...


class Pass(NamedTuple):
    """What one call of a layer brings about."""

    returned: Any
    initial_states: tuple[Any, ...]
    final_states: tuple[Any, ...]
    activity_penalty: jax.Array | None


# --- one step ----------------------------------------------------------------------------------------------------------


def _cast(o: options.CellOptions, tree: Any) -> Any:
    """The arrays in the dtype of the computation, if one is set."""
    return tree if o.dtype is None else jax.tree.map(lambda leaf: jnp.asarray(leaf, o.dtype), tree)


def _cell(o: options.CellOptions, w: Weights, dropout: Dropout | None, x: jax.Array, batch: tuple[int, ...]) -> Cell:
    """The cell of a call: its weights (cast already), and dropout masks if it drops."""
    d_x, d_h = None, None
    if dropout is not None:
        in_features, units = w.kernel.shape
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else o.param_dtype
        masks = draw_masks(dropout.key, batch, (in_features, units), (o.dropout, o.recurrent_dropout), dtype)
        if dropout.training is not True:
            masks = jax.tree.map(lambda mask: jnp.where(dropout.training, mask, jnp.ones_like(mask)), masks)
        d_x, d_h = masks
    return Cell(w.kernel, w.recurrent_kernel, w.bias, d_x, d_h, activations.get(o.activation), o.precision)


def step(
    o: options.CellOptions, carry: Any, x: jax.Array, w: Weights, dropout: Dropout | None
) -> tuple[jax.Array, jax.Array]:
    """(h_{t-1} (*batch, U), x_t (*batch, F)) -> (h_t, h_t)."""
    hidden = (*x.shape[:-1], int(o.units))
    state = validation.shaped("carry", validation.single_state(carry, "carry"), hidden, "(*batch, U)")
    w, state, x = _cast(o, (w, state, x))
    cell = _cell(o, w, dropout, x, x.shape[:-1])
    output = advance(cell, state, project(cell, x))
    validation.activation(output, hidden)
    return output, output


def zero_carry(o: options.CellOptions, input_shape: tuple[int, ...]) -> jax.Array:
    """Zeros (*batch, U) for inputs of `input_shape` (*batch, F)."""
    batch = validation.shape("input_shape", input_shape)[:-1]
    return jnp.zeros((*batch, int(o.units)), o.param_dtype if o.dtype is None else o.dtype)


def stacked_step(
    steps: Sequence[Callable[[Any, jax.Array], tuple[Any, jax.Array]]], carry: Any, inputs: jax.Array
) -> tuple[tuple[Any, ...], jax.Array]:
    """(one state a cell, x_t (*batch, F)) -> (the new states, the last cell's output)."""
    output, new = inputs, []
    for call, state in zip(steps, validation.per_cell("carry", carry, len(steps)), strict=True):
        state, output = call(state, output)
        new.append(state)
    return tuple(new), output


def stacked_carry(
    makers: Sequence[Callable[[tuple[int, ...]], Any]],
    outputs: Sequence[Callable[[Any, jax.ShapeDtypeStruct], jax.ShapeDtypeStruct]],
    input_shape: tuple[int, ...],
) -> tuple[Any, ...]:
    """One initial state a cell, for inputs of `input_shape` (*batch, F).

    Args:
      makers: for each cell, input shape -> initial state.
      outputs: for each cell, (state, input) -> shape and dtype of its output, the next cell's input.
    """
    carry = []
    for make, output in zip(makers, outputs, strict=True):
        state = make(input_shape)
        carry.append(state)
        input_shape = output(state, jax.ShapeDtypeStruct(input_shape, jnp.float32)).shape
    return tuple(carry)


# --- a cell over a sequence --------------------------------------------------------------------------------------------


def steps_of(o: Any, inputs: Any, mask: Any, seq_lengths: Any, resets: Any) -> Steps:
    """The call arguments of the layer `o`, checked; a `Bidirectional` gives its layers steps that were."""
    if isinstance(inputs, Steps):
        return inputs
    return sequence.check_steps(inputs, mask, seq_lengths, resets, options.of_sequence(o))


def drive_simple(cell: SimpleCell, steps: Steps, start: Start) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `Drive` of a simple cell: all of its steps in the fast loop."""
    o = cell.options
    w, dropout = cell.fetch(steps.inputs)
    w, inputs = _cast(o, (w, steps.inputs))
    steps = dataclasses.replace(steps, inputs=inputs)
    hidden = (*steps.batch, int(o.units))
    initial = jnp.zeros((), w.kernel.dtype) if w.initial_state is None else w.initial_state
    initial = jnp.broadcast_to(initial, hidden)
    initial = mesh_axes.sharded_by(initial, mesh_axes.rows_of(inputs, (steps.time_axis, -1)))
    state = initial if start.state is None else _cast(o, start.state)
    arrays = _cell(o, w, dropout, inputs, steps.batch)

    def run(
        cell: Cell, steps: Steps, state: jax.Array, reset_state: jax.Array | None, initial: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        final, outputs = sequence.run(cell, steps, state, reset_state)
        return initial.astype(final.dtype), final, outputs

    def specs() -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
        # The initial state has the type of the final one in every respect: recorded, it can go through a loop.
        final, outputs = sequence.specs(arrays, steps)
        return final, final, outputs

    arguments = arrays, steps, state, initial if start.recorded else None, initial
    return mesh_axes.compiler_divides(run, arguments, specs)


def drive_any(
    name: str,
    initial: Any,
    output: jax.ShapeDtypeStruct,
    scan: Callable[..., tuple[tuple[Any, jax.Array], jax.Array]],
    steps: Steps,
    start: Start,
    variables: Any,
    shown: Callable[[Any], jax.Array] | None = None,
) -> tuple[Any, Any, jax.Array]:
    """The drive of any other cell, differentiated by JAX, in every mode.

    Args:
      name: of the cell's class.
      initial: its initial state.
      output, scan, variables, shown: see `sequence.scan_cell`.
      steps, start: see `Drive`.
    """
    chosen = steps.options.implementation
    if not isinstance(chosen, Autodiff | None):
        raise ValueError(
            f"`implementation`: implementation={short_form(chosen)!r} is for SimpleRNNCell; a {name} is driven by the plain "
            "scan: leave it None."
        )
    state = initial if start.state is None else validation.like(start.name, start.state, initial)
    final, outputs = sequence.scan_cell(
        scan, state, initial if start.recorded else state, output, steps, variables, shown
    )
    return initial, final, outputs


# --- a layer -----------------------------------------------------------------------------------------------------------


def layer(
    o: Any,
    cells: Sequence[SimpleCell | Drive],
    steps: Steps,
    initial_state: Any,
    recorded: Sequence[Any] | None,
    unrecorded: Exception | None = None,
) -> Pass:
    """One call of a `SimpleRNN` or `RNN`, whose options are `o`.

    Args:
      cells: first to last.
      steps: the checked sequence, with the order of outputs that the layer or its `Bidirectional` wants.
      initial_state: the call argument, as the user gave it; it wins over `recorded`.
      recorded: the states that an earlier call left behind, one a cell, or None.
      unrecorded: what to raise, when all else is right, where the states of this call would be lost.
    """
    validation.unrollable(steps.options.unroll, steps.count)
    count = len(cells)
    if initial_state is not None:
        given = (initial_state,) if count == 1 else validation.per_cell("initial_state", initial_state, count)
        starts = [Start(state, recorded=False) for state in given]
    elif recorded is not None:
        validation.recorded(recorded, count, steps.batch)
        starts = [Start(state, recorded=True) for state in recorded]
    else:
        starts = [Start(None, recorded=False)] * count
    starts = [
        start._replace(state=validation.initial_state(start.name, start.state, (*steps.batch, int(cell.options.units))))
        if isinstance(cell, SimpleCell) and start.state is not None
        else start
        for cell, start in zip(cells, starts, strict=True)
    ]
    if unrecorded is not None:
        raise unrecorded
    wanted = steps.options
    inner = dataclasses.replace(wanted, keep_order=True, zero_output_for_mask=False, return_sequences=True)
    x, initials, finals = steps.inputs, [], []
    for cell, start, how in zip(cells, starts, [inner] * (count - 1) + [wanted], strict=True):
        now = dataclasses.replace(steps, inputs=x, options=how)
        initial, final, x = drive_simple(cell, now, start) if isinstance(cell, SimpleCell) else cell(now, start)
        initials.append(initial)
        finals.append(final)
    returned = (x, *finals) if o.return_state else x
    return Pass(returned, tuple(initials), tuple(finals), options.activity_penalty(o, returned, steps.batch))


def halves(name: str, states: Any, counts: Sequence[int]) -> tuple[Any, Any]:
    """The states of a `Bidirectional` as those of its forward and of its backward layer."""
    both = validation.per_cell(name, states, sum(counts))
    return tuple(both[: counts[0]]), tuple(both[counts[0] :])


def bidirectional(
    o: options.BidirectionalOptions,
    layers: Sequence[Any],
    counts: Sequence[int],
    calls: Sequence[Callable[[Steps, Any], Any]],
    steps: Steps,
    initial_state: Any,
) -> Any:
    """One call of a `Bidirectional`.

    Args:
      layers: the options of the forward and of the backward layer.
      counts: how many cells each has.
      calls: both layers, which take (steps, initial state) and return outputs in the order of the inputs.
      steps: the checked sequence.
      initial_state: the call argument, as the user gave it.
    """
    given = (None, None) if initial_state is None else halves("initial_state", initial_state, counts)
    outputs: list[jax.Array] = []
    finals: list[Any] = []
    for one, call, state in zip(layers, calls, given, strict=True):
        # Masked outputs are 0 if there are sequences, whatever the layers say, as in Keras.
        zero = bool(one.return_sequences) and not o.holds_masked
        how = dataclasses.replace(options.of_sequence(one), keep_order=True, zero_output_for_mask=zero)
        resets = sequence.segment_ends(steps.resets) if one.go_backwards else steps.resets
        returned = call(dataclasses.replace(steps, resets=resets, options=how), state)
        output, *final = returned if one.return_state else (returned,)
        outputs.append(output)
        finals.extend(final)
    forward, _ = layers
    if forward.return_sequences and forward.go_backwards and not forward.keep_order:
        # Keras returns the order in which the forward layer went.
        outputs = [jnp.flip(output, steps.time_axis) for output in outputs]
    merged = options.merge(o.merge_mode, *outputs)
    returned = (*merged, *finals)
    return returned if len(returned) > 1 else returned[0]


# --- checks of modules, and recorded states ----------------------------------------------------------------------------


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


def is_simple(cell: Any, layer_class: type, cell_class: Any) -> bool:
    """Whether a family's `cell` computes what `simple_rnn` does: a subclass with a step of its own does not."""
    own = isinstance(cell, cell_class) and type(cell).__call__ is cell_class.__call__
    return own or isinstance(cell, layer_class)


def training_keyword(cell: Any, training: Any) -> dict[str, Any]:
    """`training` as a keyword argument, for a cell that accepts it."""
    accepts = "training" in inspect.signature(type(cell).__call__).parameters
    return {} if training is None or not accepts else {"training": training}


def reset(
    o: Any, variables: Mapping[str, Any], new: Any, batch_size: Any, make: Callable[[tuple[int, ...]], dict[str, Any]]
) -> dict[str, Any]:
    """The variables of the stateful layer `o` with its recorded states set back, or set to `new`.

    Args:
      batch_size: of new states, an int or a tuple; None: of those that were recorded.
      make: the layer's collection "carry" for a batch shape.

    Raises:
      AttributeError: the layer is not stateful.
      ValueError: no state was recorded yet and there is no batch size; `new` does not fit in count, shape or dtype.
    """
    if not o.stateful:
        raise AttributeError(
            "Layer must be stateful, got `stateful=False`: construct it with stateful=True to have recorded states."
        )
    if new is not None and not isinstance(new, Mapping):
        new = {states.NAME: tuple(new) if isinstance(new, (list, tuple)) else (new,)}
    if batch_size is not None and isinstance(variables, Mapping):
        variables = {**variables, states.COLLECTION: make(validation.batch_size(batch_size))}
    return states.reset_states(variables, new)
