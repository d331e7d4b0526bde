"""The kernel under the transformations of JAX, in all layers, on eight virtual devices and in exported programs."""

import dataclasses
import functools
import itertools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_srnn_native import Native
from flax_srnn_native.library import BACKWARD, FORWARD
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from test_performance import compilations

import flax_srnn.nnx as fnnx
from flax_srnn import (
    RNN,
    Bidirectional,
    SimpleRNN,
    SimpleRNNCell,
    StackedRNNCells,
    init_params,
    simple_rnn,
    truncated_rnn,
)

CASE = cases.EVERYTHING(reset_state=True, seq_lengths=True, zero_output_for_mask=True)
TIME_MAJOR = dataclasses.replace(CASE, time_major=True, go_backwards=True)
BIG = dataclasses.replace(CASE, batch=(9,), sizes=(30, 17, 40))
"""Of more work than one thread does, of rows in several tiles."""


def close(actual, expected, tolerance=3e-6):
    """Within a tolerance, relative to the largest element of an array."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)

    def check(value, wanted):
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted, rtol=0, atol=tolerance * max(1, np.abs(wanted).max(initial=0)))

    jax.tree.map(check, actual, expected)


def problem(case=CASE, implementation="native"):
    """A function of (params, inputs, float arrays, flags), all options in use, and these arguments."""
    made = case.problem(dtype=np.float32)

    def function(params, inputs, arrays, flags):
        return simple_rnn(params, inputs, **arrays, **flags, **made.options, implementation=implementation)

    return function, tuple(jax.tree.map(jnp.asarray, made[:4]))


def total(returned):
    return sum(jnp.sin(x + 1).sum() for x in jax.tree.leaves(returned))


def gradients(function, argnums=(0, 1, 2)):
    return jax.grad(lambda *arguments: total(function(*arguments)), argnums=argnums)


def both(function, argnums=(0, 1, 2)):
    """The values of a function and the gradients of their sum, compiled together."""
    return jax.jit(lambda *arguments: (function(*arguments), gradients(function, argnums)(*arguments)))


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def members(tree, count=3):
    """Other numbers of the same shapes, `count` times; flags in other orders."""
    return stacked(
        jax.tree.map(lambda x, i=i: jnp.roll(x, i, 0) * (1 - 0.25 * i if x.dtype == np.float32 else 1), tree)
        for i in range(count)
    )


# --- vmap --------------------------------------------------------------------------------------------------------------

NO, YES = None, 0
MAPPED = {  # of params, inputs, float arrays, flags
    "inputs": (NO, YES, NO, NO),
    "weights": (YES, NO, NO, NO),
    "recurrent kernel": ({"kernel": NO, "recurrent_kernel": YES, "bias": NO}, NO, NO, NO),
    "masks": (NO, NO, NO, YES),
    "dropout masks and states": (NO, NO, YES, NO),
    "one dropout mask": (
        NO,
        NO,
        {"initial_state": NO, "reset_state": NO, "input_dropout_mask": NO, "recurrent_dropout_mask": YES},
        NO,
    ),
    "all": (YES, YES, YES, YES),
}


def mapped(arguments, axes):
    """The arguments of a `vmap`: three of what is mapped. And the arguments of each call."""

    def wide(axis, tree):
        if isinstance(axis, dict):
            return {name: wide(axis[name], leaf) for name, leaf in tree.items()}
        return tree if axis is NO else members(tree)

    def one(i, axis, tree):
        if isinstance(axis, dict):
            return {name: one(i, axis[name], leaf) for name, leaf in tree.items()}
        return tree if axis is NO else jax.tree.map(lambda x: x[i], tree)

    several = tuple(map(wide, axes, arguments))
    return several, [tuple(map(functools.partial(one, i), axes, several)) for i in range(3)]


@pytest.mark.parametrize(
    "pair", cases.thinned(itertools.product(MAPPED, ["batch-major", "time-major"]), 6), ids=" ".join
)
def test_vmap(pair):
    """Values, the gradients of each call on its own, and the gradient of all calls together."""
    name, case = pair[0], TIME_MAJOR if pair[1] == "time-major" else CASE
    axes = MAPPED[name]
    function, arguments = problem(case)
    several, each = mapped(arguments, axes)
    plain = both(problem(case, "scan")[0])
    expected = stacked([plain(*one) for one in each])
    batched = jax.vmap(function, in_axes=axes)
    close(jax.jit(jax.vmap(both(function), in_axes=axes))(*several), expected)
    values, grads = both(batched)(*several)
    close(values, expected[0])
    _, wanted = both(jax.vmap(problem(case, "scan")[0], in_axes=axes))(*several)
    close(grads, wanted)


def test_nested_vmap():
    """Weights over the inner calls and inputs over the outer ones, and the other way round."""
    function, (params, inputs, arrays, flags) = problem()
    for inner, outer in (((YES, NO, NO, NO), (NO, YES, NO, NO)), ((NO, YES, NO, YES), (YES, NO, YES, NO))):
        axes = [(YES if YES in pair else NO) for pair in zip(inner, outer, strict=True)]
        several = [
            tree if axis is NO else members(tree)
            for axis, tree in zip(axes, (params, inputs, arrays, flags), strict=True)
        ]
        twice = [
            jax.vmap(jax.vmap(both(f), in_axes=inner), in_axes=outer) for f in (function, problem(CASE, "scan")[0])
        ]
        close(*(jax.jit(f)(*several) for f in twice))


def test_vmap_of_much_work():
    """An ensemble that threads share, with gradients of every member."""
    axes = (YES, NO, NO, NO)
    several, each = mapped(problem(BIG)[1], axes)
    plain = both(problem(BIG, "scan")[0])
    close(jax.jit(jax.vmap(both(problem(BIG)[0]), in_axes=axes))(*several), stacked([plain(*one) for one in each]))


@pytest.mark.parametrize(("calls", "steps"), [(0, 7), (2, 0)])
def test_vmap_over_nothing(calls, steps):
    """No calls at all, or calls for no steps."""
    function, (params, inputs, arrays, flags) = problem(dataclasses.replace(CASE, sizes=(steps, 2, 4)))
    for axes, several in (
        ((NO, YES, NO, NO), (params, members(inputs, 2)[:calls], arrays, flags)),
        ((YES, NO, NO, NO), (jax.tree.map(lambda x: x[:calls], members(params, 2)), inputs, arrays, flags)),
    ):
        plain = problem(CASE, "autodiff")[0]
        found, wanted = (jax.vmap(both(f), in_axes=axes)(*several) for f in (function, plain))
        close(found, wanted)


# --- derivatives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [CASE, dataclasses.replace(TIME_MAJOR, activation="sigmoid")], ids=str)
def test_gradients_of_gradients(case):
    """A Hessian times a vector, by reverse mode twice."""

    def product(function):
        def slope(*arguments):
            directions = jax.tree.map(jnp.cos, arguments)
            grads = gradients(function)(*arguments, flags)
            return sum((d * g).sum() for d, g in zip(*map(jax.tree.leaves, (directions, grads)), strict=True))

        return jax.jit(jax.value_and_grad(slope, argnums=(0, 1, 2)))

    function, (*arguments, flags) = problem(case)
    close(product(function)(*arguments), product(problem(case, "scan")[0])(*arguments), 1e-5)


def test_third_derivative():
    x = jnp.linspace(-1, 1, 12, dtype=jnp.float32).reshape(2, 3, 2)
    params = init_params(jax.random.key(0), 2, 3)

    def third(implementation):
        def f(s):
            return simple_rnn(params, s * x, implementation=implementation)[1].sum()

        return jax.jit(jax.grad(jax.grad(jax.grad(f))))(jnp.float32(0.7))

    np.testing.assert_allclose(third("native"), third("autodiff"), rtol=1e-4)


@pytest.mark.parametrize(
    "mode", [lambda f, x: jax.jvp(f, (x,), (x,)), lambda f, x: jax.jacfwd(f)(x), lambda f, x: jax.hessian(f)(x)]
)
def test_forward_mode_is_refused_in_the_users_words(mode):
    params = init_params(jax.random.key(0), 2, 3)
    with pytest.raises(TypeError, match="pass implementation='autodiff'"):
        mode(lambda x: simple_rnn(params, x, implementation="native")[0].sum(), jnp.ones((1, 4, 2)))


def test_checkpoint():
    function, arguments = problem()
    close(both(jax.checkpoint(function))(*arguments), both(function)(*arguments), 0)


def test_scan_over_calls():
    """Pieces of a sequence in a loop, the state handed on."""
    params = init_params(jax.random.key(0), 2, 4)
    x = jax.random.normal(jax.random.key(1), (3, 8, 2))

    def in_pieces(params, x):
        def piece(h, x):
            return simple_rnn(params, x, initial_state=h, implementation="native")

        return jax.lax.scan(piece, jnp.zeros((3, 4)), jnp.moveaxis(x.reshape(3, 4, 2, 2), 1, 0))[0]

    whole = both(lambda params, x: simple_rnn(params, x)[0], (0, 1))
    close(both(in_pieces, (0, 1))(params, x), whole(params, x))


def test_a_second_call_compiles_nothing(caplog):
    params, x = init_params(jax.random.key(0), 3, 4), jnp.ones((2, 9, 3))
    grads = gradients(lambda params, x: simple_rnn(params, x, implementation="native"), (0, 1))
    for call in (lambda: simple_rnn(params, x, implementation=Native()), lambda: grads(params, x)):
        assert compilations(caplog, call) > 0
        assert compilations(caplog, call) == 0


def test_without_jit():
    function, arguments = problem()
    expected = both(function)(*arguments)
    with jax.disable_jit():
        close((function(*arguments), gradients(function)(*arguments)), expected)


def test_donated_arguments():
    """The outputs are written where the inputs are, no sooner than these were read."""
    function, arguments = problem(dataclasses.replace(CASE, sizes=(7, 4, 4)))
    expected = function(*arguments)
    close(jax.jit(function, donate_argnums=1)(*arguments), expected, 0)
    assert arguments[1].is_deleted()


# --- several devices ---------------------------------------------------------------------------------------------------

SHARDED = dataclasses.replace(CASE, batch=(8,))


def mesh(**options):
    assert jax.device_count() >= 8, "conftest.py asks for eight devices before JAX starts"
    return Mesh(np.array(jax.devices()[:8]), ("data",), **options)


@pytest.mark.parametrize(
    "case", [SHARDED, dataclasses.replace(SHARDED, mask=False, resets=False, reset_state=False)], ids=str
)
def test_shard_map(case):
    """Rows of the batch on eight devices; gradients of the weights, which all devices have, are summed over them."""
    function, arguments = problem(case)

    def inside(*arguments):
        values, grads = both(function)(*arguments)
        return values, grads

    rows = P("data")
    specs = (P(), rows, rows, rows)
    over = jax.shard_map(inside, mesh=mesh(), in_specs=specs, out_specs=(rows, specs[:3]))
    close(jax.jit(over)(*arguments), both(problem(case, "scan")[0])(*arguments))


def test_gradient_of_shard_map():
    function, arguments = problem(SHARDED)
    rows = P("data")
    over = jax.shard_map(function, mesh=mesh(), in_specs=(P(), rows, rows, rows), out_specs=rows)
    close(both(over)(*arguments), both(problem(SHARDED, "scan")[0])(*arguments))


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_arrays(axes):
    """The compiler divides the work, or brings the arrays together; the numbers are the same."""
    function, (params, *rows) = problem(SHARDED)
    expected = both(problem(SHARDED, "scan")[0])(params, *rows)
    one = mesh(axis_types=(axes,))

    def put(tree, *spec):
        return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(one, P(*spec))), tree)

    close(both(function)(put(params), *put(rows, "data")), expected)


# --- export ------------------------------------------------------------------------------------------------------------


def test_export_needs_a_flag():
    """A custom call has no guarantee that a later JAX runs it, so JAX asks for each by name."""
    function, arguments = problem()
    plain, trained = jax.jit(function), both(function)
    for program, name in ((plain, FORWARD), (trained, f"{FORWARD}|{BACKWARD}")):
        with pytest.raises(ValueError, match=name):
            export.export(program)(*arguments)
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in (FORWARD, BACKWARD)]
    exported = export.export(trained, disabled_checks=checks)(*arguments)
    again = export.deserialize(exported.serialize())
    close(again.call(*arguments), trained(*arguments), 0)


def test_sizes_must_be_known():
    params = init_params(jax.random.key(0), 2, 3)
    x = jax.ShapeDtypeStruct(export.symbolic_shape("b, t, 2"), jnp.float32)
    with pytest.raises(ValueError, match="'native' cannot run this: it needs sizes that are known"):
        export.export(jax.jit(lambda x: simple_rnn(params, x, implementation="native")))(x)


# --- layers ------------------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
MASK = np.array([[1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1]], bool)
STACK = [SimpleRNNCell(4), SimpleRNNCell(5, activation="relu")]
LINEN = {
    "SimpleRNN": lambda **o: SimpleRNN(4, return_sequences=True, **o),
    "RNN": lambda **o: RNN(SimpleRNNCell(4, activation="sigmoid"), go_backwards=True, **o),
    "RNN of cells": lambda **o: RNN(STACK, **o),
    "RNN of StackedRNNCells": lambda **o: RNN(StackedRNNCells(STACK), return_sequences=True, **o),
    "Bidirectional": lambda **o: Bidirectional(SimpleRNN(4, **o)),
}
NNX = {
    "SimpleRNN": lambda rngs, **o: fnnx.SimpleRNN(3, 4, return_sequences=True, rngs=rngs, **o),
    "RNN": lambda rngs, **o: fnnx.RNN(fnnx.SimpleRNNCell(3, 4, rngs=rngs), time_major=False, **o),
    "RNN of cells": lambda rngs, **o: fnnx.RNN(
        [fnnx.SimpleRNNCell(3, 4, rngs=rngs), fnnx.SimpleRNNCell(4, 5, rngs=rngs)], **o
    ),
    "Bidirectional": lambda rngs, **o: fnnx.Bidirectional(fnnx.SimpleRNN(3, 4, rngs=rngs, **o), rngs=rngs),
}


@pytest.fixture
def runs(monkeypatch):
    """The problems that the kernel was given."""
    seen, check = [], Native.check
    monkeypatch.setattr(Native, "check", lambda self, problem: (seen.append(problem), check(self, problem))[1])
    return seen


@pytest.mark.parametrize("name", LINEN)
def test_layers_of_linen(name, runs):
    layer, other = LINEN[name](implementation="native"), LINEN[name]()
    variables = other.init(jax.random.key(0), X)
    found, wanted = (both(lambda v, x, of=of: of.apply(v, x, mask=MASK), (0, 1))(variables, X) for of in (layer, other))
    assert runs
    close(found, wanted)


@pytest.mark.parametrize("name", NNX)
def test_layers_of_nnx(name, runs):
    layers = [NNX[name](nnx.Rngs(0), **options) for options in ({"implementation": "native"}, {})]
    found, wanted = (
        both(lambda state, x, graph=graph: nnx.merge(graph, state)(x, mask=MASK), (0, 1))(state, jnp.asarray(X))
        for graph, state in map(nnx.split, layers)
    )
    assert runs
    close(found[0], wanted[0])
    close(*(list(map(jax.tree.leaves, pair[1])) for pair in (found, wanted)))


def test_truncated(runs):
    params = init_params(jax.random.key(0), 3, 4)
    found, wanted = (
        both(lambda p, x, how=how: truncated_rnn(p, x, 2, implementation=how), (0, 1))(params, jnp.asarray(X))
        for how in ("native", None)
    )
    assert runs
    close(found, wanted)
