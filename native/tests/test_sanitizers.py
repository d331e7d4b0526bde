"""The driver of the kernels, plain and under sanitizers; and, with `pytest -m faults`, that each of these notices faults put in
on purpose: two minutes, by hand, as the main suite's mutations are. That the faults still fit is checked every time."""

import contextlib
import functools
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[1]
builds = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("c++")), reason="no CMake or no C++ compiler here"
)
PLAIN, THREAD, ADDRESS = "", "thread", "address,undefined"
OPTIMIZED = {PLAIN: "-O1", THREAD: "-O2", ADDRESS: "-O1"}
"""With what compiling and running take the least time together."""
ENVIRONMENT = os.environ | {
    "TSAN_OPTIONS": "halt_on_error=1",
    "ASAN_OPTIONS": "detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
ORDERS = {name: f"std::memory_order_{name.lower()}" for name in ("ACQUIRE", "RELEASE", "RELAXED")}
FAULTS = [
    # sanitizer, file, what stands there, what is put in its place, what is then said
    (PLAIN, "backward.h", "q *= load(p.dropout_mask + at, n);", "", "FAILED: .* off by"),
    (PLAIN, "forward.h", "if (!p.used(r, t)) {", "if (false) {", "FAILED: ∂W off by nan"),
    (PLAIN, "backward.h", "column, q, p.units - column);", "column, q);", "FAILED: written outside ∂h_0"),
    (
        PLAIN,
        "recurrence.cc",
        "// Of each copy, the sum over its blocks of rows",
        "if (job.copies == 1 && std::rand() % 2) std::reverse(passes.begin(), passes.end());\n//",
        "FAILED: other bits",
    ),
    (PLAIN, "recurrence.cc", "work < pool.small", "true", "FAILED: .*: no thread was asked for help"),
    (THREAD, "threads.h", "claims->next.fetch_add(1)", "(claims->next = claims->next + 1) - 1", "data race|FAILED"),
    (THREAD, "threads.h", "done.fetch_add(1, RELEASE)", "done.fetch_add(1, RELAXED)", "data race"),
    (THREAD, "threads.h", "held_.exchange(true, ACQUIRE)", "held_.load()", "data race|FAILED"),
    (THREAD, "threads.h", "done_.store(i + 1, RELEASE)", "done_.store(i + 1, RELAXED)", "data race"),
    (THREAD, "recurrence.cc", "taken.store(c + 1, RELEASE)", "taken.store(c + 1, RELAXED)", "data race"),
    (THREAD, "recurrence.cc", "made.store(c + 1, RELEASE)", "made.store(c + 1, RELAXED)", "data race"),
    (ADDRESS, "threads.h", "[claims, n, &work]", "[&claims, n, &work]", "stack-use-after-"),
    (ADDRESS, "forward.h", "load(p.bias + column, n)", "load(p.bias + column)", "heap-buffer-overflow"),
    (ADDRESS, "product.h", "if (!M || !B.N) return;", "", "runtime error: index -1 out of bounds"),
]


class Sources:
    """A copy of the C++ sources, to be edited, and what is built of it."""

    def __init__(self, folder, sanitizer, optimized):
        self.folder, self.build = folder, folder / "build"
        shutil.copytree(NATIVE / "src", folder / "src")
        shutil.copytree(NATIVE / "tests", folder / "tests")
        shutil.copy(NATIVE / "CMakeLists.txt", folder)
        flags = [f"-DSANITIZE={sanitizer}", f"-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-g {optimized}"]
        run("cmake", "-S", folder, "-B", self.build, "-DDRIVER=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", *flags)

    def make(self, *targets):
        run("cmake", "--build", self.build, "--parallel", "2", "--target", *targets)

    def drive(self):
        """How the driver ends, and what it says."""
        self.make("driver")
        ran = finished(self.build / "driver")
        if "unexpected memory mapping" in ran.stdout:  # addresses too random for older thread sanitizers
            ran = finished("setarch", "-R", self.build / "driver")
        return ran.returncode, ran.stdout

    @contextlib.contextmanager
    def edited(self, name, old, new):
        path = self.folder / "src" / name
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(old, new), encoding="utf-8")
        yield
        path.write_text(text, encoding="utf-8")


def finished(*command):
    return subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=ENVIRONMENT,
        timeout=600,
    )


def run(*command):
    ran = finished(*command)
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The sources for a sanitizer, built once."""

    @functools.cache
    def of(sanitizer):
        return Sources(tmp_path_factory.mktemp("sources"), sanitizer, OPTIMIZED[sanitizer])

    return of


@builds
@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", OPTIMIZED)
def test_the_driver_finds_nothing_wrong(sources, sanitizer):
    code, said = sources(sanitizer).drive()
    assert code == 0, said
    solved = dict(re.findall(r"^(\w+): (\d+) problems, worst error [\d.e-]+$", said, re.MULTILINE))
    assert solved.keys() == {"smallest", "options", "pipelined", "divided", "random"}, said
    assert sum(map(int, solved.values())) >= 500, said
    assert "at once: 3 problems, 120 calls each from 8 threads at once, the same bits\n" in said
    print(said)


def written_out(text):
    for short, order in ORDERS.items():
        text = text.replace(short, order)
    return text


@pytest.mark.parametrize(("name", "old"), [fault[1:3] for fault in FAULTS])
def test_a_fault_fits(name, old):
    assert (NATIVE / "src" / name).read_text(encoding="utf-8").count(written_out(old)) == 1


@builds
@pytest.mark.faults
@pytest.mark.parametrize(("sanitizer", "name", "old", "new", "expected"), FAULTS)
def test_a_fault_is_noticed(sources, sanitizer, name, old, new, expected):
    with sources(sanitizer).edited(name, written_out(old), written_out(new)):
        code, said = sources(sanitizer).drive()
    assert code != 0
    assert re.search(expected, said), said


@builds
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="code of one instruction set only")
@pytest.mark.parametrize("optimized", ["-O0", "-O3"])
def test_code_of_an_instruction_set_shares_no_function(tmp_path, optimized):
    """Of a function that two objects have, the linker takes either, also the one that not every processor runs."""
    sources = Sources(tmp_path, PLAIN, optimized)
    sources.make("avx2", "avx512")
    for name in ("avx2", "avx512"):
        (built,) = sources.build.glob(f"CMakeFiles/{name}.dir/**/*.o")
        listed = run("nm", "--demangle", "--defined-only", "--extern-only", built)
        assert [line.split()[-1] for line in listed.splitlines()] == [f"srnn::{name}"]
