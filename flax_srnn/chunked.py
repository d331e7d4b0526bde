"""The parallel solver from outside: how often it had to sweep. `flax_srnn.Chunked` chooses it and holds its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from flax_srnn.core import implementations, mesh_axes, parallel_in_time, sequence
from flax_srnn.core.parallel_in_time import Chunked as Chunked
from flax_srnn.validation import describe

__all__ = ["Chunked", "sweeps"]


def sweeps(params: Mapping[str, Any], inputs: ArrayLike, **options: Any) -> jax.Array:
    """The number of sweeps that `simple_rnn(params, inputs, implementation=Chunked(...), …)` needs, forward.

    One confirms the first guess; as many as there are pieces mean that nothing was gained. The backward pass takes about as
    many.

    Args:
      params, inputs: as of `simple_rnn`.
      options: of `simple_rnn`; `implementation` is a `Chunked`, "chunked", or left out.

    Returns:
      An int32 number, an array of no dimensions.

    Raises:
      TypeError, ValueError: as `simple_rnn`; `implementation` is another one.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones((1, 2)), "recurrent_kernel": 0.3 * jnp.eye(2)}
    >>> int(sweeps(params, jnp.ones((1, 4096, 1)), implementation=Chunked(pieces=16)))
    1
    """
    how = implementations.get(options.pop("implementation", "chunked"))
    if not isinstance(how, Chunked):
        raise ValueError(f"`implementation` must be a Chunked here, or left out, got {describe(how)}.")
    call = sequence.check(params, inputs, implementation=how, **options)

    def count(*call: Any) -> jax.Array:
        problem, _ = sequence.pack(*call)
        how.check(problem)
        return parallel_in_time.solve(how, problem)[2]

    return mesh_axes.compiler_divides(count, call, PartitionSpec)
