"""The program: train, go on, list, predict, sample; each also a function for Python.

config  ->  task.load  ->  loop.fit (run/checkpoints)  ->  report (run/scores.json, pictures)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flax_srnn import atomic, worker
from flax_srnn.exits import Failed, Interrupted, wrote
from flax_srnn.training import config as configs
from flax_srnn.training import loop, mesh, metrics, plots, processes, run, tasks
from flax_srnn.training.config import Training
from flax_srnn.training.tasks import Table

__all__ = ["Run", "find", "load", "predict", "resume", "runs", "sample", "train", "validate"]

_DATA = {".npz": ("sequences", "classify"), ".txt": ("text", "characters"), ".md": ("text", "characters")}
"""What a user's file is, by its ending, and the task for it."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, task, config, parameters and constants as NumPy arrays, and scores.

    `scores["training"]` has the steps done and, with a validation part, its best score and the step of that.
    """

    folder: Path
    task: str
    config: Training
    params: Any = dataclasses.field(repr=False)
    constants: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    scores: dict[str, Any] = dataclasses.field(repr=False)


def find(name: str) -> tuple[str, Training]:
    """(task, config) for the name of a config or of a task, or the path of a config file, which ends in .py.

    Raises:
      FileNotFoundError: there is no such config, task or file.
      ValueError: the file defines no config, or is none.
    """
    path = configs.bundled().get(name, Path(name))
    if path.is_file() and path.suffix == ".py":
        config = configs.load_file(path)
        return tasks.name_of(config), config
    if name in tasks.names():
        return name, tasks.get(name).config()
    if path.is_file():
        words, task = _DATA.get(path.suffix, ("a series", "forecast"))
        raise ValueError(f"{name} is no config (a .py file); {words} of your own: flax-srnn train {task} --data {name}")
    known = list(dict.fromkeys([*configs.bundled(), *tasks.names()]))
    hint = configs.did_you_mean(Path(name).stem, known)
    raise FileNotFoundError(f"{name!r} is neither a config file nor one of: {', '.join(known)}.{hint}")


def train(what: str | Training, *, workdir: str | Path | None = None, overwrite: bool = False, **options: Any) -> Run:
    """Trains, reports and saves a run.

    Args:
      what: a task's config, or the name of a config or task, or the path of a config file.
      workdir: new folder of the run; default runs/NAME-1, -2, …
      overwrite: whether a run in `workdir` is replaced.
      options: fields of the config, in place of its values.

    Raises:
      TypeError, ValueError, OSError: a config, data or folder that cannot be used, before anything is trained.
      RunFailed: the loss is not finite.
    """
    if isinstance(what, Training):
        task, config, name = tasks.name_of(what), what, tasks.name_of(what)
    else:
        (task, config), name = find(what), Path(what).stem
    return start(
        task, configs.replaced(config, options), name, None if workdir is None else Path(workdir), overwrite=overwrite
    )


def start(task: str, config: Training, name: str, workdir: Path | None, *, overwrite: bool) -> Run:
    """Trains what `find` found, in `workdir` or the next free folder of that name."""
    processes.by_first(lambda: run.check_target(workdir, name, overwrite=overwrite))
    stop = loop.Stop()
    with stop.handled():
        experiment, data = _loaded(task, config)
        described = run.Described(task, config, data)
        folder = processes.by_first(lambda: str(run.create(workdir, name, described, overwrite=overwrite)))
        return _go(Path(folder), described, experiment, stop)


def validate(config: Training) -> None:
    """Checks a config and its data."""
    _loaded(tasks.name_of(config), config)


def resume(folder: str | Path) -> Run:
    """Goes on with a run that was stopped, from its newest checkpoint, or anew if it has none.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: it is finished, another process is writing to it, or its config or data cannot be used.
    """
    folder = Path(folder)
    with processes.together():
        described = run.describe(folder)
        if run.is_finished(folder):
            raise ValueError(f"run {folder}: it is finished; `flax-srnn runs` shows its scores.")
    stop = loop.Stop()
    with stop.handled():
        experiment, data = _loaded(described.task, described.config)
        if data != described.data:
            raise ValueError(f"run {folder}: its data are no longer those that it began with; train anew.")
        return _go(folder, described, experiment, stop)


def _loaded(task: str, config: Training) -> tuple[tasks.Experiment, int]:
    """The experiment, if there are data and devices for it, and a checksum of the data; the same in all processes."""
    with processes.together():
        mesh.make(config)
        experiment = tasks.get(task).load(config)
        data = _fingerprint(experiment, config)
    first_config, first_data = processes.by_first(lambda: (dataclasses.asdict(config), data))
    with processes.together():
        if differing := configs.unlike(config, json.loads(json.dumps(first_config))):
            raise ValueError(f"all processes must be told the same: here {differing} in process 0.")
        if data != first_data:
            raise ValueError("all processes must have the same data: those here are not those of process 0.")
    return experiment, data


def _fingerprint(experiment: tasks.Experiment, config: Training) -> int:
    """Of what the data gave, and of the first batch."""
    arrays = jax.tree.leaves((dict(experiment.constants), experiment.batch(0, range(config.batch_size))))
    return functools.reduce(lambda code, x: zlib.crc32(np.ascontiguousarray(x), code), arrays, 0)


def _go(folder: Path, described: run.Described, experiment: tasks.Experiment, stop: loop.Stop) -> Run:
    task, config, _ = described
    worker.tell(folder=str(folder))
    go_on = f"go on with: flax-srnn train --resume {folder}"
    try:
        with contextlib.ExitStack() as held:
            processes.by_first(lambda: held.enter_context(run.locked(folder)))
            init = functools.partial(tasks.get(task).init, config, experiment.constants)
            if processes.is_first():
                _introduce(config, init)
            params, progress = loop.fit(init, experiment, config, folder, stop)
            params = jax.tree.map(np.asarray, params)
            processes.by_first(lambda: _finish(folder, config, experiment, params, progress))
    except Interrupted as interrupted:
        raise Interrupted(interrupted.signum, folder) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Failed(f"run {folder}: {where}{error.strerror or error}; {go_on}") from error
    except (ValueError, RuntimeError) as error:
        if processes.is_loss(error):
            raise processes.Lost(f"run {folder}: another process was lost ({error}); {go_on}") from error
        raise
    return Run(folder, task, config, params, experiment.constants, run.scores(folder))


def _introduce(config: Training, init: Callable[[jax.Array], Any]) -> None:
    shown = metrics.console(stderr=True)
    metrics.print_table(metrics.summary(jax.eval_shape(init, jax.random.key(0))), shown)
    if jax.device_count() > 1:
        shares = mesh.make(config).shape
        where = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        shown.print(
            f"of {jax.device_count()} devices{where} {shares['data']} share the batch, {shares['model']} the units"
        )


def _finish(folder: Path, config: Training, experiment: tasks.Experiment, params: Any, progress: loop.Progress) -> None:
    """Reports, and saves what makes a run finished."""
    if progress.step < config.steps:
        metrics.console(stderr=True).print(
            f"ended at step {progress.step}: {config.patience} scores in a row were no better than that of step "
            f"{progress.best_step}, whose parameters are used",
            soft_wrap=True,
        )
    report = experiment.report(params)
    trained: dict[str, Any] = {"steps": progress.step}
    if math.isfinite(progress.best_score):
        trained |= {"best_validation": progress.best_score, "best_step": progress.best_step}
    curves = functools.partial(plots.draw_curves, folder, experiment.measure)
    pictures: Mapping[str, Callable[[Path], None]] = {"curves.png": curves, **report.pictures}
    for name, draw in pictures.items():
        with atomic.writing_file(folder / name) as unfinished:
            draw(unfinished)
    run.finish(folder, params, experiment.constants, report.scores | {"training": trained})
    metrics.print_table(report.table, metrics.console())
    task = tasks.get(tasks.name_of(config))
    on_own_data = "  (on your own data: --input FILE)" if task.data else ""
    then = f"flax-srnn sample {folder}" if task.sample else f"flax-srnn predict {folder}{on_own_data}"
    print(wrote(folder, files=dict.fromkeys(pictures, "a picture") | run.FILES, then=then))


def load(folder: str | Path) -> Run:
    """A finished run.

    Raises:
      FileNotFoundError: there is no such run, or it is not finished.
      ValueError: a file of it is damaged.
    """
    folder = Path(folder)
    task, config, _ = run.describe(folder)
    found, constants = run.arrays(folder)
    like = jax.eval_shape(functools.partial(tasks.get(task).init, config, constants), jax.random.key(0))
    return Run(folder, task, config, run.fitted(folder, found, like), constants, run.scores(folder))


def predict(folder: str | Path, input: str | Path | None = None) -> Table:
    """What a finished run says about the data of a file, or about its own.

    Raises:
      FileNotFoundError: there is no such run or file, or the run is not finished.
      ValueError: the run or the data cannot be used.
    """
    of = load(folder)
    return tasks.get(of.task).predict(of.config, of.params, of.constants, None if input is None else Path(input))


def sample(folder: str | Path, prompt: str = "", length: int = 500, temperature: float = 1.0, seed: int = 0) -> str:
    """Text that a run's model writes after `prompt`.

    Raises:
      FileNotFoundError: there is no such run, or it is not finished.
      ValueError: the model writes no text, or an argument is out of range.
    """
    of = load(folder)
    if (write := tasks.get(of.task).sample) is None:
        raise ValueError(f"run {folder}: the task {of.task} writes no text.")
    return write(of.config, of.params, of.constants, prompt, length, temperature, seed)


def runs(folder: str | Path = run.RUNS) -> Table:
    """The runs in a folder with their scores."""
    rows: list[tuple[Any, ...]] = []
    for each in run.listed(Path(folder)):
        try:
            task = run.describe(each).task
            words = _in_short(run.scores(each)) if run.is_finished(each) else "not finished"
        except ValueError as error:
            task, words = "?", str(error)
        rows.append((str(each), task, words))
    return Table(f"Runs in {folder}", ("run", "task", "scores"), rows)


def _in_short(scores: Mapping[str, Any]) -> str:
    """The numbers among scores."""
    return ", ".join(f"{name} {x:.4g}" for name, x in scores.items() if isinstance(x, int | float))
