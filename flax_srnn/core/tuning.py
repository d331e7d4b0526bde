"""The constants that decide how the work is cut, as one value that a program is compiled for."""

from __future__ import annotations

import dataclasses

__all__ = ["MEASURED", "Tuning"]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Sizes measured on two cores with AVX-512 and 1 MB of cache each, JAX 0.10.2 and 0.12; `flax-srnn benchmark` tells.

    It is static to a program (a field of `Scan` and `Chunked`), so jit's cache sees it, and a test or a platform gives
    another. It is read while tracing: a program that is exported keeps what it was traced with. The branches of
    `jax.lax.platform_dependent` must agree in shapes and dtypes, so inside one program only the order of work could differ
    by platform, never what is kept for the backward pass (`checkpoint_bytes`).

    Attributes:
      block_elements: of hidden state (B·K·U) in a block of K steps: 1 MB in float32, so that a block's arrays stay in
        cache; 2^18 to 2^20 are alike, and no blocks at all lose 1.5 times where outputs reach 32 MB.
      block_steps: the least number of steps in a block, however large a step is.
      checkpoint_bytes: states larger than this are recomputed in the backward pass unless they are the output anyway.
      kernel_elements: F·U from which the input kernel does not stay in cache from one step to the next: 256 KB in float32
        (`tests/test_performance.py`: the projection is outside the loop where the rule says so).
      pieces: of the parallel solver, at most: a product of 32 rows takes little longer than a product of one.
      piece_steps: but no shorter pieces than this: a piece must be long enough to forget where it started.
      warm_up: the solver's first guess comes from the last 1/warm_up of every piece.
    """

    block_elements: int = 2**18
    block_steps: int = 8
    checkpoint_bytes: int = 32 * 2**20
    kernel_elements: int = 2**16
    pieces: int = 32
    piece_steps: int = 64
    warm_up: int = 4


MEASURED = Tuning()
"""What is used where nothing else is asked for."""
