"""forecast.png: what was observed, what was forecast one year ahead, and what the networks expect next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flax_srnn.training.data import Series
from flax_srnn.training.scores import FIT_UNTIL, TEST_PERIODS

__all__ = ["draw_forecasts"]

_BLUE, _ORANGE = "#0072b2", "#d55e00"  # lightness and line style differ too: readable in grey


def draw_forecasts(path: Path, series: Series, ahead: np.ndarray, free: np.ndarray, errors: Sequence[float]) -> None:
    """Writes the picture: the whole series above, the test periods and the years to come below.

    Args:
      path: of the PNG file.
      series: the observed counts (T,).
      ahead: (M, T) forecasts one year ahead of M networks, entry t for the year after the series' year t.
      free: (M, years) forecasts of the years after the series.
      errors: the ensemble's average relative variance in each test period.
    """
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    whole, recent = figure.subplots(2, 1)
    top = 1.2 * max(series.counts.max(), ahead.max(), free.max())  # room for the words
    for axes in (whole, recent):
        _draw_series(axes, series, ahead)
        axes.set_ylabel("sunspot number (yearly mean)")
        axes.set_ylim(0, top)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)

    whole.set_title("Sunspot numbers, each year forecast from the years before it", loc="left", fontweight="bold")
    whole.set_xlim(series.years[0], series.years[-1] + 1)
    whole.axvline(FIT_UNTIL + 0.5, color="black", linewidth=1, linestyle=(0, (4, 3)))
    whole.text(FIT_UNTIL - 1, 0.98 * top, "fitted to 1700-1920", ha="right", va="top")
    whole.text(FIT_UNTIL + 2, 0.98 * top, "never seen in fitting", ha="left", va="top")

    years = series.years[-1] + 1 + np.arange(free.shape[1])
    recent.fill_between(years, *_range(free), color=_ORANGE, alpha=0.25, linewidth=0)
    recent.plot(
        years, free.mean(axis=0), color=_ORANGE, linestyle="--", linewidth=2, label="free-running forecast (mean)"
    )
    recent.set_xlim(FIT_UNTIL + 1, years[-1] + 1)
    recent.set_xlabel("year")
    for (first, last), error, shade in zip(TEST_PERIODS, errors, ("0.94", "0.88"), strict=True):
        recent.axvspan(first - 0.5, last + 0.5, color=shade, linewidth=0, zorder=0)
        text = f"test {first}-{last}\naverage relative variance {error:.3f}"
        recent.text((first + last) / 2, 0.98 * top, text, ha="center", va="top", fontsize=9)
    recent.text(years.mean(), 0.98 * top, "left to itself", ha="center", va="top", fontsize=9)
    figure.legend(*recent.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _draw_series(axes: Axes, series: Series, ahead: np.ndarray) -> None:
    years = series.years[1:]
    axes.fill_between(
        years, *_range(ahead[:, :-1]), color=_BLUE, alpha=0.3, linewidth=0, label="all networks, lowest to highest"
    )
    axes.plot(
        years,
        ahead[:, :-1].mean(axis=0),
        color=_BLUE,
        linewidth=1.4,
        label="forecast one year ahead (mean)",
    )
    axes.plot(series.years, series.counts, "o", color="black", markersize=2.6, label="observed")


def _range(forecasts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return forecasts.min(axis=0), forecasts.max(axis=0)
