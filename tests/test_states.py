"""State between calls: the collection "carry", what is stored when, `reset_states` on layers and on whole models."""

import functools

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import thinned
from flax.core import freeze
from models import KEY, MASK, B, F, T, U, X, check_tree, drawn, run, same

from flax_srnn import RNN, Bidirectional, SimpleRNN, SimpleRNNCell, reset_states

check = functools.partial(check_tree, equal=functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6))
LAYER = SimpleRNN(U, stateful=True, return_sequences=True)
MIXED = RNN([SimpleRNNCell(U), nn.LSTMCell(2)], stateful=True, return_sequences=True)
STATEFUL = {
    "SimpleRNN": LAYER,
    "learned": SimpleRNN(U, stateful=True, return_sequences=True, initial_state_initializer="normal"),
    "several cells": MIXED,
    "LSTM": RNN(nn.LSTMCell(6), stateful=True, return_sequences=True),
    "time-major": SimpleRNN(U, stateful=True, return_sequences=True, time_major=True),
}
every = pytest.mark.parametrize("layer", STATEFUL.values(), ids=STATEFUL)


def begin(layer, x=X):
    """Random parameters, and the initial states as `init` records them."""
    variables = drawn(layer, x)
    return reset_states(variables)


def steps(layer, x, start, stop):
    return x[start:stop] if layer.time_major else x[:, start:stop]


def laid_out(layer):
    return X.swapaxes(0, 1) if layer.time_major else X


def stateless(layer):
    return layer.clone(stateful=False, return_state=True)


# --- what is recorded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SimpleRNN", "learned", "several cells"])
def test_init_makes_the_initial_state_and_does_not_advance_it(name):
    layer = STATEFUL[name]
    variables = jax.jit(layer.init)(KEY, X)
    params = variables["params"]
    assert sorted(variables) == ["carry", "params"]
    assert list(variables["carry"]) == ["states"]
    states = variables["carry"]["states"]
    assert isinstance(states, tuple)
    assert len(states) == (2 if layer is MIXED else 1)
    for state in jax.tree.leaves(states):
        same(state, np.broadcast_to(params.get("initial_state", 0.0), state.shape))


@pytest.mark.parametrize("layer", thinned(STATEFUL.values(), 3), ids=STATEFUL)
def test_sequence_in_pieces_equals_the_whole(layer):
    x = laid_out(layer)
    variables = begin(layer, x)
    whole, *states = stateless(layer).apply({"params": variables["params"]}, x)
    pieces = []
    for start, stop in ((0, 2), (2, 2), (2, 5)):
        y, updated = run_and_record(layer, variables, steps(layer, x, start, stop))
        variables = {**variables, **updated}
        pieces.append(y)
    check(jnp.concatenate(pieces, 0 if layer.time_major else 1), whole)
    check(variables["carry"], {"states": tuple(states)})


def run_and_record(layer, variables, x, **arguments):
    return jax.jit(lambda v, x, a: layer.apply(v, x, **a, mutable=["carry"]))(variables, x, arguments)


def output(layer, variables, x, **arguments):
    return run_and_record(layer, variables, x, **arguments)[0]


def test_ones_count_up():
    """Keras's own example, which on JAX it gets right only in eager mode: 4, then 8."""
    options = dict.fromkeys(("kernel_initializer", "recurrent_initializer"), "ones")
    layer = SimpleRNN(1, activation=None, stateful=True, **options)
    ones = np.ones((1, 4, 1), np.float32)
    variables = layer.init(KEY, ones)
    for expected in (4.0, 8.0, 12.0):
        y, updated = layer.apply(variables, ones, mutable=["carry"])
        assert y.item() == expected
        variables = {**variables, **updated}


def test_the_state_goes_on_from_the_record():
    variables = drawn(LAYER, X)
    stored, updated = LAYER.apply(variables, X, mutable=["carry", "losses"])
    recorded = variables["carry"]["states"][0]
    same(stored, stateless(LAYER).apply({"params": variables["params"]}, X, initial_state=recorded)[0])
    assert not np.allclose(stored, output(LAYER, reset_states(variables), X))
    assert list(updated) == ["carry"]
    same(updated["carry"]["states"][0], stored[:, -1])


def as_states(tree):
    return tree["states"] if isinstance(tree, dict) else tree


@pytest.mark.parametrize("layer", [LAYER, MIXED, Bidirectional(LAYER)], ids=["SimpleRNN", "several cells", "both"])
def test_a_state_that_would_never_advance_is_refused(layer):
    variables = drawn(layer, X)
    given = [state for _, tree in sorted(variables["carry"].items(), reverse=True) for state in as_states(tree)]
    for arguments in ({}, {"mutable": ["losses"]}, {"initial_state": given}):
        with pytest.raises(ValueError, match=r"stateful .*mutable=\['carry'\]"):
            layer.apply(variables, X, **arguments)


def test_apply_without_a_record_begins_one():
    variables = drawn(LAYER, X)
    params = {"params": variables["params"]}
    y, updated = LAYER.apply(params, X, mutable=["carry"])
    same(y, stateless(LAYER).apply(params, X)[0])
    same(updated["carry"]["states"][0], y[:, -1])


def test_a_given_state_wins_and_what_comes_of_it_is_stored():
    variables = drawn(LAYER, X)
    given = np.full((B, U), 0.25, np.float32)
    expected, final = stateless(LAYER).apply({"params": variables["params"]}, X, initial_state=given)
    for form in (given, [given], (given,)):
        y, updated = LAYER.apply(variables, X, initial_state=form, mutable=["carry"])
        same(y, expected)
        same(updated["carry"]["states"][0], final)
    # Then a record is not needed, and one of another batch is no mistake.
    same(output(LAYER, {"params": variables["params"]}, X, initial_state=given), expected)
    _, updated = LAYER.apply(variables, X[:1], initial_state=given[:1], mutable=["carry"])
    assert updated["carry"]["states"][0].shape == (1, U)


@pytest.mark.parametrize("name", ["SimpleRNN", "learned", "LSTM"])
def test_resets_go_back_to_the_initial_state_not_to_the_recorded_one(name):
    layer = STATEFUL[name]
    variables = drawn(layer, X)
    params = {"params": variables["params"]}
    resets = np.arange(T) == np.full((B, 1), 2)
    fresh = stateless(layer)
    before, after = output(layer, variables, X)[:, :2], run(fresh, params, X[:, 2:])[0]
    check(output(layer, variables, X, resets=resets), jnp.concatenate([before, after], 1))
    # A given state is one to go back to.
    given = jax.tree.map(lambda leaf: leaf + 1, variables["carry"]["states"][0])
    check(
        output(layer, variables, X, resets=resets, initial_state=[given]),
        run(fresh, params, X, resets=resets, initial_state=[given])[0],
    )


def test_masked_steps_leave_the_record_as_it_is():
    variables = drawn(LAYER, X)
    mask = np.array([[False] * T, [True] * T])
    _, updated = LAYER.apply(variables, X, mask=mask, mutable=["carry"])
    state = updated["carry"]["states"][0]
    same(state[0], variables["carry"]["states"][0][0])
    assert not np.allclose(state[1], variables["carry"]["states"][0][1])


class Twice(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        layer = self.layer.clone(parent=self, name="inner")
        return jnp.concatenate([layer(x[:, :2]), layer(x[:, 2:])], 1)


@pytest.mark.parametrize("layer", [LAYER, MIXED], ids=["SimpleRNN", "several cells"])
def test_second_call_in_one_pass_goes_on_where_the_first_ended(layer):
    model = Twice(layer)
    variables = begin(model)
    inner = {name: tree["inner"] for name, tree in variables.items()}
    whole, *states = stateless(layer).apply({"params": inner["params"]}, X)
    y, updated = model.apply(variables, X, mutable=["carry"])
    check(y, whole)
    check(updated["carry"]["inner"]["states"], tuple(states))


# --- inside the user's transformations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [LAYER, SimpleRNN(U, stateful=True, dtype=jnp.bfloat16), MIXED])
def test_state_is_carried_through_the_users_scan(layer):
    """And leaks nowhere: JAX checks that no traced value outlives its program."""
    variables = begin(layer)
    pieces = np.stack([X, -X, 2 * X])

    def body(carry, x):
        y, updated = layer.apply({"params": variables["params"], "carry": carry}, x, mutable=["carry"])
        return updated["carry"], y

    with jax.checking_leaks():
        final, outputs = jax.jit(lambda carry: jax.lax.scan(body, carry, pieces))(variables["carry"])
    carry = variables["carry"]
    for x, y in zip(pieces, outputs, strict=True):
        carry, expected = jax.jit(body)(carry, x)
        check(y.astype(jnp.float32), expected.astype(jnp.float32))
    check(*jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (final, carry)))


def test_one_compilation_for_many_batches():
    variables = begin(LAYER)
    apply = jax.jit(lambda v, x: LAYER.apply(v, x, mutable=["carry"]))
    for _ in range(3):
        _, updated = apply(variables, X)
        variables = {**variables, **updated}
    assert apply._cache_size() == 1


def test_gradient_reaches_the_recorded_state():
    """The record is an input like any other, so that the user decides where backpropagation is cut."""
    variables = drawn(LAYER, X)
    gradient = jax.grad(lambda carry: output(LAYER, {**variables, "carry": carry}, X).sum())(variables["carry"])
    assert np.abs(gradient["states"][0]).min() > 0


# --- both directions, models of several layers -------------------------------------------------------------------------


def test_both_directions_keep_their_states():
    layer = Bidirectional(LAYER.clone(return_state=True), None)
    variables = drawn(layer, X)
    y, z, first, second = output(layer, variables, X)
    for name, backwards, out, state in (("forward_layer", False, y, first), ("backward_layer", True, z, second)):
        single = LAYER.clone(stateful=False, return_state=True, go_backwards=backwards, keep_order=True)
        recorded = variables["carry"][name]["states"][0]
        expected = single.apply({"params": variables["params"][name]}, X, initial_state=recorded)
        check((out, state), expected)
    _, updated = layer.apply(variables, X, mutable=["carry"])
    check(updated["carry"], {"forward_layer": {"states": (first,)}, "backward_layer": {"states": (second,)}})
    given = np.zeros((2, B, U), np.float32)
    expected = output(layer, reset_states(variables), X)
    check(output(layer, variables, X, initial_state=list(given)), expected)


class Model(nn.Module):
    """Two stateful layers at different depths, one of them with a learned state, and others with states of their own."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Sequential([nn.Dense(2), STATEFUL["learned"].clone()])(x)
        x = SimpleRNN(2, return_sequences=True)(x)
        return Bidirectional(RNN([SimpleRNNCell(U), nn.LSTMCell(2)], stateful=True))(x)


def test_reset_states_of_a_model():
    variables = drawn(Model(), X)
    before = jax.tree.map(np.copy, variables)
    fresh = reset_states(variables)
    check_tree(variables, before, same)  # the argument is not changed
    assert sorted(fresh) == sorted(variables) == ["batch_stats", "carry", "params"]
    assert fresh["params"] is variables["params"]
    assert jax.tree.structure(fresh) == jax.tree.structure(variables)
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(fresh["carry"])}
    (learned,) = [leaf for path, leaf in flat.items() if "layers_1" in path]
    params = variables["params"]["Sequential_0"]["layers_1"]
    same(learned, np.broadcast_to(params["initial_state"], (B, U)))
    assert len(flat) == 1 + 2 * 3
    assert all(not leaf.any() for path, leaf in flat.items() if "layers_1" not in path)
    made = jax.tree.map(lambda leaf: leaf.dtype, fresh["carry"])
    assert made == jax.tree.map(lambda leaf: leaf.dtype, variables["carry"])
    y, updated = Model().apply(variables, X, mutable=["carry"])
    assert jax.tree.structure(updated["carry"]) == jax.tree.structure(variables["carry"])
    assert not np.allclose(y, output(Model(), fresh, X))


def test_reset_states_to_given_values():
    variables = drawn(Model(), X)
    wanted = jax.tree.map(lambda leaf: np.full(leaf.shape, 3, np.int64), variables["carry"])
    for container in (dict, freeze):
        given = reset_states(container(variables), container(wanted))
        assert all(leaf.dtype == np.float32 and (leaf == 3).all() for leaf in jax.tree.leaves(given["carry"]))
    lists = jax.tree.map(lambda leaf: leaf, wanted)
    place = lists["Bidirectional_0"]["backward_layer"]
    place["states"] = [place["states"][0].tolist(), list(place["states"][1])]
    check_tree(reset_states(variables, lists)["carry"], given["carry"], same)
    del lists["Bidirectional_0"]["forward_layer"]
    with pytest.raises(ValueError, match=r"`states`.*\['backward_layer', 'forward_layer'\] at Bidirectional_0"):
        reset_states(variables, lists)


def test_reset_states_of_boxed_learned_states():
    layer = SimpleRNN(
        U, stateful=True, initial_state_initializer=nn.with_partitioning(nn.initializers.ones, ("units",))
    )
    variables = layer.init(KEY, X)
    _, updated = layer.apply(variables, X, mutable=["carry"])
    same(layer.reset_states({**variables, **updated})["carry"]["states"][0], np.ones((B, U)))


def test_reset_states_of_an_ensemble():
    """The copies of a layer under `nn.vmap` have learned states of their own, here as many copies as rows."""
    axes = {"params": 0, "carry": 0}
    many = nn.vmap(SimpleRNN, variable_axes=axes, split_rngs={"params": True}, in_axes=None, axis_size=B)
    variables = drawn(many(U, stateful=True, initial_state_initializer="normal"), X)
    learned = variables["params"]["initial_state"]
    expected = np.repeat(learned[:, None], B, 1)
    same(reset_states(variables)["carry"]["states"][0], expected)


# --- reset_states of one layer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint8, jnp.bfloat16])
def test_real_and_integer_states_are_cast(dtype):
    variables = drawn(LAYER, X)
    new = np.arange(B * U).reshape(B, U).astype(dtype)
    for states in (new, [new], (new,), {"states": (new,)}, [new.tolist()], jnp.asarray(new, np.float32)):
        result = LAYER.reset_states(variables, states)
        assert result["carry"]["states"][0].dtype == np.float32
        same(result["carry"]["states"][0], new.astype(np.float32))
        assert result["params"] is variables["params"]


@every
def test_reset_states_begins_anew(layer):
    x = laid_out(layer)
    variables = begin(layer, x)
    _, updated = run_and_record(layer, variables, x)
    moved = {**variables, **updated}
    assert any(not np.allclose(a, b) for a, b in zip(*map(jax.tree.leaves, (moved, variables)), strict=True))
    check_tree(layer.reset_states(moved), variables, same)
    check_tree(jax.jit(layer.reset_states)(moved), variables, same)
    check_tree(layer.reset_states(moved, list(variables["carry"]["states"])), variables, same)


def test_reset_states_of_both_directions():
    layer = Bidirectional(RNN([SimpleRNNCell(U), nn.LSTMCell(2)], stateful=True))
    variables = drawn(layer, X)
    states = [*variables["carry"]["forward_layer"]["states"], *variables["carry"]["backward_layer"]["states"]]
    fresh = layer.reset_states(variables)
    assert not any(leaf.any() for leaf in jax.tree.leaves(fresh["carry"]))
    check_tree(layer.reset_states(fresh, states), variables, same)
    check_tree(layer.reset_states(fresh, variables["carry"]), variables, same)
    with pytest.raises(ValueError, match="`states` must hold 4 states"):
        layer.reset_states(fresh, states[:2])


@pytest.mark.parametrize("layer", thinned(STATEFUL.values(), 3), ids=STATEFUL)
def test_states_for_another_batch(layer):
    """Trained with one batch, sampled with another."""
    x = laid_out(layer)
    variables, one = drawn(layer, x), x[:, :1] if layer.time_major else x[:1]
    with pytest.raises(ValueError, match=r"`inputs` has the batch shape \(1,\).*reset_states\(batch_size=1\)"):
        layer.apply(variables, one, mutable=["carry"])
    fresh = layer.reset_states(variables, batch_size=1)
    expected = run(stateless(layer), {"params": variables["params"]}, one)[0]
    check(output(layer, fresh, one), expected)
    check_tree(layer.reset_states({"params": variables["params"]}, batch_size=(1,)), fresh, same)
    given = jax.tree.map(lambda leaf: leaf[:1], variables["carry"]["states"])
    check_tree(layer.reset_states(variables, given, batch_size=1)["carry"]["states"], given, same)


def test_batch_sizes():
    both = Bidirectional(MIXED)
    fresh = both.reset_states({}, batch_size=(3, 2))
    assert {leaf.shape for leaf in jax.tree.leaves(fresh)} == {(3, 2, U), (3, 2, 2)}
    assert sorted(fresh["carry"]) == ["backward_layer", "forward_layer"]
    for wrong, error in (("two", TypeError), (-1, ValueError), (True, TypeError), (2.0, TypeError)):
        with pytest.raises(error, match="`batch_size`"):
            LAYER.reset_states({}, batch_size=wrong)
    with pytest.raises(AttributeError, match="must be stateful"):
        SimpleRNN(U).reset_states({}, batch_size=2)
    with pytest.raises(TypeError, match="`variables`"):
        LAYER.reset_states(None, batch_size=2)


def test_the_three_errors():
    """As tf.keras 2.15 documents them."""
    variables = drawn(LAYER, X)
    with pytest.raises(AttributeError, match="Layer must be stateful"):
        LAYER.clone(stateful=False).reset_states(variables)
    with pytest.raises(ValueError, match="it needs to know its batch size"):
        LAYER.reset_states({"params": variables["params"]})
    with pytest.raises(ValueError, match=r"expects 1 states.*received 2"):
        LAYER.reset_states(variables, [np.zeros((B, U))] * 2)
    with pytest.raises(ValueError, match=r"shape \(2, 4\).*\(2, 5\)"):
        LAYER.reset_states(variables, np.zeros((B, U + 1)))
    with pytest.raises(ValueError, match=r"real numbers.*complex"):
        LAYER.reset_states(variables, np.zeros((B, U), complex))


def test_states_of_a_bound_layer():
    variables = drawn(LAYER, X)
    bound = LAYER.bind(variables, mutable=["carry"])
    same(bound.states[0], variables["carry"]["states"][0])
    y = bound(X)
    same(bound.states[0], y[:, -1])
    assert LAYER.bind({"params": variables["params"]}).states is None


# --- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [LAYER, MIXED, Bidirectional(LAYER)], ids=["SimpleRNN", "several cells", "both"])
def test_checkpoint_resumes_in_the_middle_of_a_sequence(layer):
    variables = begin(layer)
    _, updated = layer.apply(variables, X[:, :3], mutable=["carry"])
    variables = {**variables, **updated}
    data = flax.serialization.to_bytes(variables)
    restored = flax.serialization.from_bytes(begin(layer), data)
    check_tree(restored, variables, same)
    same(output(layer, restored, X[:, 3:]), output(layer, variables, X[:, 3:]))


MANY = RNN([SimpleRNNCell(U, name=f"c{i}") for i in range(11)], stateful=True)


@pytest.mark.parametrize("form", ["lists", "dicts"])
@pytest.mark.parametrize(
    "layer", thinned([LAYER, MIXED, Bidirectional(LAYER), MANY], 2), ids=["SimpleRNN", "LSTM", "both", "many"]
)
def test_states_restored_without_a_target(layer, form):
    """Orbax brings tuples back as lists, msgpack as dicts: what is returned has the form that was given."""
    variables = drawn(layer, X)
    if form == "lists":
        restored = {
            **variables,
            "carry": jax.tree.map(listed, variables["carry"], is_leaf=lambda x: isinstance(x, tuple)),
        }
    else:
        restored = flax.serialization.msgpack_restore(flax.serialization.to_bytes(variables))
    assert jax.tree.structure(restored) != jax.tree.structure(variables)
    expected, updated = run_and_record(layer, variables, X)

    def body(carry, x):
        y, new = layer.apply({**restored, "carry": carry}, x, mutable=["carry"])
        return new["carry"], y

    final, outputs = jax.jit(lambda carry: jax.lax.scan(body, carry, np.stack([X])))(restored["carry"])
    check(outputs[0], expected)
    assert jax.tree.structure(final) == jax.tree.structure(restored["carry"])
    check(tuples(final), updated["carry"])
    fresh = layer.reset_states(restored)
    assert jax.tree.structure(fresh) == jax.tree.structure(restored)
    assert not any(leaf.any() for leaf in jax.tree.leaves(fresh["carry"]))
    given = layer.reset_states(restored, variables["carry"])["carry"]
    check_tree(given, restored["carry"], same)


def listed(tree):
    return [listed(leaf) for leaf in tree] if isinstance(tree, tuple) else tree


def tuples(tree):
    """What was saved."""
    if isinstance(tree, dict):
        in_order = [tree.get(str(i)) for i in range(len(tree))]
        return (
            {k: tuples(v) for k, v in tree.items()}
            if any(leaf is None for leaf in in_order)
            else tuple(map(tuples, in_order))
        )
    return tuple(map(tuples, tree)) if isinstance(tree, list) else tree


def test_mask_and_state_work_together_over_pieces():
    variables = begin(LAYER)
    whole = LAYER.clone(stateful=False).apply({"params": variables["params"]}, X, mask=MASK)
    y, updated = LAYER.apply(variables, X[:, :3], mask=MASK[:, :3], mutable=["carry"])
    z = output(LAYER, {**variables, **updated}, X[:, 3:], mask=MASK[:, 3:])
    check(jnp.concatenate([y, z], 1), whole)


def test_state_of_other_shapes_of_batch():
    for batch in ((), (0,), (3, 2)):
        x = np.zeros((*batch, T, F), np.float32)
        variables = begin(LAYER, x)
        assert variables["carry"]["states"][0].shape == (*batch, U)
        y, updated = LAYER.apply(variables, x, mutable=["carry"])
        assert y.shape == (*batch, T, U)
        assert updated["carry"]["states"][0].shape == (*batch, U)
