"""`truncated_rnn`: the values of `simple_rnn`, and the gradients of a loop whose state is a constant every K steps."""

import functools
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import assert_close

from flax_srnn import Chunked, init_params, simple_rnn
from flax_srnn.truncated import truncated_rnn

pytestmark = pytest.mark.usefixtures("x64")
CASES = [
    cases.Case(),
    cases.Case(learned_state=True, bias=False, activation="silu"),
    cases.Case(initial_state=True, mask=True, seq_lengths=True, zero_output_for_mask=True),
    cases.Case(initial_state=True, resets=True, input_dropout_mask=True, recurrent_dropout_mask=True),
    cases.Case(learned_state=True, resets=True, mask=True, batch=(2, 2), sizes=cases.WIDE),
    cases.Case(batch=(), mask=True, unroll=True),
]


def arguments(case):
    params, inputs, arrays, flags, options = case.problem()
    chosen = {name: options[name] for name in ("activation", "zero_output_for_mask")} | {"unroll": case.unroll}
    return (params, inputs, arrays), flags, chosen


def loop(params, inputs, every, *, initial_state=None, mask=None, seq_lengths=None, resets=None, **options):
    """The definition, piece by piece, with JAX's own derivative of the plain scan."""
    steps, batch = inputs.shape[-2], inputs.shape[:-2]
    if seq_lengths is not None:
        mask = (np.arange(steps) < seq_lengths[..., None]) & (True if mask is None else mask)
    first, units = initial_state, params["recurrent_kernel"].shape[0]
    if first is None:
        first = jnp.broadcast_to(params.get("initial_state", jnp.zeros(units)), (*batch, units))
    state, outputs = first, []
    for start in range(0, steps, every):
        now = slice(start, start + every)
        given = {"mask": mask, "resets": resets}
        given = {name: flags[..., now] for name, flags in given.items() if flags is not None}
        given |= {} if resets is None else {"reset_state": first}
        state, piece = simple_rnn(
            params, inputs[..., now, :], initial_state=state, implementation="autodiff", **given, **options
        )
        state = state if start + every >= steps else jax.lax.stop_gradient(state)
        outputs.append(piece)
    return state, jnp.concatenate(outputs, -2)


def values_and_gradients(function, arguments, *fixed, **options):
    def loss(arguments):
        params, inputs, arrays = arguments
        state, outputs = function(params, inputs, *fixed, **arrays, **options)
        weights = np.random.default_rng(3).normal(size=outputs.shape)
        return (weights * jnp.sin(outputs)).sum() + jnp.cos(state).sum(), (state, outputs)

    return jax.jit(jax.grad(loss, has_aux=True))(arguments)


# Of 5 and 7 steps: with a rest, one at a time, all in one piece.
PAIRS = [*((case, 3) for case in CASES), (CASES[2], 1), (CASES[3], 100)]


@pytest.mark.parametrize("pair", cases.thinned(PAIRS, 3), ids=str)
def test_values_and_gradients_of_the_loop(pair):
    case, every = pair
    given, flags, options = arguments(case)
    grads, returned = values_and_gradients(truncated_rnn, given, every, **flags, **options)
    expected_grads, expected = values_and_gradients(loop, given, every, **flags, **options)
    assert_close(returned, expected, 1e-12)
    assert_close(grads, expected_grads, 1e-11)
    assert_close(returned, simple_rnn(*given[:2], **given[2], **flags, **options), 1e-12)


@pytest.mark.slow
def test_a_loss_reaches_back_to_the_start_of_its_piece():
    params = init_params(jax.random.key(0), 2, 4, dtype=jnp.float64)
    reach = jax.grad(lambda x: truncated_rnn(params, x, 4)[1][9].sum())(jnp.ones((11, 2)))
    assert (jnp.abs(reach).sum(-1) > 0).tolist() == [8 <= t <= 9 for t in range(11)]


@pytest.mark.parametrize("kind", [{"implementation": Chunked(pieces=2, tol=1e-15)}, {"precision": "highest"}])
@pytest.mark.slow
def test_options_are_passed_on(kind):
    given, _, _ = arguments(CASES[0])
    actual, expected = (values_and_gradients(truncated_rnn, given, 4, **options) for options in (kind, {}))
    assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 5, 3)])
def test_no_steps_and_no_rows(shape):
    params = init_params(jax.random.key(0), 3, 4, dtype=jnp.float64)
    state, outputs = truncated_rnn(params, jnp.ones(shape), 2, initial_state=jnp.ones((shape[0], 4)))
    assert outputs.shape == (*shape[:2], 4)
    assert (state == 1).all()


@pytest.mark.slow
def test_training_on_pieces_learns():
    """One update per sequence, gradients cut every 5 of 40 steps: the echo of two steps ago is within reach."""
    import optax

    inputs = jax.random.normal(jax.random.key(1), (16, 40, 1))
    target = jnp.roll(inputs, 2, axis=1)[..., 0]
    params = {"rnn": init_params(jax.random.key(0), 1, 8, dtype=jnp.float64), "out": jnp.zeros(8)}
    optimizer = optax.adam(0.02)

    def loss(params):
        _, outputs = truncated_rnn(params["rnn"], inputs, 5)
        return jnp.square(outputs @ params["out"] - target)[:, 2:].mean()

    @jax.jit
    def update(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    _, losses = jax.lax.scan(update, (params, optimizer.init(params)), length=200)
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"every": 0}, ValueError, "`every`.*positive.*0"),
        ({"every": -3}, ValueError, "`every`.*positive.*-3"),
        ({"every": 2.0}, TypeError, "`every` .*positive integer.*2.0"),
        ({"every": None}, TypeError, "`every` .*positive integer.*None"),
        ({"go_backwards": True}, TypeError, "`go_backwards`"),
        ({"time_major": True}, TypeError, "`time_major`"),
        ({"initial_state": np.ones((2, 5))}, ValueError, "`initial_state` .*(2, 4).*(2, 5)"),
        ({"mask": np.ones((2, 6), bool)}, ValueError, "`mask` .*(2, 7).*(2, 6)"),
        ({"resets": np.ones((2, 6), bool)}, ValueError, "`resets` .*(2, 7).*(2, 6)"),
        ({"seq_lengths": np.array([7, 8])}, ValueError, "`seq_lengths` .*7.*8"),
        ({"activation": "tan"}, ValueError, "tan"),
    ],
    ids=str,
)
def test_bad_input(change, error, words):
    params = init_params(jax.random.key(0), 3, 4)
    call = functools.partial(truncated_rnn, **{"params": params, "inputs": np.ones((2, 7, 3)), "every": 3, **change})
    with pytest.raises(error, match=re.sub(r"[()]", r"\\\g<0>", words)):
        call()
