"""Every check of a user's array or option, each in one place and with one message.

A message names the argument, what arrived and what was expected; `Raises` sections elsewhere refer to these. Shapes are
checked while tracing, values (the range of `seq_lengths`) only where they are concrete.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax import export
from jax.typing import DTypeLike

__all__ = [
    "Weights",
    "absent",
    "activation",
    "array",
    "batch_size",
    "describe",
    "dtype",
    "features",
    "flag",
    "in_features",
    "initial_state",
    "initializer",
    "integer",
    "key",
    "lengths",
    "like",
    "optional",
    "per_cell",
    "positive",
    "positive_or_none",
    "precision",
    "rate",
    "recorded",
    "scalar",
    "seed",
    "sequence",
    "shape",
    "shaped",
    "single_state",
    "step_flags",
    "step_inputs",
    "tolerance",
    "training",
    "units",
    "unroll",
    "unrollable",
    "weights",
]


class Weights(NamedTuple):
    """The parameters of one simple RNN: kernel (F, U), recurrent_kernel (U, U), bias (U,), initial_state (U,)."""

    kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array | None = None
    initial_state: jax.Array | None = None


def describe(value: Any) -> str:
    """What arrived, in a few words: the shape and dtype of an array, else its repr."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def absent(path: Path, what: str = "file") -> str:
    """That nothing is at `path`; where it was looked for, if the path does not say."""
    return f"there is no such {what}" + ("" if path.is_absolute() else f" in {Path.cwd()}")


def array(name: str, value: Any) -> jax.Array:
    """`value` as a real-valued array: anything that `numpy.asarray` reads as numbers."""
    of_torch = " Give .detach().float().numpy() of it." if hasattr(value, "detach") else ""
    refused = TypeError(f"`{name}` must be an array of real numbers, got {describe(value)}.{of_torch}")
    of_jax = isinstance(value, jax.Array) or hasattr(value, "__jax_array__")
    # JAX would take a string in a list for the name of a dtype.
    is_list = isinstance(value, (int, float, list, tuple)) and not any(
        isinstance(leaf, (str, bytes)) for leaf in jax.tree.leaves(value)
    )
    if not (of_jax or is_list or hasattr(value, "__array__")):
        raise refused
    try:
        result = jnp.asarray(value if of_jax or is_list else np.asarray(value))
    except (AttributeError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        # The first is for objects in a list or tuple, the last is torch's for a tensor with gradients.
        raise refused from error
    if jnp.issubdtype(result.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real-valued, got {describe(result)}.")
    if not (jnp.issubdtype(result.dtype, jnp.number) or result.dtype == jnp.bool_):
        raise refused
    return result


def shaped(name: str, value: Any, shape: tuple[int, ...], letters: str) -> jax.Array:
    """`value` as an array of exactly `shape`; nothing is broadcast."""
    result = array(name, value)
    if result.shape != shape:
        raise ValueError(f"`{name}` must have the shape {letters} = {shape}, got {describe(result)}.")
    return result


def optional(name: str, value: Any, shape: tuple[int, ...], letters: str) -> jax.Array | None:
    """`shaped`, or None for None."""
    return None if value is None else shaped(name, value, shape, letters)


def weights(params: Any) -> Weights:
    """The arrays in `params`, boxed or not, with shapes that fit each other."""
    if not isinstance(params, Mapping):
        raise TypeError(
            "`params` must be a mapping with the keys 'kernel', 'recurrent_kernel' and, if there is a bias, 'bias' "
            f"(`init_params` makes one), got {describe(params)}."
        )
    missing = [key for key in ("kernel", "recurrent_kernel") if key not in params]
    unknown = [key for key in params if key not in Weights._fields]
    if missing or unknown:
        problem = f"lacks {missing}" if missing else f"has the unknown keys {unknown}"
        raise ValueError(
            f"`params` {problem}: its keys are {sorted(map(str, params))}; expected 'kernel' (F, U), 'recurrent_kernel' "
            "(U, U), optionally 'bias' (U,) and 'initial_state' (U,). A layer's are in variables['params'], in NNX "
            "nnx.state(layer, nnx.Param)."
        )
    params = meta.unbox(dict(params))
    kernel = array("params['kernel']", params["kernel"])
    if kernel.ndim != 2:
        raise ValueError(f"`params['kernel']` must have the shape (F, U), got {describe(kernel)}.")
    units = kernel.shape[1]
    recurrent_kernel = shaped("params['recurrent_kernel']", params["recurrent_kernel"], (units, units), "(U, U)")
    vectors = (optional(f"params['{key}']", params.get(key), (units,), "(U,)") for key in ("bias", "initial_state"))
    return Weights(kernel, recurrent_kernel, *vectors)


def features(inputs: jax.Array, expected: int, name: str = "inputs") -> None:
    """The last dimension of `inputs` is the F that the kernel was made for."""
    if inputs.shape[-1] != expected:
        raise ValueError(
            f"`{name}` must have {expected} features (F, the last dimension), as the kernel has, got {describe(inputs)}."
        )


def step_inputs(name: str, value: Any) -> jax.Array:
    """The inputs of one step as an array (*batch, F)."""
    x = array(name, value)
    if x.ndim < 1:
        raise ValueError(f"`{name}` must have the shape (*batch, F), got {describe(x)}.")
    return x


def sequence(inputs: Any, *, time_major: bool = False) -> tuple[jax.Array, tuple[int, ...], int]:
    """`inputs` as an array, its batch shape and its number of steps T."""
    inputs = array("inputs", inputs)
    if inputs.ndim < 2:
        layout = "(T, *batch, F)" if time_major else "(*batch, T, F)"
        raise ValueError(f"`inputs` must have the shape {layout}, rank 2 or more, got {describe(inputs)}.")
    if time_major:
        return inputs, inputs.shape[1:-1], inputs.shape[0]
    return inputs, inputs.shape[:-2], inputs.shape[-2]


def step_flags(name: str, value: Any, batch: tuple[int, ...], steps: int) -> jax.Array | None:
    """A `mask` or `resets`: one flag a step, (*batch, T) or Keras's (*batch, T, 1), cast to bool."""
    if value is None:
        return None
    flags = array(name, value)
    shape = (*batch, steps)
    if flags.shape == (*shape, 1):
        flags = flags[..., 0]
    if flags.shape != shape:
        raise ValueError(
            f"`{name}` must have one flag for every step, (*batch, T) = {shape} (batch first also with time_major=True; "
            f"nothing is broadcast), got {describe(flags)}."
        )
    if jnp.issubdtype(flags.dtype, jnp.floating) and not isinstance(flags, jax.core.Tracer):
        values = np.asarray(flags)
        if not (values >= 0).all():  # an additive mask, 0 and -inf, would mean the opposite of what it says
            raise ValueError(f"`{name}` must be True or above 0 for yes and 0 for no, got {values[~(values >= 0)][0]}.")
    return flags.astype(bool)


def lengths(value: Any, batch: tuple[int, ...], steps: int) -> jax.Array | None:
    """`seq_lengths` (*batch,): integers from 0 to T."""
    if value is None:
        return None
    result = array("seq_lengths", value)
    if not jnp.issubdtype(result.dtype, jnp.integer):
        raise TypeError(f"`seq_lengths` must hold integers, got {describe(result)}.")
    if result.shape != batch:
        raise ValueError(f"`seq_lengths` must have the shape (*batch,) = {batch}, got {describe(result)}.")
    # As given, where that is no array of JAX's, which cuts 64-bit integers to 32 bits.
    known = result if isinstance(result, jax.core.Tracer) or isinstance(value, jax.Array) else np.asarray(value)
    if not isinstance(known, jax.core.Tracer):
        values = np.asarray(known)
        if values.size and (values.min() < 0 or values.max() > steps):
            raise ValueError(
                f"`seq_lengths` must lie between 0 and the number of steps T = {steps}, got values from {values.min()} to "
                f"{values.max()}."
            )
    # T need not fit the dtype in which lengths arrive: steps counted in it would wrap round.
    return result.astype(jnp.int32)


def initial_state(name: str, value: Any, hidden: tuple[int, ...]) -> jax.Array:
    """The state (*batch, U) that a simple RNN starts from."""
    result = array(name, single_state(value))
    if result.shape != hidden:
        of_a_step = len(hidden) == 1 and result.shape[1:] == hidden
        hint = (
            " Inputs (B, F) are one sequence without a batch: give single steps as inputs[:, None]."
            if of_a_step
            else ""
        )
        raise ValueError(f"`{name}` must have the shape (*batch, U) = {hidden}, got {describe(result)}.{hint}")
    return result


def single_state(value: Any, name: str = "initial_state") -> Any:
    """The one state in Keras's list or tuple of states; anything else as it is."""
    if isinstance(value, (list, tuple)) and not (value and isinstance(value[0], (int, float))):
        return per_cell(name, value, 1)[0]
    return value


def per_cell(name: str, states: Any, count: int) -> Sequence[Any]:
    """A list or tuple with one state for each of `count` cells."""
    if not isinstance(states, (list, tuple)):
        raise TypeError(f"`{name}` must be a list or tuple of {count} states, one a cell, got {describe(states)}.")
    if len(states) != count:
        raise ValueError(f"`{name}` must hold {count} state{'s' * (count != 1)}, one a cell, got {len(states)}.")
    if any(state is None for state in states):
        raise TypeError(f"`{name}` must hold a state for every cell, got {describe(states)}.")
    return states


def recorded(states: Any, count: int, batch: tuple[int, ...]) -> None:
    """The states that a stateful layer recorded: one for each of `count` cells, of the batch that comes now."""
    for leaf in jax.tree.leaves(per_cell("variables['carry']['states']", states, count)):
        if leaf.shape[: len(batch)] != batch:
            raise ValueError(
                f"`inputs` has the batch shape {batch}, but the recorded state is {describe(leaf)}: a stateful layer keeps its "
                f"batch. Begin anew with `reset_states(batch_size={batch[0] if len(batch) == 1 else batch})` (in Linen "
                "`variables` comes first), or pass `initial_state`."
            )


def like(name: str, value: Any, example: Any) -> Any:
    """A cell's state in the structure, shapes and dtypes of `example`; Keras's list of one state is that state."""
    structure: Any = jax.tree.structure(example)
    if jax.tree.structure(value) != structure and isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        value = tuple(value)
    if jax.tree.structure(value) != structure:
        raise ValueError(
            f"`{name}` must be like the cell's state, arrays of the shapes {jax.tree.map(jnp.shape, example)}, got "
            f"{describe(value)}."
        )
    return jax.tree.map(lambda v, e: shaped(name, v, e.shape, "of the cell's state").astype(e.dtype), value, example)


def flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False, got {describe(value)}.")


def training(value: Any) -> Any:
    """A bool, or a traced boolean: what `nn.remat` or `nn.jit` make of one."""
    if isinstance(value, jax.core.Tracer) and value.dtype == jnp.bool_ and value.shape == ():
        return value
    if isinstance(value, (bool, np.bool_)) or (
        isinstance(value, jax.Array) and value.dtype == jnp.bool_ and not value.shape
    ):
        return bool(value)
    raise TypeError(f"`training` must be True or False, or a traced boolean, got {describe(value)}.")


def integer(name: str, value: Any) -> int | None:
    """A whole number (anything with `__index__` but a bool), else None."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def units(value: Any) -> int:
    number = integer("units", value)
    if number is None:
        raise TypeError(
            "Received an invalid type for argument `units`, expected a positive integer, got "
            f"{value!r} ({type(value).__name__})."
        )
    return positive("units", number)


def in_features(value: Any) -> int:
    number = integer("in_features", value)
    if number is None:
        raise TypeError(f"`in_features` must be a positive integer, got {describe(value)}.")
    return positive("in_features", number)


def positive(name: str, number: int) -> int:
    if not 0 < number < 2**31:
        expected = "a positive integer" if number <= 0 else "at most 2**31 - 1"
        raise ValueError(f"Received an invalid value for argument `{name}`, expected {expected}, got {number}.")
    return number


def positive_or_none(name: str, value: Any) -> None:
    """A positive whole number, or None for a default."""
    if value is None:
        return
    number = integer(name, value)
    if number is None:
        raise TypeError(f"`{name}` must be a positive integer or None, got {describe(value)}.")
    positive(name, number)


def tolerance(name: str, value: Any) -> None:
    """A positive number, or None for a default."""
    if value is None:
        return
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"`{name}` must be a positive number or None, got {describe(value)}.")
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be a positive number or None, got {value!r}.")


def shape(name: str, value: Any) -> tuple[int, ...]:
    """A shape: integers from 0, or the symbolic ones of `jax.export`."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"`{name}` must be a tuple of integers, got {describe(value)}.")
    for size in value:
        if export.is_symbolic_dim(size):
            continue
        number = integer(name, size)
        if number is None:
            raise TypeError(f"`{name}` must be a tuple of integers, got {describe(value)}.")
        if number < 0:
            raise ValueError(f"`{name}` must not have negative entries, got {describe(value)}.")
    return tuple(value)


def batch_size(value: Any) -> tuple[int, ...]:
    """The batch shape that an integer or a tuple of integers stands for."""
    number = integer("batch_size", value)
    if number is None and not isinstance(value, (list, tuple)):
        raise TypeError(f"`batch_size` must be an integer or a tuple of integers, got {describe(value)}.")
    return shape("batch_size", value if number is None else (number,))


def key(name: str, value: Any) -> None:
    """One `jax.random` key, typed or as an array of uint32."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if not typed and not (dtype == jnp.uint32 and len(shape or ()) == 1):
        raise TypeError(f"`{name}` must be one key of jax.random, as jax.random.key makes, got {describe(value)}.")


def seed(value: Any) -> int | None:
    """An integer that Keras takes too and fits its keys, or None."""
    if value is None:
        return None
    number = integer("seed", value)
    if number is None:
        raise TypeError(f"`seed` must be an integer or None, got {describe(value)}.")
    if not 0 <= number < 2**32:
        raise ValueError(f"`seed` must lie between 0 and 2**32 - 1, got {describe(value)}.")
    return number


def dtype(name: str, value: Any) -> None:
    """A floating-point dtype in which JAX computes: 8-bit floats are only for storage."""
    try:
        found = None if value is None else jnp.dtype(value)
    except TypeError as error:
        of_keras = " Keras's policy 'mixed_bfloat16' is dtype=jax.numpy.bfloat16." if "mixed_" in str(value) else ""
        raise TypeError(f"`{name}` must be a floating-point dtype, got {describe(value)}.{of_keras}") from error
    if found is None or not jnp.issubdtype(found, jnp.floating) or jnp.finfo(found).bits < 16:
        raise ValueError(f"`{name}` must be a floating-point dtype of 16 bits or more, got {describe(value)}.")


def precision(value: Any) -> None:
    """What `jax.numpy.dot` takes as its precision."""
    if value is None:
        return
    vector = jax.ShapeDtypeStruct((1,), jnp.float32)
    try:
        jax.eval_shape(functools.partial(jnp.dot, precision=value), vector, vector)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`precision` must be None, a name such as 'high' or 'highest', a jax.lax.Precision, or a pair of them, got "
            f"{describe(value)}."
        ) from error


def activation(result: Any, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> None:
    """What an activation returned for an array of this shape and dtype: another one."""
    if getattr(result, "shape", None) != shape or dtype not in (None, result.dtype):
        wanted = f"shape {shape}" if dtype is None else f"shape {shape} and dtype {jnp.dtype(dtype)}"
        raise ValueError(
            f"`activation` must return an array like the one it is given, of {wanted}, got {describe(result)}."
        )


def initializer(argument: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with errors that name the argument; what it returns must have the shape asked for, boxed or not."""

    def checked(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        try:
            value = function(key, shape, dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{argument}` cannot make an array of shape {shape}: {error}") from error
        leaves = jax.tree.leaves(getattr(value, "raw_value", value))  # flax.nnx.with_partitioning's box is no pytree
        if len(leaves) != 1 or getattr(leaves[0], "shape", None) != tuple(shape):
            raise ValueError(f"`{argument}` must return an array of shape {shape}, got {describe(value)}.")
        return value

    return checked


def scalar(name: str, value: Any) -> jax.Array:
    """What the penalty `name` returned: one real number."""
    if value is None or jnp.shape(value):
        raise ValueError(f"`{name}` must return a scalar, got {describe(value)}.")
    return array(name, value)


def unroll(value: Any) -> bool | int:
    """False, True, or the number of steps a loop iteration takes."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    number = integer("unroll", value)
    if number is None:
        raise TypeError(
            f"`unroll` must be True, False or a positive integer (steps per iteration), got {describe(value)}."
        )
    if number <= 0:
        raise ValueError(f"`unroll` must be True, False or a positive integer (steps per iteration), got {value!r}.")
    return number


def unrollable(unroll: Any, steps: Any) -> None:
    """A number of steps that is not known when the program is traced (`jax.export`) leaves no loop to unroll."""
    if unroll and not isinstance(steps, int):
        raise ValueError(f"`unroll` needs a fixed number of steps, got the symbolic T = {steps}: leave it False.")


def rate(name: str, value: Any) -> None:
    """A dropout rate: the fraction dropped, from 0 to 1."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"`{name}` must be a number from 0 to 1 (the fraction dropped), got {describe(value)}.")
    if not 0 <= value <= 1 or math.isnan(value):
        raise ValueError(f"`{name}` must be a number from 0 to 1 (the fraction dropped), got {describe(value)}.")
