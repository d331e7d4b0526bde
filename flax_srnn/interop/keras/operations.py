"""Keras 3's functions of arrays, which stand between the layers of a functional model: masks, sums, slices.

Keras writes `x[:, -1]`, `x + y` and the masks of an Embedding or a Concatenate as operations of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn.interop.keras.shared import MAX_RANK, affordable

__all__ = ["Operation"]


class Operation(nn.Module):
    """A function of arrays.

    Attributes:
      kind: its Keras class.
      options: what it was made with.
    """

    kind: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def read(cls, kind: str, given: Mapping[str, Any], name: str) -> Self:
        if kind not in _FUNCTIONS:
            raise ValueError(f"the operation {kind!r} cannot be represented; known are {', '.join(_FUNCTIONS)}.")
        options = {key: value for key, value in given.items() if key != "name" and value is not None}
        if unknown := options.keys() - {"axis", "keepdims", "dtype"}:
            raise ValueError(f"the operation {kind} has an argument {sorted(unknown)[0]!r}, which is not known here.")
        return cls(kind, tuple(sorted((key, _option(key, value)) for key, value in options.items())), name=name)

    def apply_to(self, args: list[Any], kwargs: dict[str, Any]) -> jax.Array:
        with jax.numpy_rank_promotion("allow"):  # as in Keras
            y = _FUNCTIONS[self.kind](*args, **kwargs, **dict(self.options))
        batches = [x.shape[0] for x in jax.tree.leaves((args, kwargs)) if isinstance(x, jax.Array) and x.ndim]
        if y.ndim and y.shape[0] > max(batches, default=0):
            raise ValueError(
                f"{self.name!r} makes {y.shape} of batches of {batches[:4]}: more examples than there are."
            )
        affordable(y.shape)
        return y


def _option(key: str, value: Any) -> Any:
    if key == "dtype" and not (isinstance(value, str) and value in _DTYPES):
        raise ValueError(f"`dtype` must be one of {', '.join(_DTYPES)}, got {str(value)[:80]!r}.")
    if key == "keepdims" and not isinstance(value, bool):
        raise ValueError(f"`keepdims` must be True or False, got {str(value)[:80]!r}.")
    if key == "axis":
        axes = value if isinstance(value, list) else [value]
        if len(axes) > MAX_RANK or any(type(axis) is not int or abs(axis) > MAX_RANK for axis in axes):
            raise ValueError(f"`axis` must be an integer or a list of integers, got {str(value)[:80]!r}.")
        return tuple(axes) if isinstance(value, list) else value
    return value


_DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32",
    "float64",
)  # fmt: skip

_FUNCTIONS: dict[str, Any] = {
    "Add": jnp.add,
    "All": jnp.all,
    "Any": jnp.any,
    "Cast": lambda x, dtype: x.astype(dtype),
    "Concatenate": lambda xs, axis: jnp.concatenate(xs, axis),
    "Divide": jnp.true_divide,
    "Equal": jnp.equal,
    "ExpandDims": jnp.expand_dims,
    "GetItem": lambda x, key: x[tuple(key) if isinstance(key, list) else key],
    "Greater": jnp.greater,
    "Less": jnp.less,
    "LogicalAnd": jnp.logical_and,
    "LogicalNot": jnp.logical_not,
    "LogicalOr": jnp.logical_or,
    "Maximum": jnp.maximum,
    "Mean": jnp.mean,
    "Minimum": jnp.minimum,
    "Multiply": jnp.multiply,
    "Negative": jnp.negative,
    "NotEqual": jnp.not_equal,
    "OnesLike": jnp.ones_like,
    "Squeeze": jnp.squeeze,
    "Subtract": jnp.subtract,
    "TrueDivide": jnp.true_divide,
    "ZerosLike": jnp.zeros_like,
}
