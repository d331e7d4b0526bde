"""The examples of the README and of docstrings run."""

import doctest
import re
from pathlib import Path

from flax_srnn_native import implementation

README = Path(__file__).parents[1] / "README.md"


def test_readme():
    text = README.read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert programs
    exec(compile("\n".join(programs), README.name, "exec"), {})
    files = re.findall(r"`((?:src|tests)/[\w.]+)`", text)
    assert len(files) > 10
    assert [file for file in files if not (README.parent / file).exists()] == []


def test_docstrings():
    assert doctest.testmod(implementation) == (0, 4)
