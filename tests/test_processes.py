"""Several real processes on this machine that train one model: the numbers of one process, whoever comes and goes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from kills import OF_EVERY_TASK, prepare
from test_training import lines

from flax_srnn import worker
from flax_srnn.__main__ import main
from flax_srnn.training import command, mesh, processes
from flax_srnn.training.config import Training
from flax_srnn.training.scaling import group, peak_memory

ADDING = {"length": 10, "units": 4, "batch_size": 8, "steps": 12, "evaluate_every": 4, "examples": 50, "log_every": 2}
ENDLESS = ADDING | {"steps": 10**6, "evaluate_every": 0, "patience": 0, "checkpoint_seconds": 0.5}
SECONDS = 240  # for one group on a busy machine


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder; what is started in it has one device, quickly compiled for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return tmp_path


def words(task, workdir, options):
    return [task, "--workdir", workdir, *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]


def started(count, arguments):
    return group([arguments] * count, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(group, *codes):
    """(stdout, stderr) of each process."""
    said = [process.communicate(timeout=SECONDS) for process in group]
    assert [process.returncode for process in group] == list(codes), said
    return said


def wait_for_checkpoint(run, group):
    deadline = time.monotonic() + SECONDS
    while not any(path.name.isdecimal() for path in Path(run).glob("checkpoints/*")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in group)
        time.sleep(0.05)


def same_numbers(run, other):
    ours, theirs = lines(Path(run)), lines(Path(other))
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(mine.values()), list(its.values()), rtol=2e-5)
    with np.load(Path(run, "params.npz")) as mine, np.load(Path(other, "params.npz")) as its:
        for name in its.files:
            if mine[name].dtype.kind == "U":  # the name of a column
                assert mine[name] == its[name]
            else:
                np.testing.assert_allclose(mine[name], its[name], rtol=1e-4, atol=1e-5, err_msg=name)


# --- the same numbers --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 8])
def test_processes_train_the_model_of_one(here, count):
    ended(started(1, words("adding", "one", ADDING)), 0)
    said = ended(started(count, words("adding", "several", ADDING)), *[0] * count)
    same_numbers("several", "one")
    assert "wrote several\n" in said[0][0]
    assert "Gloo" not in said[0][0]
    assert f"of {count} devices in {count} processes {count} share the batch" in said[0][1]
    assert said[1:] == [("", "")] * (count - 1)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["forecast", "classify", "characters"])
def test_two_processes_train_every_task(here, task):
    prepare(here)
    options = OF_EVERY_TASK[task] | {"steps": 12, "log_every": 2, "evaluate_every": 4}
    options |= {"batch_size": 2} if task == "forecast" else {}
    ended(started(1, words(task, "one", options)), 0)
    ended(started(2, words(task, "two", options)), 0, 0)
    same_numbers("two", "one")


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "shards"), [(2, 2), (1, 2)])
def test_units_are_shared_inside_and_across_processes(here, monkeypatch, devices, shards):
    ended(started(1, words("adding", "one", ADDING)), 0)
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={devices}")
    ended(started(2, words("adding", "two", ADDING | {"model_shards": shards})), 0, 0)
    same_numbers("two", "one")


@pytest.mark.slow
def test_each_process_reads_its_own_rows(here):
    """And so does one called from Python, which has connected itself."""
    program = """if True:
        import sys, jax
        from flax_srnn.training import mesh
        from flax_srnn.training.config import Training
        jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
        print("reads", mesh.rows_here(mesh.make(Training(batch_size=8)), 8))
        jax.distributed.shutdown()
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", program, where]
    both = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    said = ended(both, 0, 0)
    assert [out.splitlines()[-1] for out, _ in said] == ["reads range(0, 4)", "reads range(4, 8)"]


# --- some are lost -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_of_four_that_is_told_to_end_goes_on_with_two(here):
    options = ADDING | {"steps": 150, "log_every": 10, "evaluate_every": 50, "checkpoint_seconds": 0.2}
    four = started(4, words("adding", "run", options))
    wait_for_checkpoint("run", four)
    four[2].send_signal(signal.SIGTERM)
    for _, err in ended(four, *[143] * 4):
        assert err.splitlines()[-1] == "flax-srnn: stopped by SIGTERM; go on with: flax-srnn train --resume run"
    ended(started(2, ["--resume", "run"]), 0, 0)
    ended(started(1, words("adding", "alone", options)), 0)
    same_numbers("run", "alone")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_one_that_is_killed_ends_the_others(here, victim):
    three = started(3, [*words("adding", "run", ENDLESS | {"batch_size": 9}), "--heartbeat-timeout", "10"])
    wait_for_checkpoint("run", three)
    three[victim].kill()
    began = time.monotonic()
    codes = [1, 1, 1]
    codes[victim] = -signal.SIGKILL
    said = ended(three, *codes)
    assert time.monotonic() - began < 60
    lost = "process 0, the coordinator, was lost" if victim == 0 else "process 1 was lost: it has stopped answering"
    for index in {0, 1, 2} - {victim}:
        errors = [line for line in said[index][1].splitlines() if "error" in line or "rror:" in line]
        assert errors == [f"flax-srnn: error: {lost}; go on with: flax-srnn train --resume run"]
    alone = started(1, ["--resume", "run"])
    deadline = time.monotonic() + SECONDS
    newest = max(int(path.name) for path in Path("run/checkpoints").iterdir() if path.name.isdecimal())
    while lines(Path("run"))[-1]["step"] < newest + 20 and time.monotonic() < deadline:
        time.sleep(0.2)
    alone[0].send_signal(signal.SIGINT)
    ended(alone, 130)


@pytest.mark.slow
def test_what_one_process_cannot_use_all_hear_of(here):
    Path("run").mkdir()
    Path("run", "mine").touch()
    said = ended(started(2, words("adding", "run", ADDING)), 2, 2)
    assert "error: workdir run: it exists already" in said[0][1]
    assert "error: process 0: workdir run: it exists already" in said[1][1]
    different = [words("adding", "new", ADDING | {"units": units}) for units in (4, 5)]
    said = ended(group(different, stdout=subprocess.PIPE, stderr=subprocess.PIPE), 2, 2)
    assert "all processes must be told the same: here `units` is 5, and was 4 in process 0" in said[1][1]
    assert "process 1: all processes must be told the same" in said[0][1]
    assert not Path("new").exists()


@pytest.mark.slow
def test_a_disk_that_fails_the_first_fails_the_run_in_all(here):
    ended(started(1, words("adding", "run", ADDING)), 0)
    Path("run/scores.json").unlink()
    Path("run/checkpoints").rename("run/elsewhere")
    Path("run/checkpoints").touch()  # where a folder is to be made
    said = ended(started(2, ["--resume", "run"]), 1, 1)
    go_on = "go on with: flax-srnn train --resume run"
    assert said[0][1].splitlines()[-1].endswith(f"run/checkpoints: File exists; {go_on}")
    assert said[1][1].splitlines() == [
        f"flax-srnn: error: run run: process 0: [Errno 17] File exists: '{here}/run/checkpoints'; {go_on}"
    ]


@pytest.mark.slow
def test_jax_finds_a_cluster_of_slurm(here, monkeypatch):
    slurm = {
        "JOB_ID": "4711",
        "STEP_NODELIST": "localhost",
        "NTASKS": "2",
        "STEP_NUM_TASKS": "2",
        "LOCALID": "0",
        "STEP_LAUNCHER_PORT": "1",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    command = [sys.executable, "-m", "flax_srnn", "train", *words("adding", "run", ADDING), "--coordinator", "auto"]
    both = []
    for rank in range(2):
        environment = os.environ | {"SLURM_PROCID": str(rank)}
        both.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    said = ended(both, 0, 0)
    assert "of 2 devices in 2 processes" in said[0][1]


# --- without others ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "2"], "need --coordinator HOST:PORT, or auto"),
        (["--heartbeat-timeout", "5"], "need --coordinator"),
        (["--coordinator", "here"], "--coordinator must be HOST:PORT of process 0, or auto, got 'here'"),
        (["--coordinator", "here:0", "--processes", "2", "--process-id", "0"], "got 'here:0'"),
        (["--coordinator", "here:70000"], "got 'here:70000'"),
        (["--coordinator", "here:99"], "--coordinator here:99 needs --processes N and --process-id I"),
        (["--coordinator", "here:99", "--processes", "2", "--process-id", "2"], "must be at least 0 and less than"),
        (["--coordinator", "auto", "--processes", "2"], "give no --processes"),
        (["--coordinator", "here:99", "--heartbeat-timeout", "0"], "--heartbeat-timeout must be at least 1"),
        (["--coordinator", "here:99", "--processes", "two"], "invalid int value: 'two'"),
    ],
    ids=str,
)
def test_bad_options(options, message, capsys):
    assert main(["train", "adding", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_options_say_where_processes_meet():
    assert command.cluster(None, None, None, None) is None
    assert command.cluster("auto", None, None, None) == (None, None, None, 20)
    assert command.cluster("[::1]:80", 3, 2, 7) == ("[::1]:80", 3, 2, 7)


@pytest.mark.slow
def test_a_cluster_that_is_none(here):
    done = subprocess.run(
        [sys.executable, "-m", "flax_srnn", "train", "adding", "--coordinator", "auto"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--coordinator auto: JAX finds no cluster here" in done.stderr


@pytest.mark.slow
def test_a_port_that_is_taken(here):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "flax_srnn", "train", "adding", "--coordinator", where, "--processes", "2"]
        done = subprocess.run([*command, "--process-id", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"--coordinator {where}: " in done.stderr
    assert "must be free" in done.stderr


def test_alone_nothing_has_to_be_said():
    assert processes.is_first()
    assert processes.by_first(lambda: (1, {2})) == (1, {2})
    assert processes.Agreement(mesh.make(Training()))(15) == 15
    with pytest.raises(KeyError), processes.together():
        raise KeyError("x")
    assert not processes.is_loss(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))
    assert worker.serve(lambda: 7) == 7
    assert not worker.is_worker()


def test_every_row_is_read_where_it_is_used():
    devices = mesh.make(Training(batch_size=16, model_shards=2))
    assert mesh.rows_here(devices, 16) == range(16)
    rows = np.arange(32.0).reshape(16, 2)
    there = mesh.global_batch(devices, 16, {"x": rows})["x"]
    assert {shard.data.shape for shard in there.addressable_shards} == {(4, 2)}
    np.testing.assert_array_equal(jax.device_get(mesh.whole(devices, there)), rows)


@pytest.mark.parametrize(
    ("said", "who"),
    [
        ("UNAVAILABLE: Task /job:jax_worker/replica:0/task:12 heartbeat timeout. This", "process 12 was lost"),
        ("task is set to ERROR: UNAVAILABLE: Task 3 heartbeat timeout.", "process 3 was lost"),
        ("tasks are unhealthy (stopped sending heartbeats):\n1\nThe tasks have crashed", "process 1 was lost"),
        ("Either the leader task was preempted/died/restarted", "process 0, the coordinator, was lost"),
        ("Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/Heartbeat", "process 0, the coordinator"),
        ("Deadline Exceeded\n\nRPC: /tensorflow.CoordinationService/RegisterTask", "the processes did not meet"),
    ],
)
def test_who_was_lost(said, who):
    assert worker._meaning(said).startswith(who)
    assert worker._meaning("Segmentation fault") is None


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stream(here):
    short, long = peak_memory(100_000), peak_memory(1_000_000)
    assert long <= 1.1 * short
