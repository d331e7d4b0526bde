"""Optax's optimizers, schedules and clipping, by the names and numbers of a config."""

from __future__ import annotations

from typing import Any

import jax
import optax

from flax_srnn import keep_constraints
from flax_srnn.training.config import Training

__all__ = ["build", "schedule"]

_LOWEST = 0.01  # of the highest learning rate, where a schedule falls


def build(config: Training, constraints: Any, members: int | None) -> optax.GradientTransformation:
    """Clipping, then the optimizer, then constraints; for each of several models on its own."""
    rate = schedule(config)
    optimizer = {
        "adam": lambda: optax.adam(rate),
        "adamw": lambda: optax.adamw(rate, weight_decay=config.weight_decay),
        "sgd": lambda: optax.sgd(rate, momentum=config.momentum or None),
        "rmsprop": lambda: optax.rmsprop(rate, momentum=config.momentum or None),
    }[config.optimizer]()
    parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    parts.append(optimizer)
    if constraints is not None:
        parts.append(keep_constraints(constraints))
    chain = optax.chain(*parts)
    return chain if members is None else optax.GradientTransformation(jax.vmap(chain.init), jax.vmap(chain.update))


def schedule(config: Training) -> optax.Schedule:
    """Step -> learning rate."""
    highest, falling = config.learning_rate, max(1, config.steps - config.warm_up_steps)
    after = {
        "constant": lambda: optax.constant_schedule(highest),
        "cosine": lambda: optax.cosine_decay_schedule(highest, falling, alpha=_LOWEST),
        "linear": lambda: optax.linear_schedule(highest, _LOWEST * highest, falling),
    }[config.schedule]()
    if not config.warm_up_steps:
        return after
    rising = optax.linear_schedule(0.0, highest, config.warm_up_steps)
    return optax.join_schedules([rising, after], [config.warm_up_steps])
