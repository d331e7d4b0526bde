"""The cells for Flax NNX, and how any cell is driven over a sequence."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flax_srnn import validation
from flax_srnn.core import mesh_axes
from flax_srnn.core.sequence import Steps
from flax_srnn.layers import driving, options
from flax_srnn.layers.driving import Dropout, Start

__all__ = [
    "Checked",
    "SimpleCellModule",
    "SimpleRNNCell",
    "StackedRNNCells",
    "a_module",
    "drive_any",
    "in_training",
    "initial_state",
    "listed",
    "plain",
]


def a_module(model: Any) -> nnx.Module:
    """`model`, which NNX's functions walk through; in what is none they would find nothing, and say nothing."""
    if not isinstance(model, nnx.Module):
        raise TypeError(f"`model` must be a flax.nnx.Module, got {validation.describe(model)}.")
    return model


class Checked(nnx.Module):
    """A module whose options are dataclass fields, and static attributes to NNX."""

    # The dataclasses compare options; NNX modules are compared by identity.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __setattr__(self, name: str, value: Any) -> None:
        # Modules in a plain list would be hidden from NNX, which refuses them.
        is_cells = name in ("cell", "cells") and isinstance(value, (list, tuple))
        super().__setattr__(name, nnx.List(value) if is_cells else value)

    # Private, as all that is no part of the interface: `nnx.tabulate` runs every public method under jit.
    def _check(self) -> None:
        """Checks the options, and puts them in the form that NNX can hash."""
        options.check(self)
        for name, value in options.hashable(self).items():
            setattr(self, name, nnx.static(value))


@dataclasses.dataclass
class _InFeatures:
    """The first argument of modules with parameters: NNX makes them at once, and so asks for F."""

    in_features: int


class SimpleCellModule(Checked, options.CellOptions, _InFeatures):
    """What `SimpleRNNCell` and `SimpleRNN` share: the parameters, and the keys for dropout."""

    # Those that the options ask for are there.
    kernel: nnx.Param[jax.Array]
    recurrent_kernel: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array]
    initial_state: nnx.Param[jax.Array]

    def _make(self, rngs: nnx.Rngs) -> None:
        """Checks the arguments and makes all variables."""
        self._check()
        self.in_features = nnx.static(validation.in_features(self.in_features))
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"`rngs` must be a flax.nnx.Rngs, got {validation.describe(rngs)}.")
        for name, (initializer, shape) in options.parameters(self, self.in_features).items():
            setattr(self, name, nnx.Param(initializer(rngs.params(), shape, self.param_dtype)))
        self.deterministic = False
        # A seed stands in for the stream "dropout", and not only where there is no default stream: there always is one.
        streamed = options.drops(self, training=True) and ("dropout" in rngs or self.seed is None)
        self.rngs = _dropout_stream(rngs) if streamed else nnx.data(None)

    def set_view(self, deterministic: bool | None = None) -> None:
        """For `nnx.view`: whether dropout is off."""
        if deterministic is not None:
            self.deterministic = deterministic

    def _params(self) -> dict[str, jax.Array]:
        """All parameters."""
        return {name: getattr(self, name)[...] for name in options.parameters(self, self.in_features)}

    def _fetch(self, training: Any, path: tuple[str, ...], x: jax.Array) -> tuple[validation.Weights, Dropout | None]:
        """The weights for inputs x, which a user may have set anew, and how this call drops."""
        weights = validation.weights(self._params())
        validation.features(x, weights.kernel.shape[0])
        return weights, self._dropout(training, path)

    def _dropout(self, training: Any, path: tuple[str, ...]) -> Dropout | None:
        """How a call drops; None where it does not. `path` tells cells with equal seeds apart."""
        training = not self.deterministic if training is None else training
        if not options.drops(self, training):
            return None
        key: Any = options.seed_key(self, path) if self.rngs is None else self.rngs()
        return Dropout(key, training)


def _dropout_stream(rngs: nnx.Rngs) -> Any:
    try:
        return rngs["dropout"].fork()
    except (AttributeError, KeyError) as error:
        raise KeyError(
            "there is dropout, which needs keys: make the layer with `rngs=nnx.Rngs(params=…, dropout=…)`, or with `seed`; the "
            f"streams of `rngs` are {sorted(rngs)}."
        ) from error


@dataclasses.dataclass(eq=False, repr=False)
class SimpleRNNCell(SimpleCellModule, nnx.RNNCellBase):
    """One step of a simple RNN: h_t = act((x_t ∘ d_x) W + b + (h_{t-1} ∘ d_h) U).

    A `flax.nnx.RNNCellBase`: it works in `flax.nnx.RNN` too, which draws other dropout masks at every step, unless told
    otherwise by its `broadcast_rngs`.

    Parameters, `nnx.Param`s: `kernel` W (F, U), `recurrent_kernel` U (U, U) and, with `use_bias`, `bias` b (U,).

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
      rngs: for the parameters, and, if there is dropout, for its masks. `seed` is used where there is no stream "dropout".

    Raises:
      TypeError, ValueError: an invalid argument.
      KeyError: there is dropout, but `rngs` has neither the stream "dropout" nor a default one, and there is no `seed`.

    >>> cell = SimpleRNNCell(3, 4, rngs=nnx.Rngs(0))
    >>> carry, output = cell(cell.initialize_carry((2, 3)), jnp.ones((2, 3)))
    >>> output.shape, cell.recurrent_kernel.shape
    ((2, 4), (4, 4))
    """

    rngs: dataclasses.InitVar[nnx.Rngs] = dataclasses.field(kw_only=True)

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        self._make(rngs)

    def __call__(self, carry: Any, inputs: Any, *, training: bool | None = None) -> tuple[jax.Array, jax.Array]:
        """(h_{t-1} (*batch, U), x_t (*batch, F)) -> (h_t, h_t); `training` overrides `train()` and `eval()`."""
        x = validation.step_inputs("inputs", inputs)
        return driving.step(self, carry, x, *self._fetch(in_training(training), (), x))

    # Without Flax's `carry_init`: the state starts from zeros, as in Keras.
    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> jax.Array:  # type: ignore[override]  # as said
        """Zeros (*batch, U) for inputs of `input_shape` (*batch, F)."""
        return driving.zero_carry(self, input_shape)

    @property
    def num_feature_axes(self) -> int:
        return 1


@dataclasses.dataclass(eq=False, repr=False)
class StackedRNNCells(Checked, nnx.RNNCellBase):
    """Several cells as one: each step goes through all of them, first to last; the carry is a tuple of their states.

    Args:
      cells: a list of `flax.nnx.RNNCellBase`.

    Raises:
      TypeError, ValueError: `cells` is no list of cells, or an empty one.

    >>> cell = StackedRNNCells([SimpleRNNCell(3, 4, rngs=nnx.Rngs(0)), SimpleRNNCell(4, 5, rngs=nnx.Rngs(1))])
    >>> carry, output = cell(cell.initialize_carry((2, 3)), jnp.ones((2, 3)))
    >>> output.shape, [state.shape for state in carry]
    ((2, 5), [(2, 4), (2, 5)])
    """

    cells: Any

    def __post_init__(self) -> None:
        driving.check_cells("cells", plain(self.cells), nnx.RNNCellBase, "flax.nnx", alone=False)

    def __call__(self, carry: Any, inputs: Any, *, training: bool | None = None) -> tuple[tuple[Any, ...], jax.Array]:
        """(one state a cell, x_t (*batch, F)) -> (the new states, the last cell's output)."""
        steps = [functools.partial(cell, **driving.training_keyword(cell, training)) for cell in self.cells]
        return driving.stacked_step(steps, carry, inputs)

    # Without Flax's `carry_init`, which would be one for states of different kinds.
    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> tuple[Any, ...]:  # type: ignore[override]  # as said
        """One initial state a cell for inputs of `input_shape` (*batch, F)."""
        rngs = nnx.Rngs(0) if rngs is None else rngs
        makers = [functools.partial(cell.initialize_carry, rngs=rngs) for cell in self.cells]
        return driving.stacked_carry(
            makers, [functools.partial(_step_output, cell) for cell in self.cells], input_shape
        )

    @property
    def num_feature_axes(self) -> int:
        return 1


def in_training(training: Any) -> Any:
    """The call argument, checked; None leaves it to `train()` and `eval()`."""
    return None if training is None else validation.training(training)


def initial_state(cell: nnx.RNNCellBase, input_shape: tuple[int, ...]) -> Any:
    """What a cell starts from for inputs of `input_shape` (*batch, F)."""
    # `nnx.tabulate` wraps every public method of the classes in a module: then the shape would be traced, and a stream of
    # keys that is no part of the module cannot be called.
    rngs: Any = _Keys() if hasattr(nnx.RngStream.__call__, "__wrapped__") else nnx.Rngs(0)
    return inspect.unwrap(type(cell).initialize_carry)(cell, input_shape, rngs)


class _Keys:
    """As much of an `nnx.Rngs` as `initialize_carry` of NNX's own cells needs."""

    def __call__(self) -> jax.Array:
        return jax.random.key(0)

    carry = __call__


def drive_any(cell: nnx.RNNCellBase, training: Any, steps: Steps, start: Start) -> tuple[Any, Any, jax.Array]:
    """Any NNX cell over a sequence, see `driving.Drive`."""
    x, shape = steps.inputs, (*steps.batch, steps.inputs.shape[-1])
    initial = initial_state(cell, shape)
    keywords = driving.training_keyword(cell, training)
    parts: Any = nnx.split(cell, nnx.Param, nnx.RngState, nnx.Intermediate, ...)
    graph, params, rngs, sown, rest = parts

    def scan(wrap: Any, carry: Any, xs: tuple[Any, ...], axes: tuple[int, ...], **loop: Any) -> tuple[Any, jax.Array]:
        # Parameters and keys are the same at every step; what steps sow stays inside; the rest goes from step to step.
        def body(carry: Any, now: Any) -> Any:
            inner, _, rest = carry
            live = _merge(graph, alike, rngs, sown, rest)
            inner, shown = wrap(functools.partial(live, **keywords))(inner, now)
            nnx.pop(live, nnx.Intermediate)
            parts: Any = nnx.split(live, nnx.Param, nnx.RngState, ...)
            return (inner, parts[2], mesh_axes.vary(parts[3], mesh)), shown

        # Cast here and not in the loop, parameters have their gradients summed over the mesh once and not at every step.
        mesh = mesh_axes.of(carry)
        alike, state = mesh_axes.vary((params, rest), mesh)
        front = tuple(
            None if leaf is None else jnp.moveaxis(leaf, axis, 0) for leaf, axis in zip(xs, axes, strict=True)
        )
        (carry, used, new), outputs = jax.lax.scan(body, (carry, rngs, state), front, **loop)
        nnx.update(cell, used, new)
        return carry, jnp.moveaxis(outputs, 0, axes[0])

    output = _step_output(cell, initial, jax.ShapeDtypeStruct(shape, x.dtype))
    shown = getattr(cell, "output_of", None)
    return driving.drive_any(type(cell).__name__, initial, output, scan, steps, start, parts[1:], shown)


def _step_output(cell: nnx.RNNCellBase, state: Any, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What a cell puts out at one step; nothing is computed or changed."""
    graph, variables = nnx.split(cell)
    return jax.eval_shape(lambda state, x: _merge(graph, variables)(state, x)[1], state, x)


def _merge(graph: Any, *parts: Any) -> Any:
    """`nnx.merge`, with variables that belong to the current trace, where the module may change them."""
    return nnx.merge(graph, *jax.tree.map(lambda leaf: leaf, parts))


def listed(cell: Any) -> list[Any]:
    """The cells that an `RNN` drives one after the other."""
    cells = plain(cell.cells if type(cell) is StackedRNNCells else cell)
    return cells if isinstance(cells, list) else [cells]


def plain(cells: Any) -> Any:
    """A list for an `nnx.List`; anything else as it is."""
    return list(cells) if isinstance(cells, nnx.List) else cells
