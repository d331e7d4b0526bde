"""What `flax-srnn train` and `flax-srnn predict` do, from the config to the table on the screen."""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flax_srnn import atomic
from flax_srnn.training import run, scores
from flax_srnn.training.config import SunspotsConfig
from flax_srnn.training.data import SUNSPOTS, Series, read_series
from flax_srnn.training.forecast import WARM_UP, Ensemble, fit, free_running, one_year_ahead

__all__ = ["YEARS_TO_COME", "predict", "train", "validate"]

YEARS_TO_COME = 22  # two cycles


def train(config: SunspotsConfig, name: str, workdir: Path | None) -> None:
    """Fits the ensemble to 1700-1920, scores it beside the baselines, saves a run and prints the table.

    Args:
      config: what to fit.
      name: of the config, for the run's folder where `workdir` is None.
      workdir: the run's folder, a new one.

    Raises:
      OSError: the run cannot be written there.
    """
    from flax_srnn.training.plots import draw_forecasts  # needs matplotlib: if it is missing, say so before the work

    run.check_target(workdir)
    console, series, started = Console(), read_series(), time.perf_counter()
    known = series.until(scores.FIT_UNTIL)
    *_, (_, ensemble) = _fit(console, config, known, np.ones((1, len(known.years)), bool), report_every=50)

    ahead, free = one_year_ahead(ensemble, series.counts), free_running(ensemble, series.counts, YEARS_TO_COME)
    single = _test_errors(series, ahead)
    errors = {
        "persistence": _test_errors(series, scores.persistence(series)),
        "ar9": _test_errors(series, scores.autoregression(series, series.years <= scores.FIT_UNTIL)),
        "single_mean": single.mean(axis=-1),
        "single_std": single.std(axis=-1),
        "ensemble": _test_errors(series, ahead.mean(axis=0)),
    }
    metrics = {
        "average_relative_variance": {row: _by_period(values) for row, values in errors.items()},
        "single_networks": _by_period(single),
        "next_year": {"year": int(series.years[-1]) + 1, "forecast": float(free[:, 0].mean())},
        "seconds": time.perf_counter() - started,
        "versions": {package: importlib.metadata.version(package) for package in ("flax-srnn", "flax", "jax")},
    }

    def draw(path: Path) -> None:
        draw_forecasts(path, series, ahead, free, errors["ensemble"].tolist())

    folder = run.save(workdir, name, config, ensemble, metrics, draw)
    table = Table(title="Average relative variance, one year ahead, fitted to 1700-1920")
    for heading in ("", *_by_period(single)):
        table.add_column(heading, justify="right" if heading else "left")
    for heading, row in (
        ("persistence", errors["persistence"]),
        ("AR(9), least squares", errors["ar9"]),
        (f"{config.seeds} single networks", zip(errors["single_mean"], errors["single_std"], strict=False)),
        ("their ensemble", errors["ensemble"]),
    ):
        table.add_row(heading, *("{:.3f} ± {:.3f}".format(*x) if isinstance(x, tuple) else f"{x:.3f}" for x in row))
    console.print(table)
    console.print(f"saved: {folder}", soft_wrap=True)


def validate(config: SunspotsConfig) -> None:
    """Prints the error in blocks of 1711-1920 against the number of steps: what the settings are chosen by.

    Each block is forecast by networks that were fitted to all other years. No year after 1920 is read, nothing is saved.
    """
    console, series = Console(), read_series().until(scores.FIT_UNTIL)
    fitted = np.stack([(series.years < first) | (series.years > last) for first, last in scores.BLOCKS])
    period = scores.BLOCKS[0][0], scores.BLOCKS[-1][1]

    def error(forecasts: np.ndarray) -> str:
        return f"{np.mean(scores.relative_variance(series, scores.splice(series, forecasts), *period)):.4f}"

    title = "Average relative variance {}-{}, each block of years forecast from a fit to the others".format(*period)
    table = Table("", "ensemble", "single networks, mean", title=title)
    table.add_row("persistence", error(np.stack([scores.persistence(series) for _ in fitted])))
    table.add_row("AR(9), least squares", error(np.stack([scores.autoregression(series, years) for years in fitted])))
    for steps, ensemble in _fit(console, config, series, fitted, report_every=250):
        forecasts = one_year_ahead(ensemble, series.counts).reshape(len(fitted), config.seeds, -1)
        table.add_row(f"{steps} steps", error(forecasts.mean(axis=1)), error(forecasts))
    console.print(table)


def predict(folder: Path, series_file: Path | None, output: Path | None, *, overwrite: bool) -> None:
    """Forecasts every year of a series one year ahead, and the year after it, with the networks of a saved run.

    Args:
      folder: of the run.
      series_file: a CSV file with the columns year,value; None: the sunspot numbers.
      output: a CSV file to write; None prints a table of the last years.
      overwrite: whether `output` may exist already.

    Raises:
      OSError: a file is missing or cannot be written.
      ValueError: the run or the series cannot be used.
    """
    if output is not None and output.exists() and not overwrite:
        raise FileExistsError(f"output {output}: it exists already; --overwrite replaces it.")
    _, ensemble = run.load(folder)
    series = read_series(series_file or SUNSPOTS)
    if len(series.years) <= WARM_UP:
        raise ValueError(f"series {series_file}: at least {WARM_UP + 1} years are needed, got {len(series.years)}.")
    forecasts = one_year_ahead(ensemble, series.counts)[:, WARM_UP:]
    columns = {
        "year": [*map(str, series.years[WARM_UP + 1 :]), str(series.years[-1] + 1)],
        "observed": [*map(str, series.counts[WARM_UP + 1 :]), ""],
        "forecast": [f"{value:.2f}" for value in forecasts.mean(axis=0)],
        "spread": [f"{value:.2f}" for value in forecasts.std(axis=0)],
    }
    rows = list(zip(*columns.values(), strict=True))
    if output is not None:
        with atomic.writing_file(output) as unfinished:
            unfinished.write_text("".join(",".join(row) + "\n" for row in [tuple(columns), *rows]))
        print(f"{len(rows)} forecasts, {rows[0][0]}-{rows[-1][0]}, written to {output}")
        return
    table = Table(title="One year ahead; spread = standard deviation over the networks")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows[-YEARS_TO_COME:]:
        table.add_row(*row)
    Console().print(table)


def _fit(
    console: Console, config: SunspotsConfig, series: Series, fitted: np.ndarray, report_every: int
) -> Iterable[tuple[int, Ensemble]]:
    """`fit` with a progress bar: for each row of `fitted` (rows, T) an ensemble, from the same initial weights."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    return track(
        fit(
            config,
            series,
            np.repeat(fitted, config.seeds, axis=0),
            keys[np.tile(np.arange(config.seeds), len(fitted))],
            report_every,
        ),
        description=f"fitting {config.seeds * len(fitted)} networks",
        total=math.ceil(config.steps / report_every),
        console=console,
    )


def _test_errors(series: Series, forecasts: np.ndarray) -> np.ndarray:
    """Average relative variance in each test period: (2, *batch) for forecasts (*batch, T)."""
    return np.stack([scores.relative_variance(series, forecasts, *period) for period in scores.TEST_PERIODS])


def _by_period(values: np.ndarray) -> dict[str, Any]:
    return {f"{first}-{last}": value for (first, last), value in zip(scores.TEST_PERIODS, values.tolist(), strict=True)}
