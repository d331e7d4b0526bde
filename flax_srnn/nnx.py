"""The layers for Flax NNX: the same options and the same forward pass as for Flax Linen, with variables kept NNX's way.

Parameters are `nnx.Param`s named kernel, recurrent_kernel, bias and initial_state; the states of a stateful layer are
`Carry` variables; dropout draws from the stream "dropout" of the `rngs` that the module was made with, and `train()` and
`eval()` switch it. A module starts in training mode, as `nnx.Dropout` does. Everything is an ordinary NNX module: `nnx.jit`,
`nnx.grad`, `nnx.split` and `nnx.merge` apply.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from flax.core import meta, unfreeze

from flax_srnn import forward, nnx_cells, options, validation
from flax_srnn import states as _states
from flax_srnn.nnx_cells import SimpleRNNCell, StackedRNNCells

_DIRECTIONS = ("forward_layer", "backward_layer")


class Carry(nnx.Variable):
    """A state that a stateful layer carries from call to call."""


class Penalty(nnx.Variable):
    """The activity penalties of a layer's calls since `regularization_loss` last took them."""


class _Layer(nnx_cells.Checked):
    """A layer over time: its cells one after the other, and the states between calls."""

    stateful: bool
    keep_order: bool
    activity_regularizer: Any

    def _begin(self) -> None:
        self.states: Any = nnx.data(None)
        self.activity_loss: Any = nnx.data(None if self.activity_regularizer is None else Penalty(jnp.zeros(())))

    def __call__(
        self,
        inputs: Any,
        *,
        initial_state: Any = None,
        mask: Any = None,
        seq_lengths: Any = None,
        resets: Any = None,
        training: bool | None = None,
    ) -> Any:
        return self._call(inputs, initial_state, mask, seq_lengths, resets, training, (), forward.own(self))

    def _call(
        self,
        inputs: Any,
        initial_state: Any,
        mask: Any,
        seq_lengths: Any,
        resets: Any,
        training: bool | None,
        path: tuple[str, ...],
        order: dict[str, bool],
    ) -> Any:
        if training is not None:
            validation.flag("training", training)
        cells = self._cells()
        drives = [_drive(cell, training, (*path, *_place(cells, i))) for i, cell in enumerate(cells)]
        done = forward.layer(self, drives, self._recorded(), inputs, initial_state, mask, seq_lengths, resets, **order)
        if self.stateful:
            self._record(done.final_states)
        if done.activity_penalty is not None:
            self.activity_loss[...] += done.activity_penalty
        return done.returned

    def _cells(self) -> list[Any]:
        """Its cells, first to last: what the layers differ in."""
        raise NotImplementedError  # every layer below has its own

    def reset_states(self, states: Any = None) -> None:
        """Sets the recorded states back to the initial states, or to `states`.

        Args:
          states: an array if there is one cell, or a list or tuple with one state a cell; they are cast.

        Raises:
          AttributeError: the layer is not stateful.
          ValueError: no state was recorded yet, so the batch size is unknown; `states` does not fit in count, shape or dtype.
        """
        recorded = self._recorded()
        if self.stateful and recorded is None:
            raise ValueError(
                "If a RNN is stateful, it needs to know its batch size: call the layer once before you set its states."
            )
        learned = {"initial_state": self.initial_state[...]} if hasattr(self, "initial_state") else {}
        variables = {_states.COLLECTION: {_states.NAME: recorded}, "params": learned}
        self._record(forward.reset(self, variables, states)[_states.COLLECTION][_states.NAME])

    def _recorded(self) -> tuple[Any, ...] | None:
        return jax.tree.map(lambda carry: carry[...], self.states, is_leaf=lambda leaf: isinstance(leaf, Carry))

    def _record(self, new: tuple[Any, ...]) -> None:
        shapes = jax.tree.map(jax.typeof, (self._recorded(), new))
        if shapes[0] != shapes[1]:
            self.states = nnx.data(jax.tree.map(Carry, new))
            return
        carries = jax.tree.leaves(self.states, is_leaf=lambda leaf: isinstance(leaf, Carry))
        for carry, value in zip(carries, jax.tree.leaves(new), strict=True):
            carry[...] = value


@dataclasses.dataclass(eq=False, repr=False)
class SimpleRNN(nnx_cells.SimpleCellModule, _Layer, options.SimpleRNNOptions):
    """A simple RNN over a sequence, with every option of Keras's.

    Args:
      in_features: F.
      units, …, remat: as of the Linen layer, `flax_srnn.SimpleRNN`.
      rngs: as of `SimpleRNNCell`.

    Call arguments: as of the Linen layer; `training` overrides `train()` and `eval()`. With `stateful` every call starts from
    the recorded `states` (None before the first) and records; the batch size stays that of the first call.

    Raises:
      TypeError, ValueError: an invalid argument, when the layer is made or called.
      KeyError: as of `SimpleRNNCell`.

    >>> layer = SimpleRNN(8, 4, return_state=True, rngs=nnx.Rngs(0))
    >>> output, state = layer(jnp.ones((32, 10, 8)))
    >>> output.shape, state.shape
    ((32, 4), (32, 4))
    """

    rngs: dataclasses.InitVar[nnx.Rngs] = dataclasses.field(kw_only=True)

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        self.make(rngs)
        self._begin()

    def _cells(self) -> list[Any]:
        return [self]


@dataclasses.dataclass(eq=False, repr=False)
class RNN(_Layer, options.RNNOptions):
    """Drives any `flax.nnx.RNNCellBase`, or a list of them stacked first to last, over a sequence.

    Args:
      cell, …, remat: as of the Linen layer, `flax_srnn.RNN`.

    Call arguments: as of `SimpleRNN`. Dropout masks are the same at every step, in cells of other libraries too; other
    variables that such a cell changes (its `nnx.BatchStat`, say) are carried from step to step.

    Raises:
      TypeError, ValueError: an invalid argument, when the layer is made or called.

    >>> cells = [SimpleRNNCell(3, 4, rngs=nnx.Rngs(0)), nnx.LSTMCell(4, 5, rngs=nnx.Rngs(1))]
    >>> output, first, (c, h) = RNN(cells, return_state=True)(jnp.ones((2, 7, 3)))
    >>> output.shape, first.shape, c.shape
    ((2, 5), (2, 4), (2, 5))
    """

    def __post_init__(self) -> None:
        forward.check_cells("cell", nnx_cells.plain(self.cell), nnx.RNNCellBase, "flax.nnx", alone=True)
        self.check()
        self._begin()

    def _cells(self) -> list[Any]:
        return nnx_cells.listed(self.cell)


@dataclasses.dataclass(eq=False, repr=False)
class Bidirectional(nnx_cells.Checked, options.BidirectionalOptions):
    """Runs a layer over the sequence in both directions and merges the outputs, step by step in the order of the inputs.

    Args:
      layer: a `SimpleRNN` or `RNN`.
      merge_mode: "concat", "sum", "ave", "mul", or None to return both outputs.
      backward_layer: the layer for the other direction; default one like `layer` with `go_backwards` turned round and
        parameters of its own.
      rngs: for that default layer.

    Call arguments: as of the Linen layer, `flax_srnn.Bidirectional`.

    Raises:
      TypeError, ValueError: an invalid argument, two layers that do not fit together, or a default backward layer that
        cannot be made: without `rngs`, or from cells of another library.

    >>> rngs = nnx.Rngs(0)
    >>> layer = Bidirectional(SimpleRNN(3, 4, return_sequences=True, rngs=rngs), rngs=rngs)
    >>> layer(jnp.ones((2, 7, 3))).shape
    (2, 7, 8)
    """

    rngs: dataclasses.InitVar[nnx.Rngs | None] = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self, rngs: nnx.Rngs | None) -> None:
        self.check()
        forward.check_layers(self, _Layer)
        if self.backward_layer is None:
            if rngs is None:
                raise ValueError(
                    "`rngs` must be given, for the parameters of the backward layer, or `backward_layer` itself."
                )
            self.backward_layer = nnx.data(_like(self.layer, rngs, go_backwards=not self.layer.go_backwards))
        options.check_directions(self.layer, self.backward_layer)

    @property
    def stateful(self) -> bool:
        return self.layer.stateful

    def __call__(
        self,
        inputs: Any,
        *,
        initial_state: Any = None,
        mask: Any = None,
        seq_lengths: Any = None,
        resets: Any = None,
        training: bool | None = None,
    ) -> Any:
        layers = (self.layer, self.backward_layer)
        calls = [
            functools.partial(layer._call, training=training, path=(name,), order=forward.direction(layer))
            for layer, name in zip(layers, _DIRECTIONS, strict=True)
        ]
        counts = [len(layer._cells()) for layer in layers]
        return forward.bidirectional(self, layers, counts, calls, inputs, initial_state, mask, seq_lengths, resets)

    def reset_states(self, states: Any = None) -> None:
        """As of `SimpleRNN`; `states` holds those of the forward layer, then of the backward layer."""
        counts = [len(layer._cells()) for layer in (self.layer, self.backward_layer)]
        halves: list[Any] = [None, None]
        if states is not None:
            both = validation.per_cell("states", states, sum(counts))
            halves = [both[: counts[0]], both[counts[0] :]]
        for layer, half in zip((self.layer, self.backward_layer), halves, strict=True):
            layer.reset_states(half)


def regularization_loss(model: nnx.Module) -> jax.Array:
    """The sum of all penalties in `model`, a scalar: on the weights as they are, and on what the layers returned.

    The activity penalties are those of all calls since this function was last called on the model; it takes them away.

    >>> layer = SimpleRNN(5, 2, kernel_initializer="ones", kernel_regularizer="l2", rngs=nnx.Rngs(0))
    >>> round(float(regularization_loss(layer)), 3)
    0.1
    """
    total = jnp.zeros(())
    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx_cells.SimpleCellModule):
            total = sum(module.penalties(module.params()).values(), total)
        if isinstance(module, _Layer) and module.activity_loss is not None:
            total = total + module.activity_loss[...]
            module.activity_loss[...] = jnp.zeros_like(module.activity_loss[...])
    return total


def collect_constraints(model: nnx.Module) -> dict[Any, Any]:
    """The constraints of all layers in `model`, as `keep_constraints` takes them for an `nnx.Optimizer`.

    >>> import optax
    >>> from flax_srnn import keep_constraints
    >>> layer = SimpleRNN(3, 2, kernel_constraint="non_neg", rngs=nnx.Rngs(0))
    >>> chain = optax.chain(optax.sgd(0.1), keep_constraints(collect_constraints(layer)))
    >>> optimizer = nnx.Optimizer(layer, chain, wrt=nnx.Param)
    >>> _ = optimizer.update(layer, nnx.grad(lambda layer: layer(jnp.ones((1, 4, 3))).sum())(layer))
    >>> bool((layer.kernel[...] >= 0).all())
    True
    """
    return traverse_util.unflatten_dict(
        {
            (*path, name): constraint
            for path, module in nnx.iter_graph(model)
            if isinstance(module, nnx_cells.SimpleCellModule)
            for name, constraint in module.constraints().items()
        }
    )


def reset_states(model: nnx.Module) -> None:
    """Sets every stateful layer in `model` back to its initial state; one that was never called is there already.

    >>> layer = SimpleRNN(3, 2, stateful=True, rngs=nnx.Rngs(0))
    >>> _ = layer(jnp.ones((1, 4, 3)))
    >>> reset_states(layer)
    >>> layer.states[0][...].tolist()
    [[0.0, 0.0]]
    """
    for _, module in nnx.iter_graph(model):
        if isinstance(module, _Layer) and module.stateful and module.states is not None:
            module.reset_states()


def to_linen(layer: nnx.Module) -> dict[str, Any]:
    """The parameters of a layer or cell of this library as `variables["params"]` of its Linen twin.

    Raises:
      ValueError: there is a cell of another library, whose twin may have other parameters.

    >>> rngs = nnx.Rngs(0)
    >>> sorted(to_linen(RNN([SimpleRNNCell(3, 4, rngs=rngs), SimpleRNNCell(4, 4, rngs=rngs)])))
    ['cells_0', 'cells_1']
    """
    return traverse_util.unflatten_dict(
        {(*path, name): value for path, cell in _simple_cells(layer) for name, value in cell.params().items()}
    )


def from_linen(layer: nnx.Module, params: Mapping[str, Any]) -> None:
    """Gives a layer or cell of this library the parameters of its Linen twin.

    Args:
      layer: is changed.
      params: the twin's `variables["params"]`, boxed or not; or what `flax_srnn.interop` reads from files.

    Raises:
      TypeError: `params` is no mapping.
      ValueError: its names or shapes are not those of the layer; there is a cell of another library.

    >>> layer = SimpleRNN(1, 1, rngs=nnx.Rngs(0))
    >>> from_linen(layer, {"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)})
    >>> layer.kernel[...].tolist()
    [[1.0]]
    """
    if not isinstance(params, Mapping):
        raise TypeError(
            f"`params` must be a mapping, variables['params'] of a Linen layer, got {validation.describe(params)}."
        )
    given = traverse_util.flatten_dict(unfreeze(meta.unbox(params)))
    new: list[tuple[nnx.Module, dict[str, jax.Array]]] = []
    for path, cell in _simple_cells(layer):
        values = {}
        for name, old in cell.params().items():
            place = (*path, name)
            if place not in given:
                raise ValueError(f"`params` has no {'/'.join(place)!r}, got {_names(given)}.")
            values[name] = validation.shaped(
                f"params[{'/'.join(place)!r}]", given.pop(place), old.shape, "of the layer's"
            )
        new.append((cell, values))
    if given:
        raise ValueError(f"`params` has {_names(given)}, which the layer does not have.")
    for changed, values in new:
        nnx.update(changed, values)


def _names(flat: Mapping[tuple[Any, ...], Any]) -> list[str]:
    return ["/".join(map(str, path)) for path in flat]


def _simple_cells(
    module: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], nnx_cells.SimpleCellModule]]:
    """Every module with parameters and its place in the tree of the Linen twin."""
    if isinstance(module, nnx_cells.SimpleCellModule):
        yield path, module
    elif isinstance(module, Bidirectional):
        for layer, name in zip((module.layer, module.backward_layer), _DIRECTIONS, strict=True):
            yield from _simple_cells(layer, (*path, name))
    elif isinstance(module, (RNN, StackedRNNCells)):
        cells = module._cells() if isinstance(module, RNN) else nnx_cells.plain(module.cells)
        for i, cell in enumerate(cells):
            yield from _simple_cells(cell, (*path, *_place(cells, i)))
    else:
        raise ValueError(f"a {type(module).__name__} is no layer or cell of this library: its Linen twin is not known.")


def _place(cells: list[Any], i: int) -> tuple[str, ...]:
    """Where the parameters of cell i are below its layer's: one cell shares the layer's own place."""
    return () if len(cells) == 1 else (f"cells_{i}",)


def _drive(cell: Any, training: bool | None, path: tuple[str, ...]) -> forward.Drive:
    # A subclass with a step of its own does not compute what `simple_rnn` does.
    if isinstance(cell, SimpleRNN) or (
        isinstance(cell, SimpleRNNCell) and type(cell).__call__ is SimpleRNNCell.__call__
    ):
        return functools.partial(forward.simple_drive, cell, cell.params(), cell.key(training, path))
    return functools.partial(nnx_cells.scan_cell, cell, training)


def _like(module: Any, rngs: nnx.Rngs, **changes: Any) -> Any:
    """A new module with the options of `module`, but for the changes, and parameters of its own."""
    if isinstance(module, RNN):
        cells = [_like(cell, rngs) for cell in nnx_cells.listed(module.cell)]
        return RNN(**_options(module) | {"cell": cells[0] if len(cells) == 1 else cells} | changes)
    if isinstance(module, StackedRNNCells):
        return StackedRNNCells([_like(cell, rngs) for cell in module.cells])
    if not isinstance(module, nnx_cells.SimpleCellModule):
        raise ValueError(f"`backward_layer` must be given: a {type(module).__name__} cannot be made anew.")
    make: Any = type(module)
    return make(**_options(module) | changes, rngs=rngs)


def _options(module: Any) -> dict[str, Any]:
    return {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
