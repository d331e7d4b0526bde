"""`flax-srnn benchmark`: this library and its peers side by side, on one machine, in one run.

Every figure is a ratio: a peer's time over this library's in the same process, on the same arrays. `process` says how it is
measured, `peers` on what, `report` how the figures of several processes become a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flax_srnn import atomic, identifiers
from flax_srnn.benchmark import gpu, native, process, report, tpu
from flax_srnn.benchmark.gpu import Part
from flax_srnn.benchmark.peers import PEERS
from flax_srnn.benchmark.process import GRID, OTHER, MeasurementError, Plan, Record, Shape
from flax_srnn.core.implementations import OPTIONAL
from flax_srnn.exits import wrote

__all__ = ["MeasurementError", "add_arguments", "measure", "run"]

FEW: tuple[Shape, ...] = ((32, 100, 32, 64), (32, 100, 64, 256), (1, 1000, 16, 64), (4, 512, 256, 256))
TPU = "tpu-steps"
"""The section that compiles for a TPU: minutes, and only where its compiler is installed, so never unasked. Nor is the native
kernel, a package of its own."""
FILES = {
    "results.md": "the tables above, and one of every case",
    "results.png": "a picture of them",
    "results.json": "every figure, and the machine",
}
QUICK: tuple[Shape, ...] = ((32, 100, 32, 64), (1, 1000, 16, 64), (256, 28, 28, 128))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command to its parser."""
    sections, peers = ", ".join([*process.SECTIONS, *native.SECTIONS, TPU]), ", ".join(PEERS)
    parser.add_argument(
        "--device", choices=["cpu", "gpu"], default="cpu", help="gpu: its own plan, in under 8 minutes (default: cpu)"
    )
    parser.add_argument("--quick", action="store_true", help="a rough figure: few shapes, one process, under 2 minutes")
    parser.add_argument(
        "--sections",
        metavar="A,B",
        help=f"what to measure, of: {sections} (default: everything but {', '.join([*native.SECTIONS, TPU])})",
    )
    parser.add_argument(
        "--peers", metavar="A,B", help=f"whom to compare with, of: {peers} (default: all that are installed)"
    )
    parser.add_argument("--shapes", metavar="BxTxIxH,...", help="your shapes in place of the table's, e.g. 32x100x8x64")
    parser.add_argument("--processes", type=int, metavar="N", help="repetitions in fresh processes (default: 3)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: benchmark-DATE-TIME)")
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="FILE", help="the Python that has torch (default: this one)"
    )


def run(parsed: argparse.Namespace) -> None:
    """Measures what the command line asks for, prints the summary and writes the new folder, whole or not at all.

    Raises:
      ValueError: the command line makes no sense.
      OSError: the folder cannot be written.
      MeasurementError: a measurement failed.
    """
    job = _read(parsed)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic.unfinished_folder(job.folder) as folder:
        try:
            about, records = measure(job)
        except BaseException:
            if job.kept.exists():
                print(f"What was measured until then is in {job.kept}", file=sys.stderr)
            raise
        text = report.markdown(about, records)
        (folder / "results.md").write_text(text, encoding="utf-8")
        results = {"about": about, "records": [dataclasses.asdict(record) for record in records]}
        (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        if why_not := report.plot(records, folder / "results.png"):
            print(f"{why_not}: no plot.", file=sys.stderr)
        atomic.move_folder(folder, [job.folder])
        job.kept.unlink(missing_ok=True)
    print(text.partition(report.DETAILS)[0])  # Markdown, and nothing else on stdout
    if parsed.quick:
        print("--quick is a rough figure: ratios of one process move by a tenth and more.", file=sys.stderr)
    print(wrote(job.folder, files=FILES), file=sys.stderr)


# --- the command line -------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A command line that has been understood.

    Attributes:
      parts: what is measured, each part in a process of its own, PyTorch apart.
      peers: who is compared with this library.
      tpu_shapes: of the programs for a TPU; none if these are not asked for.
      absent: the peers that are not installed.
      processes: how many.
      torch_python: the interpreter for PyTorch's process.
      folder: for the results; does not exist yet.
      kept: where records are written as they are made, until the folder is.
    """

    parts: Sequence[Part]
    peers: Sequence[str]
    tpu_shapes: Sequence[Shape]
    absent: list[str]
    processes: int
    torch_python: str
    folder: Path
    kept: Path


def _read(arguments: argparse.Namespace) -> Job:
    """Checks everything before anything is measured; ValueError says what is wrong."""
    quick = arguments.quick
    processes = (1 if quick else 3) if arguments.processes is None else arguments.processes
    if processes < 1:
        raise ValueError(f"--processes={processes}: expected at least 1 process.")
    table = process.SECTIONS if arguments.sections is None else {**process.SECTIONS, **native.SECTIONS, TPU: None}
    sections = _names(arguments.sections, table, "--sections")
    wanted = _names(arguments.peers, PEERS, "--peers")
    if TPU in sections and not _distributed("libtpu"):
        raise ValueError(
            f"--sections={arguments.sections}: {TPU!r} needs the TPU's compiler; install 'flax-srnn[tpu-aot]' (Linux, Python "
            "3.12 or newer)."
        )
    if set(native.SECTIONS) & set(sections) and not native.distribution():
        raise ValueError(f"--sections={arguments.sections}: the native kernel is {OPTIONAL[native.NATIVE]}.")
    absent = [peer for peer in wanted if not _installed(peer, arguments.torch_python)]
    if absent and arguments.peers is not None:
        raise ValueError(f"--peers={arguments.peers}: {absent[0]!r} is not installed; install {PEERS[absent[0]]!r}.")
    shapes = None if arguments.shapes is None else [_shape(text) for text in arguments.shapes.split(",")]
    folder = arguments.output or Path(f"benchmark-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    if folder.exists():
        raise ValueError(f"--output={str(folder)!r} exists already; results go to a new folder.")
    kept = folder.with_name(f"{folder.name}.records.jsonl")
    if kept.exists():
        raise ValueError(
            f"{str(kept)!r} has the records of a run that was cut short: move it, or choose another --output."
        )
    peers = [peer for peer in wanted if peer not in absent]
    if arguments.device == "gpu":
        for name in ("sections", "quick", "processes"):
            if getattr(arguments, name):
                raise ValueError(f"--{name} does not go with --device=gpu, which has a plan of its own.")
        if not _has_gpu():
            raise ValueError("--device=gpu: JAX finds no GPU here; install 'jax[cuda12]' where there is one.")
        wanted_there = [peer for peer in peers if peer in ("flax.linen", "flax.nnx", "torch")]
        parts = gpu.parts(wanted_there, shapes or gpu.SHAPES, gpu.LONG)
        return Job(parts, wanted_there, (), absent, 1, arguments.torch_python, folder, kept)
    plan = Plan(
        sections=[section for section in sections if section != TPU],
        peers=peers,
        grid=shapes or (QUICK if quick else GRID),
        other=[] if shapes else OTHER[:1] if quick else OTHER,
        few=shapes or (FEW[:1] if quick else FEW),
        narrow=[process.NARROW],
        quick=quick,
        seconds=0.3 if quick else 2.0,
    )
    tpu_shapes = () if TPU not in sections else shapes or (tpu.SHAPES[:1] if quick else tpu.SHAPES)
    parts = [Part(plan)] if plan.sections else []
    return Job(parts, peers, tpu_shapes, absent, processes, arguments.torch_python, folder, kept)


def _names(text: str | None, table: Mapping[str, object], argument: str) -> list[str]:
    names = list(table) if text is None else text.split(",")
    for name in names:
        identifiers.find(table, name, argument)
    return [name for name in table if name in names]


def _shape(text: str) -> Shape:
    sizes = text.split("x")
    if len(sizes) != 4 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(f"--shapes: {text!r} is not four positive sizes BxTxIxH (batch, time, features, units).")
    batch, steps, features, units = map(int, sizes)
    return batch, steps, features, units


def _has_gpu() -> bool:
    code = "import jax; jax.devices('gpu')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def _distributed(name: str) -> bool:
    return bool(list(importlib.metadata.distributions(name=name)))


def _installed(peer: str, torch_python: str) -> bool:
    if peer != "torch":
        return _distributed(PEERS[peer])
    try:
        found = subprocess.run([torch_python, "-c", "import torch, numpy"], capture_output=True, check=False)
    except OSError as error:
        raise ValueError(f"--torch-python={torch_python!r} cannot be run: {error.strerror}.") from None
    return found.returncode == 0


# --- the processes ----------------------------------------------------------------------------------------------------


def measure(job: Job) -> tuple[dict[str, str], list[Record]]:
    """Runs the parts in fresh processes, one after the other; what they say about the machine, and all figures.

    Every record is written to `job.kept` as it is made: a run that is cut short leaves it.
    """
    about: dict[str, str] = {}
    runs = []
    for number in range(job.processes if job.parts else 0):
        print(f"process {number + 1} of {job.processes}", file=sys.stderr, flush=True)
        for part in job.parts:
            said, records = _process(sys.executable, part, job.kept)
            about |= said
            runs.append(records)
            if "torch" in part.plan.peers and set(process.TORCH_SECTIONS) & set(part.plan.sections):
                device = "cpu" if about["device"] == "CPU" else "cuda"
                plan = dataclasses.replace(part.plan, torch_device=device, limit=part.plan.limit and 60.0)
                said, theirs = _process(job.torch_python, Part(plan), job.kept)
                about |= said
                runs.append(_agreeing(theirs, records, on_gpu=device == "cuda"))
    if job.tpu_shapes:
        print("programs for a TPU", file=sys.stderr, flush=True)
        runs.append(list(tpu.records(job.tpu_shapes, job.peers)))
    return _machine(job) | about, report.merge(runs)


def _agreeing(theirs: Sequence[Record], records: Sequence[Record], on_gpu: bool) -> list[Record]:
    """PyTorch's records of the cases that this library was measured on, checked against it."""
    ours = {(record.group, record.case): record for record in records}
    found = [record for record in theirs if (record.group, record.case) in ours]
    for record in found:
        (name,) = record.values
        process.check_agreement(ours[record.group, record.case], name, record.fingerprint, on_gpu)
    return found


def _process(python: str, part: Part, kept: Path) -> tuple[dict[str, str], list[Record]]:
    request = json.dumps(dataclasses.asdict(part.plan))
    code = (
        "import sys; from flax_srnn.benchmark import native, peers, process;"
        "process.process(sys.argv[1], peers.CONTESTANTS, process.SECTIONS | native.SECTIONS)"
    )
    # PyTorch's Python may lack this package: there the file is a script, and -P keeps its folder out of the import path.
    command = [python, *(["-P", process.__file__] if part.plan.torch_device else ["-c", code]), request]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {part.flags}".strip()
    environment = {**os.environ, "KERAS_BACKEND": "jax", "OMP_WAIT_POLICY": "PASSIVE", "XLA_FLAGS": flags}
    about, records = {}, []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            if not line.startswith("{"):  # a peer said something
                print(line, end="", file=sys.stderr)
                continue
            answer = json.loads(line)
            if "about" in answer:
                about = answer["about"]
            else:
                record = Record(**answer["record"])
                record.values = {f"{name}{part.label}": figures for name, figures in record.values.items()}
                records.append(record)
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(record)) + "\n")
    if running.returncode:
        raise MeasurementError(
            f"a measuring process ended with exit status {running.returncode}; its message is above."
        )
    return about, records


def _machine(job: Job) -> dict[str, str]:
    """What a reader must know beside the figures."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    distributions = {"flax-srnn", "jax", "jaxlib", "flax", *(PEERS[peer] for peer in job.peers if peer != "torch")}
    versions = {name: importlib.metadata.version(name) for name in distributions}
    kernel = native.distribution()
    if kernel and any(set(native.SECTIONS) & set(part.plan.sections) for part in job.parts):
        versions |= {kernel.name: kernel.version}
    return {
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "processor": f"{model}, {len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "processes": str(job.processes),
        "not installed": ", ".join(job.absent) or "none",
        "Python": platform.python_version(),
        **dict(sorted(versions.items())),
    }
