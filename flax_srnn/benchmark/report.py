"""From the figures of several processes to a Markdown report and a plot."""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax_srnn.benchmark.native import NATIVE
from flax_srnn.benchmark.process import OURS, Record

__all__ = ["DETAILS", "Line", "Spread", "markdown", "merge", "plot", "ratios", "spread", "summarize"]

DETAILS = "## Every case"
TIMES = {"s": "time", "cycles": "cycles"}
"""The units of which the report forms ratios, with what they measure; figures of all others stand as they are."""
FAVOURITES = (OURS, NATIVE)
"""Who is compared with peers, and hoped to be faster; whoever else comes first in a record is this library, compared with itself."""


class Spread(NamedTuple):
    """The middle process, and the smallest and the largest figure of all processes."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        whole = f"{self.middle:.2f}"
        return whole if self.low == self.high else f"{whole} ({self.low:.2f} to {self.high:.2f})"


def spread(figures: Iterable[float]) -> Spread:
    """The median, the minimum and the maximum of one figure per process."""
    ordered = sorted(figures)
    return Spread(statistics.median(ordered), ordered[0], ordered[-1])


def merge(processes: Iterable[Iterable[Record]]) -> list[Record]:
    """One record per comparison, with the figures of all processes in their order."""
    merged: dict[tuple[str, str], Record] = {}
    for records in processes:
        for record in records:
            whole = merged.setdefault((record.group, record.case), dataclasses.replace(record, values={}))
            for name, figures in record.values.items():
                whole.values.setdefault(name, []).extend(figures)
    return list(merged.values())


def ratios(record: Record, name: str) -> list[float]:
    """Per process: the figure of a contestant over that of the first."""
    first = next(iter(record.values.values()))
    return [figure / base for figure, base in zip(record.values[name], first, strict=True)]


class Line(NamedTuple):
    """One contestant over the first one, in all cases of a group.

    Attributes:
      mean: the geometric mean over the cases, of each process.
      worst: of the case with the worst middle figure. A peer is hoped to be slower than a favourite, so its smallest
        ratio is the worst; where this library is compared with itself it is the largest.
    """

    group: str
    first: str
    name: str
    cases: int
    mean: Spread
    worst: Spread
    worst_case: str


def summarize(records: Iterable[Record]) -> list[Line]:
    """One line per group and contestant."""
    lines = []
    for group, members in _groups(records).items():
        first, *others = members[0].values
        worst_of: Callable[..., tuple[Spread, str]] = min if first in FAVOURITES else max
        for name in others:
            by_case = [ratios(record, name) for record in members]
            mean = spread(statistics.geometric_mean(one_process) for one_process in zip(*by_case, strict=True))
            worst, case = worst_of((spread(row), record.case) for row, record in zip(by_case, members, strict=True))
            lines.append(Line(group, first, name, len(members), mean, worst, case))
    return lines


def _groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    return groups


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(about: Mapping[str, str], records: Sequence[Record]) -> str:
    """The machine, the summary, and after `DETAILS` a table per group."""
    timed = [record for record in records if record.unit in TIMES]
    counted = [record for record in records if record.unit not in TIMES]
    lines = summarize(timed)
    against_itself = [line for line in lines if line.first not in FAVOURITES]
    text = ["# Benchmark", "", "; ".join(f"{name} {value}" for name, value in about.items()) + ".", ""]
    text += ["Cases are batch x time x features x units. In brackets: the range over the processes."]
    for favourite in FAVOURITES:
        against_peers = [line for line in lines if line.first == favourite]
        if against_peers:
            names = list(dict.fromkeys(line.name for line in against_peers))
            title = f"Time of a peer / time of {favourite}, JAX {about['jax']}"
            text += _table(title, ["", *names], _peer_rows(against_peers, names))
    if against_itself:
        rows = [
            (line.group, f"{line.name} / {line.first}", line.mean, f"{line.worst}, {line.worst_case}")
            for line in against_itself
        ]
        text += _table(
            f"Time of {OURS} / its own time, JAX {about['jax']}", ["", "ratio", "geometric mean", "largest"], rows
        )
    for group, members in _groups(counted).items():
        cells = [[record.case, *(f"{spread(figures)}" for figures in record.values.values())] for record in members]
        text += _table(f"{_capital(group)}, in {members[0].unit}", ["", *members[0].values], cells)
    text += ["", DETAILS]
    for group, members in _groups(timed).items():
        names = list(members[0].values)
        text += _table(_capital(group), ["", *names], [_case_row(record, names) for record in members])
    return "\n".join(text) + "\n"


def _peer_rows(lines: Sequence[Line], names: Sequence[str]) -> Iterable[Sequence[Any]]:
    for group in dict.fromkeys(line.group for line in lines):
        mine = {line.name: line for line in lines if line.group == group}
        cases = next(iter(mine.values())).cases
        yield f"{group}: geometric mean of {cases}", *(mine[name].mean if name in mine else "-" for name in names)
        worst = (f"{mine[name].worst}, {mine[name].worst_case}" if name in mine else "-" for name in names)
        yield f"{group}: worst", *worst


def _case_row(record: Record, names: Sequence[str]) -> Iterable[Any]:
    base, *others = names
    yield record.case
    yield _time(statistics.median(record.values[base]), record.unit)
    for name in others:
        yield f"{_time(statistics.median(record.values[name]), record.unit)}, {spread(ratios(record, name))}"


def _table(title: str, head: Sequence[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    body = [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]
    return ["", f"### {title}", "", *body]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _time(amount: float, unit: str) -> str:
    if unit != "s":
        return f"{amount:.0f} {unit}"
    scale, unit = next(((s, u) for s, u in ((1, "s"), (1e3, "ms")) if amount * s >= 1), (1e6, "µs"))
    return f"{amount * scale:.3g} {unit}"


# --- plot -------------------------------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """Axes of a picture: figures of one kind, by row and contestant; `ratios` are over the first contestant, and it is 1."""

    label: str
    rows: Mapping[str, Mapping[str, Spread]]
    ratios: bool


def _panels(records: Sequence[Record]) -> Iterator[Panel]:
    """Geometric means against the peers, for each kind of time, and every counted group in its own unit."""
    for unit, what in TIMES.items():
        lines = [
            line for line in summarize(record for record in records if record.unit == unit) if line.first in FAVOURITES
        ]
        rows: dict[str, dict[str, Spread]] = {}
        for line in lines:
            rows.setdefault(line.group, {})[line.name] = line.mean
        if rows:
            favourites = " or ".join(dict.fromkeys(line.first for line in lines))
            label = (
                f"{what} of a peer / {what} of {favourites}\n(geometric mean over the cases, range over the processes)"
            )
            yield Panel(label, rows, ratios=True)
    for group, members in _groups(record for record in records if record.unit not in TIMES).items():
        amounts = {
            record.case: {name: spread(figures) for name, figures in record.values.items()} for record in members
        }
        yield Panel(f"{group}, in {members[0].unit}", amounts, ratios=False)


def plot(records: Sequence[Record], path: Path) -> str:
    """Draws times against the peers, and on axes of their own what is counted; returns why there is no picture, or nothing."""
    panels = list(_panels(records))
    if not panels:
        return "no peer was timed, and nothing counted"
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed"
    from matplotlib.figure import Figure

    drawn = {name for panel in panels for row in panel.rows.values() for name in row}
    names = [name for name in dict.fromkeys(name for record in records for name in record.values) if name in drawn]
    heights = [len(panel.rows) + 1 for panel in panels]
    figure = Figure(figsize=(9, 0.7 * len(panels) + 0.5 * sum(heights)), layout="constrained")
    for axes, panel in zip(
        figure.subplots(len(panels), height_ratios=heights, squeeze=False).flat, panels, strict=True
    ):
        _draw(axes, panel, names)
    legend = {
        name: handle for axes in figure.axes for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend([legend[name] for name in names], names, loc="outside right upper")
    figure.savefig(path, dpi=150)
    return ""


def _draw(axes: Any, panel: Panel, names: Sequence[str]) -> None:
    """Rows from the top; a contestant has the colour of its place among `names` in every panel."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    titles = list(panel.rows)[::-1]
    for place, name in enumerate(names):
        marks = {title: panel.rows[title][name] for title in titles if name in panel.rows[title]}
        if marks:
            axes.errorbar(
                [mark.middle for mark in marks.values()],
                [titles.index(title) + 0.12 * ((len(names) - 1) / 2 - place) for title in marks],
                xerr=[
                    [mark.middle - mark.low for mark in marks.values()],
                    [mark.high - mark.middle for mark in marks.values()],
                ],
                fmt=f"C{place}o",
                markersize=5,
                capsize=2,
                label=name,
                clip_on=False,  # a mark at 0 is seen whole
            )
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(-0.6, len(titles) - 0.4)
    axes.set_xlabel(panel.label)
    if panel.ratios:
        axes.axvline(1, color="grey", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(
            MaxNLocator(8, steps=[1, 2, 5, 10])
        )  # ratios are often near 1, where a power of ten is the only tick
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(left=0)
