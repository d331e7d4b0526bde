"""What a run shows while it goes: a bar or plain lines on stderr, JSON lines, TensorBoard's events.

The JSON lines hold no times: a run that was stopped and resumed writes the same as one that was not.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from flax_srnn.training.tasks import Table

__all__ = ["METRICS", "Log", "Show", "console", "print_table", "read", "summary", "warn"]

METRICS = "metrics.jsonl"
_EVENTS = "events"
_SECONDS_BETWEEN_LINES = 5.0


class Log:
    """metrics.jsonl, TensorBoard's events and what is shown of a run that goes on after `done` of its `steps`.

    What lies behind `size` bytes was written after the checkpoint.
    """

    def __init__(self, folder: Path, size: int, done: int, steps: int) -> None:
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._file.truncate(size)
        (folder / _EVENTS).mkdir(exist_ok=True)
        # Not its SummaryWriter, whose thread has no one to tell that the disk is full.
        self._events = EventsWriter(str(folder / _EVENTS / "events"), f".{done}")
        start = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=done + 1, session_log=start))  # from here on anew
        self._show = Show(steps, done)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()  # who watches sees it
        for name, value in values.items():
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._show.update(step, values)

    def flush(self) -> int:
        """To the disk; the size of metrics.jsonl so far."""
        self._events.flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._show.close()
        try:
            self._file.close()
        finally:
            self._events.close()


class Show:
    """Progress on stderr: a bar on a terminal, else a line every few seconds and at the end."""

    def __init__(self, steps: int, done: int) -> None:
        self._steps, self._last = steps, -math.inf
        self._first: tuple[int, float] | None = None  # the first step that was shown, and when: compilation is over
        self._bar: Progress | None = None
        if (shown := console(stderr=True)).is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
            self._bar = Progress(TextColumn("training"), *columns, console=shown)
            self._bar.start()
            self._task = self._bar.add_task("", total=steps, completed=done, text="")

    def update(self, step: int, values: dict[str, float]) -> None:
        now = time.monotonic()
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        left = ""
        if self._first is None:
            self._first = step, now
        else:
            speed = (step - self._first[0]) / max(now - self._first[1], 1e-9)
            text, left = f"{text}  {speed:.3g} steps/s", f"  {(self._steps - step) / max(speed, 1e-9):.0f} s left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif now - self._last > _SECONDS_BETWEEN_LINES or step == self._steps:
            self._last = now
            print(f"step {step} of {self._steps}  {text}{left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def console(*, stderr: bool = False) -> Console:
    """Where tables and bars go: a stream, in a notebook too, which is no terminal whatever its environment says."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, force_jupyter=False, force_terminal=terminal)


def warn(text: str) -> None:
    print(f"flax-srnn: warning: {text}", file=sys.stderr)


def read(folder: str | Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, of a run that is going on too."""
    path = Path(folder) / METRICS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def summary(params: Any) -> Table:
    """Every parameter with its shape and size."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    rows: list[tuple[Any, ...]] = [
        ("/".join(str(getattr(key, "key", key)) for key in path), " x ".join(map(str, x.shape)), f"{x.size:,}")
        for path, x in leaves
    ]
    rows.append(("in all", "", f"{sum(x.size for _, x in leaves):,}"))
    return Table("Parameters", ("", "shape", "numbers"), rows)


def print_table(table: Table, console: Console) -> None:
    """A table of text: in ASCII where the stream takes nothing else."""
    shown = RichTable(title=table.title, title_justify="left", safe_box=True)
    for index, heading in enumerate(table.headings):
        shown.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(str, row))
    console.print(shown)
