"""A run on disk: a folder that has its config from the first moment, and its scores when it is finished.

config.json      the task, its config and the versions that ran it
checkpoints/     a folder for each step, see checkpoint.py
metrics.jsonl    loss and validation score by step; events/ the same for TensorBoard
params.npz       the parameters that are used, and what the task needs besides them
*.png            curves.png and the task's pictures
scores.json      written last: with it the run is finished
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flax_srnn import atomic
from flax_srnn.training import config as configs
from flax_srnn.training import tasks
from flax_srnn.training.config import Training
from flax_srnn.validation import absent

__all__ = [
    "FILES", "RUNS", "Described", "arrays", "check_target", "create", "describe", "finish", "fitted", "is_finished", "listed",
    "locked", "scores",
]  # fmt: skip

RUNS = Path("runs")
_CONFIG, _PARAMS, _SCORES = "config.json", "params.npz", "scores.json"
FILES = {
    _SCORES: "the scores",
    _PARAMS: "the parameters",
    _CONFIG: "what the run was told",
    "metrics.jsonl": "loss and validation score by step",
    "events": "the same for TensorBoard",
    "checkpoints": "the last steps",
}
"""What is in a finished run beside its pictures, for the user."""


class Described(NamedTuple):
    """What a run was told: the name of its task and its config; and a checksum of its data."""

    task: str
    config: Training
    data: int


def check_target(workdir: Path | None, name: str, *, overwrite: bool) -> None:
    """Raises, before anything is computed, if no run can be made there.

    Raises:
      FileExistsError: `workdir` exists, is not an empty folder, and is not to be overwritten, or is no run.
      OSError: no folder can be made there.
    """
    if workdir is not None and workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        if not overwrite:
            raise FileExistsError(
                f"workdir {workdir}: it exists already; name a new folder, go on with --resume {workdir}, or replace it with "
                "--overwrite."
            )
        if not (workdir / _CONFIG).is_file():
            raise FileExistsError(f"workdir {workdir}: --overwrite replaces runs only, and this is none.")
    target = _target(workdir, name)
    with _made(target.parent), atomic.unfinished_folder(target):
        pass  # it can be made


def create(workdir: Path | None, name: str, described: Described, *, overwrite: bool) -> Path:
    """Makes the folder of a run: `workdir`, or the first free one of runs/NAME-1, runs/NAME-2, …; returns it.

    Raises:
      FileExistsError: `workdir` holds something by now.
    """
    target = _target(workdir, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if overwrite and workdir is not None and workdir.exists():
        with locked(workdir):
            shutil.rmtree(workdir)
    numbered = (RUNS / f"{name}-{number}" for number in itertools.count(1))
    with atomic.unfinished_folder(target) as folder:
        versions = {package: importlib.metadata.version(package) for package in ("flax-srnn", "flax", "jax")}
        about = {"task": described.task, "config": dataclasses.asdict(described.config), "data": described.data}
        _write_json(folder / _CONFIG, {**about, "versions": versions})
        return atomic.move_folder(folder, numbered if workdir is None else [workdir])


def _target(workdir: Path | None, name: str) -> Path:
    """Where the run is to be, which one of its numbers aside."""
    return RUNS / name if workdir is None else workdir


def describe(folder: Path) -> Described:
    """What a run was told.

    Raises:
      FileNotFoundError: there is no such folder, or no config in it.
      ValueError: the config is damaged, or does not fit its task; the message names the field.
    """
    for path in (folder, folder / _CONFIG):
        if not path.exists():
            raise FileNotFoundError(f"run {folder}: {path} does not exist; `flax-srnn train` writes such a folder.")
    try:
        about = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        config = configs.from_mapping(tasks.get(about["task"]).config, about["config"])
        return Described(about["task"], config, int(about["data"]))
    except (ValueError, TypeError, KeyError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"run {folder}: {_CONFIG} cannot be used: {what}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run, so that no other process writes to it; the operating system lets go of it when this one dies.

    Raises:
      ValueError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"run {folder}: another process is writing to it.") from error
        yield
    finally:
        os.close(descriptor)


def finish(folder: Path, params: Any, constants: Mapping[str, np.ndarray], scores: dict[str, Any]) -> None:
    """Writes the parameters and, last of all, the scores."""
    whole = flatten_dict({"params": jax.tree.map(np.asarray, params), "constants": dict(constants)}, sep="/")
    with atomic.writing_file(folder / _PARAMS) as unfinished, unfinished.open("wb") as file:
        np.savez(file, allow_pickle=False, **whole)
    with atomic.writing_file(folder / _SCORES) as unfinished:
        _write_json(unfinished, scores)


def is_finished(folder: Path) -> bool:
    return (folder / _SCORES).exists()


def scores(folder: Path) -> dict[str, Any]:
    """Of a finished run."""
    try:
        return dict(json.loads((folder / _SCORES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"run {folder}: {_SCORES} is damaged or missing: {error}") from error


def arrays(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The parameters of a finished run, by path, and its constants.

    Raises:
      FileNotFoundError: the run is not finished.
      ValueError: the file is damaged or missing.
    """
    if not is_finished(folder):  # its parameters may be there already
        raise FileNotFoundError(f"run {folder}: it is not finished; go on with: flax-srnn train --resume {folder}")
    try:
        with np.load(io.BytesIO((folder / _PARAMS).read_bytes()), allow_pickle=False) as file:
            found = dict(file)
    except Exception as error:  # zipfile and numpy know a dozen ways to fail on a damaged file.
        raise ValueError(f"run {folder}: {_PARAMS} is damaged or missing: {error}") from error
    if not all(np.isfinite(x).all() for x in found.values() if np.issubdtype(x.dtype, np.floating)):
        raise ValueError(f"run {folder}: {_PARAMS} is damaged: it holds numbers that are not finite.")
    params, constants = (
        {name.removeprefix(kind): x for name, x in found.items() if name.startswith(kind)}
        for kind in ("params/", "constants/")
    )
    return params, constants


def fitted(folder: Path, params: dict[str, np.ndarray], like: Any) -> Any:
    """Parameters by path as the tree `like`, of whose shapes and dtypes they must be."""
    expected = {name: (x.shape, x.dtype) for name, x in flatten_dict(like, sep="/").items()}
    found = {name: (x.shape, x.dtype) for name, x in params.items()}
    if found != expected:
        differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise ValueError(f"run {folder}: {_PARAMS} does not fit {_CONFIG}: {', '.join(differing)}.")
    return unflatten_dict(params, sep="/")


def listed(folder: Path) -> list[Path]:
    """The runs in a folder, in the order of their names."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: {absent(folder, 'folder of runs')}.")
    return sorted(each for each in folder.iterdir() if (each / _CONFIG).is_file())


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder for a moment, unless it is there."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for each in missing:
            each.rmdir()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
