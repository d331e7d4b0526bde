"""What happens to a run whose checkpoints are damaged, whose disk is full, whose config was changed, or which is killed."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cases
import kills
import pytest
from test_runs import TINY, contents

from flax_srnn.__main__ import main
from flax_srnn.exits import Failed
from flax_srnn.training import config as configs
from flax_srnn.training import loop, metrics, program, train
from flax_srnn.training.checkpoint import Checkpoints
from flax_srnn.training.tasks.forecast import Forecast

OF_A_FINISHED_RUN = ("scores.json", "params.npz", "curves.png", "forecast.png")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survival") / "whole"
    train("sunspots", workdir=folder, **TINY)
    return folder


@pytest.fixture
def unfinished(whole, tmp_path):
    """The same run, as it was when all its steps were done and nothing was reported."""
    folder = shutil.copytree(whole, tmp_path / "run")
    for name in OF_A_FINISHED_RUN:
        (folder / name).unlink()
    return folder


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in files_of(folder)}


def damages(checkpoint):
    """(what, function) for every way in which a checkpoint is damaged here."""
    for path in files_of(checkpoint):
        name, data = path.relative_to(checkpoint), path.read_bytes()
        for tenth in range(10):
            yield (
                f"{name} cut at {tenth}/10",
                lambda path=path, data=data, n=tenth: path.write_bytes(data[: len(data) * n // 10]),
            )
        yield f"{name} garbage", lambda path=path, data=data: path.write_bytes(os.urandom(len(data)))
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        yield f"{name} with a bit flipped", lambda path=path, data=flipped: path.write_bytes(data)
        yield f"{name} missing", path.unlink
    yield "an empty folder", lambda: (shutil.rmtree(checkpoint), checkpoint.mkdir())
    yield "a file in its place", lambda: (shutil.rmtree(checkpoint), checkpoint.write_bytes(b"x"))


@pytest.mark.slow
def test_every_damage_of_a_checkpoint_is_reported_and_the_one_before_used(unfinished, tmp_path):
    folder, intact = unfinished / loop.CHECKPOINTS, tmp_path / "intact"
    shutil.copytree(folder, intact)
    names = [name for name, _ in damages(folder / "9")]
    assert len(names) > 100
    for index, name in enumerate(names):
        shutil.rmtree(folder)
        shutil.copytree(intact, folder)
        next(itertools.islice(damages(folder / "9"), index, None))[1]()
        reported = []
        assert Checkpoints(folder, 3).newest(reported.append) == 8, name
        assert len(reported) == 1, name
        assert reported[0].startswith("the checkpoint of step 9 is damaged: "), name
        assert sorted(path.name for path in folder.iterdir()) == ["7", "8", "damaged-9-1"], name


@pytest.mark.parametrize("damage", cases.thinned(["arrays cut", "empty"], 1))
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(whole, unfinished, damage, capsys):
    newest = unfinished / loop.CHECKPOINTS / "9"
    if damage == "empty":
        shutil.rmtree(newest)
        newest.mkdir()
    else:
        largest = max(files_of(newest / "arrays"), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-7])
    assert main(["train", "--resume", str(unfinished)]) == 0
    assert "flax-srnn: warning: the checkpoint of step 9 is damaged: " in capsys.readouterr().err
    assert contents(unfinished) == contents(whole)
    assert sorted(path.name for path in newest.parent.iterdir()) == ["7", "8", "9", "damaged-9-1"]


def test_a_run_without_a_whole_checkpoint_is_left_as_it_is(unfinished, capsys):
    for path in (unfinished / loop.CHECKPOINTS).glob("*/rest.json"):
        path.write_text("{}")
    before = everything(unfinished)
    assert main(["train", "--resume", str(unfinished)]) == 1
    err = capsys.readouterr().err
    assert "none of the checkpoints is whole: the checkpoint of step 9 is damaged: rest.json is not what was" in err
    assert err.count("error") == 1
    assert everything(unfinished) == before


def test_what_a_killed_process_left_of_a_checkpoint_is_not_used(whole, unfinished):
    folder = unfinished / loop.CHECKPOINTS
    (folder / "9").rename(folder / ".unfinished-9")
    (folder / ".unfinished-9" / "checksums").unlink()
    program.resume(unfinished)
    assert contents(unfinished) == contents(whole)
    assert sorted(path.name for path in folder.iterdir()) == ["7", "8", "9"]


def test_a_config_that_does_not_fit_its_checkpoints_is_named(unfinished, capsys):
    path = unfinished / "config.json"
    about = json.loads(path.read_text())
    about["config"]["units"] = 3
    path.write_text(json.dumps(about))
    assert main(["train", "--resume", str(unfinished)]) == 2
    err = capsys.readouterr().err
    assert "its config was changed since the checkpoint of step 9: `units` is 3, and was 2." in err


def test_fields_without_effect_may_be_changed():
    config = Forecast(units=3)
    same = json.loads(json.dumps(vars(config)))
    assert configs.unlike(config, same) == ""
    assert configs.unlike(config, same | {"model_shards": 4, "checkpoint_seconds": 1.0, "keep_checkpoints": 9}) == ""
    assert configs.unlike(config, same | {"units": 4}) == "`units` is 3, and was 4"


@pytest.mark.parametrize("where", cases.thinned(["save", "write"], 1))
def test_a_disk_that_fills_up_ends_a_run_that_can_go_on(whole, tmp_path, monkeypatch, capsys, where):
    of, inner, calls = (Checkpoints, Checkpoints.save, []) if where == "save" else (metrics.Log, metrics.Log.write, [])

    def full(self, *arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
        inner(self, *arguments)

    options = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    with monkeypatch.context() as broken:
        broken.setattr(of, where, full)
        assert main(["train", "sunspots", "--workdir", str(tmp_path / "run"), *options]) == 1
    err = capsys.readouterr().err.splitlines()
    go_on = f"go on with: flax-srnn train --resume {tmp_path / 'run'}"
    assert err[-1] == f"flax-srnn: error: run {tmp_path / 'run'}: x: No space left on device; {go_on}"
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert contents(tmp_path / "run") == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("kibibytes", [3, 6, 12])
def test_files_may_not_grow(whole, tmp_path, kibibytes):
    """As on a full disk, wherever the limit strikes: one line, and what was saved is whole."""
    options = [part for name, value in (TINY | {"units": 40}).items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "flax_srnn", "train"]
    done = subprocess.run(
        ["bash", "-c", f'ulimit -f {kibibytes}; exec "$@"', "-", *command, "sunspots", "--workdir", "run", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith(("flax-srnn", "Traceback", "ERROR"))]
    assert len(said) == 1
    assert "File too large" in said[0]
    subprocess.run([*command, "--resume", "run"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(
        [*command, "sunspots", "--workdir", "alone", *options], cwd=tmp_path, check=True, capture_output=True
    )
    assert contents(tmp_path / "run") == contents(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("kibibytes", [200, 360])
def test_a_disk_that_is_full_or_not_written_to(tmp_path, kibibytes):
    disk, options = tmp_path / "disk", [f"--{name}={value}" for name, value in (TINY | {"units": 40}).items()]
    command = [sys.executable, "-m", "flax_srnn", "train"]

    def mount(*options):
        return subprocess.run(["mount", *options, "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True)

    def resumed():
        return subprocess.run([*command, "--resume", str(disk / "run")], capture_output=True, text=True)

    disk.mkdir()
    if mount("-o", f"size={kibibytes}k").returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        begin = [*command, "sunspots", "--workdir", str(disk / "run"), *options]
        full = subprocess.run(begin, capture_output=True, text=True)
        mount("-o", "remount,ro")
        read_only = resumed()
        mount("-o", "remount,rw,size=100m")
        assert resumed().returncode == 0
        subprocess.run(
            [*begin[: -len(options) - 1], str(tmp_path / "alone"), *options], check=True, capture_output=True
        )
        assert contents(disk / "run") == contents(tmp_path / "alone")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    for done, why in ((full, "No space left on device"), (read_only, "Read-only file system")):
        assert done.returncode == 1
        assert [line for line in done.stderr.splitlines() if "rror" in line][:-1] == []
        assert done.stderr.splitlines()[-1].endswith(f"{why}; go on with: flax-srnn train --resume {disk / 'run'}")


def test_a_failure_of_orbax_that_is_the_disks_is_an_oserror(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 1)

    def fail(*arguments, **options):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes to file 3: No space [os_error_code='28']")

    monkeypatch.setattr(checkpoints._orbax, "save", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        checkpoints.save(1, {}, {})
    assert caught.value.filename == str(tmp_path / "1")


def test_all_checkpoints_damaged_is_a_failure_of_the_run(tmp_path):
    (tmp_path / "4").mkdir()
    with pytest.raises(Failed, match="none of the checkpoints is whole"):
        Checkpoints(tmp_path, 1).newest(print)
    assert Checkpoints(tmp_path / "new", 1).newest(print) is None


@pytest.mark.slow
def test_processes_that_are_killed_lose_nothing(tmp_path):
    """A few of the hundred of `python tests/kills.py`."""
    command = [sys.executable, str(Path(kills.__file__)), "--runs", "8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("8 of 8 the same, bit by bit\n")
