"""The sunspot forecaster: an ensemble of small recurrent networks, each fitted from its own initial weights.

With y_t the count of year t, z_t = (sqrt(y_t) - mean) / scale and theta = (W, U, b, v, c):

    h_t = tanh(z_t W + h_{t-1} U + b)                    the SimpleRNN of this library, h = 0 before the first year
    f_t = z_t + h_t v + c                                the forecast of z_{t+1}: it has seen no year after t
    q_t = g |g| with g = mean + scale f_t                the same as a count
    loss(theta) = mean_t (q_t - y_{t+1})^2 / deviation^2 + l2 (|W|^2 + |U|^2 + |v|^2)

mean, scale and deviation (that of the counts), like theta, come from the years fitted. The network learns the change from
year to year, on square roots, where a cycle is more nearly symmetric; the loss is the error that is reported, on counts.
All networks are fitted at the same time, by one `jax.vmap` over their keys and over the years that each may learn from:
the same years for a whole ensemble, all but a block of them where settings are validated. The first years, which the
network meets with an empty state, are left out of the loss (`WARM_UP`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

from flax_srnn import SimpleRNN, regularization_loss
from flax_srnn.regularizers import L2
from flax_srnn.training.config import SunspotsConfig
from flax_srnn.training.data import Series

__all__ = ["WARM_UP", "Ensemble", "Forecaster", "fit", "free_running", "one_year_ahead"]

WARM_UP = 10


class Forecaster(nn.Module):
    """One network: standardised square-root counts (*batch, T, 1) -> forecasts of the next year (*batch, T), last state."""

    units: int
    l2: float

    @nn.compact
    def __call__(self, inputs: jax.Array, initial_state: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        layer = SimpleRNN(
            self.units,
            kernel_regularizer=L2(self.l2),
            recurrent_regularizer=L2(self.l2),
            return_sequences=True,
            return_state=True,
            name="rnn",
        )
        outputs, state = layer(inputs, initial_state=initial_state)
        return inputs[..., 0] + nn.Dense(1, name="head")(outputs)[..., 0], state


class Ensemble(NamedTuple):
    """M networks: every array has a leading dimension M.

    params: {"rnn": {"kernel", "recurrent_kernel", "bias"}, "head": {"kernel", "bias"}}; mean, scale: of the square-root
    counts, over the years that the network was fitted to.
    """

    params: Any
    mean: jax.Array
    scale: jax.Array


class _Task(NamedTuple):
    """What a network is fitted to: its inputs z (T,), the counts (T - 1,) it forecasts, which count, and their scales."""

    z: Any
    target: Any
    counted: Any
    mean: Any
    scale: Any
    deviation: Any


def fit(
    config: SunspotsConfig, series: Series, fitted: np.ndarray, keys: jax.Array, report_every: int
) -> Iterator[tuple[int, Ensemble]]:
    """Fits M networks, each to years of its own; yields (steps done, ensemble) now and then.

    Args:
      config: sizes, penalty and optimizer.
      series: the counts (T,), which all networks read.
      fitted: (M, T), True: the network's forecast of this year counts in its loss, and the year in mean and scale.
      keys: (M,) the random keys of the initial weights.
      report_every: optimizer steps between two yields; the last yield comes after `config.steps`.
    """
    counts = np.broadcast_to(series.counts, fitted.shape)
    roots = np.sqrt(counts)
    mean, scale = (statistic(roots, axis=1, where=fitted) for statistic in (np.mean, np.std))
    task = _Task(
        z=(roots - mean[:, None]) / scale[:, None],
        target=counts[:, 1:],
        counted=fitted[:, 1:] & (np.arange(1, fitted.shape[1]) > WARM_UP),
        mean=mean,
        scale=scale,
        deviation=np.std(counts, axis=1, where=fitted),
    )
    task = jax.tree.map(lambda x: jnp.asarray(x, x.dtype if x.dtype == bool else jnp.float32), task)
    model, optimizer = Forecaster(config.units, config.l2), optax.adam(config.learning_rate)

    def start(key: jax.Array) -> TrainState:
        params = model.init(key, jnp.zeros((1, 1)))["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)

    def loss(params: Any, task: _Task) -> jax.Array:
        (forecasts, _), updated = model.apply({"params": params}, task.z[:-1, None], mutable=["losses"])
        penalty = regularization_loss(updated) + L2(config.l2)(params["head"]["kernel"])
        root = task.mean + task.scale * forecasts
        errors = (root * jnp.abs(root) - task.target) / task.deviation
        return jnp.mean(errors**2, where=task.counted) + penalty

    def steps(state: TrainState, task: _Task, count: jax.Array) -> TrainState:
        def step(_: int, state: TrainState) -> TrainState:
            return state.apply_gradients(grads=jax.grad(loss)(state.params, task))

        return jax.lax.fori_loop(0, count, step, state)

    states = jax.jit(jax.vmap(start))(keys)
    advance = jax.jit(jax.vmap(steps, in_axes=(0, 0, None)))  # `count` is a value: one compilation
    for done in range(0, config.steps, report_every):
        count = min(report_every, config.steps - done)
        states = advance(states, task, count)
        yield done + count, Ensemble(states.params, task.mean, task.scale)


def one_year_ahead(ensemble: Ensemble, counts: np.ndarray) -> np.ndarray:
    """Forecasts (M, T) from counts (T,): entry t is the forecast of year t + 1, made from the counts up to year t."""
    return np.asarray(_forecasts(ensemble, jnp.asarray(counts, jnp.float32), 1)[0])


def free_running(ensemble: Ensemble, counts: np.ndarray, years: int) -> np.ndarray:
    """Forecasts (M, years) of the years after counts (T,): each network goes on from its own forecasts."""
    return np.asarray(_forecasts(ensemble, jnp.asarray(counts, jnp.float32), years)[1])


@functools.partial(jax.jit, static_argnames="years")
def _forecasts(ensemble: Ensemble, counts: jax.Array, years: int) -> tuple[jax.Array, jax.Array]:
    """The forecasts one year ahead, and those of the next `years` years."""

    def member(params: Any, mean: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        def next_year(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Any]:
            state, z = carry
            (following,), state = apply({"params": params}, z[None, None], state)
            return (state, following), z

        apply = Forecaster(units=params["rnn"]["bias"].size, l2=0.0).apply
        ahead, state = apply({"params": params}, (jnp.sqrt(counts)[:, None] - mean) / scale)
        _, free = jax.lax.scan(next_year, (state, ahead[-1]), None, length=years)
        return jnp.maximum(mean + scale * ahead, 0) ** 2, jnp.maximum(mean + scale * free, 0) ** 2

    return jax.vmap(member)(*ensemble)
