"""LSTM and GRU cells against Flax's where these compute the same, against Keras's in all options, and their dropout."""

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from keras_models import MARKS, lenient  # noqa: F401 - a fixture

import flax_srnn.nnx
from flax_srnn import RNN, Bidirectional
from flax_srnn.interop import gates
from flax_srnn.interop.gated import GRUCell, LSTMCell

pytestmark = MARKS

B, T, F, U = 3, 6, 4, 5
PAIRS = {"LSTM": (LSTMCell(U), nn.LSTMCell(U)), "GRU": (GRUCell(U), nn.GRUCell(U))}
TWO_STATES = "LSTM"


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def randomised(params, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype), params)


def flags():
    """With steps masked at the beginning, at the end and in between."""
    mask = np.ones((B, T), bool)
    mask[0, :2] = mask[1, 3:] = mask[2, 2] = False
    return mask


def state_of(name):
    return (normal(B, U, seed=1), normal(B, U, seed=2)) if name == TWO_STATES else normal(B, U, seed=1)


def differences(actual, expected):
    """The largest difference in trees of the same form."""
    errors = jax.tree.map(lambda a, e: float(np.abs(a - e).max()), actual, expected)
    return max(jax.tree.leaves(errors))


@pytest.mark.parametrize("name", PAIRS)
def test_a_step_is_that_of_flax(name, worst):
    ours, theirs = PAIRS[name]
    carry, x = state_of(name), normal(B, F)
    params = randomised(theirs.init(jax.random.key(0), carry, x)["params"])
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), carry, x)["params"]) == jax.tree.map(jnp.shape, params)
    step, expected = (cell.apply({"params": params}, carry, x) for cell in (ours, theirs))
    worst[f"step of {name}"] = error = differences(step, expected)
    assert error <= 1e-6
    zeros = [cell.initialize_carry(jax.random.key(0), x.shape) for cell in (ours, theirs)]
    assert differences(*zeros) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("both", [False, True])
def test_driven_as_flax_is(name, both, worst):
    """Values and gradients under a mask, compiled, and of several sets of parameters at once."""
    runs = []
    for cell in PAIRS[name]:
        layer = RNN(cell, return_sequences=True, return_state=True)
        runs.append(Bidirectional(layer) if both else layer)
    x = normal(B, T, F)
    params = randomised(runs[1].init(jax.random.key(0), x)["params"])
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2]), params)
    found = []
    for layer in runs:

        def run(params, layer=layer):
            returned = layer.apply({"params": params}, x, mask=flags())
            return sum(jnp.sum(jnp.sin(each)) for each in jax.tree.leaves(returned)), returned

        found.append(jax.jit(jax.vmap(jax.value_and_grad(run, has_aux=True)))(several))
        np.testing.assert_allclose(found[-1][0][0][0], run(params)[0], rtol=1e-5)
    worst[f"{name}, {'both directions' if both else 'forward'}"] = error = differences(*found)
    assert error <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_at_masked_steps_the_output_is_the_state(name):
    """Before the first used step that is the given one, where any other cell puts out zeros."""
    cell, theirs = PAIRS[name]
    h = normal(B, U, seed=7)
    given = [(normal(B, U, seed=8), h) if name == TWO_STATES else h]
    params = randomised(cell.init(jax.random.key(0), given[0], normal(B, F))["params"])
    mask, x = flags(), normal(B, T, F)
    y, state = RNN(cell, return_sequences=True, return_state=True).apply({"params": params}, x, given, mask=mask)
    np.testing.assert_array_equal(y[0, :2], jnp.stack([h[0], h[0]]))
    np.testing.assert_array_equal(y[1, 3:], jnp.stack([y[1, 2]] * 3))
    np.testing.assert_array_equal(y[:, -1], state[1] if name == TWO_STATES else state)
    other = RNN(theirs, return_sequences=True).apply({"params": params}, x, given, mask=mask)
    np.testing.assert_array_equal(other[0, :2], 0)
    np.testing.assert_allclose(other[:, 2:], y[:, 2:], atol=1e-6)
    zeroed = RNN(cell, return_sequences=True, zero_output_for_mask=True).apply({"params": params}, x, given, mask=mask)
    np.testing.assert_array_equal(zeroed, y * mask[..., None])


def test_a_cell_of_nnx_tells_its_output_too():
    class Telling(nnx.LSTMCell):
        def output_of(self, state):
            return state[1]

    given, mask, x = [(normal(B, U, seed=8), normal(B, U, seed=7))], flags(), normal(B, T, F)
    outputs = [
        flax_srnn.nnx.RNN(kind(F, U, rngs=nnx.Rngs(0)), return_sequences=True)(x, given, mask=mask)
        for kind in (Telling, nnx.LSTMCell)
    ]
    np.testing.assert_array_equal(outputs[0][0, :2], jnp.stack([given[0][1][0]] * 2))
    np.testing.assert_array_equal(outputs[1][0, :2], 0)
    np.testing.assert_array_equal(outputs[0][:, 2:], outputs[1][:, 2:])


ACTIVATIONS = [
    ("tanh", "sigmoid"),
    ("relu", "hard_sigmoid"),
    ("softsign", "tanh"),
    ("elu", "softsign"),
    (None, "sigmoid"),
]
KINDS = [("GRU", {"reset_after": False}), ("GRU", {"reset_after": True}), ("LSTM", {})]
OPTIONS = [
    (kind, options | {"use_bias": use_bias, "go_backwards": go_backwards}, activations)
    for kind, options in KINDS
    for use_bias in (True, False)
    for go_backwards in (False, True)
    for activations in ACTIVATIONS
]


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.thinned(OPTIONS, 1), ids=str)
@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_keras_in_all_options(case, masked, worst):
    kind, options, activations = case
    x, mask = normal(B, T, F), flags() if masked else None
    theirs = getattr(keras.layers, kind)(U, *activations, return_sequences=True, return_state=True, **options)
    theirs.build(x.shape)
    weights = [normal(*w.shape, seed=i) / 2 for i, w in enumerate(theirs.get_weights())]
    theirs.set_weights(weights)
    h, c = normal(B, U, seed=8), normal(B, U, seed=9)
    expected = theirs(x, initial_state=[h, c] if kind == "LSTM" else h, mask=mask)

    kernel, recurrent, *bias = weights
    zeros = np.zeros(kernel.shape[1], np.float32)
    if kind == "LSTM":
        cell, given = LSTMCell(U, *activations), (c, h)
        params = gates.split_lstm(kernel, recurrent, bias[0] if bias else None)
    else:
        after = options["reset_after"]
        cell, given = GRUCell(U, *activations, reset_after=after), h
        first, second = (bias[0] if after else (bias[0], None)) if bias else (zeros, zeros if after else None)
        params = gates.split_gru(kernel, recurrent, first, second, "zrn")
    layer = RNN(cell, return_sequences=True, return_state=True, go_backwards=options["go_backwards"])
    with jax.numpy_rank_promotion("raise"):
        y, state = layer.apply({"params": params}, x, [given], mask=mask)
    ours = [y, state[1], state[0]] if kind == "LSTM" else [y, state]
    scale = max(1.0, float(np.abs(expected[0]).max()))
    error = differences(ours, list(expected)) / scale
    worst[f"Keras's {kind}"] = max(error, worst.get(f"Keras's {kind}", 0))
    assert error <= 1e-5


# --- dropout -----------------------------------------------------------------------------------------------------------

WIDE = 400  # as many inputs as units: each shows a mask's element
RATE = 0.25


def of_linear_gates(cell, **set_to):
    """Parameters of a wide cell, all 0 but those named: a kernel is the unit matrix times a number, a bias that number."""
    params = jax.tree.map(
        jnp.zeros_like, cell.init(jax.random.key(0), cell.initialize_carry(None, (1, WIDE)), jnp.ones((1, WIDE)))
    )["params"]
    for name, number in set_to.items():
        gate, _, leaf = name.partition("_")
        like = params[gate][leaf]
        params[gate][leaf] = number * (jnp.eye(WIDE) if leaf == "kernel" else jnp.ones(like.shape))
    return {"params": params}


def linear(kind, **options):
    return kind(WIDE, None, None, **options)


@pytest.mark.slow
@pytest.mark.parametrize("per_gate", [False, True])
def test_inputs_are_dropped_at_all_steps_alike(per_gate):
    ones, key = jnp.ones((1, T, WIDE)), {"dropout": jax.random.key(3)}
    # c = i g, h = c: the product of the masks of two gates.
    cell = linear(LSTMCell, dropout=RATE, mask_per_gate=per_gate)
    variables = of_linear_gates(cell, ii_kernel=1, ig_kernel=1, ho_bias=1)
    y = RNN(cell, return_sequences=True).apply(variables, ones, training=True, rngs=key)[0]
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:1], y.shape))
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - RATE) ** 2], rtol=1e-6)
    assert abs(np.mean(np.asarray(y[0]) > 0) - (1 - RATE) ** (2 if per_gate else 1)) < 0.07
    np.testing.assert_array_equal(RNN(cell, return_sequences=True).apply(variables, ones), 1)

    # n = r - x: the difference of two masks.
    cell = linear(GRUCell, dropout=RATE, mask_per_gate=per_gate)
    variables = of_linear_gates(cell, ir_kernel=1, in_kernel=-1, hn_bias=1)
    y = RNN(cell, return_sequences=True).apply(variables, ones, training=True, rngs=key)[0]
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:1], y.shape))
    assert np.any(y != 0) == per_gate


@pytest.mark.slow
@pytest.mark.parametrize("per_gate", [False, True])
def test_states_are_dropped_at_all_steps_alike(per_gate):
    """What is not dropped in the first step never is; the rest is 0 from there on."""
    nothing, one, key = jnp.zeros((1, T, 2)), jnp.ones((1, WIDE)), {"dropout": jax.random.key(3)}
    cell = linear(LSTMCell, recurrent_dropout=RATE, mask_per_gate=per_gate)
    variables = of_linear_gates(cell, hi_kernel=0.8, hg_kernel=0.8, ho_bias=1)
    variables["params"] |= {f"i{gate}": {"kernel": jnp.zeros((2, WIDE))} for gate in "ifgo"}
    layer = RNN(cell, return_sequences=True)
    y = layer.apply(variables, nothing, [(one, one)], training=True, rngs=key)[0]
    np.testing.assert_array_equal(y > 0, jnp.broadcast_to(y[:1] > 0, y.shape))
    assert abs(np.mean(np.asarray(y[0]) > 0) - (1 - RATE) ** (2 if per_gate else 1)) < 0.07

    # n = r (h U): with masks of its own for r or with the same one.
    for after in (True, False):
        cell = linear(GRUCell, recurrent_dropout=RATE, mask_per_gate=per_gate, reset_after=after)
        variables = of_linear_gates(cell, hr_kernel=0.8, hn_kernel=0.8)
        variables["params"] |= {f"i{g}": {"kernel": jnp.zeros((2, WIDE)), "bias": jnp.zeros(WIDE)} for g in "rzn"}
        y = RNN(cell, return_sequences=True).apply(variables, nothing, [one], training=True, rngs=key)[0]
        np.testing.assert_array_equal(y > 0, jnp.broadcast_to(y[:1] > 0, y.shape))
        assert abs(np.mean(np.asarray(y[0]) > 0) - (1 - RATE) ** (2 if per_gate else 1)) < 0.07


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_whether_it_trains_may_be_traced(name):
    cell = PAIRS[name][0].clone(dropout=0.5, recurrent_dropout=0.3)
    layer, x, key = RNN(cell), normal(B, T, F), {"dropout": jax.random.key(1)}
    params = {"params": randomised(layer.init(jax.random.key(0), x)["params"])}
    traced = jax.jit(lambda training: layer.apply(params, x, training=training, rngs=key))
    for training in (False, True):
        expected = layer.apply(params, x, training=training, rngs=key)
        np.testing.assert_allclose(traced(training), expected, atol=1e-6)
    assert np.abs(traced(False) - traced(True)).max() > 0.01
    np.testing.assert_allclose(traced(False), RNN(PAIRS[name][0]).apply(params, x), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_half_precision(name):
    cell, x = PAIRS[name][0], normal(B, T, F)
    layer = RNN(cell.clone(dtype=jnp.bfloat16), return_sequences=True, return_state=True)
    params = randomised(layer.init(jax.random.key(0), x)["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    returned = layer.apply({"params": params}, x, mask=flags())
    assert {leaf.dtype for leaf in jax.tree.leaves(returned)} == {jnp.dtype(jnp.bfloat16)}
    exact = RNN(cell, return_sequences=True).apply({"params": params}, x, mask=flags())
    assert 0 < np.abs(returned[0].astype(jnp.float32) - exact).max() < 0.05
