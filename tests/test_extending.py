"""docs/extending: the program of every page runs from top to bottom, and what it defines does what it says."""

import re
import textwrap
import tomllib

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pages import ROOT
from programs import assert_close, call, gradients
from recipes import FOLDER, IS_THE_COPY, PAGES, changed_copy, fences, namespace, program, run
from test_performance import compilations

import flax_srnn
import flax_srnn.nnx as fnnx
from flax_srnn import (
    RNN,
    Bidirectional,
    SimpleRNNCell,
    StackedRNNCells,
    collect_constraints,
    regularization_loss,
    reset_states,
    simple_rnn,
)
from flax_srnn.interop import keras

# --- the pages ---------------------------------------------------------------------------------------------------------


def test_there_is_a_page_for_each():
    assert list(PAGES) == ["activation", "cell", "implementation", "keras_layer", "task"]
    assert "docs/extending/" in (ROOT / "CONTRIBUTING.md").read_text()
    index = (FOLDER / "index.md").read_text()
    assert all(f"({page}.md)" in index for page in PAGES)
    assert_named_is_there(index)


def assert_named_is_there(text, new=frozenset()):
    """The files, but for new ones, and the tables that a text names."""
    named = set(re.findall(r"`((?:flax_srnn|tests)/[\w/.]+)`", text)) - new
    assert [file for file in named if not (ROOT / file).exists()] == []
    sources = "".join(path.read_text() for room in ("flax_srnn", "tests") for path in (ROOT / room).rglob("*.py"))
    tables = set(re.findall(r"`(_?[A-Z_]{4,})`", text))
    assert [name for name in tables if not re.search(rf"^{name}\b.* = ", sources, re.MULTILINE)] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    """Sections in order, at most two files to touch, and only files and tables that exist."""
    text = PAGES[page]
    sections = re.findall(r"^## (.*)", text, re.MULTILINE)
    wanted = ["Files to touch", "Example", "How to test", "What happens by itself"]
    assert [name for name in sections if name in wanted] == wanted
    section = text.split("## Files to touch\n")[1].split("\n## ")[0]
    touched = re.findall(r"^- `([\w/.]+)`( \(new\))?", section, re.MULTILINE)
    assert len(touched) <= 2
    assert touched or "None of this library" in section
    assert all((ROOT / file).exists() != bool(new) for file, new in touched)
    assert_named_is_there(text, {file for file, new in touched if new})
    assert max(len(line) for line in text.splitlines()) <= 132


# --- an activation -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_activation(tmp_path):
    """Without the page's change its program ends at the name; with it, it runs, and the benchmark goes over the name."""
    with pytest.raises(ValueError, match="`activation` is the unknown name 'arctan'"):
        namespace("activation")
    measured = """
        from flax_srnn.benchmark import peers, process

        process.alternate = lambda calls, seconds: {name: (0.0, ()) for name in calls}
        plan = process.Plan([], [], [], [], [], [], False, 0.0)
        assert any("arctan" in record.case for record in process.SECTIONS["length"](plan, peers.CONTESTANTS))
    """
    run(changed_copy("activation", tmp_path), program("activation") + IS_THE_COPY + textwrap.dedent(measured))


def test_a_fresh_lambda_is_a_compilation_where_it_computes_something_new(caplog):
    """What the page counts by events, counted in JAX's log."""
    params, x = flax_srnn.init_params(jax.random.key(0), 3, 4), jnp.ones((2, 5, 3))

    def compiled(width):
        return compilations(caplog, lambda: simple_rnn(params, x, activation=lambda a: jnp.exp(-a * a / width)))

    assert compiled(1.0) > 0
    assert compiled(1.0) == 0
    assert compiled(2.0) > 0


# --- a Keras layer -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_keras_layer(tmp_path):
    """Also the other formats, what is refused, and the docstring that a test of `load_model` wants."""
    more = """
        from flax_srnn.interop.keras import load_weights
        from flax_srnn.interop.keras.layers import LAYERS

        assert [name for name in LAYERS if name not in load_model.__doc__] == []
        assert load_weights("back.weights.h5")["group_normalization"]["scale"].shape == (4,)
        model.save("model.h5")
        same, again = load_model("model.h5")
        assert same == module
        assert (again["params"]["group_normalization"]["scale"] == 0.5).all()
        keras.Sequential([inputs, layers.GroupNormalization(5, axis=1)]).save("other.keras")
        try:
            load_model("other.keras")
        except ValueError as error:
            assert "`axis` must be -1" in str(error)
        else:
            raise AssertionError
    """
    run(changed_copy("keras_layer", tmp_path), program("keras_layer") + IS_THE_COPY + textwrap.dedent(more))


# --- an implementation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python_loop():
    return namespace("implementation")["PythonLoop"]()


@pytest.mark.slow
def test_implementation_in_the_table(tmp_path):
    """The page's first fence is the new file, and the diff gives it its name."""
    folder = changed_copy("implementation", tmp_path)
    file, example = fences("implementation", "python")
    (folder / "flax_srnn" / "core" / "python_loop.py").write_text(file)
    by_name = """
        layer = SimpleRNN(4, implementation="python_loop")
        assert jnp.allclose(layer.apply({"params": params}, x), SimpleRNN(4).apply({"params": params}, x), atol=1e-6)
    """
    example = example.replace(
        "from python_loop import", "from flax_srnn.core.python_loop import"
    )  # where it lies in the library
    run(folder, example + IS_THE_COPY + textwrap.dedent(by_name))


def test_implementation_of_another_package(tmp_path, monkeypatch):
    file, _ = fences("implementation", "python")
    (tmp_path / "python_loop.py").write_text(file)
    (declared,) = fences("implementation", "toml")
    ((group, points),) = tomllib.loads(declared)["project"]["entry-points"].items()
    about = tmp_path / "its_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: its-package\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    (about / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
    monkeypatch.syspath_prepend(tmp_path)
    params, x = flax_srnn.init_params(jax.random.key(0), 3, 4), np.ones((2, 5, 3), np.float32)
    actual, expected = (simple_rnn(params, x, implementation=name)[1] for name in ("python_loop", None))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.slow
def test_implementation_in_half_precision(python_loop):
    """Inputs and states are of bfloat16, what goes from step to step of float32."""
    given = flax_srnn.init_params(jax.random.key(0), 3, 4, dtype=jnp.bfloat16), jnp.ones((2, 5, 3), jnp.bfloat16)

    def loss(given, implementation):
        return simple_rnn(*given, implementation=implementation)[1].astype(jnp.float32).sum()

    both = [jax.value_and_grad(loss)(given, choice) for choice in (python_loop, None)]
    assert_close(*jax.tree.map(lambda x: np.asarray(x, np.float32), both), 1e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", cases.thinned(cases.DRAWN[:6], 1), ids=str)
def test_implementation_against_scan(case, python_loop):
    """Values and all gradients, with dirt in the masked steps."""
    problem = case.problem()
    if case.mask:
        mask = problem.flags["mask"]
        used = np.moveaxis(mask, -1, 0) if case.time_major else mask
        problem = problem._replace(inputs=np.where(used[..., None], problem.inputs, np.nan))
    returned, grads = jax.jit(lambda a: gradients(problem, a, implementation=python_loop))(problem[:3])
    expected, theirs = jax.jit(lambda a: gradients(problem, a))(problem[:3])
    assert_close(returned, expected, 1e-13)
    assert_close(grads, theirs, 1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_second_derivatives_and_forward_mode(python_loop):
    problem = cases.Case(mask=True, return_sequences=False).problem()

    def slope(x, implementation):
        return jax.grad(
            lambda x: (call(simple_rnn, problem, (problem.params, x, {}), implementation=implementation)[1] ** 2).sum()
        )(x)

    actual, expected = (
        jax.grad(lambda x, how=how: (slope(x, how) ** 2).sum())(problem.inputs) for how in (python_loop, "autodiff")
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13)
    with pytest.raises(TypeError, match="pass implementation='autodiff'"):
        jax.jvp(
            lambda x: call(simple_rnn, problem, (problem.params, x, {}), implementation=python_loop),
            *[(problem.inputs,)] * 2,
        )


# --- a cell ------------------------------------------------------------------------------------------------------------

B, T, F, U = 3, 6, 2, 4
LEAK = 0.3
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(B, T, F))
MASK, RESETS = DRAW.random((B, T)) < 0.6, DRAW.random((B, T)) < 0.3
LENGTHS, STATE = np.array([6, 0, 4]), DRAW.normal(size=(B, U)) / 2
PARAMS = {
    "kernel": DRAW.normal(size=(F, U)) / 2,
    "recurrent_kernel": DRAW.normal(size=(U, U)) / 4,
    "bias": DRAW.normal(size=U) / 2,
}
OPTIONS = {"param_dtype": np.float64}


@pytest.fixture(scope="module")
def cells():
    found = namespace("cell")
    return found["LeakyRNNCell"], found["LiveLeakyRNNCell"]


def by_hand(params, leak, x, *, mask=None, seq_lengths=None, resets=None, initial_state=None, go_backwards=False):
    """(outputs in the order of processing, final state), one row and one step at a time."""
    final, outputs = np.zeros((B, U)), np.zeros((B, T, U))
    for b in range(B):
        first = np.zeros(U) if initial_state is None else initial_state[b]
        h, shown = first, np.zeros(U)
        for k, t in enumerate(range(T)[:: -1 if go_backwards else 1]):
            if resets is not None and resets[b, t]:
                h = first
            if (mask is None or mask[b, t]) and (seq_lengths is None or t < seq_lengths[b]):
                new = np.tanh(x[b, t] @ params["kernel"] + params["bias"] + h @ params["recurrent_kernel"])
                h = shown = (1 - leak) * h + leak * new
            outputs[b, k] = shown
        final[b] = h
    return outputs, final


def twins(cells, leak, **options):
    """The layer in both families, with the same parameters, as functions of (inputs, **call arguments)."""
    linen, live = cells
    layer = RNN(linen(U, leak=leak, **OPTIONS), return_sequences=True, return_state=True, **options)
    module = fnnx.RNN(
        live(F, U, leak=leak, **OPTIONS, rngs=nnx.Rngs(0)), return_sequences=True, return_state=True, **options
    )
    fnnx.from_linen(module, PARAMS)
    return [lambda x, **given: layer.apply({"params": PARAMS}, x, **given), module]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("leak", cases.thinned([LEAK, 1], 1))
@pytest.mark.parametrize(
    "given",
    cases.thinned(
        [
            {},
            {"mask": MASK},
            {"mask": MASK, "seq_lengths": LENGTHS, "initial_state": STATE},
            {"mask": MASK, "resets": RESETS, "initial_state": STATE},
            {"seq_lengths": LENGTHS, "resets": RESETS, "go_backwards": True},
        ],
        3,
    ),
    ids="-".join,
)
@pytest.mark.slow
def test_leaky_cell_equals_the_loop(cells, leak, given):
    expected = by_hand(PARAMS, leak, X, **given)
    x = X if "mask" not in given else np.where(MASK[..., None], X, np.nan)
    arguments = {name: value for name, value in given.items() if name != "go_backwards"}
    for layer in twins(cells, leak, go_backwards="go_backwards" in given):
        assert_close(layer(x, **arguments), expected, 1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_leaky_cell_with_leak_1_is_the_simple_one(cells):
    simple = RNN(SimpleRNNCell(U, **OPTIONS), return_sequences=True, return_state=True)
    for layer in twins(cells, 1.0):
        assert_close(layer(X, mask=MASK), simple.apply({"params": PARAMS}, X, mask=MASK), 1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_leaky_cell_in_both_directions_and_its_gradient(cells):
    forward, _ = by_hand(PARAMS, LEAK, X, seq_lengths=LENGTHS)
    backward, _ = by_hand(PARAMS, LEAK, X, seq_lengths=LENGTHS, go_backwards=True)
    used = (np.arange(T) < LENGTHS[:, None])[..., None]
    expected = np.concatenate([forward, backward[:, ::-1]], -1) * used
    linen, live = cells
    layer = Bidirectional(RNN(linen(U, leak=LEAK, **OPTIONS), return_sequences=True))
    params = {"forward_layer": PARAMS, "backward_layer": PARAMS}
    rngs = nnx.Rngs(0)
    module = fnnx.Bidirectional(fnnx.RNN(live(F, U, leak=LEAK, **OPTIONS, rngs=rngs), return_sequences=True), rngs=rngs)
    fnnx.from_linen(module, params)
    for outputs in (layer.apply({"params": params}, X, seq_lengths=LENGTHS), module(X, seq_lengths=LENGTHS)):
        assert_close(outputs, expected, 1e-12)

    weights = np.random.default_rng(1).normal(size=(B, T, U))
    direction = jax.tree.map(lambda p: np.random.default_rng(2).normal(size=p.shape), PARAMS)

    def loss(step):
        moved = {name: PARAMS[name] + step * direction[name] for name in PARAMS}
        return (by_hand(moved, LEAK, X, mask=MASK)[0] * weights).sum()

    only = RNN(linen(U, leak=LEAK, **OPTIONS), return_sequences=True)
    grads = jax.grad(lambda p: (only.apply({"params": p}, X, mask=MASK) * weights).sum())(PARAMS)
    slope = sum((grads[name] * direction[name]).sum() for name in grads)
    np.testing.assert_allclose(slope, (loss(1e-5) - loss(-1e-5)) / 2e-5, rtol=1e-7)
    _, forward_mode = jax.jvp(
        lambda p: (only.apply({"params": p}, X, mask=MASK) * weights).sum(), (PARAMS,), (direction,)
    )
    np.testing.assert_allclose(forward_mode, slope, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_leaky_cell_in_a_stack(cells):
    linen, _ = cells
    params = {"cells_0": PARAMS, "cells_1": PARAMS | {"kernel": PARAMS["recurrent_kernel"]}}
    outputs, _ = by_hand(PARAMS, LEAK, X, mask=MASK)
    simple = RNN(SimpleRNNCell(U, **OPTIONS), return_sequences=True)
    expected = simple.apply({"params": params["cells_1"]}, outputs, mask=MASK)
    stack = RNN([linen(U, leak=LEAK, **OPTIONS), SimpleRNNCell(U, **OPTIONS)], return_sequences=True)
    assert_close(stack.apply({"params": params}, X, mask=MASK), expected, 1e-12)


@pytest.mark.usefixtures("x64")
def test_leaky_cell_goes_on_where_it_stopped(cells):
    linen, _ = cells
    expected, _ = by_hand(PARAMS, LEAK, X)
    layer = RNN(linen(U, leak=LEAK, **OPTIONS), return_sequences=True, stateful=True)
    variables = {**layer.init(jax.random.key(0), X[:, :2]), "params": PARAMS}
    for half in (slice(0, 2), slice(2, 6)):
        outputs, carry = layer.apply(variables, X[:, half], mutable=["carry"])
        assert_close(outputs, expected[:, half], 1e-12)
        variables |= carry
    assert not jax.tree.leaves(reset_states(variables)["carry"])[0].any()
    _, module = twins(cells, LEAK, stateful=True)
    assert_close([module(X[:, :2])[0], module(X[:, 2:])[0]], [expected[:, :2], expected[:, 2:]], 1e-12)


@pytest.mark.parametrize(
    ("leak", "error", "message"),
    [
        (0, ValueError, "`leak` must be above 0 and at most 1, got 0."),
        (1.5, ValueError, "`leak` must be a finite number of at most 1, got 1.5."),
        ("a", TypeError, "`leak` must be a finite number of at most 1, got 'a' (str)."),
        (True, TypeError, "`leak` must be a finite number of at most 1, got True (bool)."),
    ],
)
def test_leaky_cell_checks_its_field(cells, leak, error, message):
    linen, live = cells
    for make in (
        lambda: linen(U, leak=leak),
        lambda: linen(U).clone(leak=leak),
        lambda: live(F, U, leak=leak, rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            make()
    assert linen(U, leak=LEAK) == linen(U, leak=LEAK) != linen(U)
    with pytest.raises(ValueError, match="implementation='scan' is for SimpleRNNCell; a LeakyRNNCell"):
        RNN(linen(U), implementation="scan").init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="a cell of the class LeakyRNNCell cannot be represented"):
        keras.to_config(RNN(linen(U)))


@pytest.mark.slow
def test_leaky_cell_in_half_precision(cells):
    """Rounded at every step; and a step that would change the dtype of its state is JAX's error."""
    linen, _ = cells
    params, x = jax.tree.map(jnp.float32, PARAMS), np.float32(X)
    leaky, simple = (
        RNN(cell, return_sequences=True).apply({"params": params}, x)
        for cell in (linen(U, dtype=jnp.bfloat16), SimpleRNNCell(U, dtype=jnp.bfloat16))
    )
    assert leaky.dtype == simple.dtype == jnp.bfloat16
    assert 0 < np.abs(leaky - simple).max() < 0.05
    half = {"param_dtype": jnp.bfloat16}
    with pytest.raises(TypeError, match="equal types"):
        RNN(linen(U, **half)).init(jax.random.key(0), x)
    assert RNN(linen(U, **half, dtype=jnp.float32)).init_with_output(jax.random.key(0), x)[0].dtype == np.float32


@pytest.mark.slow
def test_leaky_cell_has_the_options_of_the_simple_one(cells):
    """Dropout, with one mask for all steps; penalties and constraints."""
    linen, live = cells
    x = np.ones((B, T, F), np.float32)
    frozen = {"recurrent_initializer": "zeros", "dropout": 0.5, "leak": 1.0}
    layer = RNN(linen(64, **frozen), return_sequences=True)
    variables = layer.init(jax.random.key(0), x)
    module = fnnx.RNN(live(F, 64, **frozen, rngs=nnx.Rngs(0)), return_sequences=True)
    dropped = layer.apply(variables, x, training=True, rngs={"dropout": jax.random.key(1)})
    for y, plain in ((dropped, layer.apply(variables, x)), (module(x), module(x, training=False))):
        np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
        assert not np.allclose(y, plain)

    asked = {"kernel_regularizer": "l2", "kernel_initializer": "ones", "kernel_constraint": "non_neg"}
    module = fnnx.RNN([live(F, U, **asked, rngs=nnx.Rngs(0)), live(U, U, **asked, rngs=nnx.Rngs(0))])
    np.testing.assert_allclose(fnnx.regularization_loss(module), 0.01 * (F * U + U * U), rtol=1e-6)
    assert {path: list(found) for path, found in fnnx.collect_constraints(module)["cell"].items()} == {
        0: ["kernel"],
        1: ["kernel"],
    }
    only = RNN(linen(U, **asked))
    assert list(collect_constraints(only, jax.random.key(0), x)) == ["kernel"]


@pytest.mark.parametrize("kind", ["own step", "in a nested stack"])
def test_linen_penalties_of_a_cell_driven_step_by_step(cells, kind):
    linen, _ = cells
    asked = {"kernel_regularizer": "l2", "kernel_initializer": "ones"}
    cell = linen(U, **asked) if kind == "own step" else [StackedRNNCells([SimpleRNNCell(U, **asked)]), SimpleRNNCell(U)]
    layer = RNN(cell)
    variables = layer.init(jax.random.key(0), X)
    _, sown = layer.apply(variables, X, mutable=["losses"])
    np.testing.assert_allclose(regularization_loss(sown), 0.01 * F * U, rtol=1e-6)


@pytest.mark.parametrize("kind", ["stack", "bidirectional", "model", "nested stack"])
def test_linen_constraints_name_only_what_is_there(cells, kind):
    linen, _ = cells
    asked = {"kernel_constraint": "non_neg"}
    layer = {
        "stack": lambda: RNN([linen(U, **asked), SimpleRNNCell(U)]),
        "bidirectional": lambda: Bidirectional(RNN(linen(U, **asked))),
        "model": lambda: nn.Sequential([RNN(linen(U, **asked))]),
        "nested stack": lambda: RNN([StackedRNNCells([SimpleRNNCell(U, **asked)]), SimpleRNNCell(U)]),
    }[kind]()
    found = collect_constraints(layer, jax.random.key(0), X)
    assert found.keys() <= layer.init(jax.random.key(0), X)["params"].keys()


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="a cell called step by step does not know its place")
@pytest.mark.slow
def test_equal_seeds_of_nnx_cells_are_told_apart(cells):
    """As those of SimpleRNNCells are."""
    _, live = cells
    x = np.ones((1, 1, 32), np.float32)
    alike = {"recurrent_initializer": "zeros", "kernel_initializer": "identity", "dropout": 0.5, "seed": 3}
    layers = [fnnx.RNN(live(32, 32, **alike, rngs=nnx.Rngs(params=0)), go_backwards=back) for back in (False, True)]
    forward, backward = fnnx.Bidirectional(layers[0], None, layers[1])(x)
    assert (forward != backward).any()
