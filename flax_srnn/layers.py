"""The layers for Flax Linen: options and states around the cells.

A layer's cells share its own scope, so `SimpleRNN(8)` and `RNN(SimpleRNNCell(8))` have the same parameters, and several
cells are "cells_0", "cells_1", … below it. A stack is driven cell by cell, each over the whole sequence: that gives the same
numbers as step by step, and every SimpleRNNCell runs in the fast loop.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from flax_srnn import forward, linen_cells, options, validation
from flax_srnn import states as _states
from flax_srnn.linen_cells import SimpleRNNCell, StackedRNNCells


class _Layer(linen_cells.Checked):
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
        return forward.reset(self, variables, states)

    @property
    def states(self) -> tuple[Any, ...] | None:
        """The recorded states of a bound stateful layer, one a cell; None before there are any."""
        if self.scope is None or not self.has_variable(_states.COLLECTION, _states.NAME):
            return None
        return self.get_variable(_states.COLLECTION, _states.NAME)

    def _call(
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
        drives = [
            functools.partial(cell.drive, training)
            if _is_simple(cell)
            else functools.partial(linen_cells.drive_any, cell, training)
            for cell in cells
        ]
        recorded = self._recorded(given=initial_state is not None)
        done = forward.layer(
            self,
            drives,
            recorded,
            inputs,
            initial_state,
            mask,
            seq_lengths,
            resets,
            **forward.own(self),
        )
        if self.stateful and self.is_mutable_collection(_states.COLLECTION):
            new = done.initial_states if self.is_initializing() else done.final_states
            self.put_variable(_states.COLLECTION, _states.NAME, new)
        self._sow_penalties({"activity_regularizer": done.activity_penalty})
        return done.returned

    def _recorded(self, given: bool) -> tuple[Any, ...] | None:
        """The states to go on from; None where there are none, or others are `given`."""
        if given or not self.stateful or self.is_initializing():
            return None
        if self.states is None and not self.is_mutable_collection(_states.COLLECTION):
            raise ValueError(
                "This layer is stateful, but `variables` holds no recorded state: pass the variables that `init` returned, or "
                "apply it with mutable=['carry'] to begin with the initial state."
            )
        return self.states


def _is_simple(cell: Any) -> bool:
    """Whether `cell` computes what `simple_rnn` does: a subclass with a step of its own does not."""
    return isinstance(cell, SimpleRNN) or (
        isinstance(cell, SimpleRNNCell) and type(cell).__call__ is SimpleRNNCell.__call__
    )


class SimpleRNN(linen_cells.SimpleCellModule, _Layer, options.SimpleRNNOptions):
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

    >>> import jax, jax.numpy as jnp
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
        return self._call([self], inputs, initial_state, mask, seq_lengths, resets, training)


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

    >>> import jax, jax.numpy as jnp
    >>> layer = RNN([SimpleRNNCell(4), nn.LSTMCell(5)], return_state=True)
    >>> (output, first, (c, h)), variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 7, 3)))
    >>> output.shape, first.shape, c.shape, sorted(variables["params"])
    ((2, 5), (2, 4), (2, 5), ['cells_0', 'cells_1'])
    """

    def __post_init__(self) -> None:
        forward.check_cells("cell", self.cell, nn.RNNCellBase, "flax.linen", alone=True)
        super().__post_init__()

    @nn.compact
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
        cells = linen_cells.bind(_listed(self.cell), self.scope)
        return self._call(cells, inputs, initial_state, mask, seq_lengths, resets, training)


class Bidirectional(linen_cells.Checked, options.BidirectionalOptions):
    """Runs a layer over the sequence in both directions and merges the outputs, step by step in the order of the inputs.

    Args:
      layer: a `SimpleRNN` or `RNN`.
      merge_mode: "concat", "sum", "ave", "mul", or None to return both outputs.
      backward_layer: the layer for the other direction; default a copy of `layer` with `go_backwards` turned round.

    Call arguments: as of `SimpleRNN`. `initial_state` holds the states of the forward layer, then of the backward layer.
    Outputs at masked steps are 0 with `return_sequences` and held otherwise, whatever the layers say, as in Keras.
    `resets` mark where segments of the sequence begin, so the direction that runs backwards starts anew one step earlier in
    time, at each segment's last step: packed segments never see each other.

    Returns:
      output, or with `return_state` (output, *forward_states, *backward_states); with `merge_mode=None`, the two outputs in
      place of one.

    Raises:
      TypeError, ValueError: an invalid argument, or two layers that do not fit together.

    Source: Keras `Bidirectional`; M. Schuster and K. Paliwal, "Bidirectional recurrent neural networks" (1997).

    >>> import jax, jax.numpy as jnp
    >>> layer = Bidirectional(SimpleRNN(4, return_sequences=True))
    >>> output, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 7, 3)))
    >>> output.shape, sorted(variables["params"])
    ((2, 7, 8), ['backward_layer', 'forward_layer'])
    """

    def __post_init__(self) -> None:
        forward.check_layers(self, _Layer)
        if self.backward_layer is not None:
            options.check_directions(self.layer, self.backward_layer)
        super().__post_init__()

    @property
    def stateful(self) -> bool:
        return self.layer.stateful

    @nn.nowrap
    def reset_states(self, variables: Mapping[str, Any], states: Any = None) -> dict[str, Any]:
        """As of `SimpleRNN`; a list holds the states of the forward layer, then of the backward layer."""
        if self.stateful and isinstance(states, (list, tuple)):
            forward_count, backward_count = map(_count, self._layers())
            both = validation.per_cell("states", states, forward_count + backward_count)
            halves = (tuple(both[:forward_count]), tuple(both[forward_count:]))
            states = {name: {_states.NAME: half} for name, half in zip(_DIRECTIONS, halves, strict=True)}
        return forward.reset(self, variables, states)

    @nn.nowrap
    def _layers(self) -> tuple[Any, Any]:
        return self.layer, self.backward_layer or self.layer.clone(go_backwards=not self.layer.go_backwards)

    @nn.compact
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
        layers = self._layers()
        calls = [
            functools.partial(linen_cells.below(self.scope, name, layer.clone(**changes)), training=training)
            for name, layer, changes in zip(_DIRECTIONS, layers, map(forward.direction, layers), strict=True)
        ]
        counts = [_count(layer) for layer in layers]
        return forward.bidirectional(self, layers, counts, calls, inputs, initial_state, mask, seq_lengths, resets)


_DIRECTIONS = ("forward_layer", "backward_layer")


def _count(layer: Any) -> int:
    return len(_listed(layer.cell)) if isinstance(layer, RNN) else 1


def _listed(cell: Any) -> Any:
    """The cells that an `RNN` drives one after the other."""
    if type(cell) is StackedRNNCells:
        return cell.cells
    return cell if isinstance(cell, (list, tuple)) else (cell,)
