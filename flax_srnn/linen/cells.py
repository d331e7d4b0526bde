"""The cells for Flax Linen, and how any cell is driven over a sequence."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import DenyList, Scope, meta
from flax.errors import InvalidRngError
from flax.linen.module import SetupState

from flax_srnn import validation
from flax_srnn.core.sequence import Steps
from flax_srnn.layers import driving, options
from flax_srnn.layers.driving import Dropout, Start
from flax_srnn.linen import sown

__all__ = [
    "Checked",
    "SimpleCellModule",
    "SimpleRNNCell",
    "StackedRNNCells",
    "bind",
    "drive_any",
    "in_training",
    "listed",
    "place",
]

_vouched: ContextVar[type | None] = ContextVar("vouched", default=None)
"""The class of the module that is being copied with options that were checked when the original was made."""


class Checked(nn.Module):
    """Checks the options when the layer is constructed; Flax's own errors come after.

    Flax makes many copies of a module; what a copy has of a checked one is not checked again.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        # Transforms such as `nn.vmap` make a subclass whose call drops keyword arguments without a word.
        call: Any = cls.__dict__.get("__call__")
        if hasattr(call, "__wrapped__"):
            cls.__call__ = _by_position(call)  # type: ignore[method-assign]  # the class is being made
        super().__init_subclass__(**keywords)

    def __post_init__(self) -> None:
        # Flax also calls this again on modules that it adopts.
        if _vouched.get() is not type(self) and "_was_checked" not in self.__dict__:
            self._check()
            for name, value in options.hashable(self).items():
                object.__setattr__(self, name, value)
        object.__setattr__(self, "_was_checked", True)
        super().__post_init__()
        sown.forget(self)

    @nn.nowrap
    def _check(self) -> None:
        options.check(self)

    @nn.nowrap
    def clone(self, **updates: Any) -> Any:
        """A copy with some attributes changed, as of `flax.linen.Module`."""
        about_flax = ("parent", "name", "_deep_clone", "_reset_names")
        return self._clone(type(self) if updates.keys() <= set(about_flax) else None, updates)

    @nn.nowrap
    def _clone(self, vouched: type | None, updates: Mapping[str, Any]) -> Any:
        token = _vouched.set(vouched)
        try:
            copy = super().clone(**updates)
        finally:
            _vouched.reset(token)
        object.__setattr__(copy, "_places", _places(self))
        return copy


@jax.tree_util.register_static
class _NotGiven:
    """Stands for `training` in the middle of arguments that are given by position; without leaves, so `nn.vmap` passes it on."""


def in_training(training: Any) -> Any:
    """The call argument, checked."""
    return False if isinstance(training, _NotGiven) else validation.training(training)


def _by_position(call: Callable[..., Any]) -> Callable[..., Any]:
    """A method that hands the keyword arguments it gets to `call` by position, where that takes them so."""
    signature = inspect.signature(call)
    names = [name for name, p in signature.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @functools.wraps(call)
    def wrapper(*args: Any, **keywords: Any) -> Any:
        signature.bind(*args, **keywords)  # a TypeError for what it does not take
        last = max((names.index(name) for name in keywords if name in names), default=-1)
        for name in names[len(args) : last + 1]:
            default = signature.parameters[name].default
            if name not in keywords and default is inspect.Parameter.empty:
                break
            args = (*args, keywords.pop(name, _NotGiven() if name == "training" else default))
        return call(*args, **keywords)

    return wrapper


class SimpleCellModule(Checked):
    """What `SimpleRNNCell` and `SimpleRNN` share: the parameters, and the sequence they are applied to."""

    @nn.compact
    def declare(self, in_features: int) -> dict[str, jax.Array]:
        """All parameters, unboxed: the one place that makes them, and where `collect_constraints` finds them."""
        made = options.parameters(self, in_features)
        return {name: jnp.asarray(self._parameter(name, *how)) for name, how in made.items()}

    def _parameter(self, name: str, initializer: Any, shape: tuple[int, ...]) -> jax.Array:
        if self.has_variable("params", name):
            found = meta.unbox(self.get_variable("params", name))
            got: tuple[int, ...] = getattr(found, "shape", ())
            if name == "kernel" and got[1:] == shape[1:] and got != shape:
                raise ValueError(
                    f"`inputs` must have {got[0]} features (F, the last dimension), as when the variables were made, "
                    f"got {shape[0]}."
                )
            validation.shaped(f"params['{name}']", found, shape, "of this layer's")
        elif not self.is_initializing():
            raise ValueError(
                f"`variables` has no parameter '{name}' at {'/'.join(self.path) or 'the top'} in the collection 'params': "
                f"make the variables with `init`{', or the layer with use_bias=False' if name == 'bias' else ''}."
            )
        return self.param(name, initializer, shape, self.param_dtype)

    def _dropout(self, training: Any) -> Dropout | None:
        """How this call drops: by a key of the RNG stream "dropout", else by `seed`."""
        if not options.drops(self, training):
            return None
        seeded = None if self.has_rng("dropout") else options.seed_key(self, self.path)
        if seeded is None and not (self.has_rng("dropout") or self.has_rng("params")):  # Flax's stand-in for any stream
            streams = sorted(self.scope.rngs) if self.scope else []
            raise InvalidRngError(
                f"{type(self).__name__} at {'/'.join(self.path) or 'the top'} drops in training and needs a key: pass "
                f'rngs={{"dropout": key}} to `apply`, which got the streams {streams}, or construct the layer '
                "with `seed`. Where `training` is traced, as by jax.jit without `static_argnames`, nn.remat and nn.jit, it is needed in any case."
            )
        return Dropout(self.make_rng("dropout") if seeded is None else seeded, training)

    def fetch(self, training: Any, x: jax.Array) -> tuple[validation.Weights, Dropout | None]:
        """The weights for inputs x, and how this call drops; penalties are sown."""
        params = self.declare(x.shape[-1])
        sown.sow(self, options.weight_penalties(self, params))
        return validation.Weights(**params), self._dropout(training)


class SimpleRNNCell(SimpleCellModule, nn.RNNCellBase, options.CellOptions):
    """One step of a simple RNN: h_t = act((x_t ∘ d_x) W + b + (h_{t-1} ∘ d_h) U).

    A `flax.linen.RNNCellBase`: it works in `flax.linen.RNN` and `flax.linen.Bidirectional` too, where Flax shows the
    penalties of cells inside its loop to nobody.

    Parameters: "kernel" W (F, U), "recurrent_kernel" U (U, U) and, with `use_bias`, "bias" b (U,).

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
        x = validation.step_inputs("inputs", inputs)
        return driving.step(self, carry, x, *self.fetch(in_training(training), x))

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        """Zeros (*batch, U) for inputs of `input_shape` (*batch, F)."""
        return driving.zero_carry(self, input_shape)

    @property
    def num_feature_axes(self) -> int:
        return 1


class StackedRNNCells(Checked, nn.RNNCellBase):
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

    @nn.nowrap
    def _check(self) -> None:
        driving.check_cells("cells", self.cells, nn.RNNCellBase, "flax.linen", alone=False)

    @nn.compact
    def __call__(self, carry: Any, inputs: Any, *, training: bool = False) -> tuple[tuple[Any, ...], jax.Array]:
        """(one state a cell, x_t (*batch, F)) -> (the new states, the last cell's output)."""
        cells = bind(self, self.cells)
        steps = [functools.partial(cell, **driving.training_keyword(cell, training)) for cell in cells]
        return driving.stacked_step(steps, carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> tuple[Any, ...]:
        """One initial state a cell for inputs of `input_shape` (*batch, F)."""
        keys = jax.random.split(rng, len(self.cells))
        makers = [functools.partial(cell.initialize_carry, key) for cell, key in zip(self.cells, keys, strict=True)]
        return driving.stacked_carry(
            makers, [functools.partial(_step_output, cell) for cell in self.cells], input_shape
        )

    @property
    def num_feature_axes(self) -> int:
        return 1


def drive_any(cell: nn.RNNCellBase, training: Any, steps: Steps, start: Start) -> tuple[Any, Any, jax.Array]:
    """Any Flax cell over a sequence, see `driving.Drive`."""
    keywords: dict[str, Any] = driving.training_keyword(cell, training)
    x, shape = steps.inputs, (*steps.batch, steps.inputs.shape[-1])
    initial = cell.initialize_carry(jax.random.key(0), shape)
    output = _step_output(cell, initial, jax.ShapeDtypeStruct(shape, x.dtype), **keywords)

    def scan(wrap: Any, carry: Any, xs: Any, axes: Any, **options: Any) -> Any:
        lifted = nn.scan(
            lambda cell, carry, now: wrap(functools.partial(cell, **keywords))(carry, now),
            # Everything is read alike at every step, and dropout masks stay the same; what steps would sow stays inside.
            variable_broadcast=DenyList("intermediates"),
            split_rngs={"params": False, "dropout": False},
            in_axes=(axes,),
            out_axes=axes[0],
            **options,
        )
        return lifted(cell, carry, xs)

    shown = getattr(cell, "output_of", None)
    return driving.drive_any(type(cell).__name__, initial, output, scan, steps, start, cell.variables, shown)


def _step_output(cell: nn.RNNCellBase, carry: Any, x: jax.ShapeDtypeStruct, **keywords: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a cell's output, which only the cell itself knows."""
    key = jax.random.key(0)
    make = functools.partial(cell.clone(parent=None).init_with_output, {"params": key, "dropout": key}, **keywords)
    (_, output), _ = jax.eval_shape(make, carry, x)
    return output


def listed(cell: Any) -> Any:
    """The cells that an `RNN` drives one after the other."""
    if type(cell) is StackedRNNCells:
        return cell.cells
    return cell if isinstance(cell, (list, tuple)) else (cell,)


def bind(owner: Any, cell: Any) -> list[Any]:
    """The cells of a bound `owner`, each at its place: one shares the owner's scope, several are "cells_0", "cells_1", …
    below it, and a cell that is listed twice has one place, its first."""
    if type(cell) is StackedRNNCells:
        owner = cell = place(owner, cell, None)
    cells = listed(cell)
    names = [None] if len(cells) == 1 else [f"cells_{i}" for i in range(len(cells))]
    bound: dict[int, Any] = {}
    for each, name in zip(cells, names, strict=True):
        if id(each) not in bound:
            bound[id(each)] = place(owner, each, name)
    return [bound[id(each)] for each in cells]


def place(owner: Any, module: Any, name: str | None) -> Any:
    """`module` with its variables at `name` below `owner`, for None in the owner's own scope; a second call finds them there.

    A module that the model shares stays where its parent has it, as in Flax: `self.cell` of a `setup`, or one with a name. One
    that was made on the spot, `RNN(SimpleRNNCell(4))` in a compact method, belongs to the owner, as one that the owner was
    constructed with does: it moves in, with its scope, so that whoever else holds it finds its variables here.
    """
    # Rewound, a scope lets a second call of the same layer find the same names.
    scope: Scope = owner.scope.rewound() if name is None else owner.scope.push(name, reuse=True)
    if module.scope is None:
        return module.clone(parent=scope, **({} if name is None else {"name": name}))
    if _is_of_owner(owner, module) or _is_made_on_the_spot(module):
        object.__setattr__(module, "_places", _places(module))
        object.__setattr__(module, "scope", scope)
        sown.forget(module)
    return module


def _is_of_owner(owner: Any, module: Any) -> bool:
    """Whether a module is below its owner, or below where the owner was before: there Flax puts what it was made with."""
    return any(module.scope.path[: len(place)] == place for place in _places(owner))


def _is_made_on_the_spot(module: Any) -> bool:
    """Whether Flax named a module, which then is no attribute of its parent, and it was not used until now."""
    unused = module.scope.name == module.name and module._state.setup_called is SetupState.NEW
    return unused and re.fullmatch(rf"{type(module).__name__}_\d+", module.name) is not None


def _places(module: Any) -> tuple[tuple[str, ...], ...]:
    """Where a module, or what it is a copy of, is and was."""
    earlier: tuple[tuple[str, ...], ...] = module.__dict__.get("_places", ())
    return earlier if module.scope is None else (*earlier, module.scope.path)
