"""The code on the pages of README.md and docs/, as a reader would type it: from top to bottom, with one of the tabs.

A page's fences that stand in no tab, and those under one label ("Linen", "NNX", "Keras", "PyTorch"), are one program.
"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


class Fence(NamedTuple):
    language: str
    text: str
    tab: str | None
    line: int


def fences(text: str) -> Iterator[Fence]:
    """The fences of a page, in order."""
    tab, opened = None, None
    for number, line in enumerate(text.splitlines(), 1):
        if opened is None:
            if found := re.match(r'=== "(.+)"$', line):
                tab = found[1]
            elif line and not line.startswith("    "):
                tab = None
            if found := re.match(r"( *)```(\S*)(.*)$", line):
                opened, inside = (found[1], found[2], number), []
        elif line == f"{opened[0]}```":
            yield Fence(opened[1], textwrap.dedent("\n".join(inside)) + "\n", tab if opened[0] else None, opened[2])
            opened = None
        else:
            inside.append(line)
    assert opened is None, f"line {opened and opened[2]}: a fence that does not end"


def tabs(text: str) -> list[str | None]:
    """The labels on a page; [None] if there are none."""
    return list(dict.fromkeys(fence.tab for fence in fences(text) if fence.tab)) or [None]


def program(text: str, tab: str | None) -> list[Fence]:
    """The fences that a reader who chose `tab` sees."""
    return [fence for fence in fences(text) if fence.tab in (None, tab)]
