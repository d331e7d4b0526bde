"""What all pictures share, and the curves of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flax_srnn.training import metrics
from flax_srnn.training.series import Series, after

__all__ = ["BLUE", "ORANGE", "draw_curves", "draw_forecasts", "plain"]

BLUE, ORANGE = "#0072b2", "#d55e00"  # lightness and line style differ too: readable in grey


def plain(axes: Axes) -> Axes:
    """Axes with a faint grid and no frame."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def draw_curves(folder: Path, measure: str, path: Path) -> None:
    """Loss and validation score by step, from the metrics of a run; `measure` says what the score is."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = plain(figure.subplots())
    lines = metrics.read(folder)
    curves = (("loss", "loss", BLUE, "-"), ("validation", f"validation: {measure}", ORANGE, "--"))
    for name, label, color, style in curves:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            marker = "o" if len(points) < 2 else ""
            axes.plot(*zip(*points, strict=True), style, color=color, marker=marker, label=label)
    values = [value for line in lines for name, value in line.items() if name != "step"]
    if values and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss and validation score" if len(axes.lines) > 1 else "loss")
    axes.set_title("Loss, each point the mean of the steps before it", loc="left", fontweight="bold")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png")


def draw_forecasts(
    path: Path,
    series: Series,
    fitted: int,
    ahead: np.ndarray,
    free: np.ndarray,
    tests: Sequence[tuple[str, np.ndarray]],
    measured: str,
) -> None:
    """The whole series above; the last steps before the test, the test and the steps to come below.

    Args:
      path: of the PNG file.
      series: what was observed (T,).
      fitted: the number of steps that were learned from.
      ahead: (M, T) forecasts one step ahead of M networks, entry t for step t + 1.
      free: (M, future) forecasts of the steps after the series, each made from the forecasts before it.
      tests: the words for each period that was scored, and its steps (T,) bool.
      measured: what the number in these words is.
    """
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    whole, recent = figure.subplots(2, 1)
    index, values, to_come = series.times, series.values, after(series.times, free.shape[1])
    for axes in (whole, recent):
        _draw_series(plain(axes), series, ahead)
        axes.set(xlabel=series.axis, ylabel=series.name)
    whole.set_title(f"{series.name}, each step forecast from the steps before it", loc="left", fontweight="bold")
    whole.set_xlim(index[0], index[-1])
    low, high = whole.get_ylim()
    whole.set_ylim(low, high + 0.15 * (high - low))  # room for the words
    border = index[fitted - 1]
    whole.axvline(border, color="black", linewidth=1, linestyle=(0, (4, 3)))
    whole.annotate("fitted ", (border, 0.97), xycoords=("data", "axes fraction"), ha="right", va="top")
    whole.annotate(" never seen in fitting", (border, 0.97), xycoords=("data", "axes fraction"), ha="left", va="top")

    recent.set_title(f"Error of the test, {measured}", loc="left", fontweight="bold")
    if len(to_come):
        recent.fill_between(to_come, *_range(free), color=ORANGE, alpha=0.25, linewidth=0)
        recent.plot(to_come, free.mean(axis=0), "--", color=ORANGE, linewidth=2, label="from its own forecasts (mean)")
    first = max(0, fitted - max(10, (len(values) - fitted) // 3))
    last = to_come[-1] if len(to_come) else index[-1]
    recent.set_xlim(index[first], last)
    seen = [values[first:], ahead[:, first:].ravel(), free.ravel()]
    low, high = min(x.min() for x in seen if x.size), max(x.max() for x in seen if x.size)
    recent.set_ylim(low - 0.05 * (high - low), high + 0.3 * (high - low))  # room for the words
    for number, (words, inside) in enumerate(tests):
        steps = index[inside]
        recent.axvspan(steps[0], steps[-1], color=("0.94", "0.88")[number % 2], linewidth=0, zorder=0)
        middle = steps[0] + (steps[-1] - steps[0]) / 2
        recent.annotate(
            f"test {words}", (middle, 0.97), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=9
        )
    figure.legend(*recent.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150, format="png")


def _draw_series(axes: Axes, series: Series, ahead: np.ndarray) -> None:
    steps = series.times[1:]
    axes.fill_between(
        steps, *_range(ahead[:, :-1]), color=BLUE, alpha=0.3, linewidth=0, label="all networks, lowest to highest"
    )
    axes.plot(steps, ahead[:, :-1].mean(axis=0), color=BLUE, linewidth=1.4, label="forecast one step ahead (mean)")
    axes.plot(series.times, series.values, "o", color="black", markersize=2.6, label="observed")


def _range(forecasts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return forecasts.min(axis=0), forecasts.max(axis=0)
