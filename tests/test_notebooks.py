"""The notebooks, as somebody opens them who has nothing but a kernel: the first cell brings the rest.

The test marked slow makes a virtual environment for each notebook, so that none finds what another one installed. It needs the
network: pip fetches JAX and the rest from the package index, or from its cache.
"""

import ast
import importlib.metadata
import importlib.util
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib.machinery import PathFinder

import jax
import jaxlib
import nbclient
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = pathlib.Path(__file__).parent.parent
NEEDS = {
    "01_quickstart": ("flax-srnn", "matplotlib"),
    "02_training": ("flax-srnn[train]",),
    "03_long_sequences": ("flax-srnn", "matplotlib"),
    "04_from_keras_and_torch": ("flax-srnn[interop]", "keras", "flatbuffers"),
}
"""What each first cell asks pip for: the library, and others."""
BROUGHT = {"IPython", "jax", "flax", "optax", "numpy"}
"""What comes with the kernel and with the library."""
OPTIONAL = {"torch"}
ADDRESS = "git+https://example.org/library"
FIND_SPEC = importlib.util.find_spec

each_notebook = pytest.mark.parametrize("name", NEEDS)


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(name):
    return [cell.source for cell in read(name).cells if cell.cell_type == "code"]


def run_first_cell(name, pip, source="", install=lambda: None):
    """The names that the first cell defines; the lines that it would give to pip are appended to `pip`, and `install` is called."""

    class Shell:
        def run_line_magic(self, magic, line):
            assert magic == "pip"
            pip.append(shlex.split(line.format(**names)))
            install()

    cell = code_cells(name)[0]
    assert 'SOURCE = ""' in cell
    names = {"get_ipython": Shell}
    exec(TransformerManager().transform_cell(cell.replace('SOURCE = ""', f'SOURCE = "{source}"')), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the notebook lies; nothing else can be imported."""
    folder = tmp_path / "my notebooks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: PathFinder.find_spec(module, [str(folder)]))
    return folder


def project(folder, name):
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    return folder


@each_notebook
def test_with_nothing_beside_it_the_first_cell_says_what_to_do_and_asks_pip_for_nothing(name, folder):
    project(folder / "flax_srnn", "flax-srnn-native")  # Python takes any folder for a package of its name
    project(folder.parent, "another")
    (folder / "flax_srnn-0.1.0-py3-none-any (1).whl").touch()  # a browser's second download, whose name pip refuses
    pip, here = [], re.escape(str(folder))
    with pytest.raises(
        SystemExit, match=rf"^Missing: flax_srnn.* no wheel .* no clone .* {here}\. .*Files.*!git clone.*SOURCE above"
    ):
        run_first_cell(name, pip)
    assert pip == []


@each_notebook
def test_the_library_comes_from_the_address_or_path_a_wheel_or_a_clone_in_this_order(name, folder, monkeypatch):
    library, *others = NEEDS[name]
    pip = []

    def install_from(source=""):
        with monkeypatch.context() as patch:
            run_first_cell(name, pip, source, lambda: patch.setattr(importlib.util, "find_spec", FIND_SPEC))

    places = [
        project(folder.parent, "flax-srnn"),
        project(folder / "flax_srnn", "flax-srnn"),
        folder / "flax_srnn-0.1.0-py3-none-any.whl",
    ]
    places[-1].touch()
    for source in (ADDRESS, str(places[0]), "flax_srnn", ""):
        install_from(source)
    for place in reversed(places[1:]):
        place.rename(folder.parent / f"gone-{place.name}")
        install_from()
    sources = [ADDRESS, *(place.as_uri() for place in (*places[:2], *reversed(places)))]
    assert pip == [["install", "-q", f"{library} @ {source}", *others] for source in sources]


@each_notebook
def test_the_first_cell_installs_where_any_module_is_missing_and_else_nothing(name, monkeypatch):
    pip, lost = [], []
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module not in lost and FIND_SPEC(module))
    modules = run_first_cell(name, pip, ADDRESS)["MODULES"]
    assert pip == []
    for module in modules:
        lost.append(module)
        run_first_cell(name, pip, ADDRESS, lost.clear)
    assert len(pip) == len(modules)


def test_the_first_cell_says_so_when_pip_failed_and_when_it_replaced_what_is_imported(monkeypatch):
    lost = ["flax_srnn"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module not in lost and FIND_SPEC(module))
    with pytest.raises(SystemExit, match=r"installation failed, see above\. Missing: flax_srnn\."):
        run_first_cell("01_quickstart", [], ADDRESS)

    version = importlib.metadata.version
    monkeypatch.delitem(sys.modules, "flax", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version(name) if name == "numpy" else "99.0")
    changed = re.escape(
        f"imported: jax from {jax.__version__} to 99.0, jaxlib from {jaxlib.__version__} to 99.0. Runtime > Restart"
    )
    with pytest.raises(SystemExit, match=changed):
        run_first_cell("01_quickstart", [], ADDRESS, lost.clear)


@each_notebook
def test_the_first_cell_looks_for_what_the_others_import_and_they_install_nothing(name):
    others = code_cells(name)[1:]
    imported = set()
    for node in ast.walk(ast.parse("\n".join(others))):  # an error where one has a magic such as %pip
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    imported = {module.partition(".")[0] for module in imported} - sys.stdlib_module_names
    assert imported - BROUGHT - OPTIONAL <= set(run_first_cell(name, [])["MODULES"])


def test_first_cells_differ_in_what_is_needed_only():
    assert sorted(NEEDS) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert len({re.sub(r"(?m)^MODULES, .*$", "", code_cells(name)[0]) for name in NEEDS}) == 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    (wheel,) = folder.iterdir()
    return wheel


@pytest.mark.slow
# The kernel's own start-up warns of transports and loops that are not ours to choose.
@pytest.mark.filterwarnings("default")
@each_notebook
def test_runs_from_the_first_cell_to_the_last_where_only_a_wheel_lies_beside_it(name, wheel, monkeypatch):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (ipykernel,) = (each for each in extras["test"] if each.startswith("ipykernel"))
    for setting in ("PYTHONPATH", "XLA_FLAGS", "KERAS_BACKEND"):  # the reader has none of the tests' settings
        monkeypatch.delenv(setting, raising=False)
    with tempfile.TemporaryDirectory() as folder:  # a gigabyte, which pytest would keep
        environment, beside = pathlib.Path(folder, "environment").resolve(), pathlib.Path(folder, "beside")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        python = str(environment / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "-q", ipykernel], check=True)
        kernel = pathlib.Path(folder, "kernels", "fresh", "kernel.json")
        kernel.parent.mkdir(parents=True)
        command = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel.write_text(json.dumps({"argv": command, "display_name": "fresh", "language": "python"}))
        monkeypatch.setenv("JUPYTER_PATH", folder)
        beside.mkdir()
        shutil.copy(wheel, beside)

        notebook = read(name)
        asking = nbformat.v4.new_code_cell("import flax_srnn\nprint(flax_srnn.__file__)")
        notebook.cells.append(asking)
        nbclient.NotebookClient(
            notebook, timeout=600, kernel_name="fresh", resources={"metadata": {"path": str(beside)}}
        ).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert pathlib.Path(asking.outputs[0].text.strip()).is_relative_to(environment)
