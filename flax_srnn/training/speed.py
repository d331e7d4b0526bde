"""What a character costs in training, with this library's SimpleRNN and with Flax's own: python -m flax_srnn.training.speed

The training step of the config python_source, or of another of the task, `flax_srnn.training.speed CONFIG`: the same model of
the same size over the same batches, optimizer included, once as it is and once with `flax.linen.RNN(flax.linen.SimpleCell)`. That
one cannot be told where files begin: the two are compared without resets; the third line is the step of the program.
Steps alternate, so that what else the machine does slows them alike.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax

from flax_srnn.training import optimizers, program
from flax_srnn.training.tasks import characters

__all__ = ["main", "microseconds"]


class _Flax(characters.Model):
    """The model with Flax's layer."""

    @nn.nowrap
    def layer(self, name: str, inputs: jax.Array, resets: jax.Array | None) -> jax.Array:
        cell = nn.SimpleCell(self.config.units, dtype=self.config.dtype, parent=None)
        state = self.variable("carry", f"{name}_state", cell.initialize_carry, jax.random.key(0), inputs[:, 0].shape)
        state.value, outputs = nn.RNN(cell, return_carry=True, name=name)(inputs, initial_carry=state.value)
        return outputs


def microseconds(config: characters.Characters, rounds: int) -> dict[str, float]:
    """Median time for each character of a step, by layer."""
    experiment = characters.TASK.load(config)
    begin = len(experiment.constants["vocabulary"]) + 1
    models = {
        "flax_srnn.SimpleRNN": (characters.Model(config, begin), False),
        "flax.linen.RNN(SimpleCell)": (_Flax(config, begin), False),
        "flax_srnn.SimpleRNN, with resets": (characters.Model(config, begin), True),
    }
    first = experiment.batch(0, range(config.batch_size))
    steps = {name: _step(config, *model, first) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds):
        batch = experiment.batch(number, range(config.batch_size))
        for name, step in steps.items():
            started = time.perf_counter()
            step(batch)
            times[name].append(time.perf_counter() - started)
    return {name: 1e6 * statistics.median(each) / first["inputs"].size for name, each in times.items()}


def _step(config: characters.Characters, model: characters.Model, resets: bool, first: Any) -> Callable[[Any], None]:
    """Goes on training by one batch; compiled already."""
    optimizer = optimizers.build(config, None, None)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, batch: Any) -> Any:
        params, moments, carry = state

        def loss(params: Any) -> tuple[jax.Array, Any]:
            given = batch["inputs"], batch["resets"] if resets else None
            outputs, updated = model.apply({"params": params, "carry": carry}, *given, mutable=["carry"])
            return characters.bits(outputs, batch["targets"]).mean(), updated["carry"]

        grads, carry = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, carry

    variables = model.init(jax.random.key(0), first["inputs"], None)
    state = update((variables["params"], optimizer.init(variables["params"]), variables["carry"]), first)

    def step(batch: Any) -> None:
        nonlocal state
        state = jax.block_until_ready(update(state, batch))

    return step


def main(name: str = "python_source") -> None:
    task, config = program.find(name)
    if not isinstance(config, characters.Characters):
        raise SystemExit(f"{name} is a config of the task {task}, which reads no characters.")
    print(f"{name}: {config.layers} x {config.units} units, {config.batch_size} streams, window {config.window}")
    for layer, each in (found := microseconds(config, rounds=31)).items():
        print(f"{layer:34}{each:8.2f} microseconds a character")
    ours, theirs, _ = found.values()
    print(f"without resets, flax.linen takes {theirs / ours:.2f} times as long")


if __name__ == "__main__":
    main(*sys.argv[1:2])
