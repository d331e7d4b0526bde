"""What type checkers say about a user's file: what is wrong is found, and what is right passes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

USER = Path(__file__).parent / "typed" / "user.py"
CHECKERS = {
    "mypy": ["--config-file=", "--hide-error-context", "--no-error-summary"],
    "pyright": [f"--pythonpath={sys.executable}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_file(checker, tmp_path):
    program = shutil.which(checker, path=Path(sys.executable).parent)
    if program is None:
        pytest.skip(f"{checker} is not installed: pip install '.[lint]'")
    command = [program, *CHECKERS[checker], str(USER)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    reported = {int(line) for line in re.findall(r"user\.py:(\d+):.*?\berror\b", found.stdout)}
    bad = {number for number, line in enumerate(USER.read_text().splitlines(), start=1) if line.endswith("# bad")}
    assert bad
    assert reported == bad, found.stdout + found.stderr
