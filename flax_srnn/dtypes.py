"""Which precision to compute in."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike

__all__ = ["at_least_float32"]


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """`dtype` if it is a floating-point one of 32 bits or more, else float32; allowed under strict promotion too."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32:
        return jnp.dtype(dtype)
    return jnp.dtype(jnp.float32)
