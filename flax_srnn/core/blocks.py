"""Loops over blocks of time steps and over the steps of a block, and one step of an array read or written in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

__all__ = ["at_step", "for_blocks", "for_steps", "put_step", "put_window", "window"]


def for_steps(step: Callable[[Any, Any], Any], carry: Any, count: int, descending: bool, unroll: int | bool) -> Any:
    """`carry = step(k, carry)` for the steps k of a block.

    With a counter of its own in place of numbered inputs, which every program would have to make. XLA's CPU executor runs
    the operations of a program one after the other, unless many are ready at a time: then it wakes a second thread, which
    costs a small problem more than all its work. And it runs at most eight operations of a loop's body without
    bookkeeping: in the steps, every index, slice and copy counts. (Seen on JAX 0.10 and 0.12; `tests/test_performance.py`
    counts: a step is few operations, nothing is made that nobody reads.)
    """

    if isinstance(count, int) and count == 1:
        return step(0, carry)

    def body(i: jax.Array, carry: Any) -> Any:
        return step(count - 1 - i if descending else i, carry)

    return lax.fori_loop(0, count, body, carry, unroll=unroll or None)


def for_blocks(
    body: Callable[[Any, Any, int, Any], tuple[Any, Any]],
    carry: Any,
    steps: int,
    size: int,
    descending: bool,
    unroll: int | bool,
    xs: tuple[Any, Any] = (None, None),
) -> tuple[Any, tuple[Any, Any]]:
    """`carry, y = body(carry, start, count, x)` over all blocks of `size` steps and a shorter one at the end of time.

    `xs` and the returned `ys` are pairs: stacked for the whole blocks, and for the rest.
    """
    whole, rest = (0, steps) if steps == size else divmod(steps, size)
    stacked, last = None, None

    def blocks(carry: Any) -> tuple[Any, Any]:
        def one(carry: Any, x: Any) -> tuple[Any, Any]:
            i, carry = carry
            carry, y = body(carry, (whole - 1 - i if descending else i) * size, size, x)
            return (i + 1, carry), y

        grouped = unroll if size == 1 else unroll is True
        (_, carry), ys = lax.scan(one, (0, carry), xs[0], length=whole, reverse=descending, unroll=grouped)
        return carry, ys

    if whole and not descending:
        carry, stacked = blocks(carry)
    if not isinstance(rest, int) or rest:
        carry, last = body(carry, whole * size, rest, xs[1])
    if whole and descending:
        carry, stacked = blocks(carry)
    return carry, (stacked, last)


def window(x: jax.Array, start: Any, count: int, axis: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, count, axis, allow_negative_indices=False)


def put_window(x: jax.Array, part: jax.Array, start: Any, axis: int) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, part, start, axis, allow_negative_indices=False)


def at_step(x: Any, k: Any, axis: int) -> Any:
    """Step `k` of `x`, if there is an `x`."""
    # Without the wrap-around of negative indices: one operation less in the loop, which matters where a step is small
    # (JAX 0.10; the test that a step is few operations).
    return None if x is None else lax.dynamic_index_in_dim(x, k, axis, keepdims=False, allow_negative_indices=False)


def put_step(x: jax.Array, step: jax.Array, k: jax.Array, axis: int) -> jax.Array:
    return lax.dynamic_update_index_in_dim(x, step, k, axis, allow_negative_indices=False)
