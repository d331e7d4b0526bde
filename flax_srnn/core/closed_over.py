"""An activation as a function of the arrays that it closes over, which become operands of the program.

A module with parameters, or a function of an array outside of it, hides these from `jax.jit`, which would compile their values
into the program, and from derivatives. Traced by itself, once a call, it shows them: as constants of its jaxpr.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from flax_srnn import validation
from flax_srnn.core import mesh_axes

__all__ = ["Traced", "differentiable", "filled", "trace"]


@dataclasses.dataclass(frozen=True)
class Traced:
    """(a, *held) -> act(a), where `held` are the arrays that act closes over.

    Equal ones are the same program and share what was compiled; nothing else of the function counts, neither which object it is
    nor what it is bound to. A number in it that changed is a literal in another program.

    Attributes:
      jaxpr: of a (B, U); `held` are its constants.
      rows: B.
      program: all that tells it from another one.
      kept: what `program` has identities of, which are unique as long as it lives.
    """

    jaxpr: Jaxpr = dataclasses.field(compare=False)
    rows: int
    program: tuple[Any, ...]
    kept: tuple[Any, ...] = dataclasses.field(compare=False)

    def __call__(self, a: jax.Array, *held: Any) -> jax.Array:
        """Of a (B, U), of a single row as a vector (U,), or of several arrays whose rows stand side by side (B·C, U)."""
        if a.ndim == 1:
            return self(a[None], *held)[0]
        if a.shape[0] == self.rows:
            return jax.core.eval_jaxpr(self.jaxpr, held, a)[0]
        groups = a.reshape(self.rows, a.shape[0] // self.rows, a.shape[1])
        return jax.vmap(lambda group: self(group, *held), 1, 1)(groups).reshape(a.shape)


def trace(activation: Callable[[jax.Array], jax.Array], example: jax.Array) -> tuple[Traced, tuple[jax.Array, ...]]:
    """The activation for arrays like `example` (B, U), and the arrays that it holds.

    Raises:
      ValueError: it returns something else than an array like the one it is given, or holds one on a mesh of Explicit axes.
      TypeError: it has a derivative of its own that holds traced arrays.
    """
    try:
        # A function of its own: what `make_jaxpr` remembers of `activation` may be stale.
        closed, result = jax.make_jaxpr(lambda a: activation(a), return_shape=True)(example)
    except ValueError as error:
        if "context mesh" not in str(error):
            raise
        raise ValueError(
            "`activation` holds an array on a mesh with Explicit axes, where the recurrence runs on Auto axes: make the mesh "
            "with axis_types=(jax.sharding.AxisType.Auto, ...), or hold an array that is on no mesh."
        ) from error
    validation.activation(result, example.shape, example.dtype)
    held = tuple(x if isinstance(x, jax.Array) else jnp.asarray(x) for x in closed.consts)
    wider = mesh_axes.like(example, (example, held))
    if wider is not example:
        return trace(activation, wider)
    text = str(closed)
    kept = tuple(_hidden(closed.jaxpr))
    avals = tuple(variable.aval for variable in (*closed.jaxpr.invars, *closed.jaxpr.constvars))
    traced = Traced(closed.jaxpr, example.shape[0], (text, avals, *map(id, kept)), kept)
    if "custom_" not in text:
        return traced, held
    rule: Any
    try:
        rule, more = _derivative(traced, example, held)
    except Exception:  # there is none backwards, or a rule of the user's raises: that matters where it is used
        rule, more = activation, ()
    if any(isinstance(x, jax.core.Tracer) for x in more):
        raise TypeError(
            "`activation` has a derivative rule of its own (jax.custom_jvp or custom_vjp) that closes over traced arrays: make "
            "them arguments of the function that has the rule."
        )
    return dataclasses.replace(traced, program=(*traced.program, rule, *map(id, more)), kept=(*kept, *more)), held


def differentiable(held: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arrays that have a cotangent; None in place of integers, flags and keys."""
    return tuple(x if jnp.issubdtype(x.dtype, jnp.inexact) else None for x in held)


def _derivative(traced: Traced, example: jax.Array, held: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """The program of the derivative, as a custom rule is no part of the program that it belongs to, and what it holds."""

    def pullback(a: jax.Array, *held: Any) -> Any:
        """With the floating-point arrays apart, and the value in place of a cotangent."""
        value, vjp = jax.vjp(lambda a, floating: traced(a, *filled(floating, held)), a, differentiable(held))
        return vjp(value)

    closed = jax.make_jaxpr(pullback)(example, *held)
    return str(closed), (*closed.consts, *_hidden(closed.jaxpr))


def filled(some: tuple[Any, ...], others: tuple[Any, ...]) -> tuple[Any, ...]:
    """`some`, with those of `others` in place of None."""
    return tuple(other if x is None else x for x, other in zip(some, others, strict=True))


def _hidden(jaxpr: Jaxpr) -> Iterator[Any]:
    """The constants of functions within, as of one that the user compiled; JAX prints and hands out only the outermost's."""
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)
        ):
            if isinstance(inner, ClosedJaxpr):
                yield from (*inner.consts, *_hidden(inner.jaxpr))
            elif isinstance(inner, Jaxpr):
                yield from _hidden(inner)
