"""The main suite's table of cases by the kernel: values and gradients against the float64 oracle and JAX's own derivative."""

import dataclasses
import functools
import itertools
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax_srnn_native import Native
from flax_srnn_native.implementation import ACTIVATIONS, INSTRUCTIONS
from flax_srnn_native.library import load
from programs import assert_close, call, compiled, gradients, plain, values

from flax_srnn import simple_rnn

pytestmark = pytest.mark.usefixtures("x64")
TOLERANCE = 3e-6
HERE = [name for code, name in enumerate(INSTRUCTIONS) if load().flax_srnn_runs(code)]
everywhere = pytest.mark.parametrize("instructions", HERE)

TABLE = [case for case in cases.SINGLE + cases.DRAWN if (case.activation or "linear") in ACTIVATIONS]
REFUSED = [case for case in cases.SINGLE + cases.DRAWN if case not in TABLE]
EVERYTHING = cases.EVERYTHING(reset_state=True, seq_lengths=True, zero_output_for_mask=True)
LARGE = {
    "one row, in many chunks": {"batch": (1,), "sizes": (1400, 3, 20)},
    "one row of many units": {"batch": (1,), "sizes": (40, 70, 129)},
    "rows that threads share": {"batch": (5,), "sizes": (40, 9, 65), "activation": "sigmoid"},
    "rows of several tiles": {"batch": (21,), "sizes": (19, 17, 33), "go_backwards": True},
    "time-major": {"batch": (13,), "sizes": (23, 6, 50), "time_major": True, "activation": "relu"},
    "time-major, backwards": {"batch": (2,), "sizes": (90, 3, 47), "time_major": True, "go_backwards": True},
    "last output": {"batch": (2, 5), "sizes": (31, 40, 24), "return_sequences": False, "activation": None},
}
"""Every option at sizes that the small table does not reach: several chunks, threads, tiles, and both ways to project."""
LARGE = {name: dataclasses.replace(EVERYTHING, **options) for name, options in LARGE.items()}


def widened(problem):
    """The same numbers in float64."""
    params, inputs, arrays = jax.tree.map(lambda x: x.astype(np.float64), problem[:3])
    return problem._replace(params=params, inputs=inputs, arrays=arrays)


def assert_solved(case, natives, derivative):
    """Values and gradients by the kernels are a few rounding errors from those that `derivative` finds in float64."""
    problem = case.problem(dtype=np.float32)
    wide = widened(problem)
    returned, grads = derivative(wide)
    assert_close(returned, call(reference.simple_rnn, wide), 1e-11)
    for native in natives:
        result = compiled(problem, implementation=native, unroll=case.unroll)
        for found, wanted in zip(jax.tree.leaves(result), jax.tree.leaves((returned, grads)), strict=True):
            assert found.dtype == np.float32
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * max(1, np.abs(wanted).max(initial=0)))


# --- every combination of options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases.thinned(TABLE, 8), ids=str)
def test_every_case(case):
    assert_solved(case, ["native", *map(Native, HERE)], plain)


@pytest.mark.parametrize("pair", cases.thinned(itertools.product(LARGE, HERE), 13), ids=" ".join)
def test_large_cases(pair):
    name, instructions = pair
    assert_solved(LARGE[name], [Native(instructions)], functools.partial(compiled, implementation="scan"))


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_values_without_gradients(case):
    """What is not kept for a backward pass is another program: the last output only, no states."""
    problem = case.problem(dtype=np.float32)
    assert_close(values(problem, implementation="native"), call(reference.simple_rnn, problem), TOLERANCE)


@pytest.mark.parametrize("size", ["batch", "time", "features", "batch and time", "units"])
@pytest.mark.parametrize("time_major", [False, True])
def test_sizes_of_nothing(size, time_major):
    """No rows, no steps, no features: zeros where there is nothing to add up; and a single unit."""
    batch = (0,) if "batch" in size else (3,)
    sizes = (0 if "time" in size else 5, 0 if size == "features" else 2, 1 if size == "units" else 4)
    case = dataclasses.replace(EVERYTHING, batch=batch, sizes=sizes, time_major=time_major)
    assert_solved(case, ["native"], functools.partial(compiled, implementation="scan"))


# --- what it does not do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_other_activations_are_refused(case):
    with pytest.raises(ValueError, match=f"'native' cannot run this.*, got {case.activation}; use 'scan'"):
        call(simple_rnn, case.problem(dtype=np.float32), implementation="native")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"activation": lambda a: jnp.tanh(a)}, "got a callable"),
        ({"precision": "F64_F64_F64"}, "got `precision`='F64_F64_F64'"),
        ({"initial_state": np.zeros((3, 4))}, "it computes in float32, got float64"),
    ],
)
def test_what_else_is_refused(options, reason):
    problem = cases.Case().problem(dtype=np.float32)
    with pytest.raises(ValueError, match=f"'native' cannot run this.*{re.escape(reason)}"):
        call(simple_rnn, problem, implementation="native", **options)


def test_float64_is_refused():
    with pytest.raises(ValueError, match="it computes in float32, got float64; use 'scan'"):
        call(simple_rnn, cases.Case().problem(), implementation="native")


@pytest.mark.parametrize("precision", ["highest", "tensorfloat32", jax.lax.Precision.DEFAULT, ("high", "highest")])
def test_every_level_of_precision_is_float32(precision):
    problem = cases.Case().problem(dtype=np.float32)
    expected = values(problem, implementation="native")
    jax.tree.map(np.testing.assert_array_equal, values(problem, implementation="native", precision=precision), expected)


# --- what stands in masked steps ---------------------------------------------------------------------------------------

DIRTY = {
    "few rows": EVERYTHING,
    "many rows, backwards": dataclasses.replace(EVERYTHING, batch=(9,), go_backwards=True, activation="relu"),
    "one row, no dropout": cases.Case(batch=(1,), mask=True, sizes=(50, 70, 129), activation=None),
    "last output, time-major": dataclasses.replace(
        EVERYTHING, return_sequences=False, time_major=True, activation="sigmoid"
    ),
}


@pytest.mark.parametrize("name", DIRTY)
@everywhere
def test_masked_steps_reach_nothing(name, instructions):
    """Outputs and all gradients are finite, and the same as with zeros there to the last bit."""
    problem = DIRTY[name].problem(dtype=np.float32)
    used = problem.flags["mask"]
    if "seq_lengths" in problem.flags:
        used = used & (np.arange(used.shape[1]) < problem.flags["seq_lengths"][:, None])
    if problem.options["time_major"]:
        used = used.T
    dirt = np.resize([np.nan, np.inf, -np.inf, 1e30], problem.inputs.shape).astype(np.float32)
    dirty, clean = (np.where(used[..., None], problem.inputs, x) for x in (dirt, np.float32(0)))
    run = jax.jit(functools.partial(gradients, problem, implementation=Native(instructions)))
    result = run((problem.params, dirty, problem.arrays))
    jax.tree.map(np.testing.assert_array_equal, result, run((problem.params, clean, problem.arrays)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))
    np.testing.assert_array_equal(result[1][1][~used], 0)


# --- half precision ----------------------------------------------------------------------------------------------------

F32 = jnp.float32
OF_HALF = [
    pytest.param(of_params, of_inputs, id=f"{jnp.dtype(of_params).name}-{jnp.dtype(of_inputs).name}")
    for half in (jnp.bfloat16, jnp.float16)
    for of_params, of_inputs in ((half, half), (F32, half), (half, F32))
]


@pytest.mark.parametrize(("of_params", "of_inputs"), OF_HALF)
def test_half_precision(of_params, of_inputs, monkeypatch):
    """Dtypes as with 'scan', and numbers that differ by a rounding to half precision at most."""
    ran, run = [], Native.run
    monkeypatch.setattr(Native, "run", lambda self, problem: ran.append((problem, run(self, problem))) or ran[-1][1])
    problem = EVERYTHING.problem(dtype=np.float32)

    def cast(tree, dtype):
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)

    arguments = cast(problem.params, of_params), cast(problem.inputs, of_inputs), cast(problem.arrays, of_inputs)
    found, wanted = (
        jax.jit(functools.partial(gradients, problem, implementation=name))(arguments) for name in ("native", "scan")
    )
    for value, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert value.dtype == other.dtype
        eps = float(jnp.finfo(value.dtype).eps)
        value, other = np.asarray(value, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(value, other, rtol=eps, atol=max(eps / 8, TOLERANCE) * np.abs(other).max())
    for given, (final, states) in ran:
        assert (states.dtype, final.dtype) == (given.inputs.dtype, given.initial_state.dtype)
    assert ran
