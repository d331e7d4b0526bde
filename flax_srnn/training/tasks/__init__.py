"""Experiments, one file each, and what an experiment is to the program: a handful of functions.

    Task          the class of its config, `load(config) -> Experiment`, `init`, `predict`; found by the name of its file here,
                  or of an entry point in the group `flax_srnn.tasks` of an installed package
    Experiment    functions over one set of data: `batch`, `loss`, `score`, `report`
    Report        what the program prints and saves in the end

The loop calls these and knows no experiment; an experiment knows no loop, no file of a run and no device.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flax_srnn.identifiers import did_you_mean
from flax_srnn.training.config import Training

__all__ = ["GROUP", "Experiment", "Report", "Table", "Task", "get", "name_of", "names"]

GROUP = "flax_srnn.tasks"


class Table(NamedTuple):
    """What is printed, or written as CSV: a title, headings, and rows of text or numbers."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[Any, ...]]


class Report(NamedTuple):
    """The result of a run.

    scores: what JSON can hold, not the time it took: a run that is resumed has the same. table: the same for the eye.
    pictures: by file name, what draws each to a path.
    """

    scores: dict[str, Any]
    table: Table
    pictures: Mapping[str, Callable[[Path], None]] = {}


class Experiment(NamedTuple):
    """An experiment with its data; B is `config.batch_size`.

    Attributes:
      batch: (step, rows) -> NumPy arrays, whose first dimension is that of `rows`, a range within [0, B): these rows of the
        batch of this step, from 0 on. A pure function: a run that goes on asks for the steps that are left, and of several
        processes each for rows of its own.
      loss: (params, carry, batch, key) -> (loss, carry). A scalar, or (M,) with `members`.
      report: (params) -> `Report`, after the last step. As `score`, called in the first process only, with whole arrays.
      score: (params) -> the number on the validation part that early stopping wants to be small; None: there is none.
      measure: what `score` is, in a few words for the picture.
      carry: what goes from step to step besides parameters, e.g. the states (B, U) of streams that go on.
      members: M, where all parameters have a leading dimension M: so many models at the same time, each with an optimizer and
        a loss of its own.
      constraints: of the parameters, as `flax_srnn.collect_constraints` returns them.
      constants: arrays that the data gave and that `init` and `predict` need.
    """

    batch: Callable[[int, range], Any]
    loss: Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]]
    report: Callable[[Any], Report]
    score: Callable[[Any], float] | None = None
    carry: Any = ()
    members: int | None = None
    constraints: Any = None
    constants: Mapping[str, np.ndarray] = {}
    measure: str = "score"


class Task(NamedTuple):
    """A kind of experiment.

    Attributes:
      config: a frozen dataclass that extends `Training`.
      load: config -> `Experiment`; reads and checks the data, and nothing heavy. Raises ValueError or OSError for data that
        cannot be used, with the file as it was named.
      init: (config, constants, key) -> parameters.
      predict: (config, params, constants, input file or None) -> `Table`.
      sample: (config, params, constants, prompt, length, temperature, seed) -> text, where a model writes text.
      data: what `--data` takes; None: no data of a user's.
    """

    config: type[Training]
    load: Callable[[Any], Experiment]
    init: Callable[[Any, Mapping[str, np.ndarray], jax.Array], Any]
    predict: Callable[[Any, Any, Mapping[str, np.ndarray], Path | None], Table]
    sample: Callable[..., str] | None = None
    data: str | None = None


def names() -> list[str]:
    """Of all tasks."""
    inside = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted({*inside, *(point.name for point in importlib.metadata.entry_points(group=GROUP))})


def get(name: str) -> Task:
    """The task of this name.

    Raises:
      ValueError: there is none.
    """
    if any(module.name == name for module in pkgutil.iter_modules(__path__)):
        return importlib.import_module(f"{__name__}.{name}").TASK
    for point in importlib.metadata.entry_points(group=GROUP, name=name):
        return point.load()
    raise ValueError(f"{name!r} is no task.{did_you_mean(name, names())} Tasks: {', '.join(names())}.")


def name_of(config: Training) -> str:
    """The name of the task whose config this is."""
    for name in names():
        if get(name).config is type(config):
            return name
    raise ValueError(f"{type(config).__name__} is the config of no task. Tasks: {', '.join(names())}.")
