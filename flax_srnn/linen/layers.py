"""The layers for Flax Linen: options and states around the cells.

A layer's own cells share its scope, so `SimpleRNN(8)` and `RNN(SimpleRNNCell(8))` have the same parameters, and several
cells are "cells_0", "cells_1", … below it; a cell that the model shares stays where its parent has it. A stack is driven cell
by cell, each over the whole sequence: that gives the same numbers as step by step, and every SimpleRNNCell runs in the fast
loop.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn.layers import driving, options
from flax_srnn.layers import states as _states
from flax_srnn.layers.driving import DIRECTIONS
from flax_srnn.linen import sown
from flax_srnn.linen.cells import Checked, SimpleCellModule, SimpleRNNCell, bind, drive_any, in_training, listed, place

__all__ = ["RNN", "Bidirectional", "SimpleRNN"]


class _Recurrent(Checked):
    """A layer over time."""

    @nn.nowrap
    def reset_states(
        self, variables: Mapping[str, Any], states: Any = None, *, batch_size: Any = None
    ) -> dict[str, Any]:
        """This layer's `variables` with the recorded states set back, or set to `states`; pure.

        Args:
          variables: this layer's; of a whole model, use `flax_srnn.reset_states`.
          states: None (the initial states), an array if there is one cell, a list or tuple with one state for every cell
            (of a Bidirectional, those of the forward layer, then of the backward layer), or a mapping like
            `variables["carry"]`.
          batch_size: makes states for another batch, or where none was recorded: an integer, or a tuple of the leading
            dimensions.

        Raises:
          AttributeError: the layer is not stateful.
          ValueError: no state was recorded yet and no `batch_size` is given; `states` does not fit in count, shape or dtype.
        """
        return driving.reset(self, variables, states, batch_size, self._carry)


class _Layer(_Recurrent):
    """Its cells one after the other, and the states between calls."""

    @property
    def states(self) -> tuple[Any, ...] | None:
        """The recorded states of a bound stateful layer, one a cell; None before there are any."""
        if self.scope is None or not self.has_variable(_states.COLLECTION, _states.NAME):
            return None
        recorded: tuple[Any, ...] = _states.as_tuples(self.get_variable(_states.COLLECTION, _states.NAME))
        return recorded

    @nn.nowrap
    def _turned(self) -> Any:
        """A copy that goes in the other direction, with parameters of its own."""
        apart = {"parent": None, "name": None, "_deep_clone": True, "_reset_names": True}
        return self._clone(type(self), {"go_backwards": not self.go_backwards, **apart})

    def __call__(
        self,
        inputs: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: Any = False,
        seq_lengths: Any = None,
        resets: Any = None,
    ) -> jax.Array | Any:
        """(*batch, T, F) -> output, or (output, *states) with `return_state`; the class explains the arguments."""
        training = in_training(training)
        steps = driving.steps_of(self, inputs, mask, seq_lengths, resets)
        cells = [
            driving.SimpleCell(cell, functools.partial(cell.fetch, training))
            if driving.is_simple(cell, SimpleRNN, SimpleRNNCell)
            else functools.partial(drive_any, cell, training)
            for cell in self._cells()
        ]
        recorded = self.states if self.stateful and not self.is_initializing() else None
        done = driving.layer(self, cells, steps, initial_state, recorded, self._unrecorded())
        if self.stateful:
            new = done.initial_states if self.is_initializing() else done.final_states
            if recorded is not None:
                new = _states.in_form_of(self.get_variable(_states.COLLECTION, _states.NAME), new)
            self.put_variable(_states.COLLECTION, _states.NAME, new)
        sown.sow(self, {"activity_regularizer": done.activity_penalty})
        return done.returned

    def _unrecorded(self) -> ValueError | None:
        """What to raise where the state would never advance, as Flax's own caches do."""
        if not self.stateful or self.is_mutable_collection(_states.COLLECTION):
            return None
        return ValueError(
            f"{type(self).__name__} at {'/'.join(self.path) or 'the top'} is stateful and has to record its state, or it would "
            "never advance: apply it with mutable=['carry'], and pass `variables` on with what it recorded: y, updated = "
            "apply(variables, inputs, mutable=['carry']); variables = {**variables, **updated}."
        )


class SimpleRNN(SimpleCellModule, _Layer, options.SimpleRNNOptions):
    """A simple RNN over a sequence, with every option of Keras's: h_t = act((x_t ∘ d_x) W + b + (h_{t-1} ∘ d_h) U).

    Parameters: "kernel" W (F, U), "recurrent_kernel" U (U, U), with `use_bias` "bias" b (U,), with
    `initial_state_initializer` "initial_state" (U,). These names are for Optax masks, too.

    Args:
      units: U, a positive integer.
      activation: a Keras name, a Keras config, a callable (…, U) -> (…, U), or None (linear).
      use_bias: whether there is a bias.
      kernel_initializer, recurrent_initializer, bias_initializer: of the parameters (F, U), (U, U), (U,): a Keras name, a
        Keras config, or a callable (key, shape, dtype) -> array.
      kernel_regularizer, recurrent_regularizer, bias_regularizer: penalties on them, a Keras name, a Keras config, a
        callable array -> scalar, or None; sown as scalars in the collection "losses", which `regularization_loss` sums.
      kernel_constraint, recurrent_constraint, bias_constraint: projections of them, a Keras name, a Keras config, a
        callable array -> array, or None. They change nothing here: `collect_constraints` finds them for `keep_constraints`.
      dropout, recurrent_dropout: the fraction of inputs and of states dropped in training, from 0 to 1; one mask for all
        steps of a call.
      seed: an integer that stands in for the "dropout" RNG stream where that is not given; it draws the same masks in every call.
      dtype: of the computation, None for the common one of parameters and inputs.
      param_dtype: of the parameters.
      precision: of the matrix products, as in `jax.numpy.dot`.
      activity_regularizer: penalty on every returned array, divided by the batch size; as the other penalties.
      return_sequences: return all outputs, not only the last.
      return_state: return the final state too.
      go_backwards: process from the last step to the first; outputs are returned in that order.
      stateful: start from the state recorded by the last call, and record: `apply(..., mutable=["carry"])`.
      unroll: of the loop: False, True, or steps per iteration. Results are the same.
      zero_output_for_mask: outputs at masked steps are 0; without it they are held.
      initial_state_initializer: of a learned initial state, used in every row where no state is given.
      time_major: time is the first dimension of inputs and outputs; mask, resets and lengths stay batch-first.
      keep_order: with `go_backwards`, return outputs in the order of `inputs`.
      implementation: `Scan()`, `Autodiff()`, `Chunked()` or their short forms "scan", "autodiff", "chunked": how the loop
        is run and differentiated. None chooses `Scan()`. A named one runs or raises.

    Call arguments, by name or in this order:
      inputs: (*batch, T, F), or (T, *batch, F) with `time_major`.
      initial_state: (*batch, U), or a list of one such array; it wins over a recorded state.
      mask: (*batch, T), True = use the step; at a masked step the state stays.
      training: whether dropout is applied; it uses the RNG stream "dropout", or else `seed`.
      seq_lengths: (*batch,) integers from 0 to T: steps from there on are masked. With `mask`, both apply.
      resets: (*batch, T), True = the state is set back to the initial state before this step, masked or not; with a
        recorded state, to the learned initial state or zeros.

    Returns:
      The last output (*batch, U), or all outputs in the layout of `inputs`; with `return_state` (output, state).

    Raises:
      TypeError, ValueError: an invalid argument, when the layer is constructed or called.

    Source: Keras `SimpleRNN`.

    >>> import jax, jax.numpy as jnp
    >>> layer = SimpleRNN(4, return_sequences=True, return_state=True)
    >>> (output, state), variables = layer.init_with_output(jax.random.key(0), jnp.ones((32, 10, 8)))
    >>> output.shape, state.shape, sorted(variables["params"])
    ((32, 10, 4), (32, 4), ['bias', 'kernel', 'recurrent_kernel'])
    """

    def _cells(self) -> list[Any]:
        return [self]

    @nn.nowrap
    def _carry(self, batch: tuple[int, ...]) -> dict[str, Any]:
        """The collection "carry" for a batch shape, all zeros."""
        return {_states.NAME: (driving.zero_carry(self, (*batch, 1)),)}


class RNN(_Layer, options.RNNOptions):
    """Drives any `flax.linen.RNNCellBase`, or a list of them stacked first to last, over a sequence.

    Parameters: those of one cell itself; of several cells, under "cells_0", "cells_1", … A `SimpleRNNCell` has "kernel",
    "recurrent_kernel" and "bias".

    Args:
      cell: a cell, or a list of cells; `StackedRNNCells` is the same as the list of its cells.
      return_sequences: return all outputs, not only the last.
      return_state: return the final states, one a cell, too.
      go_backwards: process from the last step to the first; outputs are returned in that order.
      stateful: start from the states recorded by the last call, and record: `apply(..., mutable=["carry"])`.
      unroll: of the loop: False, True, or steps per iteration. Results are the same.
      zero_output_for_mask: outputs at masked steps are 0; without it they are held.
      activity_regularizer: penalty on every returned array, divided by the batch size: a Keras name, a Keras config, a
        callable array -> scalar, or None; sown in the collection "losses".
      time_major: time is the first dimension of inputs and outputs; mask, resets and lengths stay batch-first.
      keep_order: with `go_backwards`, return outputs in the order of `inputs`.
      implementation: `Scan()`, `Autodiff()`, `Chunked()` or their short forms "scan", "autodiff", "chunked": how the loop
        is run and differentiated. None chooses `Scan()` for
        SimpleRNNCells, and for other cells the plain scan, which is also their `Autodiff()`. A named one runs or raises.

    Call arguments, by name or in this order:
      inputs: (*batch, T, F), or (T, *batch, F) with `time_major`.
      initial_state: a list with one state a cell, each in its cell's own structure; it wins over a recorded state.
      mask: (*batch, T), True = use the step; at a masked step the state stays.
      training: whether dropout is applied, for the cells that accept it.
      seq_lengths: (*batch,) integers from 0 to T: steps from there on are masked. With `mask`, both apply.
      resets: (*batch, T), True = the state is set back to the initial state before this step, masked or not; with
        recorded states, to the cells' initial states.

    A cell whose output is not its state holds its previous output at masked steps, zeros before the first used step; one that has
    a method `output_of(state)` puts that out.

    Returns:
      output, as of `return_sequences`, or with `return_state` (output, *states), one state a cell, first to last.

    Raises:
      TypeError, ValueError: an invalid argument, when the layer is constructed or called.

    Source: Keras `RNN`.

    >>> import jax, jax.numpy as jnp
    >>> layer = RNN([SimpleRNNCell(4), nn.LSTMCell(5)], return_state=True)
    >>> (output, first, (c, h)), variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 7, 3)))
    >>> output.shape, first.shape, c.shape, sorted(variables["params"])
    ((2, 5), (2, 4), (2, 5), ['cells_0', 'cells_1'])
    """

    @nn.nowrap
    def _check(self) -> None:
        driving.check_cells("cell", self.cell, nn.RNNCellBase, "flax.linen", alone=True)
        super()._check()

    @nn.compact
    def _cells(self) -> list[Any]:
        return bind(self, self.cell)

    @nn.nowrap
    def _carry(self, batch: tuple[int, ...]) -> dict[str, Any]:
        # A state does not depend on the features of the inputs.
        made = [cell.initialize_carry(jax.random.key(0), (*batch, 1)) for cell in listed(self.cell)]
        return {_states.NAME: tuple(jax.tree.map(jnp.zeros_like, made))}


class Bidirectional(_Recurrent, options.BidirectionalOptions):
    """Runs a layer over the sequence in both directions and merges the outputs, step by step in the order of the inputs.

    Parameters: those of the layers, under "forward_layer" and "backward_layer".

    Args:
      layer: a `SimpleRNN` or `RNN`.
      merge_mode: "concat", "sum", "ave", "mul", or None to return both outputs.
      backward_layer: the layer for the other direction; default a copy of `layer` with `go_backwards` turned round.

    Call arguments, by name or in this order:
      inputs: (*batch, T, F), or (T, *batch, F) with `time_major`.
      initial_state: a list with the states of the forward layer, then of the backward layer; it wins over a recorded state.
      mask: (*batch, T), True = use the step; at a masked step the state stays.
      training: whether dropout is applied; it uses the RNG stream "dropout", or else each layer's `seed`.
      seq_lengths: (*batch,) integers from 0 to T: steps from there on are masked. With `mask`, both apply.
      resets: (*batch, T), True = a segment of the sequence begins here. The direction that runs backwards starts anew one
        step earlier in time, at each segment's last step: packed segments never see each other.

    Outputs at masked steps are 0 with `return_sequences` and held otherwise, whatever the layers say, as in Keras.

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

    @nn.nowrap
    def _check(self) -> None:
        driving.check_layers(self, _Layer)
        if self.backward_layer is not None:
            options.check_directions(self.layer, self.backward_layer)
        super()._check()

    @property
    def stateful(self) -> bool:
        return self.layer.stateful

    @nn.nowrap
    def reset_states(
        self, variables: Mapping[str, Any], states: Any = None, *, batch_size: Any = None
    ) -> dict[str, Any]:
        if self.stateful and isinstance(states, (list, tuple)):
            halves = driving.halves("states", states, list(map(_count, self._layers())))
            states = {name: {_states.NAME: half} for name, half in zip(DIRECTIONS, halves, strict=True)}
        return super().reset_states(variables, states, batch_size=batch_size)

    @nn.nowrap
    def _carry(self, batch: tuple[int, ...]) -> dict[str, Any]:
        return {name: layer._carry(batch) for name, layer in zip(DIRECTIONS, self._layers(), strict=True)}

    @nn.nowrap
    def _layers(self) -> tuple[Any, Any]:
        return self.layer, self.backward_layer or self.layer._turned()

    @nn.compact
    def __call__(
        self,
        inputs: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: Any = False,
        seq_lengths: Any = None,
        resets: Any = None,
    ) -> jax.Array | Any:
        """(*batch, T, F) -> output, or (output, *states) with `return_state`; the class explains the arguments."""
        training = in_training(training)
        steps = driving.steps_of(self.layer, inputs, mask, seq_lengths, resets)
        layers = [place(self, layer, name) for layer, name in zip(self._layers(), DIRECTIONS, strict=True)]
        calls = [functools.partial(layer, training=training) for layer in layers]
        return driving.bidirectional(self, layers, list(map(_count, layers)), calls, steps, initial_state)


def _count(layer: Any) -> int:
    return len(listed(layer.cell)) if isinstance(layer, RNN) else 1
