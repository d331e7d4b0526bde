"""The pages of docs/extending as programs, on a copy of the library with a page's changes in it.

A fence ```python is a part of the program, ```diff a change: its first line names the file, "@@" is between hunks, and a hunk's
lines stand in the file exactly once.
"""

import shutil
import subprocess
import sys

import pages
from pages import DOCS, ROOT

FOLDER = DOCS / "extending"
PAGES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.md")) if path.stem != "index"}


def fences(page, info):
    return [fence.text for fence in pages.fences(PAGES[page]) if fence.info == info]


def program(page):
    return "\n".join(fences(page, "python"))


def namespace(page):
    """What a page's program defines, run here, on the library as it is: in one piece, where a file of its own is above."""
    found = {"__name__": page}
    exec(compile(program(page).replace("from python_loop import PythonLoop\n", ""), f"{page}.md", "exec"), found)
    return found


def changed_copy(page, folder):
    """The library with a page's changes, in a folder of its own."""
    shutil.copytree(ROOT / "flax_srnn", folder / "flax_srnn", ignore=shutil.ignore_patterns("__pycache__"))
    for change in fences(page, "diff"):
        header, *lines = change.splitlines()
        file = folder / header.removeprefix("--- ")
        text = file.read_text()
        for hunk in "\n".join(lines).split("\n@@\n"):
            old, new = (
                "".join(f"{line[1:]}\n" for line in hunk.split("\n") if line[:1] != other) for other in ("+", "-")
            )
            assert text.count(old) == 1, f"{page}.md: {header}: these lines are not there:\n{old}"
            text = text.replace(old, new)
        file.write_text(text)
    return folder


def run(folder, text):
    """Runs a program beside the copy, which it imports."""
    (folder / "program.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


IS_THE_COPY = (
    "\nimport flax_srnn, pathlib\nassert pathlib.Path(flax_srnn.__file__).parent.parent == pathlib.Path.cwd()\n"
)
