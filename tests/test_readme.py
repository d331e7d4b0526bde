"""The README's Python examples run, one after the other, as a reader would type them."""

import pathlib
import re

import pytest

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.slow
def test_the_python_examples_run():
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) >= 5
    exec(compile("\n".join(examples), "README.md", "exec"), {"__name__": "readme"})
