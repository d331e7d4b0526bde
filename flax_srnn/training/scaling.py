"""What several processes and long streams cost, measured on this machine by the training program itself.

python -m flax_srnn.training.scaling processes [N ...]   steps a second of one model, its batch over 1, 2, 4, 8 processes
python -m flax_srnn.training.scaling memory [T ...]      peak memory of training on one stream of 100,000 and 1,000,000 steps
"""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax_srnn.exits import Failed

__all__ = ["group", "main", "peak_memory", "steps_a_second"]

_MODEL = {
    "length": 100,
    "units": 128,
    "batch-size": 256,
    "steps": 60,
    "log-every": 10,
    "evaluate-every": 0,
    "patience": 0,
}
_STREAM = {"units": 128, "batch-size": 1, "window": 1000, "log-every": 100, "evaluate-every": 0}


def group(arguments: Sequence[Sequence[str]], **options: Any) -> list[subprocess.Popen[str]]:
    """Starts `flax-srnn train`, with arguments for each of the processes, on this machine; `options` are those of Popen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    meet = (
        []
        if len(arguments) == 1
        else ["--coordinator", coordinator, "--processes", str(len(arguments)), "--process-id"]
    )
    commands = [
        [sys.executable, "-m", "flax_srnn", "train", *own, *meet, *([str(index)] if meet else [])]
        for index, own in enumerate(arguments)
    ]
    return [subprocess.Popen(command, text=True, **options) for command in commands]


def steps_a_second(count: int) -> float:
    """Of one model whose batch so many processes share."""
    with tempfile.TemporaryDirectory() as folder:
        options = [word for name, value in _MODEL.items() for word in (f"--{name}", str(value))]
        run = ["adding", "--workdir", f"{folder}/run", *options]
        processes = group([run] * count, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        said = [process.communicate()[1] for process in processes]
    if any(process.returncode for process in processes):
        raise Failed(said[0])
    return float(re.findall(r"([\d.e+]+) steps/s", said[0])[-1])


def peak_memory(length: int) -> int:
    """Bytes that a process held at most, training on one stream of so many characters, `_STREAM["window"]` in each step."""
    with tempfile.TemporaryDirectory() as name:
        folder, chance = Path(name), random.Random(0)
        words = ["".join(chance.choices("abcdefghij", k=5)) + " " for _ in range(length // 6 + 1)]
        (folder / "stream.txt").write_text("".join(words)[:length])
        options = _STREAM | {
            "steps": length // _STREAM["window"],
            "data": folder / "stream.txt",
            "workdir": folder / "run",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with tempfile.TemporaryFile() as said:
            (process,) = group([["characters", *arguments]], stdout=subprocess.DEVNULL, stderr=said)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                said.seek(0)
                raise Failed(said.read().decode(errors="replace"))
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(what: str = "", *numbers: str) -> None:
    if what == "processes":
        one = None
        for count in map(int, numbers or ("1", "2", "4", "8")):
            speed = steps_a_second(count)
            one = one or speed
            print(f"{count} processes: {speed:7.2f} steps a second, {speed / one:.2f} of the first line", flush=True)
    elif what == "memory":
        least = None
        for length in map(int, numbers or ("100000", "1000000")):
            peak = peak_memory(length)
            least = least or peak
            print(
                f"{length:>9,} steps: at most {peak / 2**20:.0f} MiB, {peak / least:.3f} of the first line", flush=True
            )
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
