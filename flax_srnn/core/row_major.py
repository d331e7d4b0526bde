"""An array's layout in a TPU's memory.

XLA lays an array out as the operation that it thinks dearest likes it, and every other pays. A product over the steps of a
block likes its operands time-minor; a step of such an array then lies scattered over all of it, and costs a TPU up to ten
times the work of the step (`flax-srnn benchmark --sections tpu-steps`; JAX 0.12).
"""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

__all__ = ["row_major"]


def row_major(x: jax.Array) -> jax.Array:
    """x, which a program for a TPU holds with its last dimension side by side, then the one before, and so on.

    But for programs that are exported: `jax.export` promises that they run on later versions, and refuses the constraint, for
    which XLA promises nothing. They compute the same, and XLA lays them out as it likes.
    """
    return _row_major.bind(x)


def _on_tpu(context: mlir.LoweringRuleContext, x: Any) -> Any:
    if context.module_context.lowering_parameters.for_export:
        return [x]
    constrained = mlir.lower_fun(
        lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim)))), multiple_results=False
    )
    return constrained(context, x)


_row_major = Primitive("row_major")
_row_major.def_impl(lambda x: x)
_row_major.def_abstract_eval(lambda x: x)
batching.defvectorized(_row_major)
mlir.register_lowering(_row_major, lambda context, x: [x])
mlir.register_lowering(_row_major, _on_tpu, platform="tpu")
