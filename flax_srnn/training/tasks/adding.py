"""The adding problem: two numbers of a long sequence are marked, and their sum is asked for at its end.

With v_t uniform in [0, 1] and m_t 1 at two steps, one in each half of the sequence, else 0:

    h_t = relu([v_t, m_t] W + h_{t-1} U + b)           the SimpleRNN of this library, U = 1 and W close to 0 at first
    f = h_T V + c                                      wanted: sum_t m_t v_t
    loss = mean (f - wanted)^2                         always answering 1 has 1/6

Starting from the identity a state stays what it is, and gradients reach the first step (Le, Jaitly & Hinton 2015, "A simple
way to initialize recurrent networks of rectified linear units"). All data are generated: batches by seed and step, the
validation and the test part from seeds of their own, the same for all runs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_srnn import SimpleRNN
from flax_srnn.training import sequences
from flax_srnn.training.config import Training, Within
from flax_srnn.training.tasks import Experiment, Report, Table, Task

__all__ = ["TASK", "Adding"]

# Seeds of three numbers, the last not 0: those of batches are two.
_PARTS = {"validation": (0, 0, 1), "test": (0, 0, 2)}
_SHOWN = 20
_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adding(Training):
    """How the adding problem is learned.

    Args:
      length: steps of a sequence.
      units: of the SimpleRNN.
      kernel_stddev: of the input weights at first; with larger ones the identity's states grow beyond all bounds.
      examples: in the validation part, and in the test part.

    Raises:
      TypeError: a value is not of the field's type.
      ValueError: a value is out of range.
    """

    length: Annotated[int, Within(2, 10**6)] = 150
    units: Annotated[int, Within(1, 4096)] = 100
    kernel_stddev: Annotated[float, Within(0, 1)] = 1e-3
    examples: Annotated[int, Within(10, 10**6)] = 2000
    steps: Annotated[int, Within(1, 10**9)] = 10_000
    learning_rate: Annotated[float, Within(1e-12, 100)] = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warm_up_steps: Annotated[int, Within(0, 10**9)] = 200
    clip: Annotated[float, Within(0, 1e9)] = 1.0
    evaluate_every: Annotated[int, Within(0, 10**9)] = 500
    patience: Annotated[int, Within(0, 10**6)] = 20


def _load(config: Adding) -> Experiment:
    validation = _examples(_PARTS["validation"], config.examples, config.length)

    def batch(step: int, rows: range) -> dict[str, np.ndarray]:
        inputs, sums = _examples((config.seed, step), config.batch_size, config.length)
        return {"inputs": inputs[rows.start : rows.stop], "sums": sums[rows.start : rows.stop]}

    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        answers = _Adder(config).apply({"params": params}, batch["inputs"])
        return jnp.mean((answers - batch["sums"]) ** 2), carry

    return Experiment(
        batch,
        loss,
        lambda params: _report(config, params),
        lambda params: _error(_answers(config, params, validation[0]), validation[1]),
        measure="mean squared error",
    )


def _examples(seed: tuple[int, ...], count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (count, length, 2) and sums (count,)."""
    rng = np.random.default_rng(seed)
    inputs = np.zeros((count, length, 2), np.float32)
    inputs[..., 0] = rng.random((count, length), np.float32)
    half, rows = length // 2, np.arange(count)
    marked = np.stack([rng.integers(0, half, count), rng.integers(half, length, count)], -1)
    inputs[rows[:, None], marked, 1] = 1
    return inputs, inputs[rows[:, None], marked, 0].sum(axis=-1)


class _Adder(nn.Module):
    """Inputs (*batch, T, 2) -> answers (*batch)."""

    config: Adding

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.dtype)
        states = SimpleRNN(
            self.config.units,
            activation="relu",
            kernel_initializer=nn.initializers.normal(self.config.kernel_stddev),
            recurrent_initializer="identity",
            dtype=dtype,
            name="rnn",
        )(inputs)
        return nn.Dense(1, dtype=dtype, name="head")(states)[..., 0].astype(jnp.float32)


def _init(config: Adding, constants: Mapping[str, np.ndarray], key: jax.Array) -> Any:
    return _Adder(config).init(key, jnp.zeros((1, 1, 2)))["params"]


def _answers(config: Adding, params: Any, inputs: np.ndarray) -> np.ndarray:
    pieces = range(0, len(inputs), _AT_ONCE)
    return np.concatenate([_answered(config, params, inputs[first : first + _AT_ONCE]) for first in pieces])


@functools.partial(jax.jit, static_argnums=0)
def _answered(config: Adding, params: Any, inputs: jax.Array) -> jax.Array:
    answers: Any = _Adder(config).apply({"params": params}, inputs)
    return answers


def _error(answers: np.ndarray, sums: np.ndarray) -> float:
    return float(np.mean((answers - sums) ** 2, dtype=np.float64))


def _report(config: Adding, params: Any) -> Report:
    parts = {name: _examples(seed, config.examples, config.length) for name, seed in _PARTS.items()}
    answers = {name: _answers(config, params, inputs) for name, (inputs, _) in parts.items()}
    ours = {name: _error(answers[name], sums) for name, (_, sums) in parts.items()}
    always_1 = {name: _error(np.ones_like(sums), sums) for name, (_, sums) in parts.items()}
    scores = {"error": "mean squared error", "length": config.length, **ours, "always_1": always_1["test"]}
    rows: list[tuple[Any, ...]] = [
        (words, *(f"{x:.4f}" for x in each.values())) for words, each in (("always 1", always_1), ("network", ours))
    ]
    table = Table(f"The sum of two numbers out of {config.length}: {scores['error']}", ("", *parts), rows)
    return Report(scores, table, {"adding.png": functools.partial(_draw, *parts["test"], answers["test"])})


def _draw(inputs: np.ndarray, sums: np.ndarray, answers: np.ndarray, path: Path) -> None:
    """Answers by what they should be, and their errors by how long the first number had to be kept."""
    from matplotlib.figure import Figure

    from flax_srnn.training import plots

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left, right = (plots.plain(axes) for axes in figure.subplots(1, 2))
    left.plot([0, 2], [0, 2], color="black", linewidth=0.8)
    left.plot(sums, answers, ".", color=plots.BLUE, markersize=3, alpha=0.5)
    left.set(xlabel="sum of the two marked numbers", ylabel="answer of the network")
    left.set_title(f"{len(sums):,} test sequences of {inputs.shape[1]} steps", loc="left", fontweight="bold")
    kept = inputs.shape[1] - inputs[..., 1].argmax(axis=1)
    right.plot(kept, np.abs(answers - sums), ".", color=plots.ORANGE, markersize=3, alpha=0.5)
    right.set(xlabel="steps from the first marked number to the answer", ylabel="absolute error")
    right.set_ylim(bottom=0)
    right.set_title("Error by how long it has to remember", loc="left", fontweight="bold")
    figure.savefig(path, dpi=150, format="png")


def _predict(config: Adding, params: Any, constants: Mapping[str, np.ndarray], path: Path | None) -> Table:
    """The answers for a file's sequences, or for some of the test part beside their sums."""
    if path is None:
        inputs, sums = (x[:_SHOWN] for x in _examples(_PARTS["test"], config.examples, config.length))
        rows: list[tuple[Any, ...]] = [
            (row, f"{answer:.4f}", f"{wanted:.4f}")
            for row, (answer, wanted) in enumerate(zip(_answers(config, params, inputs), sums, strict=True))
        ]
        return Table(f"The first {len(rows)} test sequences", ("row", "answer", "sum"), rows)
    where, inputs = f"data {path}", sequences.arrays(path, ["x"])["x"]
    if inputs.ndim != 3 or inputs.shape[2] != 2 or 0 in inputs.shape:
        raise ValueError(
            f"{where}, array x: its shape must be (N, T, 2), a number and a marker a step, got {inputs.shape}."
        )
    answers = _answers(config, params, sequences.numbers(where, inputs).astype(np.float32))
    return Table(f"Answers to {path}", ("row", "answer"), [(row, f"{x:.6g}") for row, x in enumerate(answers)])


TASK = Task(Adding, _load, _init, _predict)
