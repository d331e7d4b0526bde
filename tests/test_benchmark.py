"""The benchmark: its statistics on known numbers, its check of the peers, its command line."""

import argparse
import contextlib
import dataclasses
import json
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

from flax_srnn import activations, benchmark
from flax_srnn.__main__ import main
from flax_srnn.benchmark import gpu, native, process
from flax_srnn.benchmark.peers import CONTESTANTS
from flax_srnn.benchmark.process import Case, Record
from flax_srnn.core import implementations


class TestAgreement:
    ours = (np.random.default_rng(0).standard_normal((40, 30)), np.zeros(3), np.ones((5, 2)))

    @pytest.mark.parametrize(
        "theirs",
        [
            (ours[0] * 1.01, *ours[1:]),
            (ours[0].reshape(30, 40).T, *ours[1:]),
            (ours[0][::-1], *ours[1:]),
            (ours[0], np.full(3, 1e-6), ours[2]),
            (*ours[:2], np.full((5, 2), np.nan)),
        ],
    )
    def test_other_arrays_are_an_error(self, theirs):
        with pytest.raises(process.MeasurementError, match=r"training, a: keras is .* from flax-srnn"):
            process.check_agreement(
                Record("training", "a", "s", {"flax-srnn": []}, process.fingerprint(self.ours)),
                "keras",
                process.fingerprint(theirs),
            )

    def test_another_norm_is_one_even_where_the_projections_agree(self):
        with pytest.raises(process.MeasurementError, match=r"keras is 1 from flax-srnn"):
            process.check_agreement(
                Record("training", "a", "s", {"flax-srnn": []}, [(0.0, 5.0)]), "keras", [(0.0, 10.0)]
            )

    def test_rounding_is_not(self):
        ours = Record("training", "a", "s", {"flax-srnn": []}, process.fingerprint(self.ours))
        process.check_agreement(ours, "keras", process.fingerprint(a * (1 + 1e-6) for a in self.ours))


def test_the_arrays_of_a_case():
    data = process.problem(Case((3, 8, 2, 5), mask=True, network="bidirectional"))
    assert [p["kernel"].shape for p in data.params] == [(2, 5), (2, 5)]
    assert data.cotangent.shape == (3, 8, 10)
    assert data.mask.dtype == bool
    assert data.mask[:, :4].all()
    assert not data.mask.all()
    stack = process.problem(Case((3, 8, 2, 5), network="stack", last=True))
    assert [p["kernel"].shape for p in stack.params] == [(2, 5), (5, 5), (5, 5)]
    assert stack.cotangent.shape == (3, 5)
    assert {a.dtype for a in (stack.inputs, stack.cotangent, *stack.params[0].values())} == {np.dtype("float32")}


SECTIONS = ["forward", "options", "bfloat16", "chunked", "memory", "length", "compilation", "tuning"]


def small_plan(section, peers=()):
    shapes = [(2, 6, 3, 5)]
    return process.Plan(
        [section],
        peers=peers,
        grid=shapes,
        other=[(1, 5, 2, 3)],
        few=shapes,
        narrow=[(1, 256, 2, 8)],
        quick=False,
        seconds=0.0,
    )


@pytest.mark.parametrize("section", cases.thinned(SECTIONS, 2))
def test_every_section_yields_figures_of_this_library(section, monkeypatch):
    monkeypatch.setattr(activations, "NAMES", ("tanh",))
    records = list(process.SECTIONS[section](small_plan(section), CONTESTANTS))
    assert len({(r.group, r.case) for r in records}) == len(records)
    counts = {
        "forward": 2,
        "options": 4,
        "bfloat16": 2,
        "chunked": 2,
        "length": 4,
        "memory": 2,
        "compilation": 1,
        "tuning": 4,
    }
    assert len(records) == counts[section]
    assert all(len(figures) == 1 and figures[0] > 0 for r in records for figures in r.values.values())


def test_programs_for_a_tpu_need_its_compiler(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "_distributed", lambda name: name != "libtpu")
    assert main(["benchmark", "--sections", "tpu-steps", "--output", str(tmp_path / "new")]) == 2
    assert "tpu-aot" in capsys.readouterr().err


def test_a_rule_that_is_taken_out_is_out():
    case = Case((2, 6, 3, 5))

    def products(case):
        program = jax.jit(process.program(CONTESTANTS[process.OURS](case), train=False))
        return program.lower(*process.problem(case)).as_text().count("dot_general")

    assert (products(case), products(case._replace(tuning=(process.RULES["sums"],)))) == (0, 2)


# --- the native kernel, of which a stand-in is installed ---------------------------------------------------------------

STAND_IN = """
    import dataclasses
    import jax
    from flax_srnn import Scan


    @dataclasses.dataclass(frozen=True)
    class Native(Scan):
        def run(self, problem):
            return jax.tree.map(lambda array: {factor} * array, super().run(problem))
"""


@pytest.fixture
def stand_in(install):
    """Installs it; its results are multiplied by a factor."""
    return lambda factor=1: install("flax-srnn-native", "native", "Native", STAND_IN.format(factor=factor))


def test_the_native_kernel_against_this_library_and_two_peers(stand_in):
    stand_in()
    asked = []
    contestants = {name: lambda case, make=make: asked.append(case) or make(case) for name, make in CONTESTANTS.items()}
    records = list(native.SECTIONS["native"](small_plan("native", ["flax.linen", "flax.nnx"]), contestants))
    assert [(r.group, r.case) for r in records] == [
        (f"{what}, native kernel{shapes}", case)
        for what in ("forward", "training")
        for shapes, case in (("", "2x6x3x5"), (", tiny and odd shapes", "1x5x2x3"))
    ]
    assert all(list(r.values) == ["native", "flax-srnn", "flax.linen"] for r in records)
    assert all(len(figures) == 1 and figures[0] > 0 for r in records for figures in r.values.values())
    assert [case.implementation for case in asked] == ["native", None, None] * 4


def test_a_native_kernel_that_computes_something_else_is_an_error(stand_in):
    stand_in(factor=2)
    with pytest.raises(process.MeasurementError, match=r"forward, native kernel, 2x6x3x5: flax-srnn is .* from native"):
        list(native.SECTIONS["native"](small_plan("native"), CONTESTANTS))


def ticks(pid):
    """The processor time of a process, in ticks of the clock; None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(fields[10])


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


of_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")


def interrupted(records):
    with pytest.raises(KeyboardInterrupt):
        records.throw(KeyboardInterrupt())


@of_linux
@pytest.mark.parametrize("finish", [list, interrupted])
def test_one_core_is_busy_as_long_as_the_section_runs(finish, stand_in, monkeypatch):
    stand_in()
    started = []

    @contextlib.contextmanager
    def watched(start=native.busy_core):
        with start() as spinning:
            started.append(spinning)
            yield

    monkeypatch.setattr(native, "busy_core", watched)
    records = native.SECTIONS["native-busy"](small_plan("native-busy"), CONTESTANTS)
    first = next(records)
    assert (first.group, list(first.values)) == ("forward, native kernel, one core busy", ["native", "flax-srnn"])
    (spinning,) = started
    spent = ticks(spinning.pid)
    wait_until(lambda: ticks(spinning.pid) >= spent + 10)
    finish(records)
    assert ticks(spinning.pid) is None


@of_linux
def test_the_busy_core_is_free_again_when_its_process_was_killed():
    program = (
        "import os, signal, time\n"
        "from flax_srnn.benchmark import native\n"
        "with native.busy_core() as spinning:\n"
        "    print(spinning.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    try:
        wait_until(lambda: ticks(pid) is None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def job(*arguments):
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return benchmark._read(parser.parse_args(["--peers", "flax.linen", "--output", "no-such-folder", *arguments]))


def test_the_native_kernel_is_measured_where_somebody_asks(stand_in):
    stand_in()
    everything, kernel = job(), job("--sections", "native-busy")
    assert [part.plan.sections for part in everything.parts] == [list(process.SECTIONS)]
    assert "flax-srnn-native" not in benchmark._machine(everything)
    assert [part.plan.sections for part in kernel.parts] == [["native-busy"]]
    assert benchmark._machine(kernel)["flax-srnn-native"] == "1.0"


@pytest.mark.parametrize("section", native.SECTIONS)
def test_the_sections_of_the_native_kernel_need_its_package(section, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(implementations, "GROUP", "flax_srnn.of_no_package")
    assert main(["benchmark", "--sections", f"forward,{section}", "--output", str(tmp_path / "new")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(
        f"flax-srnn: error: --sections=forward,{section}: the native kernel is a package of its own"
    )
    assert "`pip install ./native`" in printed
    assert printed.count("\n") == 1


@pytest.mark.slow
def test_measures_the_native_kernel(stand_in, tmp_path):
    stand_in()
    folder = tmp_path / "results"
    arguments = ["--quick", "--sections", "native,native-busy", "--peers", "flax.linen", "--shapes", "2x6x3x5"]
    assert main(["benchmark", *arguments, "--output", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert [(r["group"], r["case"], list(r["values"])) for r in results["records"]] == [
        (f"{what}, native kernel{beside}", "2x6x3x5", ["native", "flax-srnn", "flax.linen"])
        for beside in ("", ", one core busy")
        for what in ("forward", "training")
    ]
    assert results["about"]["flax-srnn-native"] == "1.0"
    assert "### Time of a peer / time of native" in (folder / "results.md").read_text()


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_measures_and_writes_a_new_folder(tmp_path, capsys):
    """All peers in a process of their own; that they compute the same is checked there, before they are timed."""
    pytest.importorskip("keras")
    pytest.importorskip("haiku")
    folder = tmp_path / "results"
    sections = "training,networks"
    peers = "keras,flax.linen,flax.nnx,haiku"
    arguments = ["--quick", "--processes", "1", "--sections", sections, "--peers", peers]
    assert main(["benchmark", *arguments, "--shapes", "2x6x3x5", "--output", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    values = {(r["group"], r["case"]): r["values"] for r in results["records"]}
    assert len(values) == 1 + 3
    assert list(values["training", "2x6x3x5"]) == ["flax-srnn", *peers.split(",")]
    assert all(0 < value < 60 for contestants in values.values() for (value,) in contestants.values())
    assert {"processor", "Python", "jax", "keras", "date", "device"} <= results["about"].keys()
    text = (folder / "results.md").read_text()
    assert "training: worst" in text
    assert "### Training, bidirectional" in text
    assert capsys.readouterr().out.strip() in text
    if (folder / "results.png").exists():
        assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_plan_for_a_gpu(tmp_path, monkeypatch):
    """All of its parts, on a CPU and small."""
    monkeypatch.setattr(benchmark, "_has_gpu", lambda: True)
    monkeypatch.setattr(gpu, "LONG", ((1, 256, 2, 8),))
    # A flag that this platform's XLA knows.
    monkeypatch.setattr(gpu, "CAPTURED", "--xla_cpu_enable_fast_math=false")
    folder = tmp_path / "results"
    arguments = ["--device", "gpu", "--shapes", "2x6x3x5,1x4x2x3", "--peers", "flax.linen,flax.nnx"]
    assert main(["benchmark", *arguments, "--output", str(folder)]) == 0
    assert list(tmp_path.iterdir()) == [folder]
    values = {
        (r["group"], r["case"]): r["values"] for r in json.loads((folder / "results.json").read_text())["records"]
    }
    assert set(values) == {
        *((what, shape) for what in ("training", "forward") for shape in ("2x6x3x5", "1x4x2x3")),
        *((f"{what} in chunks of time", "1x256x2x8") for what in ("training", "forward")),
    }
    names = ["flax-srnn", "flax.linen", "flax.nnx", "flax-srnn, loops as CUDA graphs"]
    assert list(values["training", "2x6x3x5"]) == names
    assert list(values["forward in chunks of time", "1x256x2x8"]) == ["chunked", "scan"]


def test_a_part_stops_at_its_limit_and_leaves_out_what_fails(monkeypatch, capsys):
    contestants = {
        process.OURS: lambda case: None if tuple(case.shape) == (1, 2, 1, 1) else CONTESTANTS[process.OURS](case)
    }
    shapes = [(1, 2, 1, 1), (1, 3, 1, 1), (1, 4, 1, 1)]
    plan = process.Plan(["forward"], [], shapes, [], [], [], quick=False, seconds=0.0, limit=0.0)
    process.process(json.dumps(dataclasses.asdict(plan)), contestants)
    printed = capsys.readouterr()
    record, about = map(json.loads, printed.out.splitlines())
    assert (record["record"]["case"], about["about"]["device"]) == ("1x3x1x1", "CPU")
    assert "left out: forward, 1x2x1x1: " in printed.err
    assert "0 s are over: the rest is left out" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "gpu"], "--device=gpu: JAX finds no GPU here"),
        (["--device", "gpu", "--quick"], "--quick does not go with --device=gpu"),
        (["--device", "gpu", "--sections", "forward"], "--sections does not go with --device=gpu"),
        (["--sections", "trainin"], "Did you mean 'training'"),
        (["--sections", ""], "unknown name ''"),
        (["--peers", "flaxlinen"], "Did you mean 'flax.linen'"),
        (["--processes", "0"], "--processes=0: expected at least 1"),
        (["--processes", "two"], "--processes: invalid int value: 'two'"),
        (["--shapes", "32x100x32"], "'32x100x32' is not four positive sizes"),
        (["--shapes", "32x100x0x4"], "'32x100x0x4' is not four positive sizes"),
        (["--shapes", "1x2x3xfour"], "'1x2x3xfour' is not four positive sizes"),
        (["--torch-python", "/no/such/python"], "'/no/such/python' cannot be run"),
        (["--peers", "torch", "--torch-python", "/bin/false"], "'torch' is not installed"),
        (["--shape", "1x2x3x4"], "unknown argument '--shape'. Did you mean '--shapes'"),
        (["--torch", "/bin/false"], "Did you mean '--torch-python'"),
        (["--output", "."], "exists already"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("flax-srnn: error: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("problem", "code"), [(benchmark.MeasurementError("keras is far off"), 1), (KeyboardInterrupt(), 130)]
)
def test_a_measurement_that_fails_leaves_nothing(problem, code, tmp_path, monkeypatch, capsys):
    def fail(job):
        raise problem

    monkeypatch.setattr(benchmark, "measure", fail)
    assert main(["benchmark", "--output", str(tmp_path / "results")]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert str(problem) in printed.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_that_fails_is_a_measurement_that_failed(tmp_path, capfd):
    failing = tmp_path / "python"
    failing.write_text('#!/bin/sh\ncase "$1" in -c) exit 0;; *) echo no GPU >&2; exit 3;; esac\n')
    failing.chmod(0o755)
    arguments = ["--quick", "--sections", "forward", "--peers", "torch", "--shapes", "1x2x1x1"]
    output = ["--output", str(tmp_path / "results"), "--torch-python", str(failing)]
    assert main(["benchmark", *arguments, *output]) == 1
    printed = capfd.readouterr().err
    kept = tmp_path / "results.records.jsonl"
    assert f"no GPU\nWhat was measured until then is in {kept}\n" in printed
    assert "flax-srnn: error: a measuring process ended with exit status 3" in printed
    assert sorted(tmp_path.iterdir()) == [failing, kept]
    (line,) = kept.read_text().splitlines()
    assert json.loads(line)["group"] == "forward"
    assert main(["benchmark", *arguments, *output]) == 2  # it is not overwritten
    assert "cut short" in capfd.readouterr().err


def test_the_measuring_process_is_a_script_that_needs_only_numpy():
    """PyTorch's Python may have neither JAX nor this package."""
    program = (
        "import runpy, sys\n"
        "sys.modules |= dict.fromkeys(('jax', 'flax', 'flax_srnn'))\n"
        "print(runpy.run_path(sys.argv[1])['problem'])"
    )
    command = [sys.executable, "-c", program, process.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("<function problem"), done.stderr


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "--help"])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(
        word in out
        for word in ("--quick", "--torch-python", *process.SECTIONS, *native.SECTIONS, "tpu-steps", "flax.linen")
    )
