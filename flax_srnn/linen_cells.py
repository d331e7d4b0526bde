"""The cells for Flax Linen, and how any cell is driven over a sequence."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import DenyList, meta

from flax_srnn import options, sequence, validation
from flax_srnn.cell import cell_step

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

    def _masks(self, inputs: jax.Array, batch: tuple[int, ...], training: bool) -> dict[str, Any]:
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
        check_cells("cells", self.cells, alone=False)
        super().__post_init__()

    def __call__(self, carry: Any, inputs: Any, *, training: bool = False) -> tuple[tuple[Any, ...], jax.Array]:
        """(one state a cell, x_t (*batch, F)) -> (the new states, the last cell's output)."""
        output, new = inputs, []
        for cell, state in zip(
            bind(self.cells, self.scope), validation.per_cell("carry", carry, len(self.cells)), strict=True
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


def scan_cell(
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
    keywords: dict[str, Any] = {"training": training} if _accepts_training(cell) else {}
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
    structure: Any = jax.tree.structure(initial)
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


def check_cells(name: str, cells: Any, *, alone: bool) -> None:
    listed = cells if isinstance(cells, (list, tuple)) else [cells] if alone else None
    if listed is None or not all(isinstance(cell, nn.RNNCellBase) for cell in listed):
        expected = "a flax.linen.RNNCellBase or a list of them" if alone else "a list of flax.linen.RNNCellBase"
        raise TypeError(f"`{name}` must be {expected}, got {validation.describe(cells)}.")
    if not listed:
        raise ValueError(f"`{name}` must hold at least one cell, got an empty list.")


def bind(cells: Any, scope: Any) -> list[Any]:
    """The cells with their variables in `scope`: one shares it, several lie below it as "cells_0", "cells_1", …"""
    if len(cells) == 1:
        # Rewound, the scope lets a second call of the same layer find the same names.
        return [cells[0].clone(parent=scope.rewound())]
    return [below(scope, f"cells_{i}", cell) for i, cell in enumerate(cells)]


def below(scope: Any, name: str, module: nn.Module) -> Any:
    """`module` with its variables at `name` below `scope`; a second call of the same layer finds the same ones."""
    return module.clone(parent=scope.push(name, reuse=True), name=name)
