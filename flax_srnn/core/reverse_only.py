"""Refuses forward mode in the user's words, for functions that have a hand-written backward pass only."""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["marked"]

_marked = Primitive("simple_rnn_operand")
"""The identity on operands; a custom_vjp function cannot be pushed forward, and this says so before JAX does."""
_pushed_forward = Primitive("simple_rnn_tangent")
"""The identity on tangents, transposed to the identity on cotangents; to evaluate it means forward mode, an error."""


def marked(x: jax.Array) -> jax.Array:
    """x, but a tangent that is pushed forward through it ends in an error in the user's words."""
    return _marked.bind(x)


def _refuse(*_: Any) -> Any:
    raise TypeError(
        "`implementation`: 'scan', which None chooses too, 'chunked' and 'native' have a hand-written backward pass and no "
        "forward mode (jvp, jacfwd, hessian); pass implementation='autodiff' for that."
    )


_marked.def_impl(lambda x: x)
_marked.def_abstract_eval(lambda x: x)
ad.defjvp(_marked, lambda tangent, _: _pushed_forward.bind(tangent))
batching.defvectorized(_marked)  # batched before it is pushed forward, or else the tangent would be batched: see below
mlir.register_lowering(_marked, lambda _, x: [x])
_pushed_forward.def_impl(_refuse)
_pushed_forward.def_abstract_eval(lambda tangent: tangent)
ad.deflinear2(_pushed_forward, lambda cotangent, _: [cotangent])
batching.primitive_batchers[_pushed_forward] = _refuse
mlir.register_lowering(_pushed_forward, _refuse)
