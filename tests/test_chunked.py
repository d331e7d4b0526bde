"""`implementation="chunked"`, exact like the scan whatever the network: against the oracle, the plain scan, and itself."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from programs import assert_close, assert_derivative, call, compiled, plain

import flax_srnn
import flax_srnn.nnx
from flax_srnn import Chunked, chunked, simple_rnn

pytestmark = pytest.mark.usefixtures("x64")
EXACT = {"implementation": Chunked(pieces=3, tol=1e-15)}
CASES = [
    cases.Case(),
    cases.Case(bias=False, learned_state=True, sizes=cases.WIDE),  # 5 steps in 3 pieces: the last holds one
    cases.Case(mask=True, activation="silu"),
    cases.Case(go_backwards=True, initial_state=True),
    cases.Case(resets=True, activation=None),
    cases.Case(return_sequences=False, seq_lengths=True),
    cases.Case(batch=(), mask=True, sizes=cases.ONE_FEATURE),
    cases.EVERYTHING(),
    cases.EVERYTHING(reset_state=True, time_major=True, go_backwards=True, activation="softmax"),
    cases.EVERYTHING(reset_state=True, sizes=cases.WIDE, batch=(2, 2), keep_order=True, go_backwards=True),
    cases.EVERYTHING(unroll=2, zero_output_for_mask=True, learned_state=True),
]


@pytest.mark.parametrize("case", cases.thinned(CASES, 4), ids=str)
def test_values_and_gradients(case):
    problem = case.problem()
    returned, grads = compiled(problem, unroll=case.unroll, **EXACT)
    assert_close(returned, call(reference.simple_rnn, problem), 1e-12)
    assert_close(grads, plain(problem)[1], 1e-11)
    assert_derivative(problem, grads)


@pytest.mark.parametrize("case", cases.thinned([*cases.SINGLE[4::2], *cases.DRAWN[:8]], 3), ids=str)
def test_values(case):
    problem = case.problem()
    returned = call(simple_rnn, problem, unroll=case.unroll, **EXACT)
    assert_close(returned, call(reference.simple_rnn, problem), 1e-12)


def test_gradients_of_gradients():
    problem = cases.EVERYTHING().problem()

    def slope(inputs, **options):
        def loss(inputs):
            return jnp.sin(call(simple_rnn, problem, (problem.params, inputs, problem.arrays), **options)[1]).sum()

        return jnp.square(jax.grad(loss)(inputs)).sum()

    ours, theirs = (
        jax.jit(jax.grad(functools.partial(slope, **options)))(problem.inputs)
        for options in (EXACT, {"implementation": "autodiff"})
    )
    assert_close(ours, theirs, 1e-10)


# --- long sequences: networks that forget and networks that do not ----------------------------------------------------


def network(gain, rows=2, steps=600, units=8, seed=0):
    """Params with a recurrent kernel of `gain` times an orthogonal matrix, and inputs."""
    rng = np.random.default_rng(seed)
    orthogonal = np.linalg.qr(rng.normal(size=(units, units)))[0]
    params = {"kernel": rng.normal(size=(3, units)) / 2, "recurrent_kernel": gain * orthogonal}
    return jax.tree.map(jnp.asarray, params), jnp.asarray(rng.normal(size=(rows, steps, 3)))


def outputs_and_gradients(params, inputs, **options):
    def loss(params, inputs):
        outputs = simple_rnn(params, inputs, **options)[1]
        return jnp.square(outputs[:, -5:]).sum() + outputs[:, 7].sum(), outputs

    grads, outputs = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, inputs)
    return outputs, grads


@pytest.mark.slow
@pytest.mark.parametrize("pieces", cases.thinned([7, None], 1))  # 600 is no multiple of 7
@pytest.mark.parametrize("kind", cases.thinned([(0.3, "tanh"), (0.98, None), (1.0, None), (1.8, "tanh")], 1), ids=str)
def test_no_network_makes_it_wrong(kind, pieces):
    """Forgetting, forgetting slowly, never forgetting, chaotic."""
    gain, activation = kind
    params, inputs = network(gain, steps=150 if gain > 1 else 600)  # chaos amplifies the rounding of any two programs
    expected = outputs_and_gradients(params, inputs, activation=activation)
    solver = Chunked(pieces=pieces, tol=1e-12)
    actual = outputs_and_gradients(params, inputs, activation=activation, implementation=solver)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * scale), actual, expected)


@pytest.mark.parametrize("tol", cases.thinned([1e-6, 1e-3, 1e-9], 1))
def test_the_error_follows_the_tolerance(tol):
    params, inputs = network(0.9)
    expected = outputs_and_gradients(params, inputs)
    actual = outputs_and_gradients(params, inputs, implementation=Chunked(pieces=16, tol=tol))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tol * scale), actual, expected)


@pytest.mark.slow
def test_float32_reaches_the_default_tolerance():
    params, inputs = jax.tree.map(lambda x: x.astype(jnp.float32), network(0.9))
    expected = outputs_and_gradients(params, inputs)
    actual = outputs_and_gradients(params, inputs, implementation="chunked")
    assert actual[0].dtype == jnp.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), actual, expected)


@pytest.mark.parametrize("reverse", cases.thinned([True, False], 1))
def test_giving_up_is_seen_in_everything(reverse):
    params, inputs = network(1.0)
    options = {"activation": None, "go_backwards": reverse, "implementation": Chunked(pieces=8, max_sweeps=7)}
    for leaf in jax.tree.leaves(outputs_and_gradients(params, inputs, **options)):
        assert jnp.isnan(leaf).all()
    final_state, _ = simple_rnn(params, inputs, return_sequences=False, **options)
    assert jnp.isnan(final_state).all()
    for sweeps in (8, 100):
        options["implementation"] = Chunked(pieces=8, max_sweeps=sweeps)
        for leaf in jax.tree.leaves(outputs_and_gradients(params, inputs, **options)):
            assert jnp.isfinite(leaf).all()


def test_a_backward_pass_alone_that_gives_up_is_seen_in_the_gradients():
    params, inputs = network(1.0)
    zeros = jnp.zeros_like(inputs)  # all states are 0: the forward pass agrees in its first sweep
    # Backwards, the output of step 7 comes late, and its cotangent goes through nearly all steps undiminished.
    options = {
        "activation": None,
        "go_backwards": True,
        "keep_order": True,
        "implementation": Chunked(pieces=8, max_sweeps=2),
    }
    outputs, grads = outputs_and_gradients(params, zeros, **options)
    assert (outputs == 0).all()
    for leaf in jax.tree.leaves(grads):
        assert jnp.isnan(leaf).all()


def test_nan_in_masked_steps_stays_there():
    problem = cases.Case(mask=True).problem()
    poisoned = np.where(problem.flags["mask"][..., None], problem.inputs, np.nan)
    clean, spoilt = (compiled(problem._replace(inputs=inputs), **EXACT) for inputs in (problem.inputs, poisoned))
    assert_close(spoilt, clean, 1e-14)


@pytest.mark.parametrize("return_sequences", [False, True])
def test_the_number_of_sweeps(return_sequences):
    # 600 steps in 16 pieces of 38, of which the last 10 make the guess: 0.2^10 is below the tolerance, 0.9^38 is not.
    counts = []
    for gain in (0.2, 0.9, 1.0):
        params, inputs = network(gain)
        options = {"activation": None, "return_sequences": return_sequences}
        sweeps = chunked.sweeps(params, inputs, implementation=Chunked(pieces=16), **options)
        assert sweeps.dtype == jnp.int32
        counts.append(int(sweeps))
    assert counts[0] == 1 < counts[1] < counts[2] == 16


# --- sizes, transformations, layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", cases.thinned([(0, 5, False), (2, 0, False), (2, 0, True), (2, 1, True), (2, 2, False)], 1), ids=str
)
def test_no_rows_no_steps_and_fewer_steps_than_pieces(kind):
    rows, steps, time_major = kind
    params, _ = network(0.5)
    inputs = jnp.ones((steps, rows, 3) if time_major else (rows, steps, 3))
    options = {"time_major": time_major, "initial_state": jnp.ones((rows, 8)) / 2}

    def loss(params, inputs, **kind):
        final_state, outputs = simple_rnn(params, inputs, **options, **kind)
        return jnp.square(outputs).sum() + final_state.sum()

    ours, theirs = (jax.value_and_grad(functools.partial(loss, **kind), (0, 1))(params, inputs) for kind in (EXACT, {}))
    assert_close(ours, theirs, 1e-13)


@pytest.mark.slow
def test_vmap_over_networks_that_need_different_numbers_of_sweeps():
    pairs = [network(gain, steps=64) for gain in (0.1, 0.9, 1.5)]
    params, inputs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
    expected = [outputs_and_gradients(*pair) for pair in pairs]
    solver = Chunked(pieces=8, tol=1e-14)
    actual = jax.vmap(lambda p, x: outputs_and_gradients(p, x, implementation=solver))(params, inputs)
    assert_close(actual, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected), 1e-10)


@pytest.mark.parametrize("family", [flax_srnn, flax_srnn.nnx], ids=["linen", "nnx"])
def test_layers(family):
    _, inputs = network(0.5, steps=40)
    options = {"return_sequences": True, "return_state": True, "go_backwards": True}

    def returned(**kind):
        if family is flax_srnn:
            layer = family.SimpleRNN(8, **options, **kind)
            return layer.apply(layer.init(jax.random.key(0), inputs), inputs)
        from flax import nnx

        return family.SimpleRNN(3, 8, **options, **kind, rngs=nnx.Rngs(0))(inputs)

    assert_close(returned(**EXACT), returned(), 1e-12)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"pieces": 0}, ValueError, r"`pieces`.*positive.*0"),
        ({"pieces": 2.0}, TypeError, r"`pieces` .*positive integer.*2\.0"),
        ({"pieces": True}, TypeError, r"`pieces` .*positive integer.*True"),
        ({"max_sweeps": 0}, ValueError, r"`max_sweeps`.*positive.*0"),
        ({"tol": 0.0}, ValueError, r"`tol` .*positive.*0\.0"),
        ({"tol": -1e-6}, ValueError, r"`tol` .*positive.*-1e-06"),
        ({"tol": float("nan")}, ValueError, r"`tol` .*positive.*nan"),
        ({"tol": "1e-6"}, TypeError, r"`tol` .*positive.*'1e-6'"),
        ({"tol": 1e-17}, ValueError, r"`tol` .*rounding.*float64.*1e-17"),
    ],
    ids=str,
)
def test_bad_input(options, error, words):
    params, inputs = network(0.5, steps=9)
    with pytest.raises(error, match=words):
        simple_rnn(params, inputs, implementation=Chunked(**options))


def test_a_tolerance_below_the_rounding_of_float32():
    params, inputs = jax.tree.map(lambda x: x.astype(jnp.float32), network(0.5, steps=9))
    with pytest.raises(ValueError, match=r"`tol` .*rounding.*float32.*1e-08"):
        simple_rnn(params, inputs, implementation=Chunked(tol=1e-8))


def test_sweeps_of_another_implementation():
    params, inputs = network(0.5, steps=9)
    with pytest.raises(ValueError, match=r"`implementation` .*Chunked.*Scan"):
        chunked.sweeps(params, inputs, implementation="scan")
