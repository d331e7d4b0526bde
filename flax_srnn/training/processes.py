"""Several processes that train one model: how they find each other, and what they have to agree on.

Each runs the same program on rows of its own; JAX adds up the gradients. What decides how a run goes on (a score, a clock, a
signal, the name of a folder, an error) must be the same in all of them, or they wait for each other for ever. One process is
the case in which nothing has to be said.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_srnn.exits import Failed

__all__ = ["Agreement", "Cluster", "Lost", "by_first", "connect", "is_first", "is_loss", "together"]

_BYTES = 16384  # of what a process says at a time
_STATUS = re.compile(
    "(ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): "
)
_KINDS: dict[str, type[Exception]] = {"Failed": Failed, "OSError": OSError, "Exception": Exception}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Cluster(NamedTuple):
    """Where the processes meet: HOST:PORT of the first, their number, the number of this one; all None: JAX finds out.

    A process that has not been heard of for `heartbeat` seconds is lost, and with it all others.
    """

    coordinator: str | None
    processes: int | None
    process_id: int | None
    heartbeat: int


class Lost(Failed):
    """Another process is gone, and this one cannot go on alone."""


def is_loss(error: Exception) -> bool:
    """Whether this is what XLA raises where another process is gone."""
    return jax.process_count() > 1 and bool(_STATUS.match(str(error)))


def connect(cluster: Cluster) -> None:
    """Waits for the other processes.

    Raises:
      ValueError: JAX cannot find out what the cluster is, or the processes do not meet.
    """
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    if cluster.coordinator is not None and cluster.process_id == 0:
        _raise_unless_free(cluster.coordinator)
    try:
        jax.distributed.initialize(
            cluster.coordinator, cluster.processes, cluster.process_id, heartbeat_timeout_seconds=cluster.heartbeat
        )
    except (ValueError, RuntimeError) as error:
        no_cluster = "auto: JAX finds no cluster here; give HOST:PORT, --processes and --process-id"
        raise ValueError(f"--coordinator {cluster.coordinator or no_cluster} ({error})") from error
    finally:
        for each, handler in before.items():  # JAX takes SIGTERM for itself
            signal.signal(each, handler)


def _raise_unless_free(coordinator: str) -> None:
    """Looks before JAX does, which may end in a segmentation fault where it cannot listen."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        what = "process 0 listens at that port of its host, which must be free"
        raise ValueError(f"--coordinator {coordinator}: {error.strerror}; {what}.") from error


def is_first() -> bool:
    """Whether this process does what only one can do: print, write, score."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails in one process fails in all.

    Raises:
      ValueError, OSError, Failed: another process failed, and why.
    """
    try:
        yield
    except Exception as error:
        _say(error=error)
        raise
    _say()


def by_first(function: Callable[[], Any]) -> Any:
    """What the function returns, or raises, in the first process, for all of them; JSON must be able to hold it."""
    if jax.process_count() == 1:
        return function()
    value = None
    if is_first():
        try:
            value = function()
        except Exception as error:
            _say(error=error)
            raise
    return _say(value)[0]


def _say(value: Any = None, error: Exception | None = None) -> list[Any]:
    """The values of all processes; raises what another one raised."""
    if jax.process_count() == 1:
        return [value]
    # What is bad input in the first process, a full disk or a failed run is that in all: it decides the exit code.
    kind = next((name for name, each in _KINDS.items() if isinstance(error, each)), "")
    text = json.dumps([kind, str(error)[: _BYTES // 8] if error else value]).encode()
    if len(text) > _BYTES:
        raise ValueError(f"processes tell each other at most {_BYTES} bytes, got {len(text)}.")
    heard = multihost_utils.process_allgather(np.frombuffer(text.ljust(_BYTES), np.uint8))
    all_said = [json.loads(bytes(each)) for each in np.asarray(heard)]
    for index, (kind, what) in enumerate(all_said):
        if kind and error is None:
            raise (ValueError if kind == "Exception" else _KINDS[kind])(f"process {index}: {what}")
    return [what for _, what in all_said]


class Agreement:
    """The highest of the numbers that the processes say, known to all one call later, so that none waits for it.

    In a single process, at once.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._last: jax.Array | None = None

    def __call__(self, number: int) -> int:
        if jax.process_count() == 1:
            return number
        said = np.full(len(self._place.addressable_devices), number, np.int32)
        last, self._last = self._last, self._highest(jax.make_array_from_process_local_data(self._place, said))
        return 0 if last is None else int(last)
