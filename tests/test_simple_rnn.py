"""The values of `simple_rnn` and `cell_step` against the float64 NumPy oracle, and sequences of every awkward size."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from programs import call, values

from flax_srnn import Scan, cell_step, compute_mask, simple_rnn, truncated_rnn

pytestmark = pytest.mark.usefixtures("x64")
close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
both = pytest.mark.parametrize("implementation", ["scan", "autodiff"])


def assert_same(actual, expected):
    for value, wanted in zip(actual, expected, strict=True):
        assert value.shape == wanted.shape
        close(value, wanted)


# --- every combination of options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases.SINGLE, ids=str)
def test_every_option_equals_the_oracle(case):
    problem = case.problem()
    expected = call(reference.simple_rnn, problem)
    assert_same(call(simple_rnn, problem, implementation="scan", unroll=case.unroll), expected)
    assert_same(values(problem, implementation="autodiff", unroll=case.unroll), expected)


@pytest.mark.parametrize("case", cases.thinned(cases.DRAWN[:12], 2), ids=str)
def test_random_combinations_equal_the_oracle(case):
    problem = case.problem()
    expected = call(reference.simple_rnn, problem)
    assert_same(values(problem, unroll=case.unroll), expected)
    with jax.disable_jit():  # one operation after the other: not compiled, so much faster
        assert_same(call(simple_rnn, problem, implementation="autodiff"), expected)


SEVERAL_BLOCKS = [
    cases.Case(sizes=(6, 2, 4), mask=True, resets=True),
    cases.Case(sizes=(7, 2, 4), mask=True, resets=True, go_backwards=True),
    cases.Case(sizes=(8, 6, 12), time_major=True, initial_state=True, return_sequences=False, unroll=2),
]


@pytest.mark.parametrize("case", SEVERAL_BLOCKS, ids=str)
@pytest.mark.parametrize("tuning", [cases.SMALL_BLOCKS, cases.COPIED_BLOCKS], ids=["in place", "copied"])
def test_several_blocks_equal_the_oracle(case, tuning):
    problem = case.problem()
    small = Scan(tuning=tuning)
    assert_same(values(problem, unroll=case.unroll, implementation=small), call(reference.simple_rnn, problem))


@pytest.mark.parametrize("activation", ["tanh", "softmax"])
def test_cell_step_driven_by_hand(activation):
    """The loop that the documentation shows, and dropout masks by closure."""
    case = cases.Case(
        time_major=True,
        initial_state=True,
        input_dropout_mask=True,
        recurrent_dropout_mask=True,
        activation=activation,
    )
    params, inputs, arrays, _, _ = problem = case.problem()
    h0 = arrays.pop("initial_state")
    params = jax.tree.map(jnp.asarray, params)
    step = functools.partial(cell_step, params, activation=activation)
    expected = reference.simple_rnn(params, inputs, initial_state=h0, activation=activation, time_major=True)
    assert_same(jax.lax.scan(step, h0, inputs), expected)
    rows = functools.partial(jax.lax.scan, step)
    assert_same(jax.vmap(rows, in_axes=(0, 1), out_axes=(0, 1))(h0, inputs), expected)

    expected = call(reference.simple_rnn, problem, initial_state=h0)
    assert_same(jax.lax.scan(functools.partial(step, **arrays), h0, inputs), expected)
    state = h0
    for t, x in enumerate(inputs):
        state, output = step(state, x, **arrays)
        close(output, expected[1][t])
    close(state, expected[0])


# --- golden vectors ----------------------------------------------------------------------------------------------------

GOLDEN_MASK = np.array([[0, 1, 0, 1], [1, 1, 0, 0]])
GOLDEN = {
    "scan": ({}, [[10, 11, 11, 12], [21, 22, 22, 22]], [12, 22]),
    "zero": ({"zero_output_for_mask": True}, [[0, 11, 0, 12], [21, 22, 0, 0]], [12, 0]),
    "backwards": ({"go_backwards": True}, [[11, 11, 12, 12], [20, 20, 21, 22]], [12, 22]),
    "backwards, zero": (
        {"go_backwards": True, "zero_output_for_mask": True},
        [[11, 0, 12, 0], [0, 0, 21, 22]],
        [0, 22],
    ),
    "in order": ({"go_backwards": True, "keep_order": True}, [[12, 12, 11, 11], [22, 21, 20, 20]], [12, 22]),
}


@both
@pytest.mark.parametrize("unroll", [False, True, 3])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_masks(name, unroll, implementation):
    """The integers of Keras's scan on the JAX backend: one rule, unrolled too."""
    options, sequence, last = GOLDEN[name]
    params = {"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    options = {"activation": None, "unroll": unroll, "implementation": implementation, **options}
    run = functools.partial(
        simple_rnn, params, jnp.ones((2, 4, 1)), initial_state=[[10.0], [20.0]], mask=GOLDEN_MASK, **options
    )
    for return_sequences, expected in ((True, sequence), (False, last)):
        final, outputs = run(return_sequences=return_sequences)
        np.testing.assert_array_equal(final[:, 0], [12, 22])
        np.testing.assert_array_equal(outputs[..., 0], expected)


@both
def test_a_reset_at_a_masked_step_is_a_reset_all_the_same(implementation):
    params = {"kernel": jnp.ones((1, 1)), "recurrent_kernel": jnp.ones((1, 1))}
    flags = {"mask": [[1, 0, 1]], "resets": [[0, 1, 0]]}
    final, outputs = simple_rnn(params, jnp.ones((1, 3, 1)), **flags, activation=None, implementation=implementation)
    assert (final.tolist(), outputs.ravel().tolist()) == ([[1]], [1, 0, 1])


def test_mask_of_the_returned_sequence():
    mask = jnp.array([[0, 1, 1, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(compute_mask(mask), mask == 1)
    np.testing.assert_array_equal(compute_mask(mask, go_backwards=True), mask[:, ::-1] == 1)
    np.testing.assert_array_equal(compute_mask(mask, go_backwards=True, keep_order=True), mask == 1)
    assert compute_mask(None, go_backwards=True) is None


# --- pieces of a sequence ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("go_backwards", [False, True])
def test_pieces_equal_the_whole(go_backwards):
    """Each piece starts from the last one's final state; resets go back to the first one's initial state."""
    case = cases.Case(
        sizes=(9, 2, 4),
        mask=True,
        resets=True,
        initial_state=True,
        recurrent_dropout_mask=True,
        go_backwards=go_backwards,
        keep_order=True,
    )
    problem = case.problem()
    h0, dropout = problem.arrays["initial_state"], problem.arrays["recurrent_dropout_mask"]
    whole = call(simple_rnn, problem)
    pieces = [(0, 3), (3, 4), (4, 9)]
    state, outputs = h0, []
    for start, stop in reversed(pieces) if go_backwards else pieces:
        flags = {name: flag[:, start:stop] for name, flag in problem.flags.items()}
        state, output = simple_rnn(
            problem.params,
            problem.inputs[:, start:stop],
            initial_state=state,
            reset_state=h0,
            recurrent_dropout_mask=dropout,
            **flags,
            **problem.options,
        )
        outputs.append(output)
    outputs = jnp.concatenate(outputs[::-1] if go_backwards else outputs, 1)
    assert_same((state, outputs), whole)


# --- nothing to do -----------------------------------------------------------------------------------------------------

EMPTY = {
    "no steps": cases.Case(sizes=(0, 2, 4)),
    "no steps, unrolled": cases.Case(sizes=(0, 2, 4), time_major=True, unroll=True),
    "no rows": cases.Case(batch=(0,)),
    "no rows of rows": cases.Case(batch=(2, 0), sizes=cases.WIDE, unroll=3),
    "neither": cases.Case(batch=(0,), sizes=(0, 2, 4)),
}


@both
@pytest.mark.parametrize("name", cases.thinned(EMPTY, 2))
def test_empty_sequences_and_batches(name, implementation):
    """The final state is the initial state, and gradients pass through it."""
    case = EMPTY[name]
    params, inputs, *_ = case.problem()
    steps, _, units = case.sizes
    h0 = jnp.full((*case.batch, units), 0.5)
    flags = {flag: np.zeros((*case.batch, steps), bool) for flag in ("mask", "resets")}
    flags["seq_lengths"] = np.zeros(case.batch, int)
    layout = (steps, *case.batch) if case.time_major else (*case.batch, steps)

    def total(params, h0, return_sequences, flags):
        options = {"unroll": case.unroll, "time_major": case.time_major, "return_sequences": return_sequences}
        final, outputs = simple_rnn(params, inputs, initial_state=h0, **flags, **options, implementation=implementation)
        assert final.shape == h0.shape
        assert outputs.shape == ((*layout, units) if return_sequences else h0.shape)
        return final.sum() + outputs.sum(), final

    for return_sequences, given in ((True, {}), (True, flags), (False, flags)):
        run = functools.partial(total, return_sequences=return_sequences, flags=given)
        grads, final = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))(params, h0)
        np.testing.assert_array_equal(final, h0)
        for key, grad in grads[0].items():
            np.testing.assert_array_equal(grad, np.zeros_like(params[key]))
        np.testing.assert_array_equal(grads[1], np.full(h0.shape, 1.0 if return_sequences else 2.0))


@both
@pytest.mark.parametrize("go_backwards", [False, True])
def test_rows_without_a_used_step(go_backwards, implementation):
    """Length 0 and an all-masked row: outputs and state are the initial state."""
    problem = cases.Case(batch=(4,), initial_state=True).problem()
    h0 = problem.arrays["initial_state"]
    mask = np.ones((4, 7), bool)
    mask[1] = False
    options = {"mask": mask, "seq_lengths": np.array([7, 7, 0, 3]), "go_backwards": go_backwards}
    final, outputs = call(simple_rnn, problem, **options, implementation=implementation)
    assert_same((final, outputs), call(reference.simple_rnn, problem, **options))
    for row in (1, 2):
        np.testing.assert_array_equal(final[row], h0[row])
        np.testing.assert_array_equal(outputs[row], np.broadcast_to(h0[row], (7, 4)))


INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@both
@pytest.mark.parametrize("dtype", cases.thinned(INTEGERS, 2))
def test_lengths_of_any_integer_dtype(dtype, implementation):
    """Also where the number of steps does not fit it."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(2, 3)), "recurrent_kernel": rng.normal(size=(3, 3)) / 3}
    steps = 300 if np.iinfo(dtype).max < 300 else 40
    x = rng.normal(size=(3, steps, 2)).astype(np.float32)
    lengths = np.array([0, 30, min(steps, np.iinfo(dtype).max)])
    given = lengths.astype(dtype)
    call = functools.partial(simple_rnn, params, x, implementation=implementation)
    expected = call(mask=np.arange(steps) < lengths[:, None])
    for value in (given, jnp.asarray(given), list(given)):
        for actual, right in zip(call(seq_lengths=value), expected, strict=True):
            np.testing.assert_array_equal(actual, right)
    traced = jax.jit(lambda lengths: call(seq_lengths=lengths))(given)
    np.testing.assert_allclose(traced[1], expected[1], atol=1e-6)
    pieces = truncated_rnn(params, x, 7, seq_lengths=given, implementation=implementation)
    np.testing.assert_allclose(pieces[1], expected[1], atol=1e-5)


@pytest.mark.parametrize("dtype", cases.thinned(["int8", "uint8", "int16"], 1))
def test_steps_of_narrow_integers(dtype):
    """Products of 100 and 3 do not fit them."""
    rng = np.random.default_rng(0)
    x, mask = (rng.integers(1, 100, (2, 3)).astype(dtype), np.full((2, 3), 3, dtype))
    params = {"kernel": rng.integers(1, 100, (3, 4)).astype(dtype), "recurrent_kernel": np.eye(4, dtype=dtype)}
    state = np.full((2, 4), 100, dtype)
    whole = {name: value.astype(np.float64) for name, value in params.items()}
    expected = (x.astype(float) * 3) @ whole["kernel"] + 300
    doubled = np.full((2, 4), 3, dtype)
    for weights in (params, whole):
        _, output = cell_step(
            weights, state, x, activation=None, input_dropout_mask=mask, recurrent_dropout_mask=doubled
        )
        np.testing.assert_allclose(output, expected, rtol=1e-6)
