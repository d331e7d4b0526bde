"""Session settings: Keras on the JAX backend, eight virtual CPU devices, strict JAX.

Unless XLA_FLAGS says otherwise, LLVM optimises little: most of the time goes into compiling programs that run once.
"""

import gc
import itertools
import os
import sys
import tempfile
import textwrap

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest
from fixtures import worst, x64  # noqa: F401  # fixtures
from strangers import genuine, inside, members, nothing_is_written_and_nothing_hangs, recorded  # noqa: F401  # fixtures

jax.config.update("jax_numpy_rank_promotion", "raise")
# What several files compile alike, mostly single operations on small arrays, each process compiles once in a session.
_compiled = tempfile.TemporaryDirectory(prefix="flax-srnn-tests-")
jax.config.update("jax_compilation_cache_dir", _compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

PARITY = "keras parity"
collect_ignore = ["typed"]  # read by type checkers, never run


@pytest.fixture(autouse=True, scope="module")
def caches():
    """What was compiled for one file is of no use to the next; kept, it is gigabytes for the garbage collector to go through."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a package with an implementation, here and in new processes: a module NAME_module."""
    modules = []

    def installed(distribution, name, kind, code):
        modules.append(f"{name}_module")
        folder = tmp_path / f"{distribution}-site"
        about = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        about.mkdir(parents=True)
        (folder / f"{modules[-1]}.py").write_text(textwrap.dedent(code))
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[flax_srnn.implementations]\n{name} = {modules[-1]}:{kind}\n")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)

    yield installed
    for module in modules:
        sys.modules.pop(module, None)


QUICK = ("test_house", "test_simple_rnn", "test_bad_input", "test_implementations", "test_pages", "test_mutations")
"""The files of `pytest -m quick`: the order of the house, the oracle, and what is refused."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in QUICK:
            item.add_marker("quick")


def pytest_terminal_summary(terminalreporter, config):
    """What was left out; and on the parity with Keras, how many configurations, and the worst errors."""
    if config.option.markexpr == "not slow":
        terminalreporter.write_line(
            "Left out: what is marked slow (`pytest -m slow` runs it, `pytest -m ''` runs all)."
        )
    reports = itertools.chain.from_iterable(terminalreporter.stats.values())
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    errors = [value for report in calls for name, value in report.user_properties if name == PARITY]
    if errors:
        outputs, gradients = map(max, zip(*errors, strict=True))
        terminalreporter.write_line(
            f"{PARITY}: {len(errors)} configurations, worst output error {outputs:.1e}, "
            f"worst gradient error {gradients:.1e}"
        )
