"""A run on disk: what it holds, that it goes on where it stopped, and that nothing of the user's is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cases
import jax
import numpy as np
import pytest
from test_training import lines

from flax_srnn.__main__ import main
from flax_srnn.exits import Interrupted
from flax_srnn.training import config as configs
from flax_srnn.training import loop, metrics, program, run, series, train

TINY = {"units": 2, "networks": 3, "steps": 9, "log_every": 2, "checkpoint_seconds": 0}
KEPT = ("params.npz", "scores.json", "metrics.jsonl")


def contents(folder):
    return {name: (folder / name).read_bytes() for name in KEPT}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training") / "whole"
    train("sunspots", workdir=folder, **TINY)
    return folder


def test_what_a_run_holds(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        "checkpoints", "config.json", "curves.png", "events", "forecast.png", "metrics.jsonl", "params.npz", "scores.json",
    ]  # fmt: skip
    assert [line["step"] for line in lines(whole)] == [2, 4, 6, 8, 9]
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    of = program.load(whole)
    assert (of.task, of.config.units, of.config.l2) == ("forecast", 2, 0.003)
    assert of.params["rnn"]["kernel"].shape == (3, 1, 2)
    assert of.scores["periods"] == ["1921-1955", "1956-1979"]


@pytest.mark.slow
def test_a_run_that_ends_early_says_so(tmp_path, capsys):
    config = {**TINY, "steps": 60, "patience": 2, "evaluate_every": 2, "fit_until": "1920", "learning_rate": 1.0}
    of = train("sunspots", workdir=tmp_path / "run", **config)
    ended = [line["step"] for line in lines(of.folder)][-1]
    trained = of.scores["training"]
    assert trained["steps"] == ended == trained["best_step"] + 4 < 60
    assert (
        f"ended at step {ended}: 2 scores in a row were no better than that of step {ended - 4}"
        in capsys.readouterr().err
    )
    assert trained["best_validation"] == min(line.get("validation", np.inf) for line in lines(of.folder))
    assert "params" not in repr(of)


@pytest.mark.parametrize("sent", cases.thinned([signal.SIGTERM, signal.SIGINT], 1))
def test_a_signal_ends_a_run_that_can_go_on(whole, tmp_path, monkeypatch, capsys, sent):
    update = metrics.Show.update

    def interrupt(self, step, values):
        update(self, step, values)
        if step == 4:
            signal.raise_signal(sent)

    monkeypatch.setattr(metrics.Show, "update", interrupt)
    rarely = TINY | {"checkpoint_seconds": 1000}
    options = [part for name, value in rarely.items() for part in (f"--{name}", str(value))]
    before = signal.getsignal(sent)
    assert main(["train", "sunspots", "--workdir", str(tmp_path / "run"), *options]) == 128 + sent
    assert signal.getsignal(sent) is before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == (
        f"flax-srnn: stopped by {sent.name}; go on with: flax-srnn train --resume {tmp_path / 'run'}"
    )
    assert not (tmp_path / "run" / "scores.json").exists()
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["4"]
    monkeypatch.undo()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert contents(tmp_path / "run") == contents(whole)


@pytest.mark.slow
def test_a_run_without_a_checkpoint_starts_anew(whole, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((whole / "config.json").read_bytes())
    program.resume(folder)
    assert contents(folder) == contents(whole)


def test_a_run_does_not_go_on_with_other_data(whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((whole / "config.json").read_bytes())
    read = series.read

    def altered(*arguments):
        given = read(*arguments)
        return given._replace(values=np.where(given.times == 1850, 7.0, given.values))

    monkeypatch.setattr(series, "read", altered)
    assert main(["train", "--resume", str(folder)]) == 2
    assert "its data are no longer those that it began with" in capsys.readouterr().err
    assert os.listdir(folder) == ["config.json"]


@pytest.mark.slow
def test_a_killed_process_loses_nothing(whole, tmp_path):
    options = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "flax_srnn", "train"]
    with subprocess.Popen(
        [*command, "sunspots", "--workdir", "run", *options], cwd=tmp_path, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoints" / "3").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
    subprocess.run([*command, "--resume", "run"], cwd=tmp_path, check=True, capture_output=True)
    assert contents(tmp_path / "run") == contents(whole)


OF_EVERY_TASK = {
    "forecast": {"data": "sunspots", "units": 2, "networks": 2, "evaluate_every": 2},
    "adding": {"length": 10, "units": 3, "batch_size": 4, "evaluate_every": 2},
    "classify": {"data": "digits", "units": 2, "batch_size": 8, "dropout": 0.5, "evaluate_every": 2, "patience": 9},
    "characters": {"data": "texts", "units": 3, "window": 5, "batch_size": 2, "least": 1, "dropout": 0.5, "layers": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_EVERY_TASK)
def test_every_task_goes_on_where_it_stopped(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(5):
        Path("texts", f"{number}.txt").write_text("Was du ererbt von deinen Vaetern hast, " * (3 + number))
    options = OF_EVERY_TASK[name] | {"steps": 7, "log_every": 3, "checkpoint_seconds": 0.0}
    train(name, workdir="whole", **options)
    save = loop.Checkpoints.save

    def interrupted(self, step, *rest):
        save(self, step, *rest)
        if step in (2, 5):
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as stopped:
        stopped.setattr(loop.Checkpoints, "save", interrupted)
        with pytest.raises(Interrupted):
            train(name, workdir="parts", **options)
        with pytest.raises(Interrupted):
            program.resume("parts")
    program.resume("parts")
    assert contents(Path("parts")) == contents(Path("whole"))


def test_only_one_process_writes_to_a_run(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((whole / "config.json").read_bytes())
    with run.locked(folder):
        assert main(["train", "--resume", str(folder)]) == 2
    assert "another process is writing to it" in capsys.readouterr().err
    assert os.listdir(folder) == ["config.json"]


def test_a_finished_run_is_left_alone(whole, capsys):
    before = contents(whole)
    assert main(["train", "--resume", str(whole)]) == 2
    assert main(["train", "sunspots", "--workdir", str(whole)]) == 2
    err = capsys.readouterr().err
    assert "it is finished" in err
    assert "it exists already" in err
    assert contents(whole) == before


def test_overwrite_replaces_runs_only(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    assert main(["train", "sunspots", "--workdir", str(tmp_path / "mine"), "--overwrite"]) == 2
    assert "replaces runs only" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


@pytest.mark.slow
def test_overwrite_makes_the_same_run_again(whole, tmp_path):
    for _ in range(2):
        train("sunspots", workdir=tmp_path / "run", overwrite=True, **TINY)
    assert contents(tmp_path / "run") == contents(whole)


def test_runs_are_listed(whole, capsys):
    assert main(["runs", str(whole.parent)]) == 0
    out = capsys.readouterr().out
    assert "whole" in out
    assert "forecast" in out


def test_every_flipped_byte_of_the_parameters_is_noticed(whole, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "scores.json"):
        (folder / name).write_bytes((whole / name).read_bytes())
    intact, params = (whole / "params.npz").read_bytes(), program.load(whole).params
    for position in range(0, len(intact), 23):
        (folder / "params.npz").write_bytes(
            intact[:position] + bytes([intact[position] ^ 0x55]) + intact[position + 1 :]
        )
        read, message = None, ""
        try:
            read = program.load(folder).params
        except ValueError as error:
            message = str(error)
        # A byte may carry nothing, such as a time stamp.
        same = read is not None and all(map(np.array_equal, jax.tree.leaves(read), jax.tree.leaves(params)))
        assert same or "params.npz" in message


@pytest.mark.slow
def test_output_is_readable_in_ascii(whole):
    command = [sys.executable, "-m", "flax_srnn", "runs", str(whole.parent)]
    done = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True)
    done.stdout.decode("ascii")


@pytest.mark.slow
def test_a_run_from_python_is_the_run_of_the_command(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configs.replaced(program.find("sunspots")[1], TINY)
    of = train(config)
    assert of.folder == Path("runs/forecast-1")
    assert contents(of.folder) == contents(whole)
    assert train(config).folder == Path("runs/forecast-2")
