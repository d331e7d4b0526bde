"""Deployment: forward functions exported with `jax.export` run in a process that has neither this library nor Flax.

The recipe, as the README has it: close over the parameters, leave the batch (and the time) symbolic, take the state as an
argument and return it, write the bytes to a file.
"""

import functools
import subprocess
import sys

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import flax_srnn
import flax_srnn.nnx
from flax_srnn import cell_step, simple_rnn

F, U = 3, 5

# What a server runs. `None` in sys.modules makes every import of that name fail.
SERVER = """
import sys
sys.modules["flax_srnn"] = sys.modules["flax"] = sys.modules["optax"] = None
import jax, numpy as np
from jax import export
path, arguments, results = sys.argv[1:]
with open(path, "rb") as file:
    function = export.deserialize(bytearray(file.read()))
arguments = np.load(arguments)
outputs = jax.jit(function.call)(*(arguments[f"arr_{i}"] for i in range(len(arguments.files))))
np.savez(results, *outputs)
"""


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (F, U), "recurrent_kernel": (U, U), "bias": (U,)}
    return {name: jnp.asarray(rng.normal(size=shape) / 2, jnp.float32) for name, shape in shapes.items()}


def _symbolic(*shapes):
    """float32 arguments; equal letters are equal sizes."""
    scope = export.SymbolicScope()
    return [jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), jnp.float32) for shape in shapes]


def _serve(tmp_path, path, *arguments):
    """Runs an exported file in a fresh process."""
    np.savez(tmp_path / "arguments.npz", *arguments)
    command = [sys.executable, "-c", SERVER, path, tmp_path / "arguments.npz", tmp_path / "results.npz"]
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = np.load(tmp_path / "results.npz")
    return [results[f"arr_{i}"] for i in range(len(results.files))]


@pytest.mark.slow
def test_step_and_sequence_run_without_this_library(params, tmp_path):
    def sequence(state, x):
        return simple_rnn(params, x, initial_state=state)

    functions = {
        "step": (functools.partial(cell_step, params), _symbolic(f"b, {U}", f"b, {F}")),
        "sequence": (sequence, _symbolic(f"b, {U}", f"b, t, {F}")),
    }
    for name, (function, arguments) in functions.items():
        exported = export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(*arguments)
        (tmp_path / f"{name}.stablehlo").write_bytes(exported.serialize())

    rng = np.random.default_rng(1)
    x, state = rng.normal(size=(4, 7, F)).astype(np.float32), rng.normal(size=(4, U)).astype(np.float32)
    _, outputs = simple_rnn(params, x, initial_state=state)

    # The state goes out and in again: the first four steps at once, the fifth by the step function.
    middle, first = _serve(tmp_path, tmp_path / "sequence.stablehlo", state, x[:, :4])
    after, fifth = _serve(tmp_path, tmp_path / "step.stablehlo", middle, x[:, 4])
    np.testing.assert_allclose(first, outputs[:, :4], atol=1e-6)
    np.testing.assert_allclose(middle, outputs[:, 3], atol=1e-6)
    np.testing.assert_allclose(fifth, outputs[:, 4], atol=1e-6)
    np.testing.assert_array_equal(after, fifth)


@pytest.mark.parametrize("platforms", [("cpu",), ("tpu",), ("cpu", "cuda", "tpu")], ids=" ".join)
@pytest.mark.parametrize("dtype", cases.thinned([jnp.float32, jnp.bfloat16], 1))
def test_forward_and_gradients_for_every_platform(params, platforms, dtype):
    """One program, of which each platform takes its branch; what runs on a CPU is run."""
    params, inputs = jax.tree.map(lambda x: x.astype(dtype), (params, jnp.ones((4, 70, F))))

    def loss(params, inputs):
        return jnp.square(simple_rnn(params, inputs)[1].astype(jnp.float32)).sum()

    for function in (simple_rnn, jax.value_and_grad(loss, (0, 1))):
        exported = export.deserialize(export.export(jax.jit(function), platforms=platforms)(params, inputs).serialize())
        if "cpu" in platforms:
            given, wanted = jax.jit(exported.call)(params, inputs), jax.jit(function)(params, inputs)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-2), given, wanted)
        else:
            assert exported.platforms == platforms


_FLOATS, _FLAGS, _LENGTHS = jnp.float32, jnp.bool_, jnp.int32
_CASES = {  # options, array arguments
    "no initial state": ({}, {}),
    "last output only": ({"return_sequences": False}, {}),
    "unrolled by 2": ({"unroll": 2}, {}),
    "plain scan": ({"implementation": "autodiff"}, {}),
    "relu, backwards": ({"activation": "relu", "go_backwards": True, "keep_order": True}, {}),
    "mask": ({"zero_output_for_mask": True}, {"mask": ("bt", _FLAGS)}),
    "time-major, lengths": ({"time_major": True}, {"seq_lengths": ("b", _LENGTHS)}),
    "mask, lengths and resets, backwards": (
        {"go_backwards": True},
        {"mask": ("bt", _FLAGS), "seq_lengths": ("b", _LENGTHS), "resets": ("bt", _FLAGS)},
    ),
    "initial state and dropout masks": (
        {},
        {
            "initial_state": ("bu", _FLOATS),
            "input_dropout_mask": ("bf", _FLOATS),
            "recurrent_dropout_mask": ("bu", _FLOATS),
        },
    ),
}
# A symbolic number of steps cannot be unrolled, see below.
_TIMES = [(case, "t") for case in _CASES if case != "unrolled by 2"]
_TIMES += [(case, 6) for case in ("unrolled by 2", "no initial state", "mask, lengths and resets, backwards")]


@pytest.mark.parametrize(
    ("case", "time"), [pair if i % 2 else pytest.param(*pair, marks=pytest.mark.slow) for i, pair in enumerate(_TIMES)]
)
@pytest.mark.slow
def test_options_with_symbolic_sizes(params, case, time):
    options, arrays = _CASES[case]
    arrays = {"inputs": ("tbf" if options.get("time_major") else "btf", _FLOATS)} | arrays

    def function(arrays):
        return simple_rnn(params, **arrays, **options)

    scope = export.SymbolicScope()
    sizes = {"b": "b", "t": time, "f": F, "u": U}
    specs = {
        name: jax.ShapeDtypeStruct(export.symbolic_shape(",".join(str(sizes[d]) for d in letters), scope=scope), dtype)
        for name, (letters, dtype) in arrays.items()
    }
    exported = export.export(jax.jit(function))(specs)

    rng = np.random.default_rng(1)
    for b, t in (1, 6), (4, 6 if time == 6 else 9):
        sizes = {"b": b, "t": t, "f": F, "u": U}
        values = {}
        for name, (letters, dtype) in arrays.items():
            drawn = rng.normal(size=[sizes[d] for d in letters]) * (t / 2 if dtype == _LENGTHS else 1)
            values[name] = {_FLOATS: drawn, _FLAGS: drawn > 0, _LENGTHS: np.clip(np.abs(drawn), 0, t)}[dtype].astype(
                dtype
            )
        for value, reference in zip(exported.call(values), function(values), strict=True):
            np.testing.assert_allclose(value, reference, atol=1e-6)


def test_a_symbolic_number_of_steps_is_not_unrolled(params):
    with pytest.raises(ValueError, match="`unroll` needs a fixed number of steps, got the symbolic T = t"):
        export.export(jax.jit(functools.partial(simple_rnn, params, unroll=2)))(*_symbolic(f"b, t, {F}"))
    layer = flax_srnn.RNN(nn.GRUCell(U), unroll=True)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 2, F)))
    with pytest.raises(ValueError, match="`unroll` needs a fixed number of steps, got the symbolic T = t"):
        export.export(jax.jit(functools.partial(layer.apply, variables)))(*_symbolic(f"b, t, {F}"))


def test_several_symbolic_batch_dimensions(params):
    function = functools.partial(simple_rnn, params)
    exported = export.export(jax.jit(function))(*_symbolic(f"a, b, t, {F}"))
    x = np.random.default_rng(1).normal(size=(2, 3, 4, F)).astype(np.float32)
    for value, reference in zip(exported.call(x), function(x), strict=True):
        np.testing.assert_allclose(value, reference, atol=1e-6)


def _linen_layers():
    cells = [nn.GRUCell(U), flax_srnn.SimpleRNNCell(2)]
    layer = flax_srnn.Bidirectional(flax_srnn.RNN(cells, return_sequences=True, return_state=True, stateful=True))
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 2, F)))
    return lambda x: layer.apply({"params": variables["params"]}, x, mutable=["carry"])[0]


def _nnx_layers():
    rngs = nnx.Rngs(0)
    cells = [nnx.LSTMCell(F, U, rngs=rngs), flax_srnn.nnx.SimpleRNNCell(U, 2, dropout=0.5, rngs=rngs)]
    graph, variables = nnx.split(flax_srnn.nnx.RNN(cells, return_state=True))
    return lambda x: nnx.merge(graph, variables)(x, training=False)


@pytest.mark.parametrize("make", [_linen_layers, pytest.param(_nnx_layers, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_layers_with_symbolic_sizes(make):
    function = make()
    exported = export.export(jax.jit(function))(*_symbolic(f"b, t, {F}"))
    x = np.random.default_rng(1).normal(size=(3, 4, F)).astype(np.float32)
    for value, reference in zip(jax.tree.leaves(exported.call(x)), jax.tree.leaves(function(x)), strict=True):
        np.testing.assert_allclose(value, reference, atol=1e-6)
