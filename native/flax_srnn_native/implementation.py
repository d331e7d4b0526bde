"""`Native`: what the kernel can be asked for, and how JAX differentiates and batches it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from flax_srnn import activations
from flax_srnn.core import recurrence
from flax_srnn.core.problem import Problem
from flax_srnn.validation import describe
from flax_srnn_native import kernel
from flax_srnn_native.library import load

__all__ = ["Native"]

INSTRUCTIONS = ("generic", "avx2", "avx512")
"""By the library's numbers."""
ACTIVATIONS = ("linear", "tanh", "relu", "sigmoid")
"""By the library's numbers."""


@dataclasses.dataclass(frozen=True)
class Native:
    """The recurrence by a kernel in C++, forward and backward, on a CPU and in float32.

    It computes what `flax_srnn.Scan` computes, from the same options: masks, resets, both dropout masks, reversal, either
    layout, an initial state, the last output only. Half precision is computed in float32, as a whole. Gradients are
    reverse-mode, of any order; those of gradients are by the reference. For the backward pass all states are kept, also
    where only the last output is asked for.

    Args:
      instructions: "avx512", "avx2" or "generic"; None: the fastest that the processor has.

    Raises:
      ValueError: `instructions` is none of these. Where it is used: they are not there, float64, an activation but for tanh,
        relu, sigmoid and linear, a device that is no CPU, sizes unknown.
      RuntimeError: where it is used: the library is missing, or newer than JAX.

    >>> import jax.numpy as jnp
    >>> from flax_srnn import simple_rnn
    >>> params = {"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.ones((1, 1))}
    >>> simple_rnn(params, jnp.ones((3, 1)), activation=None, implementation=Native())[0].tolist()
    [3.0]
    """

    instructions: Literal["avx512", "avx2", "generic"] | None = None

    def __post_init__(self) -> None:
        if self.instructions is not None and self.instructions not in INSTRUCTIONS:
            raise ValueError(
                f"`instructions` must be None or one of {', '.join(INSTRUCTIONS)}, got {describe(self.instructions)}."
            )

    def check(self, problem: Problem) -> None:
        """Raises ValueError for what the kernel cannot do."""
        library = load()
        if self.instructions is not None and not library.flax_srnn_runs(INSTRUCTIONS.index(self.instructions)):
            raise _refused(f"this processor has no {self.instructions}", "leave `instructions` out")
        if (platform := _platform()) != "cpu":
            raise _refused(
                f"it runs on a CPU only, the default device here is a {platform}",
                "use another implementation, or jax.default_device(jax.devices('cpu')[0])",
            )
        cell, dtype = problem.cell, problem.initial_state.dtype
        if dtype != jnp.float32:
            raise _refused(f"it computes in float32, got {dtype}", "use 'scan'")
        activation = activations.name(cell.activation) if activations.is_named(cell.activation) else "a callable"
        if activation not in ACTIVATIONS:
            raise _refused(f"its activations are {', '.join(ACTIVATIONS)}, got {activation}", "use 'scan'")
        if not _of_float32(cell.precision):
            raise _refused(f"its products are of float32, got `precision`={describe(cell.precision)}", "use 'scan'")
        if not all(isinstance(size, int) for size in (*problem.inputs.shape, *problem.initial_state.shape)):
            raise _refused(f"it needs sizes that are known, got inputs of shape {problem.inputs.shape}", "use 'scan'")

    @functools.partial(jax.jit, static_argnums=0)
    def run(self, problem: Problem) -> tuple[jax.Array, jax.Array | None]:
        """(final state (B, U), states in the layout of the inputs or None)."""
        code = load().flax_srnn_best() if self.instructions is None else INSTRUCTIONS.index(self.instructions)
        how = kernel.How(
            code=code,
            activation=ACTIVATIONS.index(activations.name(problem.cell.activation)),
            reverse=problem.reverse,
            time_major=problem.time_axis == 0,
        )
        dtype = problem.inputs.dtype
        wide = dataclasses.replace(problem, inputs=problem.inputs.astype(problem.initial_state.dtype))
        final, states = _solve(how, recurrence.reverse_mode_only(wide))
        return final, None if states is None else states.astype(dtype)


def _refused(why: str, instead: str) -> ValueError:
    return ValueError(f"`implementation`: 'native' cannot run this: {why}; {instead}.")


def _platform() -> str:
    device = jax.config.jax_default_device
    return jax.default_backend() if device is None else device if isinstance(device, str) else device.platform


def _of_float32(precision: Any) -> bool:
    """Whether a CPU computes in float32 at this precision: at every one of JAX's levels, but not by every algorithm."""
    try:
        for level in precision if isinstance(precision, tuple) else (precision,):
            jax.lax.Precision(level)
    except ValueError:
        return False
    return True


# --- derivatives -------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _solve(how: kernel.How, p: Problem) -> tuple[jax.Array, jax.Array | None]:
    """(final state, states or None if not wanted)."""
    return kernel.forward(how, p)


def _solve_forward(how: kernel.How, p: Problem) -> tuple[Any, Any]:
    # Bound again through `_solve`, so that what is kept has a derivative too, for gradients of gradients.
    final, states = _solve(how, dataclasses.replace(p, return_states=True))
    return (final, states if p.return_states else None), (p, states)


def _solve_backward(how: kernel.How, kept: Any, cotangents: Any) -> tuple[Problem]:
    p, states = kept
    return (_pullback(how, p, states, *cotangents),)


_solve.defvjp(_solve_forward, _solve_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pullback(how: kernel.How, p: Problem, states: jax.Array, final: jax.Array, of_states: Any) -> Problem:
    """The cotangents of all arrays of the problem that have one, from its states and their cotangents."""
    return kernel.backward(how, p, states, final, of_states)


def _pullback_forward(how: kernel.How, *arguments: Any) -> tuple[Problem, Any]:
    return _pullback(how, *arguments), arguments


def _pullback_backward(how: kernel.How, arguments: Sequence[Any], outer: Problem) -> tuple[Any, ...]:
    """Those of the reference, which computes the same."""
    p, states, *cotangents = arguments

    def reference(floating: Problem, *cotangents: Any) -> Problem:
        return recurrence.pullback(recurrence.Scan(), "states", p.completed(floating), states, *cotangents)

    _, vjp = jax.vjp(reference, p.floating, *cotangents)
    problem_cotangent, *others = vjp(outer)
    return problem_cotangent, jnp.zeros_like(states), *others


_pullback.defvjp(_pullback_forward, _pullback_backward)
