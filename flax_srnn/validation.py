"""Every check of a user's array or option, each in one place and with one message.

A message names the argument, what arrived and what was expected; `Raises` sections elsewhere refer to these. Shapes are
checked while tracing, values (the range of `seq_lengths`) only where they are concrete.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

IMPLEMENTATIONS = ("scan", "autodiff")


class Weights(NamedTuple):
    """The parameters of one simple RNN: kernel (F, U), recurrent_kernel (U, U), bias (U,), initial_state (U,)."""

    kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array | None
    initial_state: jax.Array | None


def describe(value: Any) -> str:
    """What arrived, in a few words: the shape and dtype of an array, else its repr."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def array(name: str, value: Any) -> jax.Array:
    """`value` as a real-valued array."""
    if (
        not hasattr(value, "dtype")
        and not isinstance(value, (int, float, list, tuple))
        and not hasattr(value, "__jax_array__")
    ):
        raise TypeError(f"`{name}` must be an array of real numbers, got {describe(value)}.")
    try:
        result = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be an array of real numbers, got {describe(value)}.") from error
    if jnp.issubdtype(result.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real-valued, got {describe(result)}.")
    if not (jnp.issubdtype(result.dtype, jnp.number) or result.dtype == jnp.bool_):
        raise TypeError(f"`{name}` must be an array of real numbers, got {describe(result)}.")
    return result


def shaped(name: str, value: Any, shape: tuple[int, ...], letters: str) -> jax.Array:
    """`value` as an array of exactly `shape`; nothing is broadcast."""
    result = array(name, value)
    if result.shape != shape:
        raise ValueError(f"`{name}` must have the shape {letters} = {shape}, got {describe(result)}.")
    return result


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
            "(U, U), optionally 'bias' (U,) and 'initial_state' (U,). A layer's are in `variables['params']`."
        )
    params = meta.unbox(dict(params))
    kernel = array("params['kernel']", params["kernel"])
    if kernel.ndim != 2:
        raise ValueError(f"`params['kernel']` must have the shape (F, U), got {describe(kernel)}.")
    units = kernel.shape[1]
    recurrent_kernel = shaped("params['recurrent_kernel']", params["recurrent_kernel"], (units, units), "(U, U)")
    vectors = (
        None if params.get(key) is None else shaped(f"params['{key}']", params[key], (units,), "(U,)")
        for key in ("bias", "initial_state")
    )
    return Weights(kernel, recurrent_kernel, *vectors)


def features(inputs: jax.Array, expected: int, name: str = "inputs") -> None:
    """The last dimension of `inputs` is the F that the kernel was made for."""
    if inputs.shape[-1] != expected:
        raise ValueError(
            f"`{name}` must have {expected} features (F, the last dimension), as the kernel has, got {describe(inputs)}."
        )


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
    if not isinstance(result, jax.core.Tracer):
        values = np.asarray(result)
        if values.size and (values.min() < 0 or values.max() > steps):
            raise ValueError(
                f"`seq_lengths` must lie between 0 and the number of steps T = {steps}, got values from {values.min()} to "
                f"{values.max()}."
            )
    return result


def single_state(value: Any) -> Any:
    """The one state in Keras's list or tuple of states; anything else as it is."""
    if isinstance(value, (list, tuple)) and not (value and isinstance(value[0], (int, float))):
        return per_cell("initial_state", value, 1)[0]
    return value


def per_cell(name: str, states: Any, count: int) -> Sequence[Any]:
    """A list or tuple with one state for each of `count` cells."""
    if not isinstance(states, (list, tuple)):
        raise TypeError(f"`{name}` must be a list or tuple of {count} states, one a cell, got {describe(states)}.")
    if len(states) != count:
        raise ValueError(f"`{name}` must hold {count} state{'s' * (count != 1)}, one a cell, got {len(states)}.")
    return states


def implementation(value: Any) -> None:
    if value is not None and value not in IMPLEMENTATIONS:
        raise ValueError(f"`implementation` must be None or one of {IMPLEMENTATIONS}, got {value!r}.")


def flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False, got {describe(value)}.")


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


def positive(name: str, number: int) -> int:
    if number <= 0:
        raise ValueError(f"Received an invalid value for argument `{name}`, expected a positive integer, got {number}.")
    return number


def unroll(value: Any) -> None:
    """False, True, or the number of steps a loop iteration takes."""
    if isinstance(value, (bool, np.bool_)):
        return
    number = integer("unroll", value)
    if number is None:
        raise TypeError(
            f"`unroll` must be True, False or a positive integer (steps per iteration), got {describe(value)}."
        )
    if number <= 0:
        raise ValueError(f"`unroll` must be True, False or a positive integer (steps per iteration), got {value!r}.")


def rate(name: str, value: Any) -> None:
    """A dropout rate: the fraction dropped, from 0 to 1."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"`{name}` must be a number from 0 to 1 (the fraction dropped), got {describe(value)}.")
    if not 0 <= value <= 1 or math.isnan(value):
        raise ValueError(f"`{name}` must be a number from 0 to 1 (the fraction dropped), got {value!r}.")
