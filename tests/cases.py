"""The one table of cases: combinations of the options of `simple_rnn`, and the arrays that go with them.

`SINGLE` has every option alone, `DRAWN` random combinations. The tests of values, gradients, transformations and dtypes take
their cases from here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from flax_srnn.core.tuning import ACCELERATORS, Tuning

# (T, F, U).
TINY, ONE_FEATURE, WIDE = (7, 2, 4), (6, 1, 5), (5, 6, 12)
SMALL_BLOCKS = Tuning(
    whole_elements=0,
    block_elements=1,
    block_steps=3,
    widened_elements=0,
    hoisted_features=3,
    summed_products=0,
    gathered_products=0,
)
"""Blocks of at most three steps, so that a short sequence has several; inputs of `WIDE` projected a block at a time, half
precision converted a block at a time."""
COPIED_BLOCKS = dataclasses.replace(ACCELERATORS, most_block_steps=3, even_blocks=False)
"""What runs on accelerators, in blocks of three steps."""
ACTIVATIONS = ("tanh", "relu", "sigmoid", "softplus", "silu", "softmax", None)


class Problem(NamedTuple):
    """The arguments of `simple_rnn` but for `unroll` and `implementation`: float arrays, flags, and what is no array."""

    params: dict[str, np.ndarray]
    inputs: np.ndarray
    arrays: dict[str, np.ndarray]
    flags: dict[str, np.ndarray]
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes, which arrays are given, and options."""

    batch: tuple[int, ...] = (3,)
    sizes: tuple[int, int, int] = TINY
    bias: bool = True
    learned_state: bool = False
    initial_state: bool = False
    mask: bool = False
    seq_lengths: bool = False
    resets: bool = False
    reset_state: bool = False
    input_dropout_mask: bool = False
    recurrent_dropout_mask: bool = False
    activation: str | None = "tanh"
    go_backwards: bool = False
    keep_order: bool = False
    zero_output_for_mask: bool = False
    time_major: bool = False
    return_sequences: bool = True
    unroll: bool | int = False

    def __str__(self) -> str:
        given = (f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)
        words = (f.name if getattr(self, f.name) is True else f"{f.name}={getattr(self, f.name)}" for f in given)
        return "-".join(words).replace(" ", "") or "default"

    def problem(self, seed: int = 0, dtype: Any = np.float64) -> Problem:
        rng = np.random.default_rng(seed)
        steps, features, units = self.sizes

        def normal(*shape: int) -> np.ndarray:
            return rng.normal(size=shape).astype(dtype)

        params = {"kernel": normal(features, units) / 2, "recurrent_kernel": normal(units, units) / (2 * units**0.5)}
        params |= {"bias": normal(units) / 2} if self.bias else {}
        params |= {"initial_state": normal(units) / 2} if self.learned_state else {}
        inputs = normal(*((steps, *self.batch) if self.time_major else (*self.batch, steps)), features)
        arrays = {
            "initial_state": normal(*self.batch, units) / 2,
            "reset_state": normal(*self.batch, units) / 2,
            "input_dropout_mask": 2 * (rng.random((*self.batch, features)) < 0.6).astype(dtype),
            "recurrent_dropout_mask": 2 * (rng.random((*self.batch, units)) < 0.6).astype(dtype),
        }
        flags = {
            "mask": rng.random((*self.batch, steps)) < 0.6,
            "seq_lengths": rng.integers(0, steps + 1, self.batch),
            "resets": rng.random((*self.batch, steps)) < 0.3,
        }
        return Problem(
            params,
            inputs,
            {name: array for name, array in arrays.items() if getattr(self, name)},
            {name: array for name, array in flags.items() if getattr(self, name)},
            {
                "activation": self.activation,
                "go_backwards": self.go_backwards,
                "keep_order": self.keep_order,
                "zero_output_for_mask": self.zero_output_for_mask,
                "time_major": self.time_major,
                "return_sequences": self.return_sequences,
            },
        )


def _drawn(count: int, seed: int) -> Iterator[Case]:
    """Random combinations of everything."""
    rng = np.random.default_rng(seed)

    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    flags = [f.name for f in dataclasses.fields(Case) if f.type == "bool"]
    for _ in range(count):
        chosen = {name: pick(False, True) for name in flags}
        # Masks and all steps returned are what the most options act on.
        chosen |= {"mask": pick(False, True, True), "return_sequences": pick(False, True, True)}
        chosen["reset_state"] &= chosen["resets"]
        # Few shapes, so that JAX compiles its small operations few times.
        batch, sizes = pick(((3,), TINY), ((3,), TINY), ((3,), ONE_FEATURE), ((3,), WIDE), ((2, 2), TINY))
        yield Case(
            batch=batch,
            sizes=sizes,
            activation=pick(*ACTIVATIONS),
            unroll=pick(False, False, True, 2),
            **chosen,
        )


SINGLE = [
    Case(),
    Case(bias=False),
    Case(learned_state=True),
    Case(initial_state=True),
    Case(mask=True),
    Case(seq_lengths=True),
    Case(resets=True),
    Case(resets=True, reset_state=True, initial_state=True),
    Case(input_dropout_mask=True),
    Case(recurrent_dropout_mask=True),
    *(Case(activation=activation, mask=True) for activation in ACTIVATIONS[1:]),
    Case(go_backwards=True, initial_state=True),
    Case(go_backwards=True, keep_order=True, mask=True),
    Case(mask=True, zero_output_for_mask=True, initial_state=True),
    Case(time_major=True, mask=True, resets=True),
    Case(return_sequences=False, seq_lengths=True, zero_output_for_mask=True),
    *(Case(unroll=unroll, mask=True, initial_state=True) for unroll in (True, 1, 2, 7, 100)),
    *(Case(batch=batch, mask=True, seq_lengths=True) for batch in ((), (1,), (2, 2))),
    Case(batch=(2, 2), time_major=True, mask=True, input_dropout_mask=True),
    Case(sizes=ONE_FEATURE),
    Case(sizes=WIDE, mask=True, initial_state=True),
    Case(sizes=WIDE, activation="silu", mask=True, recurrent_dropout_mask=True, go_backwards=True),
]
"""Every option, alone or with the ones that it needs."""
EVERYTHING = functools.partial(
    Case, initial_state=True, mask=True, resets=True, input_dropout_mask=True, recurrent_dropout_mask=True
)
"""A case with all arrays given; `reset_state` goes with them where it matters."""
DRAWN = list(_drawn(50, seed=1))
"""Random combinations."""


def thinned(values: Iterable[Any], keep: int) -> list[Any]:
    """All values of a table as parameters of a test; but for `keep` of them, spread evenly, they are slow: CI runs the rest."""
    values = list(values)
    kept = {int(place) for place in np.linspace(0, len(values) - 1, keep)}
    return [value if i in kept else pytest.param(value, marks=pytest.mark.slow) for i, value in enumerate(values)]
