"""A run on disk: a folder that appears whole or not at all, and what is read back from it.

    params.npz     the networks: one array for each parameter, leading dimension = network
    config.json    the configuration that was used
    metrics.json   the errors in both test periods
    forecast.png   the picture

A run that fails leaves nothing.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flax_srnn import atomic
from flax_srnn.training.config import SunspotsConfig
from flax_srnn.training.forecast import Ensemble, Forecaster

__all__ = ["RUNS", "check_target", "load", "save"]

RUNS = Path("runs")
_CONFIG, _PARAMS, _METRICS = "config.json", "params.npz", "metrics.json"


def check_target(workdir: Path | None) -> None:
    """Raises, before anything is computed, if `save` could not write: `workdir` is not new, or nothing may be written.

    Raises:
      FileExistsError: `workdir` exists and is not an empty folder.
      OSError: no folder can be made there.
    """
    if workdir is not None and workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise FileExistsError(
            f"workdir {workdir}: it exists already, and a run is never overwritten. Name a new folder."
        )
    parent = _parent(workdir)
    parent.mkdir(parents=True, exist_ok=True)
    with atomic.unfinished_folder(parent):
        pass  # it can be made


def save(
    workdir: Path | None,
    name: str,
    config: SunspotsConfig,
    ensemble: Ensemble,
    metrics: dict[str, Any],
    draw: Callable[[Path], None],
) -> Path:
    """Writes a run and returns its folder: `workdir`, or the first free one of runs/NAME-1, runs/NAME-2, ...

    Args:
      workdir: a folder that does not exist yet, or None.
      name: of the config, for the folder's name where `workdir` is None.
      config, ensemble, metrics: what the run used, found and scored.
      draw: writes the picture to the path that it is given.

    Raises:
      FileExistsError: `workdir` holds something by now.
    """
    numbered = (RUNS / f"{name}-{number}" for number in itertools.count(1))
    with atomic.unfinished_folder(_parent(workdir)) as folder:
        arrays = jax.tree.map(np.asarray, flatten_dict(ensemble._asdict(), sep="/"))
        np.savez(folder / _PARAMS, allow_pickle=False, **arrays)
        _write_json(folder / _CONFIG, dataclasses.asdict(config))
        _write_json(folder / _METRICS, metrics)
        draw(folder / "forecast.png")
        try:
            return atomic.move_folder(folder, numbered if workdir is None else [workdir])
        except FileExistsError as error:
            raise FileExistsError(
                f"workdir {workdir}: it holds something by now; this run is lost. Name a new folder."
            ) from error


def load(folder: Path) -> tuple[SunspotsConfig, Ensemble]:
    """Reads a run back.

    Raises:
      FileNotFoundError: there is no such folder, or a file is missing in it.
      ValueError: a file is damaged, or does not fit the other.
    """
    for path in (folder, folder / _CONFIG, folder / _PARAMS):
        if not path.exists():
            raise FileNotFoundError(f"run {folder}: {path} does not exist; `flax-srnn train` writes such a folder.")
    try:
        config = SunspotsConfig(**json.loads((folder / _CONFIG).read_text()))
    except Exception as error:
        raise ValueError(f"run {folder}: {_CONFIG} is damaged: {error}") from error
    try:
        with np.load(io.BytesIO((folder / _PARAMS).read_bytes()), allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # zipfile and numpy know a dozen ways to fail on a damaged file.
        raise ValueError(f"run {folder}: {_PARAMS} is damaged: {error}") from error
    expected = _shapes(config)
    found = {key: (value.shape, value.dtype) for key, value in arrays.items()}
    if found != expected:
        differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise ValueError(f"run {folder}: {_PARAMS} does not fit {_CONFIG}: {', '.join(differing)}.")
    if not all(np.isfinite(value).all() for value in arrays.values()):
        raise ValueError(f"run {folder}: {_PARAMS} is damaged: it holds numbers that are not finite.")
    return config, Ensemble(**unflatten_dict(jax.tree.map(jnp.asarray, arrays), sep="/"))


def _parent(workdir: Path | None) -> Path:
    return RUNS if workdir is None else workdir.parent


def _shapes(config: SunspotsConfig) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every array of an ensemble; nothing is computed."""
    params = jax.eval_shape(Forecaster(config.units, config.l2).init, jax.random.key(0), jnp.zeros((1, 1)))["params"]
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    leaves = flatten_dict({"params": params, "mean": scalar, "scale": scalar}, sep="/")
    return {key: ((config.seeds, *leaf.shape), leaf.dtype) for key, leaf in leaves.items()}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
