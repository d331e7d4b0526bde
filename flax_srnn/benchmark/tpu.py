"""What one time step costs on a TPU, by the TPU compiler's own schedule; no TPU is needed.

`compiled` compiles the training program of a case ahead of time, in a process of its own, for one chip of a TPU v5e. libtpu
dumps the final bundles of instructions, one per cycle, and the critical path of every operation; an operation costs the
larger of the two. From the program's text follows which operations stand in which loop.

These are estimates. Waits for memory and the overhead of loops are not in them, and what a block of steps costs beside the
loop over its steps is a lower bound, since loops inside an operation count once. Good for comparing programs, not for times.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax_srnn.benchmark.process import OURS, Case, Contestants, MeasurementError, Model, Record, Shape, label, program

__all__ = ["SHAPES", "Loop", "Program", "compiled", "records"]

SHAPES: tuple[Shape, ...] = (
    (32, 1024, 128, 256),
    (8, 1024, 128, 256),
    (1, 4096, 8, 128),
    (4, 2048, 32, 64),
    (256, 128, 64, 128),
    (128, 512, 256, 512),
    (64, 4096, 128, 256),
    (16, 1024, 64, 128),
)
TOPOLOGY = "v5e:2x2"


class Loop(NamedTuple):
    """A loop of a compiled program.

    Attributes:
      name: of its body, as in the program's text.
      trips: how often it runs; None where the text does not say.
      depth: in how many loops it stands.
      innermost: whether no loop stands in it: it is a loop over steps, the others are over blocks of steps.
      cycles: of one trip, without the loops that stand in it.
      transfers: in one trip, between the chip's memory and that beside it, which the operations around it wait for.
    """

    name: str
    trips: int | None
    depth: int
    innermost: bool
    cycles: int
    transfers: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A program compiled for a TPU: its text, its temporary memory in bytes, and its loops in the order of the text."""

    text: str
    temporary: int
    loops: tuple[Loop, ...]

    @property
    def cycles(self) -> float:
        """Of one time step, forward and backward: each loop over steps, and each block's work divided by its steps."""
        total = 0.0
        for place, loop in enumerate(self.loops):
            steps = 1
            if not loop.innermost:
                inside = self.loops[place + 1 : place + 1 + self._within(place)]
                steps = sum(inner.trips or 1 for inner in inside if inner.depth == loop.depth + 1)
            total += loop.cycles / steps
        return total

    @property
    def transfers(self) -> int:
        """In the loops over steps."""
        return sum(loop.transfers for loop in self.loops if loop.innermost)

    def _within(self, place: int) -> int:
        after = self.loops[place + 1 :]
        return next((count for count, loop in enumerate(after) if loop.depth <= self.loops[place].depth), len(after))


def records(shapes: Sequence[Shape], peers: Sequence[str]) -> Iterator[Record]:
    """Cycles of a step and temporary memory, of this library and flax.linen in both layouts of time, in two dtypes."""
    contestants = [name for name in (OURS, "flax.linen") if name == OURS or name in peers]
    for dtype in ("float32", "bfloat16"):
        for shape in shapes:
            programs = {
                f"{name}{', time-major' if time_major else ''}": compiled(
                    Case(shape, dtype=dtype, time_major=time_major), name
                )
                for name in contestants
                for time_major in (False, True)
            }
            counts: dict[str, tuple[str, Callable[[Program], float]]] = {
                "a time step of training on a TPU": ("cycles", lambda p: p.cycles),
                "temporary memory of training on a TPU": ("MiB", lambda p: p.temporary / 2**20),
                "transfers in loops over steps on a TPU": ("number", lambda p: p.transfers),
            }
            for what, (unit, count) in counts.items():
                values = {name: [float(count(program))] for name, program in programs.items()}
                yield Record(f"{what}, {dtype}", label(shape), unit, values)


def compiled(case: Case, contestant: str) -> Program:
    """The training program of a case, compiled for a TPU.

    Raises:
      MeasurementError: it cannot be compiled; the compiler's message is in it.
    """
    with tempfile.TemporaryDirectory() as dump:
        environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_TRACEBACK_FILTERING": "off",
            "KERAS_BACKEND": "jax",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true",
        }
        code = "import sys; from flax_srnn.benchmark import tpu; tpu._compile(*sys.argv[1:])"
        command = [sys.executable, "-c", code, json.dumps(case._asdict()), contestant]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise MeasurementError(f"{contestant} at {label(case.shape)} was not compiled for a TPU: {reason}")
        answer = json.loads(done.stdout.splitlines()[-1])
        return Program(answer["text"], answer["temporary"], tuple(_loops(answer["text"], Path(dump))))


def _compile(request: str, contestant: str) -> None:
    """In the process of one program: compiles it and prints what `compiled` reads."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from flax_srnn.benchmark.peers import CONTESTANTS

    case = Case(**json.loads(request))
    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices[0]
    batch, steps, features, units = case.shape

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, case.dtype, sharding=SingleDeviceSharding(device))

    def sequence(width: int) -> Any:
        return array(steps, batch, width) if case.time_major else array(batch, steps, width)

    params = [{"kernel": array(features, units), "recurrent_kernel": array(units, units), "bias": array(units)}]
    contestants: Contestants = CONTESTANTS
    model: Model = contestants[contestant](case)
    arrays = (params, sequence(features), None, None, sequence(units))
    done = jax.jit(program(model, train=True)).lower(*arrays).compile()
    usage: Any = done.memory_analysis()
    print(json.dumps({"text": done.as_text(), "temporary": usage.temp_size_in_bytes}))


# --- the compiler's dump -----------------------------------------------------------------------------------------------


def _loops(text: str, dump: Path) -> Iterator[Loop]:
    """The loops of a program's text, with what the dump says about their operations."""
    cycles, transfers = _operations(dump)
    bodies, entry = _computations(text)

    def inside(name: str, depth: int) -> tuple[int, int, list[Loop]]:
        """Own cycles, own transfers, and the loops in a computation, each before those that stand in it."""
        own = moved = 0
        loops: list[Loop] = []
        for line in bodies[name]:
            operation = re.match(r"^\s+(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(", line)
            if operation is None:
                continue
            own += cycles.get(operation[1], 0)
            moved += transfers.get(operation[1], 0)
            if operation[2] == "while":
                body = _named(line, "body")
                its, its_transfers, its_loops = inside(body, depth + 1)
                loops += [Loop(body, _trips(line, bodies), depth, not its_loops, its, its_transfers), *its_loops]
        return own, moved, loops

    yield from inside(entry, 0)[2]


def _operations(dump: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Cycles and transfers of every operation that the compiler scheduled."""
    cycles: dict[str, int] = {}
    transfers: dict[str, int] = {}
    for path in dump.glob("*-final_bundles.txt"):
        match = re.fullmatch(r"\d+-(.*)-\d+-final_bundles.txt", path.name)
        if match and "schedule-analysis" not in path.name:
            bundles = path.read_text()
            cycles[match[1]] = len(re.findall(r"^\s+(?:0x[0-9a-f]+|0)\s+[A-Z ,:]*:", bundles, re.MULTILINE))
            transfers[match[1]] = len(re.findall(r"= dma\.(?:hbm_to_vmem|vmem_to_hbm|hbm_to_hbm)", bundles))
    for path in dump.glob("*-critical-path.txt"):
        match = re.fullmatch(r"\d+-(.*)-\d+-critical-path.txt", path.name)
        if match and match[1] in cycles:
            blocks = path.read_text().split("New basic block")
            lengths = [max(map(int, re.findall(r"Length to end: (\d+)", block)), default=0) for block in blocks]
            cycles[match[1]] = max(cycles[match[1]], sum(lengths))
    return cycles, transfers


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation of a program's text, and the name of the one that it starts with."""
    bodies: dict[str, list[str]] = {}
    entry, name = "", None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line)
        if head:
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif line.startswith("}"):
            name = None
        elif name is not None:
            bodies[name].append(line)
    return bodies, entry


def _trips(line: str, bodies: dict[str, list[str]]) -> int | None:
    """How often a loop runs: what the compiler knows, or the largest number that its condition compares with."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = "\n".join(bodies[_named(line, "condition")])
    return max(map(int, re.findall(r"s32\[\][^=\n]* constant\((\d+)\)", condition)), default=None)


def _named(line: str, what: str) -> str:
    found = re.search(rf"{what}=%?([\w.\-]+)", line)
    if found is None:
        raise MeasurementError(f"no {what} in the compiler's text: {line.strip()[:200]}")
    return found[1]
