"""The arguments of the layers, each declared once for Flax Linen and Flax NNX, and what follows from them alone.

The dataclasses are bases of the Linen modules, so that an option is an attribute under its Keras name; their order of
fields is Keras's order of arguments. `check` rejects a bad option when a layer is constructed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax.typing import DTypeLike

from flax_srnn import activations, constraints, initializers, regularizers, validation
from flax_srnn.core import implementations, sequence
from flax_srnn.dtypes import at_least_float32
from flax_srnn.identifiers import did_you_mean

__all__ = [
    "MERGING",
    "BidirectionalOptions",
    "CellOptions",
    "MergeMode",
    "RNNOptions",
    "SimpleRNNOptions",
    "activity_penalty",
    "check",
    "check_directions",
    "constrained",
    "drops",
    "hashable",
    "merge",
    "of_sequence",
    "parameters",
    "seed_key",
    "total",
    "weight_penalties",
]

MergeMode: TypeAlias = Literal["concat", "sum", "ave", "mul"] | None
MERGING: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], -1),
    "sum": jnp.add,
    "ave": lambda forward, backward: (forward + backward) / 2,
    "mul": jnp.multiply,
}
"""What `Bidirectional` makes of its two outputs; the modes of `MergeMode` but None."""


@dataclasses.dataclass
class CellOptions:
    """What a `SimpleRNNCell` takes; the same arguments open those of `SimpleRNN`."""

    units: int
    activation: Any = "tanh"
    use_bias: bool = True
    kernel_initializer: Any = "glorot_uniform"
    recurrent_initializer: Any = "orthogonal"
    bias_initializer: Any = "zeros"
    kernel_regularizer: Any = None
    recurrent_regularizer: Any = None
    bias_regularizer: Any = None
    kernel_constraint: Any = None
    recurrent_constraint: Any = None
    bias_constraint: Any = None
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    seed: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: Any = None


@dataclasses.dataclass
class _CellsOption:
    """The cells that an `RNN` drives: one, or a list of them."""

    cell: Any


@dataclasses.dataclass
class _ActivityOption:
    """The penalty on what a layer returns."""

    activity_regularizer: Any = None


@dataclasses.dataclass
class _SequenceOptions:
    """Keras's flags of every recurrent layer."""

    return_sequences: bool = False
    return_state: bool = False
    go_backwards: bool = False
    stateful: bool = False
    unroll: bool | int = False
    zero_output_for_mask: bool = False


@dataclasses.dataclass
class _InitialStateOption:
    """The initializer of a learned initial state."""

    initial_state_initializer: Any = None


@dataclasses.dataclass
class _LayoutOptions:
    """Where `simple_rnn` can do more than Keras; the arguments are explained there."""

    time_major: bool = False
    keep_order: bool = False
    implementation: implementations.Choice = None


@dataclasses.dataclass
class SimpleRNNOptions(_LayoutOptions, _InitialStateOption, _SequenceOptions, _ActivityOption, CellOptions):
    """All arguments of `SimpleRNN`, in order."""


@dataclasses.dataclass
class RNNOptions(_LayoutOptions, _ActivityOption, _SequenceOptions, _CellsOption):
    """All arguments of `RNN`, in order."""


@dataclasses.dataclass
class BidirectionalOptions:
    """All arguments of `Bidirectional`, in order."""

    layer: Any
    merge_mode: MergeMode = "concat"
    backward_layer: Any = None

    holds_masked: ClassVar[bool] = False
    """Whether outputs at masked steps are held where there are sequences, as in Keras before tf.keras, and not 0."""


_FLAGS = ("use_bias", "return_state", "stateful")


def check(options: Any) -> None:
    """Raises TypeError or ValueError for the first option that cannot be right.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: a value out of range, or an unknown name.
    """
    fields = {field.name for field in dataclasses.fields(options)}
    for name in fields.intersection(_FLAGS):
        validation.flag(name, getattr(options, name))
    if "units" in fields:
        validation.units(options.units)
        activations.get(options.activation)
        validation.rate("dropout", options.dropout)
        validation.rate("recurrent_dropout", options.recurrent_dropout)
        validation.seed(options.seed)
        if options.dtype is not None:
            validation.dtype("dtype", options.dtype)
        validation.dtype("param_dtype", options.param_dtype)
        validation.precision(options.precision)
    for suffix, module in (("initializer", initializers), ("regularizer", regularizers), ("constraint", constraints)):
        for name in sorted(fields):
            if name.endswith(suffix) and getattr(options, name) is not None:
                module.get(getattr(options, name), argument=name)
    if "unroll" in fields:
        sequence.check_options(_of_sequence(options))
    if "merge_mode" in fields:
        mode = options.merge_mode
        if not (mode is None or (isinstance(mode, str) and mode in MERGING)):
            hint = did_you_mean(mode, MERGING)
            raise ValueError(f"`merge_mode` must be one of {(*MERGING, None)}, got {validation.describe(mode)}.{hint}")


def parameters(o: Any, in_features: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Initializer and shape of every parameter of a cell or `SimpleRNN`, a learned initial state among them."""
    units = int(o.units)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "kernel": ("kernel_initializer", (in_features, units)),
        "recurrent_kernel": ("recurrent_initializer", (units, units)),
    }
    if o.use_bias:
        shapes["bias"] = ("bias_initializer", (units,))
    if getattr(o, "initial_state_initializer", None) is not None:
        shapes["initial_state"] = ("initial_state_initializer", (units,))
    return {
        name: (validation.initializer(argument, initializers.get(getattr(o, argument), argument=argument)), shape)
        for name, (argument, shape) in shapes.items()
    }


def weight_penalties(o: Any, params: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The penalties on the weights, under the names of the arguments that ask for them."""
    owners = {"kernel": "kernel", "recurrent": "recurrent_kernel", "bias": "bias"}
    found = {}
    for prefix, parameter in owners.items():
        argument = f"{prefix}_regularizer"
        regularizer = regularizers.get(getattr(o, argument))
        if regularizer is not None and parameter in params:
            found[argument] = validation.scalar(argument, regularizer(params[parameter]))
    return found


def activity_penalty(o: Any, returned: Any, batch: tuple[int, ...]) -> jax.Array | None:
    """The penalty on every array that a layer returns, divided by the batch size; None without a regularizer."""
    regularizer = regularizers.get(o.activity_regularizer)
    if regularizer is None:
        return None
    penalties = (validation.scalar("activity_regularizer", regularizer(x)) for x in jax.tree.leaves(returned))
    return total(penalties) / max(math.prod(batch), 1)


def total(penalties: Iterable[jax.Array]) -> jax.Array:
    """The sum of penalties of any dtypes, a scalar of 32 bits or more: a small one added to a large one counts."""
    found = [penalty.astype(at_least_float32(penalty.dtype)) for penalty in penalties]
    widest = max((penalty.dtype for penalty in found), key=lambda dtype: dtype.itemsize, default=jnp.float32)
    return functools.reduce(operator.add, (penalty.astype(widest) for penalty in found), jnp.zeros((), widest))


def constrained(o: Any) -> dict[str, Any]:
    """The constraint of every constrained parameter."""
    owners = {"kernel": o.kernel_constraint, "recurrent_kernel": o.recurrent_constraint}
    if o.use_bias:
        owners["bias"] = o.bias_constraint
    return {name: constraints.get(constraint) for name, constraint in owners.items() if constraint is not None}


def drops(o: Any, training: Any) -> bool:
    """Whether this call needs a dropout key; one whose `training` is traced may."""
    return training is not False and (o.dropout > 0 or o.recurrent_dropout > 0)


def seed_key(o: Any, path: tuple[str, ...]) -> jax.Array | None:
    """The dropout key that `seed` stands for, another one for every place in the model; None without a seed."""
    if o.seed is None:
        return None
    return jax.random.fold_in(jax.random.key(o.seed), zlib.crc32("/".join(path).encode()))


def of_sequence(options: Any) -> sequence.Options:
    """What a layer's options, checked when it was made, say about processing a sequence."""
    return sequence.options_of(_of_sequence(options))


def _of_sequence(options: Any) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(sequence.Options)}


def hashable(options: Any) -> dict[str, Any]:
    """The options that cannot be hashed and compared as they were given, in a form that can."""
    changed = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, (jax.Array, np.ndarray)):
            integer = field.name in ("units", "unroll", "seed")
            changed[field.name] = operator.index(value) if integer else initializers.get(value)
        elif isinstance(value, (Mapping, list)):
            changed[field.name] = _frozen(value)
    return changed


def _frozen(value: Any) -> Any:
    """A Keras configuration, or a list of cells, without anything that could be changed."""
    if isinstance(value, Mapping):
        return FrozenDict({key: _frozen(inner) for key, inner in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def check_directions(forward: Any, backward: Any) -> None:
    """Raises ValueError where the two layers of a `Bidirectional` do not fit together."""
    if forward.go_backwards == backward.go_backwards:
        raise ValueError(
            "`layer` and `backward_layer` must run in opposite directions: one `go_backwards` must be True, got "
            f"{forward.go_backwards} for both."
        )
    for name in ("stateful", "return_sequences", "return_state", "time_major"):
        if getattr(forward, name) != getattr(backward, name):
            raise ValueError(
                f"`layer` and `backward_layer` must have the same `{name}`, got {getattr(forward, name)} and "
                f"{getattr(backward, name)}."
            )


def merge(mode: MergeMode, forward: jax.Array, backward: jax.Array) -> tuple[jax.Array, ...]:
    """The outputs of both directions as `Bidirectional` returns them: one array, or both for mode None."""
    if mode is None:
        return forward, backward
    if mode != "concat" and forward.shape != backward.shape:
        raise ValueError(
            f"`merge_mode`: {mode!r} needs outputs of one shape, got {forward.shape} from `layer` and {backward.shape} from "
            "`backward_layer`; nothing is broadcast."
        )
    return (MERGING[mode](forward, backward),)
