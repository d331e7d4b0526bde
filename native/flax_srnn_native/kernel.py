"""The kernel as two functions of a `Problem`, with a rule for `jax.vmap`.

The library's arrays have one dimension more than a `Problem`'s, the first: copies of the problem, each with its own weights or
all with the same. So `vmap` is a longer first dimension, whatever is batched; where the weights are not, copies are more
rows of one batch, as one product of many rows takes less time than many of few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_srnn.core import mesh_axes
from flax_srnn.core.problem import Problem
from flax_srnn_native.library import BACKWARD, FORWARD

__all__ = ["How", "backward", "forward"]

WEIGHTS, INPUTS = 3, 5
"""The first arguments are what copies may share: kernel, recurrent kernel, bias. Two dropout masks are between them and the
inputs."""


class How(NamedTuple):
    """What the library is told beside arrays: numbers of its code and of an activation, and the order of steps."""

    code: int
    activation: int
    reverse: bool
    time_major: bool


def forward(how: How, p: Problem) -> tuple[jax.Array, jax.Array | None]:
    """(final state (B, U), states in the layout of the inputs, or None if they are not wanted)."""
    rows, time, units = p.sizes

    def results(copies: int, rows: int) -> list[tuple[int, ...]]:
        states = (copies, time, rows, units) if how.time_major else (copies, rows, time, units)
        return [(copies, rows, units), states if p.return_states else (0,)]

    def call(*arrays: jax.Array) -> Sequence[jax.Array]:
        copies = arrays[INPUTS].shape[0]
        if how.time_major or arrays[0].shape[0] != 1:
            return _call(FORWARD, how, results(copies, rows), arrays)
        whole = [
            x if i < WEIGHTS or x.ndim == 1 else x.reshape(1, copies * rows, *x.shape[2:]) for i, x in enumerate(arrays)
        ]
        found = _call(FORWARD, how, results(1, copies * rows), whole)
        return [x.reshape(shape) for x, shape in zip(found, results(copies, rows), strict=True)]

    final, states = _batched(call, _arrays(p))
    return final[0], states[0] if p.return_states else None


def backward(how: How, p: Problem, states: jax.Array, final: jax.Array, of_states: jax.Array | None) -> Problem:
    """The cotangents of the problem's arrays, from its states and the cotangents of `forward`'s results."""
    cell = p.cell
    of = [cell.kernel, cell.recurrent_kernel, cell.bias, cell.input_dropout_mask, cell.recurrent_dropout_mask]
    of += [p.inputs, p.initial_state, p.reset_state]

    def call(*arrays: jax.Array) -> Sequence[jax.Array]:
        copies = arrays[INPUTS].shape[0]
        return _call(BACKWARD, how, [(0,) if x is None else (copies, *x.shape) for x in of], arrays)

    found = _batched(call, [*_arrays(p), states[None], final[None], _or_absent(of_states)])
    leaves = [cotangent[0] for x, cotangent in zip(of, found, strict=True) if x is not None]
    return jax.tree.unflatten(jax.tree.structure(p.floating), leaves)


def _arrays(p: Problem) -> list[jax.Array]:
    """A problem's leaves, of one copy, with something in place of those that are not there."""
    leaves = jax.tree.leaves((p.cell, p.inputs, p.initial_state), is_leaf=lambda x: x is None)
    return [*map(_or_absent, leaves), _or_absent(p.mask, bool), _or_absent(p.resets, bool), _or_absent(p.reset_state)]


def _or_absent(x: jax.Array | None, dtype: Any = jnp.float32) -> jax.Array:
    """What stands for an array that is not there is one of a single dimension."""
    return jnp.zeros(0, dtype) if x is None else x[None]


def _call(name: str, how: How, shapes: Sequence[tuple[int, ...]], arrays: Sequence[jax.Array]) -> Sequence[jax.Array]:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return mesh_axes.vary(jax.ffi.ffi_call(name, results)(*arrays, **how._asdict()), mesh_axes.of(arrays))


def _batched(call: Callable[..., Sequence[jax.Array]], arrays: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """`call(*arrays)`, which `jax.vmap` calls with as many copies more."""
    one = jax.custom_batching.custom_vmap(call)

    @one.def_vmap
    def _(size: int, batched: Sequence[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        copies = arrays[INPUTS].shape[1 if batched[INPUTS] else 0]
        shared = not any(batched[:WEIGHTS]) and arrays[0].shape[0] == 1

        def joined(i: int, x: jax.Array) -> jax.Array:
            if x.ndim == 1 or (shared and i < WEIGHTS):
                return x
            inner = x.shape[2:] if batched[i] else x.shape[1:]
            x = x if batched[i] else x[None]
            return jnp.broadcast_to(x, (size, copies, *inner)).reshape(size * copies, *inner)

        results = _batched(call, [joined(i, x) for i, x in enumerate(arrays)])
        split = [x if x.ndim == 1 else x.reshape(size, copies, *x.shape[1:]) for x in results]
        return split, [x.ndim > 1 for x in split]

    return one(*arrays)
