"""The cells for Flax Linen, and how any cell is driven over a sequence."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import DenyList, meta

from flax_srnn import forward, options, validation

PENALTIES = "losses"


class Checked(nn.Module):
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
        # A bound module lives for one pass, so this tells a second call in it from what an earlier pass left behind.
        sown: set[str] = self.__dict__.setdefault("_sown", set())
        for name, value in penalties.items():
            if value is not None:
                add = name == "activity_regularizer" and name in sown
                sown.add(name)
                self.sow(PENALTIES, name, value, reduce_fn=operator.add if add else _latest, init_fn=lambda: 0.0)


def _latest(earlier: Any, new: Any) -> Any:
    return new


class SimpleCellModule(Checked):
    """What `SimpleRNNCell` and `SimpleRNN` share: the parameters, and the sequence they are applied to."""

    @nn.compact
    def declare(self, in_features: int) -> dict[str, jax.Array]:
        """All parameters, unboxed: the one place that makes them, and where `collect_constraints` finds them."""
        return {name: self._parameter(name, *made) for name, made in self.parameters(in_features).items()}

    def _parameter(self, name: str, initializer: Any, shape: tuple[int, ...]) -> jax.Array:
        if self.has_variable("params", name):
            found = validation.array(f"params['{name}']", meta.unbox(self.get_variable("params", name)))
            if name == "kernel" and found.shape[1:] == shape[1:] and found.shape != shape:
                raise ValueError(
                    f"`inputs` must have {found.shape[0]} features (F, the last dimension), as when the variables were made, "
                    f"got {shape[0]}."
                )
            validation.shaped(f"params['{name}']", found, shape, "of this layer's")
        elif not self.is_initializing():
            raise ValueError(
                f"`variables` has no parameter '{name}' at {'/'.join(self.path) or 'the top'} in the collection 'params': "
                "make the variables with `init`."
            )
        return self.param(name, initializer, shape, self.param_dtype)

    def _key(self, training: bool) -> jax.Array | None:
        """The key for this call's dropout masks, if it draws any: from the RNG stream "dropout", else from `seed`."""
        validation.flag("training", training)
        if not self.drops(training):
            return None
        seeded = None if self.has_rng("dropout") else self.seed_key(self.path)
        return self.make_rng("dropout") if seeded is None else seeded

    def _penalised(self, in_features: int) -> dict[str, jax.Array]:
        params = self.declare(in_features)
        self._sow_penalties(self.penalties(params))
        return params

    def drive(self, training: bool, x: jax.Array, *args: Any, **arguments: Any) -> tuple[Any, Any, jax.Array]:
        """This module over a sequence, see `forward.Drive`."""
        own: Any = self  # its options come from a sibling base
        return forward.simple_drive(own, self._penalised(x.shape[-1]), self._key(training), x, *args, **arguments)


class SimpleRNNCell(SimpleCellModule, nn.RNNCellBase, options.CellOptions):
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
        x = forward.step_inputs(inputs)
        return forward.step(self, self._penalised(x.shape[-1]), carry, x, self._key(training))

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        """Zeros (*batch, U) for inputs of `input_shape` (*batch, F)."""
        return forward.zero_carry(self, input_shape)

    @property
    def num_feature_axes(self) -> int:
        return 1


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
        forward.check_cells("cells", self.cells, nn.RNNCellBase, "flax.linen", alone=False)
        object.__setattr__(self, "cells", tuple(self.cells))
        super().__post_init__()

    @nn.compact
    def __call__(self, carry: Any, inputs: Any, *, training: bool = False) -> tuple[tuple[Any, ...], jax.Array]:
        """(one state a cell, x_t (*batch, F)) -> (the new states, the last cell's output)."""
        cells = bind(self.cells, self.scope)
        steps = [functools.partial(cell, **forward.training_keyword(cell, training)) for cell in cells]
        return forward.stacked_step(steps, carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> tuple[Any, ...]:
        """One initial state a cell for inputs of `input_shape` (*batch, F)."""
        carry = []
        for cell, key in zip(self.cells, jax.random.split(rng, len(self.cells)), strict=True):
            state = cell.initialize_carry(key, input_shape)
            carry.append(state)
            input_shape = _step_output(cell, state, jax.ShapeDtypeStruct(input_shape, jnp.float32)).shape
        return tuple(carry)

    @property
    def num_feature_axes(self) -> int:
        return 1


def drive_any(
    cell: nn.RNNCellBase, training: bool, x: jax.Array, batch: tuple[int, ...], start: Any, **arguments: Any
) -> tuple[Any, Any, jax.Array]:
    """Any Flax cell over a sequence, see `forward.Drive`."""
    keywords: dict[str, Any] = forward.training_keyword(cell, training)
    initial = cell.initialize_carry(jax.random.key(0), (*batch, x.shape[-1]))
    output = _step_output(cell, initial, jax.ShapeDtypeStruct((*batch, x.shape[-1]), x.dtype), **keywords)

    def scan(wrap: Any, carry: Any, xs: Any, axes: Any, **options: Any) -> Any:
        lifted = nn.scan(
            lambda cell, carry, now: wrap(functools.partial(cell, **keywords))(carry, now),
            # Everything is read alike at every step, and dropout masks stay the same; what steps would sow stays inside.
            variable_broadcast=DenyList(("intermediates", PENALTIES)),
            split_rngs={"params": False, "dropout": False},
            in_axes=(axes,),
            out_axes=axes[0],
            **options,
        )
        return lifted(cell, carry, xs)

    return forward.any_drive(type(cell).__name__, initial, output, scan, x, batch, start, **arguments)


def _step_output(cell: nn.RNNCellBase, carry: Any, x: jax.ShapeDtypeStruct, **keywords: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a cell's output, which only the cell itself knows."""
    key = jax.random.key(0)
    make = functools.partial(cell.clone(parent=None).init_with_output, {"params": key, "dropout": key}, **keywords)
    (_, output), _ = jax.eval_shape(make, carry, x)
    return output


def bind(cells: Any, scope: Any) -> list[Any]:
    """The cells with their variables in `scope`: one shares it, several lie below it as "cells_0", "cells_1", …"""
    if len(cells) == 1:
        # Rewound, the scope lets a second call of the same layer find the same names.
        return [cells[0].clone(parent=scope.rewound())]
    return [below(scope, f"cells_{i}", cell) for i, cell in enumerate(cells)]


def below(scope: Any, name: str, module: nn.Module) -> Any:
    """`module` with its variables at `name` below `scope`; a second call of the same layer finds the same ones."""
    return module.clone(parent=scope.push(name, reuse=True), name=name)
