"""The code on the pages of README.md and docs/, as a reader would type it: from top to bottom, with one of the tabs.

A page's fences that stand in no tab, and those under one label ("Linen", "NNX", "Keras", "PyTorch"), are one program.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


class Fence(NamedTuple):
    """A fence; `info` is what stands behind its first backticks."""

    info: str
    text: str
    tab: str | None
    line: int

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]


def fences(text: str) -> Iterator[Fence]:
    """The fences of a page, in order."""
    tab, opened = None, None
    for number, line in enumerate(text.splitlines(), 1):
        if opened is None:
            if found := re.match(r"///(?: tab \| (.+))?$", line):
                tab = found[1]
            elif found := re.match(r"```(.*)", line):
                opened, inside = (found[1], number), []
        elif line == "```":
            yield Fence(opened[0], "\n".join([*inside, ""]), tab, opened[1])
            opened = None
        else:
            inside.append(line)
    assert (tab, opened) == (None, None), f"a tab or a fence does not end: {tab}, {opened}"


def tabs(text: str) -> list[str | None]:
    """The labels on a page; [None] if there are none."""
    return list(dict.fromkeys(fence.tab for fence in fences(text) if fence.tab)) or [None]


def program(text: str, tab: str | None) -> list[Fence]:
    """The fences that a reader who chose `tab` sees."""
    return [fence for fence in fences(text) if fence.tab in (None, tab)]
