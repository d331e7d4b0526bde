"""The sections of `implementation="native"`, a package of its own: it against this library's default and against peers.

In one of them a core is busy with something else, as on a machine with other users.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator

from flax_srnn.benchmark.process import OURS, Case, Contestants, Plan, Record, Section, grid, race
from flax_srnn.core import implementations

__all__ = ["NATIVE", "SECTIONS", "busy_core", "distribution"]

NATIVE = "native"
"""The name of the implementation, and of it as a contestant."""
PEERS = ("keras", "flax.linen")
"""The peers that it is compared with, where they are wanted."""
SPIN = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""
"""Ends with its parent, even one that was killed."""


def distribution() -> importlib.metadata.Distribution | None:
    """The package that brings the kernel, if it is installed."""
    points = importlib.metadata.entry_points(group=implementations.GROUP, name=NATIVE)
    return next((point.dist for point in points), None)


@contextlib.contextmanager
def busy_core() -> Iterator[subprocess.Popen[bytes]]:
    """Keeps one core busy by a process that spins."""
    command = [sys.executable, "-c", SPIN, str(os.getpid())]
    # Its standard output is not this process's, whose reader waits for the end of it.
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as spinning:
        try:
            yield spinning
        finally:
            spinning.kill()


def _races(beside: str, plan: Plan, contestants: Contestants) -> Iterator[Record]:
    names = [OURS, *(peer for peer in plan.peers if peer in PEERS)]
    for what in ("forward", "training"):
        for group, shape in grid(plan, f"{what}, native kernel{beside}"):
            case = Case(shape)
            models = {NATIVE: contestants[OURS](case._replace(implementation=NATIVE))}
            models |= {name: contestants[name](case) for name in names}
            yield race(group, case, models, what == "training", plan.seconds)


def _busy(plan: Plan, contestants: Contestants) -> Iterator[Record]:
    with busy_core():
        yield from _races(", one core busy", plan, contestants)


SECTIONS: dict[str, Section] = {"native": functools.partial(_races, ""), "native-busy": _busy}
