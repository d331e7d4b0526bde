"""One of several processes that train one model, and a second one that watches it.

Where a process of a group is lost, JAX ends the others from inside its C++ code: by abort, with a page of text, and nothing in
Python hears of it. So `flax-srnn train --coordinator ...` starts itself again as a worker and waits for it. What C++ code writes
goes to a file that only the watcher reads; what Python writes goes where it would have gone. A pipe tells the watcher
the folder of the run and how it ended, and the worker that its watcher is gone.

It needs none of the packages of the training program: every command starts here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from flax_srnn.exits import Failed, Interrupted

__all__ = ["is_worker", "serve", "tell", "watch"]

_WORKER = "FLAX_SRNN_WORKER"  # of a worker's environment: its stdout, stderr and end of the pipe
_SHUTDOWN_SECONDS = 5.0
# What the coordination service of JAX 0.7 to 0.12 writes when it ends a process, and what it means.
_MEANINGS = (
    (r"[Tt]ask (?:/job:\S*/task:)?(\d+) heartbeat timeout", "process {} was lost: it has stopped answering"),
    (r"stopped sending heartbeats\):\s*(?:/job:\S*/task:)?(\d+)", "process {} was lost: it has stopped answering"),
    (r"leader task|CoordinationService/Heartbeat", "process 0, the coordinator, was lost"),
    (
        r"CoordinationService/RegisterTask",
        "the processes did not meet: not all were started, or --coordinator is not reached",
    ),
)
_pipe: socket.socket | None = None


def watch(argv: Sequence[str]) -> int:
    """Runs a command as a worker; its exit code.

    Raises:
      Failed: it was lost, or another process was.
      Interrupted: it was told to end, and could not say so itself.
    """
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as said_by_jax:
        streams = os.dup(1), os.dup(2)
        passed = (*streams, theirs.fileno())
        worker = subprocess.Popen(
            [sys.executable, "-m", "flax_srnn", *argv],
            stdout=said_by_jax,
            stderr=said_by_jax,
            pass_fds=passed,
            env=os.environ | {_WORKER: " ".join(map(str, passed))},
            process_group=0,  # a terminal's Ctrl-C comes once, from here
        )
        theirs.close()
        for each in streams:
            os.close(each)
        with _forwarding(worker) as sent:
            code = worker.wait()
        told = _told(ours)
        if "code" in told:
            return int(told["code"])
        folder = None if told.get("folder") is None else Path(told["folder"])
        if sent and -code in (*sent, signal.SIGKILL):
            raise Interrupted(sent[0], folder)
        said_by_jax.seek(0)
        ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        why = _meaning(said_by_jax.read().decode(errors="replace")) or f"this process ended {ended}"
        go_on = "nothing was saved." if folder is None else f"go on with: flax-srnn train --resume {folder}"
        raise Failed(f"{why}; {go_on}")


@contextlib.contextmanager
def _forwarding(worker: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Gives what was sent so far. A second signal ends a worker that waits for a process which does not answer."""
    sent: list[int] = []

    def forward(signum: int, _: Any) -> None:
        sent.append(signum)
        worker.send_signal(signum if len(sent) == 1 else signal.SIGKILL)

    before = {each: signal.signal(each, forward) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield sent
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _told(pipe: socket.socket) -> dict[str, Any]:
    with pipe.makefile("rb") as lines:
        return {name: value for line in lines for name, value in json.loads(line).items()}


def _meaning(said: str) -> str | None:
    """Why JAX ended a process, by what it said."""
    for pattern, words in _MEANINGS:
        if found := re.search(pattern, said):
            return words.format(*found.groups())
    return None


def is_worker() -> bool:
    return _pipe is not None


def serve(main: Callable[[], int]) -> int:
    """Runs `main`, which returns an exit code; as a worker, does not return."""
    if _WORKER not in os.environ:
        return main()
    out, err, pipe = map(int, os.environ.pop(_WORKER).split())
    sys.stdout, sys.stderr = (
        open(fd, "w", encoding=old.encoding, errors=old.errors, buffering=1)  # noqa: SIM115  # for as long as the process lives
        for fd, old in ((out, sys.stdout), (err, sys.stderr))
    )
    global _pipe
    _pipe = socket.socket(fileno=pipe)
    threading.Thread(target=_end_without_watcher, args=(_pipe,), daemon=True).start()
    try:
        code = main()
    except BaseException:
        traceback.print_exc()
        code = 1
    return _end(code)


def tell(**what: Any) -> None:
    """Tells the watcher, if there is one."""
    if _pipe is not None:
        _pipe.sendall(json.dumps(what).encode() + b"\n")


def _end_without_watcher(pipe: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):  # it went without reading what it was told
        pipe.recv(1)  # it says nothing: this returns when it is gone
    os._exit(1)


def _end(code: int) -> NoReturn:
    """Ends the worker; a process that has come to its end waits a moment for the others, so that none takes it for lost."""
    import jax

    tell(code=code)
    sys.stdout.flush()
    sys.stderr.flush()
    timer = threading.Timer(_SHUTDOWN_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()
    if jax.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):  # that another process is gone: what there was to say has been said
            jax.distributed.shutdown()
    os._exit(code)
