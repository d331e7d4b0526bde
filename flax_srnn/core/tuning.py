"""The constants that decide how the work is cut and written, and the decisions, as one value that a program is compiled for."""

from __future__ import annotations

import dataclasses
import math
import sys

import jax

from flax_srnn.core import products
from flax_srnn.core.problem import Problem

__all__ = ["MEASURED", "Tuning"]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Sizes measured on two cores with AVX-512 and 1 MB of cache each, JAX 0.10.2 and 0.12; `flax-srnn benchmark` tells.

    It is static to a program (a field of `Scan` and `Chunked`), so jit's cache sees it, and a test or a platform gives
    another. It is read while tracing: a program that is exported keeps what it was traced with. One program serves all
    platforms, of which each takes its branch (`accelerators`): branches agree in shapes and dtypes, so they differ in the order
    of work, never in what is kept for the backward pass.

    Attributes:
      whole_elements: of hidden state (B·T·U) up to which all steps are one block: no loop over blocks, and no copies of
        their parts. Blocks of that size for longer sequences too lose 6 to 12 % at 1x10000x8x128 (BxTxFxU; JAX 0.10, 0.12).
      block_elements: of hidden state (B·K·U) in a block of K steps: 1 MB in float32, so that a block's arrays stay in
        cache; no blocks at all lose 1.5 times where outputs reach 32 MB (JAX 0.10).
      block_steps: the least number of steps in a block, however large a step is.
      most_block_steps: the largest number.
      even_blocks: whether blocks are made up to twice as small if then no rest is left, which has loops of its own.
      copies_blocks: whether a block works on time-major copies of its part of the arrays (`parts`), not in place.
      widened_elements: of inputs and states (B·T·(F+U)) up to which those of half precision are converted once, as a whole: the
        conversions of their parts alone would make the smallest programs ones that are handed to another thread, four times
        the time at 1x20x2x4 (JAX 0.12).
      checkpoint_bytes: states larger than this are recomputed in the backward pass unless they are the output anyway.
      hoisted_features: F from which the inputs of a block are projected in one product before the loop, if there are several
        rows: they share one reading of the kernel, and the loop calls a library once less (8x2000x8x32 forward takes 0.6 of
        the time). With F = 1 it would cost a tenth at 16x784x1x128 (JAX 0.10, 0.12).
      hoisted_rows: B from which they are: a single row shares nothing.
      summed_products: B·K·N of a step's larger product below which, for several rows, both are written as sums: a library
        call takes 0.7 µs, up to ten times the work; from here on XLA makes the call even of the sum (JAX 0.10, 0.12). Half as
        many if U is a multiple of 4 only, a quarter if it is not: vectors of units are filled less well (15x487x31x7 forward
        would take 2.2 times as long on JAX 0.12).
      row_products: B·K·N up to which the products of 2, 4 or 8 rows are one of each row, if U fills whole vectors: XLA
        compiles these into the loop from JAX 0.12 on (2x500x5x48 forward takes 0.4 of the time, 8x2000x8x32 0.7; with 7 rows
        or 37 units it would take 1.4 times as long). On JAX 0.10 it would lose everywhere: 0.
      gathered_products: B·(F+U+1)·U below which the backward pass adds up the weights' gradients at every step, all products
        as sums: the products of a whole block would count 1000 operations, and a program with as many is handed to another
        thread, four times the time at 1x20x2x4 (JAX 0.10, 0.12).
      pieces: of the parallel solver, at most: a product of 32 rows takes little longer than a product of one.
      piece_steps: but no shorter pieces than this: a piece must be long enough to forget where it started.
      warm_up: the solver's first guess comes from the last 1/warm_up of every piece.
      accelerators: the tuning of every platform but the CPU; None: the same.
    """

    whole_elements: int = 2**20
    block_elements: int = 2**18
    block_steps: int = 8
    most_block_steps: int = sys.maxsize
    even_blocks: bool = False
    copies_blocks: bool = False
    widened_elements: int = 2**15
    checkpoint_bytes: int = 32 * 2**20
    hoisted_features: int = 8
    hoisted_rows: int = 2
    summed_products: int = 2**12
    row_products: int = 2**13 if jax.__version_info__ >= (0, 12) else 0
    gathered_products: int = 2**8
    pieces: int = 32
    piece_steps: int = 64
    warm_up: int = 4
    accelerators: Tuning | None = None

    def block(self, p: Problem) -> int:
        """K: blocks as large as allowed and as equal as can be, so that hardly any rest is left."""
        batch, steps, units = p.sizes
        if not isinstance(steps, int):
            return steps
        elements = batch * units if isinstance(batch, int) else units
        if elements * steps <= self.whole_elements:
            return max(1, steps)
        fitting = max(self.block_steps, self.block_elements // max(1, elements))
        count = _ceil(steps, min(fitting, self.most_block_steps))
        size = _ceil(steps, count)
        smaller = range(size, size // 2, -1) if self.even_blocks else ()
        return next((even for even in smaller if steps % even == 0), size)

    def widened(self, p: Problem) -> Problem:
        """The problem, its inputs and so its states in the dtype of the loop if they are few."""
        size = p.inputs.size + p.initial_state.size * p.sizes[1]
        if not isinstance(size, int) or size > self.widened_elements:
            return p
        return dataclasses.replace(p, inputs=p.inputs.astype(p.initial_state.dtype))

    def product(self, p: Problem) -> products.Product:
        """How the products of a step are written: as sums, one of each row, or one of all rows.

        A single row is a vector in any case, and XLA compiles its products into the loop: as sums they take longer.
        """
        batch, _, units = p.sizes
        if not isinstance(batch, int) or p.cell.precision is not None:
            return products.library
        size = batch * max(p.cell.kernel.size, p.cell.recurrent_kernel.size)
        if batch > 1 and size < self.summed_products * max(2, math.gcd(units, 8)) // 8:
            return products.summed
        if batch in (2, 4, 8) and units % 8 == 0 and size <= self.row_products:
            return products.rows
        return products.library

    def hoists(self, p: Problem) -> bool:
        """Whether the inputs of a whole block are projected in one product, before the loop."""
        batch = p.sizes[0]
        several = not isinstance(batch, int) or batch >= self.hoisted_rows
        return several and self.product(p) is products.library and p.cell.kernel.shape[0] >= self.hoisted_features

    def gathers_by_step(self, p: Problem) -> bool:
        """Whether the blocks of the backward pass are single steps."""
        (batch, _, units), cell = p.sizes, p.cell
        if not isinstance(batch, int) or cell.precision is not None:
            return False
        return batch * (cell.kernel.shape[0] + units + 1) * units < self.gathered_products

    def copies(self, p: Problem) -> bool:
        """Whether a block works on copies of its part; half precision always does, in the loop's dtype."""
        return self.copies_blocks or p.inputs.dtype != p.initial_state.dtype

    def elsewhere(self, same_blocks: bool) -> Tuning | None:
        """The tuning of every platform but the CPU; what is kept of `same_blocks` must have the same shape."""
        if self.accelerators is None or not same_blocks:
            return self.accelerators
        sizes = ("whole_elements", "block_elements", "block_steps", "most_block_steps", "even_blocks")
        return dataclasses.replace(self.accelerators, **{name: getattr(self, name) for name in sizes})

    def under_vmap(self, copies: int, shared: bool) -> Tuning:
        """For many copies of a problem at once, of `shared` weights or each of its own."""
        summed = self.summed_products // max(copies, 1) if shared else self.summed_products
        return dataclasses.replace(self, summed_products=summed, row_products=0, gathered_products=0)


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)


ACCELERATORS = Tuning(
    whole_elements=0,
    block_elements=2**22,
    most_block_steps=64,
    even_blocks=True,
    copies_blocks=True,
    hoisted_features=1,
    hoisted_rows=1,
    summed_products=0,
    row_products=0,
    gathered_products=0,
)
"""Found by the TPU's compiler for a v5e, JAX 0.12 (`flax-srnn benchmark --sections tpu-steps`). A step in place reads and writes
whole arrays, in the caller's layout and where they do not fit into the memory that is computed from: 1302 cycles at
32x1024x128x256 against 638. In blocks of 128 steps or more XLA lays arrays out time-minor, as the product over the steps likes it:
2020 cycles at 8x1024x128x256 against 241 in the backward loop; blocks of few steps add up the weights too often: 4200 cycles at
128x512x256x512 with 2^18 elements, 2333 with 2^22. Not measured on a GPU, where it saves kernels in every step."""
MEASURED = Tuning(accelerators=ACCELERATORS)
"""What is used where nothing else is asked for."""
