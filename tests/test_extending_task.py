"""docs/extending/task.md: its task runs as a part of the library, and from a package of its own."""

import json
import os
import shutil
import subprocess
import sys
import tomllib

import pytest
from pages import ROOT
from recipes import fences, program


def echo(arguments, cwd, path):
    command = [sys.executable, "-m", "flax_srnn", *arguments]
    environment = os.environ | {"PYTHONPATH": str(path), "XLA_FLAGS": ""}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_task_is_one_file_and_one_config(tmp_path):
    """In the library, and learned well enough to be used."""
    shutil.copytree(ROOT / "flax_srnn", tmp_path / "flax_srnn", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "flax_srnn" / "training" / "tasks" / "echo.py").write_text(program("task"))
    (config,) = fences("task", 'python title="configs/echo.py"')
    (tmp_path / "configs" / "echo.py").write_text(config)
    done = echo(["train", "echo", "--workdir", "run"], tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["bits"] < 0.05
    assert (tmp_path / "run" / "echo.png").exists()
    (tmp_path / "bits").write_text("11010001110010101110\n")
    done = echo(["predict", "run", "--input", "bits", "--output", "said.csv"], tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    heard, said = (tmp_path / "said.csv").read_text().splitlines()[1].split(",")
    assert said[3:] == heard[:-3]


@pytest.mark.slow
def test_task_of_another_package(tmp_path):
    (table,) = (tomllib.loads(text) for text in fences("task", "toml"))
    ((group, points),) = table["project"]["entry-points"].items()
    (tmp_path / "echo.py").write_text(program("task"))
    about = tmp_path / "echo_task-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: echo_task\nVersion: 1\n")
    entries = "\n".join(f"{name} = {value}" for name, value in points.items())
    (about / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = echo(["train", "echo", "--steps", "3", "--delay", "2"], tmp_path, path)
    assert done.returncode == 0, done.stderr
    assert "runs/echo-1" in done.stdout
    done = echo(["train", "echo", "--delay", "99"], tmp_path, path)
    assert (done.returncode, "`delay` must be less than `length`, 20, got 99" in done.stderr) == (2, True)
