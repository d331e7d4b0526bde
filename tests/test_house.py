"""The house: imports point downwards only, `import flax_srnn` is light, every public symbol is documented with an example."""

import ast
import dataclasses
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
from flax_srnn import simple_rnn
from flax_srnn.core import sequence
from flax_srnn.layers import options

HOUSE = Path(flax_srnn.__file__).parent
FILES = {
    ".".join(("flax_srnn", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(HOUSE.rglob("*.py"))
}
# From the ground up: files that stand alone, and rooms, which are folders. What lies on a floor may import what lies on a
# lower one, and a file of a room its own room's files, without circles.
FLOORS = [
    {"validation", "atomic", "exits"},
    {"identifiers", "dtypes", "worker"},
    {"activations", "initializers", "regularizers", "constraints"},
    {"core"},
    {"chunked", "truncated"},
    {"layers"},
    {"linen", "nnx"},
    {""},  # the package itself: the public names
    {"interop", "training", "benchmark"},
    {"__main__"},
]
ROOMS = sorted(path.parent.name for path in HOUSE.glob("*/__init__.py"))
RIM = ("interop", "training", "benchmark")
INNER = [room for room in ROOMS if room not in RIM]
# Within two rooms there is an order, too.
ORDER = {
    "core": [
        {"products", "parameters", "blocks", "mesh_axes", "reverse_only", "row_major"},
        {"cell"},
        {"closed_over"},
        {"problem"},
        {"tuning"},
        {"parts"},
        {"recurrence"},
        {"parallel_in_time"},
        {"implementations"},
        {"sequence"},
    ],
    "layers": [{"options", "projection", "states"}, {"driving"}],
    "linen": [{"sown"}, {"cells"}, {"layers"}, {"penalties"}],
    "nnx": [{"cells"}, {"layers"}, {"penalties", "bridge"}],
}
FAMILY = {"linen": "nnx", "nnx": "linen"}
HEAVY = (
    "keras",
    "tensorflow",
    "torch",
    "h5py",
    "safetensors",
    "matplotlib",
    "haiku",
    "chex",
    "grain",
    "orbax",
    "tyro",
    "sklearn",
    "tensorboardX",
)


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
    assert set().union(*FLOORS) >= set(ROOMS)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_downwards(module):
    for other in OURS[module]:
        same_room = house_name(module) == house_name(other) and house_name(module) in ROOMS
        assert same_room or floor(other) < floor(module), f"{module} must not import {other}"


@pytest.mark.parametrize("room", ORDER)
def test_the_files_of_a_room_stand_one_on_the_other(room):
    place = {f"flax_srnn.{room}.{name}": height for height, names in enumerate(ORDER[room]) for name in names}
    files = {module for module in FILES if house_name(module) == room and module != f"flax_srnn.{room}"}
    assert files == set(place)
    for module in files:
        for other in OURS[module] & files:
            assert place[other] < place[module], f"{module} must not import {other}"


def test_no_circles():
    list(graphlib.TopologicalSorter(OURS).static_order())


@pytest.mark.parametrize("room", INNER)
def test_linen_and_nnx_do_not_know_each_other(room):
    """Nor does anything below them know either."""
    others = {FAMILY[room]} if room in FAMILY else set(FAMILY)
    for module in FILES:
        if house_name(module) == room:
            text = FILES[module].read_text()
            assert not any(re.search(rf"^\s*(from|import) .*\b{other}\b", text, re.MULTILINE) for other in others), (
                module
            )


def functions(module):
    """Every function in a file, with its name."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def calls(node):
    return {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("name", ["layers", "penalties"])
def test_layers_contain_no_loop(family, name):
    called = calls(ast.parse(FILES[f"flax_srnn.{family}.{name}"].read_text()))
    assert not {call for call in called if re.search(r"\b(scan|while_loop|fori_loop|dot|matmul|einsum)$", call)}


def test_the_step_is_written_once():
    """Only `cell.advance` applies an activation, and only `cell.under_flags` decides what a masked step and a reset do."""

    def calling(wanted):
        return {
            (module, node.name)
            for module in FILES
            if house_name(module) in INNER
            for node in functions(module)
            if any(map(wanted, calls(node)))
        }

    of_functions = calling(lambda call: call.endswith(".activation") and not call.startswith("validation."))
    assert of_functions == {("flax_srnn.core.cell", "activate")}
    assert calling("activate".__eq__) == {("flax_srnn.core.cell", "step"), ("flax_srnn.core.cell", "advance")}
    flagging = {
        (module, node.name)
        for module in FILES
        if house_name(module) in INNER
        for node in functions(module)
        if "select" in calls(node) and not node.name.startswith(("pullback", "block", "step"))
    }
    of_cell = {("flax_srnn.core.cell", name) for name in ("under_flags", "blanked")}
    # What is held as the output of a cell whose output is not its state.
    assert flagging - of_cell == {("flax_srnn.core.sequence", name) for name in ("scan_cell", "wrap", "body")}


def test_every_option_of_simple_rnn_reaches_its_check(monkeypatch):
    """And those of `Options` are options of every layer, which `options._LayoutOptions` and its like give them."""
    given = {name: object() for name in simple_rnn.__kwdefaults__}
    reached = {}

    def check(params, inputs, **keywords):
        reached.update(keywords)
        raise InterruptedError

    monkeypatch.setattr(sequence, "check", check)
    with pytest.raises(InterruptedError):
        simple_rnn({}, [], **given)
    assert reached == given
    of_sequence = {field.name for field in dataclasses.fields(sequence.Options)}
    for kind in (options.SimpleRNNOptions, options.RNNOptions):
        assert of_sequence <= {field.name for field in dataclasses.fields(kind)}, kind


ALL_ARGUMENTS = {"simple_rnn", "cell_step", "init_params", "truncated_rnn"}
"""What takes everything that a user may say."""


@pytest.mark.parametrize("module", [module for module in FILES if house_name(module) in INNER])
def test_no_function_in_the_middle_has_many_parameters(module):
    for node in functions(module):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        assert len(arguments) <= 8 or node.name in ALL_ARGUMENTS, f"{module}.{node.name} has {len(arguments)}"


@pytest.mark.parametrize("module", [module for module in FILES if module not in ("flax_srnn", "flax_srnn.__main__")])
def test_a_module_says_what_is_public(module):
    """`__all__` holds every function and class without an underscore; in the rim, what its users call."""
    loaded = importlib.import_module(module)
    own = {
        node.name
        for node in ast.parse(FILES[module].read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    listed = getattr(loaded, "__all__", [])
    assert listed or not own
    assert own <= set(listed) or house_name(module) in RIM
    assert all(hasattr(loaded, name) for name in listed)


def test_a_star_import_hides_nothing():
    namespace = {}
    exec("from flax_srnn import *", namespace)
    names = namespace.keys() - {"__builtins__"}
    assert {"SimpleRNN", "simple_rnn", "Scan", "Autodiff", "Chunked", "truncated_rnn"} <= names
    assert not {name for name in names if inspect.ismodule(namespace[name])}


@pytest.mark.parametrize("module", ["flax_srnn", "flax_srnn.nnx"])
def test_help_begins_with_a_list_of_all_names(module):
    """One line each, the layers first."""
    loaded = importlib.import_module(module)
    listed = re.findall(r"^    (\w+)  ", loaded.__doc__, re.MULTILINE)
    assert listed[:5] == ["SimpleRNN", "SimpleRNNCell", "RNN", "StackedRNNCells", "Bidirectional"]
    assert sorted(listed) == sorted(loaded.__all__)
    assert loaded.__doc__.count("\n") <= 40


def test_the_package_holds_the_public_names_and_nothing_else():
    tree = ast.parse(FILES["flax_srnn"].read_text())
    docstring, *rest = tree.body
    assert ast.get_docstring(tree)
    for node in rest:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names)
        else:
            assert isinstance(node, ast.Assign)
            assert ast.unparse(node.targets[0]) in ("__version__", "__all__")
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
    assert set(packages) <= {"flax_srnn", "jax"}  # some parts of JAX are loaded when they are first used
    rim = {name for name in new if house_name(name) in {*RIM, "__main__", "nnx"}}
    assert not rim, "the core imports no feature at the rim"


def test_heavy_packages_wait_until_they_are_needed():
    """Every module of the library can be imported without them, but for the training program, which waits itself."""
    modules = [module for module in FILES if house_name(module) not in ("training", "__main__")]
    loaded = python(
        "import sys, optax\n"
        "before = set(sys.modules)\n"  # older versions of Optax need chex
        f"for module in {modules!r} + ['flax_srnn.__main__']: __import__(module)\n"
        f"print(*(name for name in {HEAVY!r} if name in set(sys.modules) - before))"
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
    for name in ("activations", "initializers", "regularizers", "constraints", "chunked", "truncated", "nnx"):
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
    """In its own docstring; an `identifier`, and the `argument` by which messages call it, are explained at `get`."""
    text = inspect.getdoc(thing)
    # Linen modules have these two from Flax.
    known = ("parent", "name") if inspect.isclass(thing) and issubclass(thing, nn.Module) else ()
    elsewhere = {"args", "kwargs", *known} | ({"identifier", "argument"} if thing.__name__ != "get" else set())
    # What NNX shows as the signature of a class is that of its metaclass.
    parameters = (
        [*inspect.signature(thing.__init__).parameters][1:]
        if inspect.isclass(thing)
        else inspect.signature(thing).parameters
    )
    names = [name for name in parameters if name not in elsewhere]
    assert len(names) < 2 or "Args:" in text
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("thing", TOP)
def test_top_level_symbol_says_what_it_raises_and_takes(thing):
    if inspect.signature(thing).parameters:
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
    assert FILES["flax_srnn.core.cell"].read_text().count("\n") <= 200
