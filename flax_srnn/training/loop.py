"""The loop: steps, scores on the validation part, early stopping, checkpoints. It knows no experiment.

What a step computes depends on the parameters, what is carried, the seed and the number of the step, on nothing else, so that
a run goes on from a checkpoint as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from flax_srnn.exits import Failed, Interrupted
from flax_srnn.training import mesh as meshes
from flax_srnn.training import optimizers, processes
from flax_srnn.training.checkpoint import Checkpoints
from flax_srnn.training.config import Training, unlike
from flax_srnn.training.data import batches
from flax_srnn.training.metrics import Log, warn
from flax_srnn.training.tasks import Experiment

__all__ = ["CHECKPOINTS", "Progress", "RunFailed", "Stop", "fit"]

CHECKPOINTS = "checkpoints"


class RunFailed(Failed):
    """A run that cannot go on as it is."""


class Stop:
    """Ctrl-C and SIGTERM: `Interrupted`, at once or, inside `deferred`, when `check` is called."""

    def __init__(self) -> None:
        self.came = 0  # the number of the signal
        self._deferred = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[Stop]:
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread may set handlers
            return
        before = {each: signal.signal(each, self._handle) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        if self.came:
            raise Interrupted(self.came)

    def _handle(self, signum: int, _: Any) -> None:
        self.came = signum
        if not self._deferred:
            raise Interrupted(signum)


class State(NamedTuple):
    """The arrays of a run.

    key: of the steps, as raw data. loss: the sum since the last line of metrics. failed: the first step whose loss was not
    finite, or 0. best: the parameters of the best score, where training may stop early.
    """

    params: Any
    optimizer: Any
    carry: Any
    key: jax.Array
    loss: jax.Array
    failed: jax.Array
    best: Any


@dataclasses.dataclass
class Progress:
    """The numbers of a run: the steps done, early stopping, and the size of the metrics file."""

    step: int = 0
    best_score: float = math.inf
    best_step: int = 0
    scores_without_better: int = 0
    metrics_size: int = 0

    def improved(self, score: float) -> bool:
        """Takes note of a score."""
        better = score < self.best_score
        if better:
            self.best_score, self.best_step = score, self.step
        self.scores_without_better = 0 if better else self.scores_without_better + 1
        return better


def fit(
    init: Callable[[jax.Array], Any], experiment: Experiment, config: Training, folder: Path, stop: Stop
) -> tuple[Any, Progress]:
    """Trains, from the newest checkpoint in the folder of the run on; the parameters to be used, and how far it came.

    Of several processes each calls this, and has its own rows of every batch; the first writes and scores.

    Raises:
      Interrupted: after a checkpoint.
      RunFailed: the loss is not finite.
      Failed: no checkpoint is whole.
      ValueError: the checkpoints are of another config.
    """
    mesh, optimizer = meshes.make(config), optimizers.build(config, experiment.constraints, experiment.members)
    stops_early = config.patience > 0 and experiment.score is not None
    start = functools.partial(_start, init, experiment.carry, optimizer, config.seed, stops_early)
    shapes = jax.eval_shape(start)
    places = _places(mesh, shapes)
    checkpoints, progress = Checkpoints(folder / CHECKPOINTS, config.keep_checkpoints), Progress()

    newest = checkpoints.newest(warn)
    if newest is None:
        state = jax.jit(start, out_shardings=places)()
        if stops_early and experiment.score:
            progress.improved(_scored(mesh, experiment.score, state.params))
    else:
        rest = checkpoints.rest(newest)
        if differing := unlike(config, rest["config"]):
            raise ValueError(
                f"run {folder}: its config was changed since the checkpoint of step {newest}: {differing}."
            )
        like = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)
        state, progress = checkpoints.restore(newest, like), Progress(**rest["progress"])
    step = jax.jit(functools.partial(_step, experiment.loss, optimizer), donate_argnums=0, out_shardings=places)
    log = Log(folder, progress.metrics_size, progress.step, config.steps) if processes.is_first() else None
    agree, saved = processes.Agreement(mesh), time.monotonic()

    def ended() -> bool:
        return progress.step >= config.steps or (stops_early and progress.scores_without_better >= config.patience)

    try:
        with stop.deferred():
            rows = meshes.rows_here(mesh, config.batch_size)
            for batch in () if ended() else batches(experiment.batch, config.steps, rows, progress.step):
                progress.step += 1
                state = step(state, meshes.global_batch(mesh, config.batch_size, batch), np.int32(progress.step))
                values = {}
                if progress.step % config.log_every == 0 or progress.step == config.steps:
                    _raise_unless_finite(state, folder, checkpoints)
                    values["loss"] = float(state.loss) / (progress.step % config.log_every or config.log_every)
                    state = state._replace(loss=jnp.zeros_like(state.loss))
                if experiment.score and config.evaluate_every and progress.step % config.evaluate_every == 0:
                    values["validation"] = _scored(mesh, experiment.score, state.params)
                    if progress.improved(values["validation"]) and stops_early:
                        state = state._replace(best=jax.tree.map(jnp.copy, state.params))
                if values and log:
                    log.write(progress.step, values)
                due = time.monotonic() - saved >= config.checkpoint_seconds
                wanted = agree(stop.came or int(due))  # every signal's number is above 1
                if wanted or ended():
                    _raise_unless_finite(state, folder, checkpoints)
                    progress.metrics_size = log.flush() if log else 0
                    made_with = {"config": dataclasses.asdict(config), "progress": dataclasses.asdict(progress)}
                    checkpoints.save(progress.step, state, made_with)
                    saved = time.monotonic()
                if wanted > 1:
                    raise Interrupted(wanted)
                if ended():
                    break
    finally:
        if log:
            log.close()
        checkpoints.close()
    return meshes.whole(mesh, state.best if stops_early else state.params), progress


def _start(
    init: Callable[[jax.Array], Any], carry: Any, optimizer: optax.GradientTransformation, seed: int, keeps_best: bool
) -> State:
    params = init(jax.random.key(seed))
    return State(
        params,
        optimizer.init(params),
        jax.tree.map(jnp.asarray, carry),
        key=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
        loss=jnp.zeros((), jnp.float32),
        failed=jnp.zeros((), jnp.int32),
        best=jax.tree.map(jnp.copy, params) if keeps_best else (),
    )


def _step(
    loss: Callable[..., Any], optimizer: optax.GradientTransformation, state: State, batch: Any, number: jax.Array
) -> State:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), number)

    def total(params: Any) -> tuple[jax.Array, Any]:
        losses, carry = loss(params, state.carry, batch, key)
        return losses.sum(), (losses.mean(), carry)  # of several models, each has gradients of its own

    grads, (mean, carry) = jax.grad(total, has_aux=True)(state.params)
    updates, moments = optimizer.update(grads, state.optimizer, state.params)
    return state._replace(
        params=optax.apply_updates(state.params, updates),
        optimizer=moments,
        carry=carry,
        loss=state.loss + mean.astype(jnp.float32),
        failed=jnp.where((state.failed == 0) & ~jnp.isfinite(mean), number, state.failed),
    )


def _scored(mesh: Mesh, score: Callable[[Any], float], params: Any) -> float:
    copies = meshes.whole(mesh, params)
    return float(processes.by_first(lambda: score(copies)))


def _places(mesh: Mesh, state: State) -> State:
    """Where the arrays of a run lie."""
    params, moments, best = meshes.of_params(mesh, (state.params, state.optimizer, state.best))
    everywhere: State = meshes.everywhere(mesh, state)
    return everywhere._replace(params=params, optimizer=moments, best=best, carry=meshes.of_rows(mesh, state.carry))


def _raise_unless_finite(state: State, folder: Path, checkpoints: Checkpoints) -> None:
    """A checkpoint holds finite numbers only."""
    if int(state.failed) or not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params)):
        what = f"the loss of step {int(state.failed)} is" if int(state.failed) else "parameters are"
        steps = checkpoints.steps()
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet"
        raise RunFailed(
            f"run {folder}: {what} not finite; {kept}. Try a smaller --learning-rate, --clip 1, or --dtype float32."
        )
