"""The layers for Flax Linen: parameters and options around `cell_step` and `simple_rnn`.

A layer's cells share its own scope, so `SimpleRNN(8)` and `RNN(SimpleRNNCell(8))` have the same parameters, and several
cells are "cells_0", "cells_1", … below it. A stack is driven cell by cell, each over the whole sequence: that gives the same
numbers as step by step, and every SimpleRNNCell runs in the fast loop.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import DenyList, meta

from flax_srnn import options, sequence, validation
from flax_srnn import states as _states
from flax_srnn.cell import cell_step

PENALTIES = "losses"


class _Checked(nn.Module):
    """Checks the options when the layer is constructed; Flax's own errors come after."""

    def __post_init__(self) -> None:
        options.check(self)
        for name, value in options.hashable(self).items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def _sow_penalties(self, penalties: Mapping[str, jax.Array | None]) -> None:
        """Records every penalty as a scalar: the last call's of the weights, the sum over calls of the activity's."""
        if self.is_initializing():
            return
        first = not getattr(self, "_called", False)
        object.__setattr__(self, "_called", True)
        for name, value in penalties.items():
            if value is not None:
                # What stands there before this module's first call comes from an earlier pass, and is replaced.
                add = name == "activity_regularizer" and not first
                self.sow(
                    PENALTIES, name, value, reduce_fn=lambda a, b, add=add: a + b if add else b, init_fn=lambda: 0.0
                )


class _SimpleCell(_Checked):
    """What `SimpleRNNCell` and `SimpleRNN` share: the parameters, and the sequence they are applied to."""

    @nn.compact
    def declare(self, in_features: int) -> dict[str, jax.Array]:
        """All parameters, unboxed: the one place that makes them, and where `collect_constraints` finds them."""
        return {name: self._parameter(name, *made) for name, made in self.parameters(in_features).items()}

    def _parameter(self, name: str, initializer: Any, shape: tuple[int, ...]) -> jax.Array:
        if self.has_variable("params", name):
            found = meta.unbox(self.get_variable("params", name))
            if jnp.shape(found) != shape:
                raise ValueError(
                    f"The parameter `{name}` has the shape {jnp.shape(found)}, but these inputs and `units` need {shape}: "
                    "`inputs` must have the number of features that the layer was initialised with."
                )
        elif not self.is_initializing():
            raise ValueError(
                f"`variables` has no parameter '{name}' at {'/'.join(self.path) or 'the top'} in the collection 'params': "
                "make the variables with `init`."
            )
        return self.param(name, initializer, shape, self.param_dtype)

    def _masks(self, inputs: jax.Array, batch: tuple[int, ...], training: bool) -> dict[str, jax.Array | None]:
        if not self.drops(training):
            return {}
        seeded = None if self.has_rng("dropout") else self.seed_key(self.path)
        return self.masks(self.make_rng("dropout") if seeded is None else seeded, inputs, batch)

    def _cast(self, x: Any) -> Any:
        return x if self.dtype is None else jax.tree.map(lambda leaf: jnp.asarray(leaf, self.dtype), x)

    def over_sequence(
        self, inputs: jax.Array, batch: tuple[int, ...], start: Any, training: bool, *, recorded: bool, **arguments: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`simple_rnn` with this module's parameters and options: (initial state, final state, outputs).

        `start` is the state given or `recorded` by an earlier call, or None; resets go back to a given state, never to a
        recorded one.
        """
        params = self.declare(inputs.shape[-1])
        self._sow_penalties(self.penalties(params))
        params, inputs = self._cast(params), self._cast(inputs)
        zeros = jnp.zeros((int(self.units),), params["kernel"].dtype)
        initial = jnp.broadcast_to(params.get("initial_state", zeros), (*batch, int(self.units)))
        if recorded and arguments["resets"] is not None:
            arguments["reset_state"] = initial
        final, outputs = sequence.simple_rnn(
            params,
            inputs,
            initial_state=None if start is None else self._cast(validation.single_state(start)),
            activation=self.activation,
            precision=self.precision,
            **self._masks(inputs, batch, training),
            **arguments,
        )
        return initial.astype(final.dtype), final, outputs


class SimpleRNNCell(_SimpleCell, nn.RNNCellBase, options.CellOptions):
    """One step of a simple RNN: h_t = act((x_t ∘ d_x) W + b + (h_{t-1} ∘ d_h) U).

    A `flax.linen.RNNCellBase`: it works in `flax.linen.RNN` and `flax.linen.Bidirectional` too, where Flax shows the
    penalties of cells inside its loop to nobody.

    Args:
      units: U, a positive integer.
      activation: a Keras name, a Keras config, a callable, or None (linear).
      use_bias: whether there is a bias.
      kernel_initializer, recurrent_initializer, bias_initializer: of the parameters (F, U), (U, U), (U,).
      kernel_regularizer, recurrent_regularizer, bias_regularizer: penalties on them, sown in the collection "losses".
      kernel_constraint, recurrent_constraint, bias_constraint: for `keep_constraints`; they change nothing here.
      dropout, recurrent_dropout: the fraction of inputs and of states dropped in training, from 0 to 1.
      seed: a dropout key for applications without the "dropout" RNG stream; it draws the same masks in every call.
      dtype: of the computation, None for the common one of parameters and inputs.
      param_dtype: of the parameters.
      precision: of the matrix products.

    Raises:
      TypeError, ValueError: an invalid argument, when the cell is constructed.

    Source: Keras `SimpleRNNCell`.

    >>> cell = SimpleRNNCell(4)
    >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
    >>> (carry, output), variables = cell.init_with_output(jax.random.key(1), carry, jnp.ones((2, 3)))
    >>> output.shape, sorted(variables["params"])
    ((2, 4), ['bias', 'kernel', 'recurrent_kernel'])
    """

    def __call__(self, carry: Any, inputs: Any, *, training: bool = False) -> tuple[jax.Array, jax.Array]:
        """(h_{t-1} (*batch, U), x_t (*batch, F)) -> (h_t, h_t)."""
        validation.flag("training", training)
        x = validation.array("inputs", inputs)
        if x.ndim < 1:
            raise ValueError(f"`inputs` must have the shape (*batch, F), got {validation.describe(x)}.")
        params = self.declare(x.shape[-1])
        self._sow_penalties(self.penalties(params))
        state = validation.shaped(
            "carry", validation.single_state(carry), (*x.shape[:-1], int(self.units)), "(*batch, U)"
        )
        x, state = self._cast(x), self._cast(state)
        return cell_step(
            self._cast(params),
            state,
            x,
            activation=self.activation,
            precision=self.precision,
            **self._masks(x, x.shape[:-1], training),
        )

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        """Zeros (*batch, U) for inputs of `input_shape` (*batch, F)."""
        return jnp.zeros((*input_shape[:-1], int(self.units)), self.param_dtype if self.dtype is None else self.dtype)

    @property
    def num_feature_axes(self) -> int:
        return 1


class _Layer(_Checked):
    """A layer over time: its cells one after the other, and the states between calls."""

    @nn.nowrap
    def reset_states(self, variables: Mapping[str, Any], states: Any = None) -> dict[str, Any]:
        """This layer's `variables` with the recorded states set back, or set to `states`; pure.

        Args:
          variables: this layer's; of a whole model, use `flax_srnn.reset_states`.
          states: None (the initial states), an array if there is one cell, a list or tuple with one state for every cell, or
            a mapping like `variables["carry"]`.

        Raises:
          AttributeError: the layer is not stateful.
          ValueError: no state was recorded yet, so the batch size is unknown; `states` does not fit in count, shape or dtype.
        """
        if not self.stateful:
            raise AttributeError("Layer must be stateful: construct it with stateful=True to have recorded states.")
        if states is None or isinstance(states, Mapping):
            return _states.reset_states(variables, states)
        states = (states,) if not isinstance(states, (list, tuple)) else tuple(states)
        return _states.reset_states(variables, {_states.NAME: states})

    @property
    def states(self) -> tuple[Any, ...] | None:
        """The recorded states of a bound stateful layer, one a cell; None before there are any."""
        if self.scope is None or not self.has_variable(_states.COLLECTION, _states.NAME):
            return None
        return self.get_variable(_states.COLLECTION, _states.NAME)

    def _forward(
        self,
        cells: list[Any],
        inputs: Any,
        initial_state: Any,
        mask: Any,
        seq_lengths: Any,
        resets: Any,
        training: bool,
    ) -> Any:
        validation.flag("training", training)
        x, batch, steps = validation.sequence(inputs, time_major=self.time_major)
        used = sequence.used_steps(mask, seq_lengths, batch, steps)
        reset_flags = validation.step_flags("resets", resets, batch, steps)
        starts, recorded = self._starts(initial_state, len(cells), batch)
        initials, finals = [], []
        for number, (cell, start) in enumerate(zip(cells, starts, strict=True)):
            last = number == len(cells) - 1
            drive = cell.over_sequence if _is_simple(cell) else functools.partial(_scan_cell, cell)
            initial, final, x = drive(
                x,
                batch,
                start,
                training,
                recorded=recorded,
                mask=used,
                resets=reset_flags,
                go_backwards=self.go_backwards,
                keep_order=self.keep_order or not last,
                zero_output_for_mask=self.zero_output_for_mask and last,
                unroll=self.unroll,
                time_major=self.time_major,
                implementation=self.implementation,
                return_sequences=self.return_sequences or not last,
                remat=self.remat,
            )
            initials.append(initial)
            finals.append(final)
        if self.stateful and self.is_mutable_collection(_states.COLLECTION):
            self.put_variable(_states.COLLECTION, _states.NAME, tuple(initials if self.is_initializing() else finals))
        returned = (x, *finals) if self.return_state else x
        self._sow_penalties({"activity_regularizer": self.activity_penalty(returned, batch)})
        return returned

    def _starts(self, initial_state: Any, count: int, batch: tuple[int, ...]) -> tuple[Any, bool]:
        """The state that each cell starts from (None: its initial state), and whether an earlier call recorded them."""
        if initial_state is not None:
            return (
                (initial_state,) if count == 1 else validation.per_cell("initial_state", initial_state, count)
            ), False
        if not self.stateful or self.is_initializing():
            return (None,) * count, False
        recorded = self.states
        if recorded is None:
            if not self.is_mutable_collection(_states.COLLECTION):
                raise ValueError(
                    "This layer is stateful, but `variables` holds no recorded state: pass the variables that `init` returned, "
                    "or apply it with mutable=['carry'] to begin with the initial state."
                )
            return (None,) * count, False
        for leaf in jax.tree.leaves(recorded):
            if leaf.shape[: len(batch)] != batch:
                raise ValueError(
                    f"`inputs` has the batch shape {batch}, but the recorded state has {leaf.shape[: len(batch)]}: a stateful "
                    "layer keeps its batch size; begin anew with other variables, or pass `initial_state`."
                )
        return recorded, True


def _is_simple(cell: Any) -> bool:
    """Whether `cell` computes what `simple_rnn` does: a subclass with a step of its own does not."""
    return isinstance(cell, SimpleRNN) or (
        isinstance(cell, SimpleRNNCell) and type(cell).__call__ is SimpleRNNCell.__call__
    )


def _scan_cell(
    cell: nn.RNNCellBase,
    x: jax.Array,
    batch: tuple[int, ...],
    start: Any,
    training: bool,
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
) -> tuple[Any, Any, jax.Array]:
    """Any Flax cell over a sequence: (initial state, final state, outputs). Differentiated by JAX, in every mode."""
    if implementation not in (None, "autodiff") or remat:
        asked = f"implementation={implementation!r}" if implementation else "remat=True"
        raise ValueError(
            f"`{asked.split('=')[0]}`: {asked} is for SimpleRNNCell; a {type(cell).__name__} is driven by the plain scan: leave it None."
        )
    time = 0 if time_major else len(batch)
    steps = x.shape[time]
    initial = cell.initialize_carry(jax.random.key(0), (*batch, x.shape[-1]))
    state = initial if start is None else _like_state(start, initial)
    keywords = {"training": training} if _accepts_training(cell) else {}
    # The width of the output is known only from the cell itself.
    key, now = jax.random.key(0), jax.ShapeDtypeStruct((*batch, x.shape[-1]), x.dtype)
    unbound = cell.clone(parent=None)
    (_, output), _ = jax.eval_shape(
        lambda x: unbound.init_with_output({"params": key, "dropout": key}, initial, x, **keywords), now
    )
    held = jnp.zeros(output.shape, output.dtype)

    def body(cell: nn.RNNCellBase, carry: Any, now: Any) -> Any:
        step = functools.partial(cell, **keywords)
        return sequence.any_cell_body(step, initial if recorded else state, zero_output_for_mask)(carry, now)

    scan = nn.scan(
        body,
        # Everything is read alike at every step, and dropout masks stay the same; what steps would sow stays inside.
        variable_broadcast=DenyList(("intermediates", PENALTIES)),
        split_rngs={"params": False, "dropout": False},
        in_axes=((time, len(batch), len(batch)),),
        out_axes=time,
        reverse=bool(go_backwards),
        unroll=max(1, steps) if unroll is True else max(1, int(unroll)),
        length=steps,
    )
    (final, held), outputs = scan(cell, (state, held), (x, mask, resets))
    if not return_sequences:
        shown = held
        if zero_output_for_mask and mask is not None and steps:
            shown = jnp.where(mask[..., 0 if go_backwards else -1, None], held, jnp.zeros_like(held))
        return initial, final, shown
    return initial, final, jnp.flip(outputs, time) if go_backwards and not keep_order else outputs


def _like_state(given: Any, initial: Any) -> Any:
    """The state given for a cell, in the structure, shapes and dtypes of its initial state."""
    structure = jax.tree.structure(initial)
    if jax.tree.structure(given) != structure and isinstance(given, (list, tuple)) and len(given) == 1:
        given = given[0]
    if isinstance(given, list):
        given = tuple(given)
    if jax.tree.structure(given) != structure:
        raise ValueError(
            f"`initial_state` must have the structure of the cell's state, {structure}, got {jax.tree.structure(given)}."
        )
    return jax.tree.map(
        lambda g, i: validation.shaped("initial_state", g, i.shape, "the cell's state").astype(i.dtype), given, initial
    )


def _accepts_training(cell: nn.RNNCellBase) -> bool:
    return "training" in inspect.signature(type(cell).__call__).parameters


class SimpleRNN(_SimpleCell, _Layer, options.SimpleRNNOptions):
    """A simple RNN over a sequence, with every option of Keras's.

    Args:
      units, …, precision: as of `SimpleRNNCell`.
      activity_regularizer: penalty on every returned array, divided by the batch size.
      return_sequences: return all outputs, not only the last.
      return_state: return (output, state).
      go_backwards: process from the last step to the first; outputs are returned in that order.
      stateful: start from the state recorded by the last call, and record: `apply(..., mutable=["carry"])`.
      unroll: of the loop: False, True, or steps per iteration.
      zero_output_for_mask: outputs at masked steps are 0.
      initial_state_initializer: of a learned initial state, the parameter "initial_state" (U,), used in every row where no
        state is given.
      time_major, keep_order, implementation, remat: as of `simple_rnn`.

    Call arguments:
      inputs: (*batch, T, F), or (T, *batch, F) with `time_major`.
      initial_state: (*batch, U), or a list of one such array; it wins over a recorded state.
      mask, seq_lengths, resets: (*batch, T), (*batch,), (*batch, T), as of `simple_rnn`; with a recorded state, resets go
        back to the learned initial state or zeros, not to the recorded one.
      training: whether dropout is applied; it uses the RNG stream "dropout", or else `seed`.

    Returns:
      The last output (*batch, U), or all outputs in the layout of `inputs`; with `return_state` (output, state).

    Raises:
      TypeError, ValueError: an invalid argument, when the layer is constructed or called.

    Source: Keras `SimpleRNN`.

    >>> layer = SimpleRNN(4, return_sequences=True, return_state=True)
    >>> (output, state), variables = layer.init_with_output(jax.random.key(0), jnp.ones((32, 10, 8)))
    >>> output.shape, state.shape
    ((32, 10, 4), (32, 4))
    """

    def __call__(
        self,
        inputs: Any,
        *,
        initial_state: Any = None,
        mask: Any = None,
        seq_lengths: Any = None,
        resets: Any = None,
        training: bool = False,
    ) -> Any:
        return self._forward([self], inputs, initial_state, mask, seq_lengths, resets, training)


class RNN(_Layer, options.RNNOptions):
    """Drives any `flax.linen.RNNCellBase`, or a list of them stacked first to last, over a sequence.

    Args:
      cell: a cell, or a list of cells; `StackedRNNCells` is the same as the list of its cells.
      return_sequences, …, zero_output_for_mask, activity_regularizer, time_major, keep_order, implementation, remat: as of
        `SimpleRNN`; `implementation` and `remat` are for SimpleRNNCells.

    Call arguments: as of `SimpleRNN`. `initial_state` holds one state a cell, each in its cell's own structure; `training`
    reaches the cells that accept it. A cell whose output is not its state holds its previous output at masked steps, zeros
    before the first used step.

    Returns:
      output, or with `return_state` (output, *states), one state a cell, first to last.

    Raises:
      TypeError, ValueError: an invalid argument, when the layer is constructed or called.

    Source: Keras `RNN`.

    >>> layer = RNN([SimpleRNNCell(4), nn.LSTMCell(5)], return_state=True)
    >>> (output, first, (c, h)), variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 7, 3)))
    >>> output.shape, first.shape, c.shape, sorted(variables["params"])
    ((2, 5), (2, 4), (2, 5), ['cells_0', 'cells_1'])
    """

    def __post_init__(self) -> None:
        _check_cells("cell", self.cell, alone=True)
        super().__post_init__()

    def __call__(
        self,
        inputs: Any,
        *,
        initial_state: Any = None,
        mask: Any = None,
        seq_lengths: Any = None,
        resets: Any = None,
        training: bool = False,
    ) -> Any:
        cells = _bind(_listed(self.cell), self.scope)
        return self._forward(cells, inputs, initial_state, mask, seq_lengths, resets, training)


class StackedRNNCells(nn.RNNCellBase):
    """Several cells as one: each step goes through all of them, first to last; the carry is a tuple of their states.

    Args:
      cells: a list of `flax.linen.RNNCellBase`.

    Raises:
      TypeError, ValueError: `cells` is no list of cells, or an empty one.

    Source: Keras `StackedRNNCells`.

    >>> cell = StackedRNNCells([SimpleRNNCell(4), SimpleRNNCell(5)])
    >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
    >>> (carry, output), _ = cell.init_with_output(jax.random.key(0), carry, jnp.ones((2, 3)))
    >>> output.shape, [state.shape for state in carry]
    ((2, 5), [(2, 4), (2, 5)])
    """

    cells: Any

    def __post_init__(self) -> None:
        _check_cells("cells", self.cells, alone=False)
        super().__post_init__()

    def __call__(self, carry: Any, inputs: Any, *, training: bool = False) -> tuple[tuple[Any, ...], jax.Array]:
        """(one state a cell, x_t (*batch, F)) -> (the new states, the last cell's output)."""
        output, new = inputs, []
        for cell, state in zip(
            _bind(self.cells, self.scope), validation.per_cell("carry", carry, len(self.cells)), strict=True
        ):
            keywords = {"training": training} if _accepts_training(cell) else {}
            state, output = cell(state, output, **keywords)
            new.append(state)
        return tuple(new), output

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> tuple[Any, ...]:
        """One initial state a cell for inputs of `input_shape` (*batch, F)."""
        carry = []
        for cell, key in zip(self.cells, jax.random.split(rng, len(self.cells)), strict=True):
            unbound = cell.clone(parent=None)
            state = unbound.initialize_carry(key, input_shape)
            carry.append(state)
            x = jax.ShapeDtypeStruct(input_shape, jnp.float32)
            (_, output), _ = jax.eval_shape(functools.partial(unbound.init_with_output, key), state, x)
            input_shape = output.shape
        return tuple(carry)

    @property
    def num_feature_axes(self) -> int:
        return 1


class Bidirectional(_Checked, options.BidirectionalOptions):
    """Runs a layer over the sequence in both directions and merges the outputs, step by step in the order of the inputs.

    Args:
      layer: a `SimpleRNN` or `RNN`.
      merge_mode: "concat", "sum", "ave", "mul", or None to return both outputs.
      backward_layer: the layer for the other direction; default a copy of `layer` with `go_backwards` turned round.

    Call arguments: as of `SimpleRNN`. `initial_state` holds the states of the forward layer, then of the backward layer.
    `resets` mark where segments of the sequence begin, so the direction that runs backwards starts anew one step earlier in
    time, at each segment's last step: packed segments never see each other.

    Returns:
      output, or with `return_state` (output, *forward_states, *backward_states); with `merge_mode=None`, the two outputs in
      place of one.

    Raises:
      TypeError, ValueError: an invalid argument, or two layers that do not fit together.

    Source: Keras `Bidirectional`; M. Schuster and K. Paliwal, "Bidirectional recurrent neural networks" (1997).

    >>> layer = Bidirectional(SimpleRNN(4, return_sequences=True))
    >>> output, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 7, 3)))
    >>> output.shape, sorted(variables["params"])
    ((2, 7, 8), ['backward_layer', 'forward_layer'])
    """

    def __post_init__(self) -> None:
        for name in ("layer", "backward_layer"):
            value = getattr(self, name)
            if not isinstance(value, _Layer) and not (name == "backward_layer" and value is None):
                raise TypeError(f"`{name}` must be a SimpleRNN or RNN layer, got {validation.describe(value)}.")
        if self.backward_layer is not None:
            options.check_directions(self.layer, self.backward_layer)
        super().__post_init__()

    @property
    def stateful(self) -> bool:
        return self.layer.stateful

    reset_states = _Layer.reset_states

    def __call__(
        self,
        inputs: Any,
        *,
        initial_state: Any = None,
        mask: Any = None,
        seq_lengths: Any = None,
        resets: Any = None,
        training: bool = False,
    ) -> Any:
        layers = (self.layer, self.backward_layer or self.layer.clone(go_backwards=not self.layer.go_backwards))
        counts = [len(_listed(layer.cell)) if isinstance(layer, RNN) else 1 for layer in layers]
        given: list[Any] = [None, None]
        if initial_state is not None:
            both = validation.per_cell("initial_state", initial_state, sum(counts))
            given = [list(both[: counts[0]]), list(both[counts[0] :])]
        inputs, batch, steps = validation.sequence(inputs, time_major=self.layer.time_major)
        starts = validation.step_flags("resets", resets, batch, steps)
        outputs, finals = [], []
        for layer, name, state in zip(layers, ("forward_layer", "backward_layer"), given, strict=True):
            bound = layer.clone(parent=self.scope.push(name, reuse=True), name=name, keep_order=True)
            returned = bound(
                inputs,
                initial_state=state,
                mask=mask,
                seq_lengths=seq_lengths,
                resets=sequence.segment_ends(starts) if layer.go_backwards else starts,
                training=training,
            )
            output, *states = returned if layer.return_state else (returned,)
            outputs.append(output)
            finals.extend(states)
        if self.layer.return_sequences and self.layer.go_backwards and not self.layer.keep_order:
            # Keras returns the order in which the forward layer went.
            outputs = [jnp.flip(output, 0 if self.layer.time_major else len(batch)) for output in outputs]
        merged = options.merge(self.merge_mode, *outputs)
        returned = (*merged, *finals)
        return returned if len(returned) > 1 else returned[0]


def _check_cells(name: str, cells: Any, *, alone: bool) -> None:
    listed = cells if isinstance(cells, (list, tuple)) else [cells] if alone else None
    if listed is None or not all(isinstance(cell, nn.RNNCellBase) for cell in listed):
        expected = "a flax.linen.RNNCellBase or a list of them" if alone else "a list of flax.linen.RNNCellBase"
        raise TypeError(f"`{name}` must be {expected}, got {validation.describe(cells)}.")
    if not listed:
        raise ValueError(f"`{name}` must hold at least one cell, got an empty list.")


def _listed(cell: Any) -> Any:
    """The cells that an `RNN` drives one after the other."""
    if type(cell) is StackedRNNCells:
        return cell.cells
    return cell if isinstance(cell, (list, tuple)) else (cell,)


def _bind(cells: Any, scope: Any) -> list[Any]:
    """The cells with their variables in `scope`: one shares it, several lie below it as "cells_0", "cells_1", …"""
    if len(cells) == 1:
        # Rewound, the scope lets a second call of the same layer find the same names.
        return [cells[0].clone(parent=scope.rewound())]
    return [cell.clone(parent=scope.push(f"cells_{i}", reuse=True)) for i, cell in enumerate(cells)]
