"""The layers for Flax NNX: options and states around the cells, with variables kept NNX's way.

Parameters are `nnx.Param`s named kernel, recurrent_kernel, bias and initial_state; the states of a stateful layer are
`Carry` variables; dropout draws from the stream "dropout" of the `rngs` that the module was made with, and `train()` and
`eval()` switch it. A module starts in training mode, as `nnx.Dropout` does. Everything is an ordinary NNX module: `nnx.jit`,
`nnx.grad`, `nnx.split` and `nnx.merge` apply.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flax_srnn.core.sequence import Steps
from flax_srnn.layers import driving, options
from flax_srnn.layers import states as _states
from flax_srnn.layers.driving import DIRECTIONS
from flax_srnn.nnx.cells import (
    Checked,
    SimpleCellModule,
    SimpleRNNCell,
    StackedRNNCells,
    a_module,
    drive_any,
    in_training,
    initial_state,
    listed,
    plain,
)

__all__ = ["RNN", "Bidirectional", "Carry", "Layer", "Penalty", "SimpleRNN", "cell_path", "reset_states"]


class Carry(nnx.Variable):
    """A state that a stateful layer carries from call to call."""


class Penalty(nnx.Variable):
    """The activity penalties of a layer's calls since `regularization_loss` last took them."""


class Layer(Checked):
    """A layer over time: its cells one after the other, and the states between calls."""

    stateful: bool
    activity_regularizer: Any
    states: Any = None
    """The recorded states, a tuple of `Carry`s; None while the batch size is not known."""

    def __setattr__(self, name: str, value: Any) -> None:
        # `nnx.update` hands on what another layer had recorded, which this one may not have yet.
        if name == "states" and isinstance(value, Mapping):
            value = nnx.data(jax.tree.map(_as_carry, _states.as_tuples(value), is_leaf=_is_variable))
        super().__setattr__(name, value)

    def _begin(self, batch_size: Any) -> None:
        self.activity_loss: Any = nnx.data(None if self.activity_regularizer is None else Penalty(jnp.zeros(())))
        _make_states(self, batch_size)

    def __call__(
        self,
        inputs: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: Any = None,
        seq_lengths: Any = None,
        resets: Any = None,
    ) -> jax.Array | Any:
        """(*batch, T, F) -> output, or (output, *states) with `return_state`; the class explains the arguments."""
        training = in_training(training)
        return self._call(driving.steps_of(self, inputs, mask, seq_lengths, resets), initial_state, training, ())

    def _call(self, steps: Steps, initial_state: Any, training: Any, path: tuple[str, ...]) -> Any:
        """A call at a place in the model, which tells layers with equal seeds apart."""
        own = self._cells()
        cells = [
            driving.SimpleCell(cell, functools.partial(cell._fetch, training, (*path, *cell_path(own, i))))
            if driving.is_simple(cell, SimpleRNN, SimpleRNNCell)
            else functools.partial(drive_any, cell, training)
            for i, cell in enumerate(own)
        ]
        done = driving.layer(self, cells, steps, initial_state, self._recorded())
        if self.stateful:
            self._record(done.final_states)
        if done.activity_penalty is not None:
            earlier = self.activity_loss[...]
            self.activity_loss[...] = options.total([earlier, done.activity_penalty]).astype(earlier.dtype)
        return done.returned

    def _cells(self) -> list[Any]:
        """Its cells, first to last."""
        raise NotImplementedError  # every layer below has its own

    def reset_states(self, states: Any = None, *, batch_size: Any = None) -> None:
        """Sets the recorded states back to the initial states, or to `states`.

        Args:
          states: an array if there is one cell, or a list or tuple with one state a cell; they are cast.
          batch_size: makes states for another batch, or before the first call: an integer, or a tuple of the leading
            dimensions.

        Raises:
          AttributeError: the layer is not stateful.
          ValueError: no state was recorded yet and no `batch_size` is given; `states` does not fit in count, shape or dtype.
        """
        recorded = self._recorded()
        if self.stateful and recorded is None and batch_size is None:
            raise ValueError(
                "If a RNN is stateful, it needs to know its batch size: call the layer once before you set its states, or give "
                "`batch_size`, here or when you make the layer."
            )
        learned = {"initial_state": self.initial_state[...]} if hasattr(self, "initial_state") else {}
        variables = {_states.COLLECTION: {_states.NAME: recorded}, "params": learned}
        new = driving.reset(self, variables, states, batch_size, self._carry)
        self._record(new[_states.COLLECTION][_states.NAME])

    def _carry(self, batch: tuple[int, ...]) -> dict[str, Any]:
        """The states for a batch shape, all zeros, as Linen's collection "carry" has them."""
        # A state does not depend on the features of the inputs.
        made = [initial_state(cell, (*batch, 1)) for cell in self._cells()]
        return {_states.NAME: tuple(jax.tree.map(jnp.zeros_like, made))}

    def _recorded(self) -> tuple[Any, ...] | None:
        return jax.tree.map(lambda carry: carry[...], self.states, is_leaf=_is_variable)

    def _record(self, new: tuple[Any, ...]) -> None:
        shapes = jax.tree.map(jax.typeof, (self._recorded(), new))
        if shapes[0] != shapes[1]:
            if self.states is None and (transform := _fixed_structure(new)):
                raise ValueError(
                    f"a stateful {type(self).__name__} is called for the first time inside {transform}, where nothing can be "
                    "added to a module: make its states before, with `batch_size` in the constructor or in "
                    "`reset_states(batch_size=…)`."
                )
            self.states = nnx.data(jax.tree.map(Carry, new))
            return
        carries = jax.tree.leaves(self.states, is_leaf=_is_variable)
        for carry, value in zip(carries, jax.tree.leaves(new), strict=True):
            carry[...] = value


@dataclasses.dataclass(eq=False, repr=False)
class SimpleRNN(SimpleCellModule, Layer, options.SimpleRNNOptions):
    """A simple RNN over a sequence, with every option of Keras's: h_t = act((x_t ∘ d_x) W + b + (h_{t-1} ∘ d_h) U).

    Parameters, `nnx.Param`s: `kernel` W (F, U), `recurrent_kernel` U (U, U), with `use_bias` `bias` b (U,), with
    `initial_state_initializer` `initial_state` (U,).

    Args:
      in_features: F.
      units: U, a positive integer.
      activation: a Keras name, a Keras config, a callable (…, U) -> (…, U), or None (linear).
      use_bias: whether there is a bias.
      kernel_initializer, recurrent_initializer, bias_initializer: of the parameters (F, U), (U, U), (U,): a Keras name, a
        Keras config, or a callable (key, shape, dtype) -> array.
      kernel_regularizer, recurrent_regularizer, bias_regularizer: penalties on them, a Keras name, a Keras config, a
        callable array -> scalar, or None; `flax_srnn.nnx.regularization_loss` sums them.
      kernel_constraint, recurrent_constraint, bias_constraint: projections of them, a Keras name, a Keras config, a
        callable array -> array, or None. They change nothing here: `flax_srnn.nnx.collect_constraints` finds
        them for `keep_constraints`.
      dropout, recurrent_dropout: the fraction of inputs and of states dropped in training, from 0 to 1; one mask for all
        steps of a call.
      seed: an integer that stands in for the stream "dropout" of `rngs` where there is none; it draws the same masks in
        every call.
      dtype: of the computation, None for the common one of parameters and inputs.
      param_dtype: of the parameters.
      precision: of the matrix products, as in `jax.numpy.dot`.
      activity_regularizer: penalty on every returned array, divided by the batch size; as the other penalties.
      return_sequences: return all outputs, not only the last.
      return_state: return the final state too.
      go_backwards: process from the last step to the first; outputs are returned in that order.
      stateful: start from the recorded `states` and record; they are there from the first call on, or from the start with
        `batch_size`.
      unroll: of the loop: False, True, or steps per iteration. Results are the same.
      zero_output_for_mask: outputs at masked steps are 0; without it they are held.
      initial_state_initializer: of a learned initial state, used in every row where no state is given.
      time_major: time is the first dimension of inputs and outputs; mask, resets and lengths stay batch-first.
      keep_order: with `go_backwards`, return outputs in the order of `inputs`.
      implementation: `Scan()`, `Autodiff()`, `Chunked()` or their short forms "scan", "autodiff", "chunked": how the loop
        is run and differentiated. None chooses `Scan()`. A named one runs or raises.
      rngs: for the parameters, and, if there is dropout, for its masks. `seed` is used where there is no stream "dropout".
      batch_size: of the recorded states of a stateful layer, which it makes at once: an integer, or a tuple of the leading
        dimensions, () for none. `nnx.scan`, `nnx.vmap`, `nnx.cond` and a checkpoint that is restored need them to be there.

    Call arguments, by name or in this order:
      inputs: (*batch, T, F), or (T, *batch, F) with `time_major`.
      initial_state: (*batch, U), or a list of one such array; it wins over a recorded state.
      mask: (*batch, T), True = use the step; at a masked step the state stays.
      training: whether dropout is applied; None leaves it to `train()` and `eval()`.
      seq_lengths: (*batch,) integers from 0 to T: steps from there on are masked. With `mask`, both apply.
      resets: (*batch, T), True = the state is set back to the initial state before this step, masked or not; with a
        recorded state, to the learned initial state or zeros.

    Returns:
      The last output (*batch, U), or all outputs in the layout of `inputs`; with `return_state` (output, state).

    Raises:
      TypeError, ValueError: an invalid argument, when the layer is made or called.
      KeyError: there is dropout, but `rngs` has neither the stream "dropout" nor a default one, and there is no `seed`.

    Source: Keras `SimpleRNN`.

    >>> layer = SimpleRNN(8, 4, return_state=True, rngs=nnx.Rngs(0))
    >>> output, state = layer(jnp.ones((32, 10, 8)))
    >>> output.shape, state.shape
    ((32, 4), (32, 4))
    """

    rngs: dataclasses.InitVar[nnx.Rngs] = dataclasses.field(kw_only=True)
    batch_size: dataclasses.InitVar[Any] = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self, rngs: nnx.Rngs, batch_size: Any) -> None:
        self._make(rngs)
        self._begin(batch_size)

    def _cells(self) -> list[Any]:
        return [self]

    def _carry(self, batch: tuple[int, ...]) -> dict[str, Any]:
        return {_states.NAME: (driving.zero_carry(self, (*batch, 1)),)}


@dataclasses.dataclass(eq=False, repr=False)
class RNN(Layer, options.RNNOptions):
    """Drives any `flax.nnx.RNNCellBase`, or a list of them stacked first to last, over a sequence.

    Its parameters are those of its cells.

    Args:
      cell: a cell, or a list of cells; `StackedRNNCells` is the same as the list of its cells.
      return_sequences: return all outputs, not only the last.
      return_state: return the final states, one a cell, too.
      go_backwards: process from the last step to the first; outputs are returned in that order.
      stateful: start from the recorded `states` and record; they are there from the first call on, or from the start with
        `batch_size`.
      unroll: of the loop: False, True, or steps per iteration. Results are the same.
      zero_output_for_mask: outputs at masked steps are 0; without it they are held.
      activity_regularizer: penalty on every returned array, divided by the batch size: a Keras name, a Keras config, a
        callable array -> scalar, or None; `flax_srnn.nnx.regularization_loss` takes it.
      time_major: time is the first dimension of inputs and outputs; mask, resets and lengths stay batch-first.
      keep_order: with `go_backwards`, return outputs in the order of `inputs`.
      implementation: `Scan()`, `Autodiff()`, `Chunked()` or their short forms "scan", "autodiff", "chunked": how the loop
        is run and differentiated. None chooses `Scan()` for
        SimpleRNNCells, and for other cells the plain scan, which is also their `Autodiff()`. A named one runs or raises.
      batch_size: of the recorded states of a stateful layer, which it makes at once: an integer, or a tuple of the leading
        dimensions, () for none. `nnx.scan`, `nnx.vmap`, `nnx.cond` and a checkpoint that is restored need them to be there.

    Call arguments, by name or in this order:
      inputs: (*batch, T, F), or (T, *batch, F) with `time_major`.
      initial_state: a list with one state a cell, each in its cell's own structure; it wins over a recorded state.
      mask: (*batch, T), True = use the step; at a masked step the state stays.
      training: whether dropout is applied, for the cells that accept it; None leaves it to `train()` and `eval()`.
      seq_lengths: (*batch,) integers from 0 to T: steps from there on are masked. With `mask`, both apply.
      resets: (*batch, T), True = the state is set back to the initial state before this step, masked or not; with
        recorded states, to the cells' initial states.

    A cell whose output is not its state holds its previous output at masked steps, zeros before the first used step; one that has
    a method `output_of(state)` puts that out. Dropout masks are the same at every step, in cells of other libraries too; other
    variables that such a cell changes (its `nnx.BatchStat`, say) are carried from step to step.

    Returns:
      output, as of `return_sequences`, or with `return_state` (output, *states), one state a cell, first to last.

    Raises:
      TypeError, ValueError: an invalid argument, when the layer is made or called.

    Source: Keras `RNN`.

    >>> cells = [SimpleRNNCell(3, 4, rngs=nnx.Rngs(0)), nnx.LSTMCell(4, 5, rngs=nnx.Rngs(1))]
    >>> output, first, (c, h) = RNN(cells, return_state=True)(jnp.ones((2, 7, 3)))
    >>> output.shape, first.shape, c.shape
    ((2, 5), (2, 4), (2, 5))
    """

    batch_size: dataclasses.InitVar[Any] = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self, batch_size: Any) -> None:
        driving.check_cells("cell", plain(self.cell), nnx.RNNCellBase, "flax.nnx", alone=True)
        self._check()
        self._begin(batch_size)

    def _cells(self) -> list[Any]:
        return listed(self.cell)


@dataclasses.dataclass(eq=False, repr=False)
class Bidirectional(Checked, options.BidirectionalOptions):
    """Runs a layer over the sequence in both directions and merges the outputs, step by step in the order of the inputs.

    Its parameters are those of `layer` and `backward_layer`.

    Args:
      layer: a `SimpleRNN` or `RNN`.
      merge_mode: "concat", "sum", "ave", "mul", or None to return both outputs.
      backward_layer: the layer for the other direction; default one like `layer` with `go_backwards` turned round and
        parameters of its own.
      rngs: for that default layer.
      batch_size: of the recorded states of both layers, if they are stateful, as of `SimpleRNN`.

    Call arguments, by name or in this order:
      inputs: (*batch, T, F), or (T, *batch, F) with `time_major`.
      initial_state: a list with the states of the forward layer, then of the backward layer; it wins over a recorded state.
      mask: (*batch, T), True = use the step; at a masked step the state stays.
      training: whether dropout is applied; None leaves it to `train()` and `eval()`.
      seq_lengths: (*batch,) integers from 0 to T: steps from there on are masked. With `mask`, both apply.
      resets: (*batch, T), True = a segment of the sequence begins here. The direction that runs backwards starts anew one
        step earlier in time, at each segment's last step: packed segments never see each other.

    Outputs at masked steps are 0 with `return_sequences` and held otherwise, whatever the layers say, as in Keras.

    Returns:
      output, or with `return_state` (output, *forward_states, *backward_states); with `merge_mode=None`, the two outputs in
      place of one.

    Raises:
      TypeError, ValueError: an invalid argument, two layers that do not fit together, or a default backward layer that
        cannot be made: without `rngs`, or from cells of another library.

    Source: Keras `Bidirectional`; M. Schuster and K. Paliwal, "Bidirectional recurrent neural networks" (1997).

    >>> rngs = nnx.Rngs(0)
    >>> layer = Bidirectional(SimpleRNN(3, 4, return_sequences=True, rngs=rngs), rngs=rngs)
    >>> layer(jnp.ones((2, 7, 3))).shape
    (2, 7, 8)
    """

    rngs: dataclasses.InitVar[nnx.Rngs | None] = dataclasses.field(default=None, kw_only=True)
    batch_size: dataclasses.InitVar[Any] = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self, rngs: nnx.Rngs | None, batch_size: Any) -> None:
        self._check()
        driving.check_layers(self, Layer)
        if self.backward_layer is None:
            if rngs is None:
                raise ValueError(
                    "`rngs` must be given, for the parameters of the backward layer, or `backward_layer` itself."
                )
            self.backward_layer = nnx.data(_like(self.layer, rngs, go_backwards=not self.layer.go_backwards))
            if self.layer.states is not None:
                self.backward_layer.reset_states(batch_size=jax.tree.leaves(self.layer._recorded())[0].shape[:-1])
        options.check_directions(self.layer, self.backward_layer)
        _make_states(self, batch_size)

    @property
    def stateful(self) -> bool:
        return self.layer.stateful

    def __call__(
        self,
        inputs: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: Any = None,
        seq_lengths: Any = None,
        resets: Any = None,
    ) -> jax.Array | Any:
        """(*batch, T, F) -> output, or (output, *states) with `return_state`; the class explains the arguments."""
        training = in_training(training)
        steps = driving.steps_of(self.layer, inputs, mask, seq_lengths, resets)
        layers = (self.layer, self.backward_layer)
        calls = [
            functools.partial(layer._call, training=training, path=(name,))
            for layer, name in zip(layers, DIRECTIONS, strict=True)
        ]
        counts = [len(layer._cells()) for layer in layers]
        return driving.bidirectional(self, layers, counts, calls, steps, initial_state)

    def reset_states(self, states: Any = None, *, batch_size: Any = None) -> None:
        """Sets the recorded states of both layers back to the initial states, or to `states`.

        Args:
          states: a list or tuple with those of the forward layer, then of the backward layer; they are cast.
          batch_size: makes states for another batch, or before the first call.

        Raises:
          AttributeError, ValueError: as of the layers' own `reset_states`.
        """
        layers = (self.layer, self.backward_layer)
        counts = [len(layer._cells()) for layer in layers]
        halves = (None, None) if states is None else driving.halves("states", states, counts)
        for layer, half in zip(layers, halves, strict=True):
            layer.reset_states(half, batch_size=batch_size)


def reset_states(model: nnx.Module) -> None:
    """Sets every stateful layer in `model` back to its initial state; one that was never called is there already.

    Raises:
      TypeError: `model` is no module.

    >>> layer = SimpleRNN(3, 2, stateful=True, rngs=nnx.Rngs(0))
    >>> _ = layer(jnp.ones((1, 4, 3)))
    >>> reset_states(layer)
    >>> layer.states[0][...].tolist()
    [[0.0, 0.0]]
    """
    for _, module in nnx.iter_graph(a_module(model)):
        if isinstance(module, Layer) and module.stateful and module.states is not None:
            module.reset_states()


def _make_states(layer: Layer | Bidirectional, batch_size: Any) -> None:
    if batch_size is None:
        return
    if not layer.stateful:
        raise ValueError(
            f"`batch_size` is that of recorded states and needs stateful=True, got {batch_size!r} without it."
        )
    layer.reset_states(batch_size=batch_size)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _as_carry(leaf: Any) -> Carry:
    return leaf if isinstance(leaf, Carry) else Carry(jnp.asarray(leaf))


def _fixed_structure(states: Any) -> str:
    """The transformation that is tracing the call, if it is one that wants out of a module what goes in, as `nnx.scan`."""
    trace = getattr(jax.tree.leaves(states)[0], "_trace", None)
    traced_for: str = getattr(getattr(getattr(trace, "frame", None), "debug_info", None), "traced_for", "jit")
    return "" if traced_for in ("jit", "pjit", "checkpoint / remat") else traced_for


def cell_path(cells: list[Any], i: int) -> tuple[str, ...]:
    """Where the parameters of cell i are below its layer's: one cell shares the layer's own place."""
    return () if len(cells) == 1 else (f"cells_{i}",)


def _like(module: Any, rngs: nnx.Rngs, **changes: Any) -> Any:
    """A new module with the options of `module`, but for the changes, and parameters of its own."""
    if isinstance(module, RNN):
        made: dict[int, Any] = {}
        for cell in listed(module.cell):
            made[id(cell)] = made.get(id(cell)) or _like(cell, rngs)
        cells = [made[id(cell)] for cell in listed(module.cell)]
        return RNN(**_options(module) | {"cell": cells[0] if len(cells) == 1 else cells} | changes)
    if isinstance(module, StackedRNNCells):
        return StackedRNNCells([_like(cell, rngs) for cell in module.cells])
    if not isinstance(module, SimpleCellModule):
        raise ValueError(f"`backward_layer` must be given: a {type(module).__name__} cannot be made anew.")
    make: Any = type(module)
    return make(**_options(module) | changes, rngs=rngs)


def _options(module: Any) -> dict[str, Any]:
    return {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
