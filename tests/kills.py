"""Kills training programs at random moments and looks whether anything is lost: python tests/kills.py [--runs N] [--jobs J]

Each run is a real process of one of the four tasks that writes a checkpoint in almost every step. It is stopped up to three
times, by SIGKILL, SIGTERM or Ctrl-C, at a random moment or while a checkpoint is being written, resumed, and in the end compared
with a run that was left alone: parameters, scores and metrics, bit by bit.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KEPT = ("params.npz", "scores.json", "metrics.jsonl")
# A Ctrl-C during the imports, before the program has a handler, that meets JAX's callback of the garbage collector: Python prints
# and forgets it, and the program goes on.
SWALLOWED = "Exception ignored in: <function _xla_gc_callback"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
OF_EVERY_TASK = {
    "forecast": {"data": "sunspots", "units": 2, "networks": 2, "steps": 60, "evaluate_every": 20},
    "adding": {"length": 10, "units": 3, "batch_size": 4, "steps": 60, "evaluate_every": 20, "examples": 50},
    "classify": {"data": "digits", "units": 2, "batch_size": 8, "dropout": 0.5, "steps": 60, "evaluate_every": 20},
    "characters": {
        "data": "texts", "units": 3, "window": 5, "batch_size": 2, "least": 1, "dropout": 0.5, "layers": 2, "steps": 60,
    },
}  # fmt: skip


def prepare(folder):
    """The text that `characters` reads."""
    (folder / "texts").mkdir()
    for number in range(5):
        (folder / "texts" / f"{number}.txt").write_text("Was du ererbt von deinen Vaetern hast, " * (3 + number))


def command(task, workdir):
    options = OF_EVERY_TASK[task] | {"log_every": 7, "checkpoint_seconds": 0.0}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "flax_srnn", "train", task, "--workdir", workdir, *words]


def started(command, folder):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def contents(folder):
    return {name: (folder / name).read_bytes() for name in KEPT}


def kill(process, run, seconds, chance):
    """Sends one of the signals at a random moment, if the process lives so long; says what and when."""
    at_checkpoint, sent = chance.random() < 0.5, chance.choice(SIGNALS)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(chance.uniform(0, seconds))
    while at_checkpoint and process.poll() is None and not any(run.glob("checkpoints/.unfinished-*")):
        time.sleep(0.0005)
    if process.poll() is not None:
        return "it had ended"
    process.send_signal(sent)
    _, err = process.communicate()
    if err.count("Traceback") > err.count(SWALLOWED):
        raise AssertionError(err)
    swallowed = ", swallowed" if SWALLOWED in err else ""
    return f"{sent.name}{' in a checkpoint' if at_checkpoint else ''}{swallowed}"


def survive(number, folder, whole, seconds):
    """One run: (task, what was done to it, whether it is the same in the end)."""
    chance, task = random.Random(number), list(OF_EVERY_TASK)[number % len(OF_EVERY_TASK)]
    run, done = folder / f"run-{number}", []

    def go_on():
        begun = [*command(task, run.name)[:4], "--resume", run.name]
        return started(begun if run.exists() else command(task, run.name), folder)

    kills = chance.randint(1, 3)
    while len(done) < kills and not (run / "scores.json").exists():
        done.append(kill(go_on(), run, seconds, chance))
    if not (run / "scores.json").exists():
        process = go_on()
        _, err = process.communicate()
        if process.returncode:
            return task, [*done, err], False
    return task, done, contents(run) == whole[task]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first run, the seed of its moments")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        concurrent.futures.ThreadPoolExecutor(given.jobs) as pool,
    ):
        folder, whole = Path(name), {}
        prepare(folder)
        began = time.monotonic()
        for task in OF_EVERY_TASK:
            process = started(command(task, f"whole-{task}"), folder)
            _, err = process.communicate()
            if process.returncode:
                raise SystemExit(err)
            whole[task] = contents(folder / f"whole-{task}")
        seconds = 1.5 * (time.monotonic() - began) / len(OF_EVERY_TASK)
        one = functools.partial(survive, folder=folder, whole=whole, seconds=seconds)
        same = 0
        for task, done, equal in pool.map(one, range(given.first, given.first + given.runs)):
            same += equal
            print(f"{task:10} {'the same' if equal else 'DIFFERENT'}  {', '.join(done)}", flush=True)
    print(f"{same} of {given.runs} the same, bit by bit")
    raise SystemExit(same != given.runs)


if __name__ == "__main__":
    main()
