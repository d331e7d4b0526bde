"""The house: imports point downwards only, `import flax_srnn` is light, every public symbol is documented with an example."""

import ast
import doctest
import graphlib
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import pytest
from flax import nnx

import flax_srnn

HOUSE = Path(flax_srnn.__file__).parent
FILES = {
    ".".join(("flax_srnn", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(HOUSE.rglob("*.py"))
}
# From the ground up. A module may import what stands on a lower floor; a package of the rim also its own modules.
FLOORS = [
    {"validation", "atomic"},
    {"lookup", "dtypes", "forward_mode", "varying"},
    {"activations", "initializers", "regularizers", "constraints"},
    {"cell"},
    {"loops"},
    {"recurrence"},
    {"chunked"},
    {"sequence", "states"},
    {"options", "truncated"},
    {"forward"},
    {"linen_cells", "nnx_cells"},
    {"layers", "nnx"},
    {"optim"},
    {""},  # the package itself: the public names
    {"interop", "training", "benchmark"},
    {"__main__"},
]
RIM = {"interop", "training", "benchmark"}
CORE = set().union(*FLOORS[: FLOORS.index({"linen_cells", "nnx_cells"})])
HEAVY = ("keras", "tensorflow", "torch", "h5py", "matplotlib", "haiku", "chex")


def house_name(module):
    """'cell' of 'flax_srnn.cell', 'interop' of 'flax_srnn.interop.keras', '' of the package."""
    return [*module.split("."), ""][1]


def floor(module):
    return next((i for i, names in enumerate(FLOORS) if house_name(module) in names), None)


def for_types_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imported(tree):
    """All modules that a file imports, inside its functions too, but not those for type checkers only."""
    found = set()
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names} if node.module else names
        if not for_types_only(node):
            todo.extend(ast.iter_child_nodes(node))
    return found


IMPORTS = {module: imported(ast.parse(path.read_text())) for module, path in FILES.items()}
OURS = {module: {name for name in names if name in FILES} for module, names in IMPORTS.items()}


def test_every_module_has_its_floor():
    assert [module for module in FILES if floor(module) is None] == []


@pytest.mark.parametrize("module", FILES)
def test_imports_point_downwards(module):
    for other in OURS[module]:
        same_package = house_name(module) == house_name(other) and house_name(module) in RIM
        assert same_package or floor(other) < floor(module), f"{module} must not import {other}"


def test_no_circles():
    list(graphlib.TopologicalSorter(OURS).static_order())


def test_linen_and_nnx_do_not_know_each_other():
    for module in ("flax_srnn.linen_cells", "flax_srnn.layers", "flax_srnn.optim"):
        assert not any("nnx" in name for name in IMPORTS[module])
    for module in ("flax_srnn.nnx_cells", "flax_srnn.nnx"):
        assert not {name for name in IMPORTS[module] if "linen" in name or name == "flax_srnn.layers"}
    for name in CORE:
        text = FILES[f"flax_srnn.{name}"].read_text()
        assert not re.search(r"^\s*(from|import) .*\b(linen|nnx)\b", text, re.MULTILINE), name


def test_layers_contain_no_loop():
    for name in ("layers", "nnx"):
        tree = ast.parse(FILES[f"flax_srnn.{name}"].read_text())
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not {call for call in called if re.search(r"\b(scan|while_loop|fori_loop|dot|matmul|einsum)$", call)}


def test_the_package_holds_the_public_names_and_nothing_else():
    tree = ast.parse(FILES["flax_srnn"].read_text())
    docstring, *rest = tree.body
    assert ast.get_docstring(tree)
    for node in rest:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names)
        else:
            assert isinstance(node, ast.Assign)
            assert ast.unparse(node.targets[0]) == "__version__"
    assert isinstance(docstring, ast.Expr)
    assert flax_srnn.__version__ == importlib.metadata.version("flax-srnn")
    assert (HOUSE / "py.typed").exists()


# --- what is imported --------------------------------------------------------------------------------------------------


def python(program):
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.split()


def test_import_brings_in_jax_flax_and_optax_only():
    new = python(
        "import sys, jax, flax.linen, optax; before = set(sys.modules); import flax_srnn;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names));"
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith('flax_srnn.')))"
    )
    packages = [name for name in new if "." not in name]
    assert packages == ["flax_srnn"]
    rim = {name for name in new if house_name(name) in RIM | {"__main__", "nnx", "nnx_cells"}}
    assert not rim, "the core imports no feature at the rim"


def test_heavy_packages_wait_until_they_are_needed():
    """Every module of the library can be imported without them, but for the one that draws."""
    modules = [module for module in FILES if module not in ("flax_srnn.training.plots", "flax_srnn.__main__")]
    loaded = python(
        "import sys\n"
        f"for module in {modules!r} + ['flax_srnn.__main__']: __import__(module)\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    assert loaded == []


# --- documentation -----------------------------------------------------------------------------------------------------


def public(module):
    """(name, object) of the functions and classes that a module has for its users."""
    for name, thing in vars(importlib.import_module(module)).items():
        for_users = not name.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing))
        if for_users and (module == "flax_srnn" or thing.__module__.startswith(module)):
            yield name, thing


def documented_modules():
    yield "flax_srnn"
    for name in ("activations", "initializers", "regularizers", "constraints", "nnx"):
        yield f"flax_srnn.{name}"
    for found in pkgutil.iter_modules([str(HOUSE / "interop")]):
        if not found.name.startswith("_"):
            yield f"flax_srnn.interop.{found.name}"


SYMBOLS = [
    pytest.param(thing, id=f"{module.removeprefix('flax_srnn.')}.{name}")
    for module in documented_modules()
    for name, thing in public(module)
]
TOP = [param for param in SYMBOLS if param.id.startswith("flax_srnn.")]


# Where "as of" in the documentation of a layer leads, and of its NNX twin.
TWINS = {
    "SimpleRNNCell": ["SimpleRNNCell"],
    "SimpleRNN": ["SimpleRNN", "SimpleRNNCell", "simple_rnn"],
    "RNN": ["RNN", "SimpleRNN", "simple_rnn"],
    "StackedRNNCells": ["StackedRNNCells"],
    "Bidirectional": ["Bidirectional"],
}


def explanations(thing):
    """Its own documentation, that of its bases, and where they lead."""
    bases = inspect.getmro(thing)[1:] if inspect.isclass(thing) else ()
    twins = [getattr(flax_srnn, name) for name in TWINS.get(thing.__name__, ())]
    documented = [thing, *twins, *(base for base in bases if base.__module__.startswith("flax_srnn"))]
    return "\n".join(inspect.getdoc(it) or "" for it in documented)


def says_it_all(thing):
    """Of a function of one array, its formula on one line; of a kind of variable, its one line."""
    one_line = "\n" not in inspect.getdoc(thing)
    is_function = inspect.isfunction(thing) and len(inspect.signature(thing).parameters) == 1
    return one_line and (is_function or (inspect.isclass(thing) and issubclass(thing, nnx.Variable)))


@pytest.mark.parametrize("thing", SYMBOLS)
def test_public_symbol_is_documented_with_an_example(thing):
    assert thing.__doc__, "a docstring"
    assert not inspect.isclass(thing) or "__doc__" in vars(thing), "of its own"
    text = inspect.getdoc(thing)
    first = text.split("\n\n")[0]
    assert "\n" not in first, "one line says what it is"
    assert first.endswith((".", "::")), first
    assert doctest.DocTestParser().get_examples(text) or says_it_all(thing), "an example that runs"


@pytest.mark.parametrize("thing", [param for param in SYMBOLS if not says_it_all(*param.values)])
def test_every_argument_is_explained(thing):
    """An `identifier`, and the `argument` by which messages call it, are explained at `get`."""
    text = explanations(thing)
    # Linen modules have these two from Flax.
    known = ("parent", "name") if inspect.isclass(thing) and issubclass(thing, nn.Module) else ()
    elsewhere = {"args", "kwargs", *known} | ({"identifier", "argument"} if thing.__name__ != "get" else set())
    names = [name for name in inspect.signature(thing).parameters if name not in elsewhere]
    assert len(names) < 2 or "Args:" in text
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("thing", TOP)
def test_top_level_symbol_says_what_it_raises_and_takes(thing):
    text = inspect.getdoc(thing)
    assert "Raises:" in text
    assert "Args:" in text


# --- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", FILES)
def test_file_can_be_held_in_the_head(module):
    text = FILES[module].read_text()
    assert text.count("\n") <= 500
    assert ast.get_docstring(ast.parse(text)), "a file says what it is"
    unfinished = re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)
    assert unfinished is None, unfinished


@pytest.mark.parametrize("module", FILES)
def test_no_asserts_as_validation_and_no_swallowed_errors(module):
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
            assert not all(isinstance(line, ast.Pass) for line in node.body), (
                f"line {node.lineno}: an error is swallowed"
            )


def test_cell_is_the_small_heart():
    assert FILES["flax_srnn.cell"].read_text().count("\n") <= 200
