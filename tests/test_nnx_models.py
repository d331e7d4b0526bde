"""NNX layers in models: dropout, states between calls, training, and Flax's own cells and loops."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from nnx_twins import SEQUENCES, B, F, T, U, assert_identical, bidirectional, cells_of, numbers, rnn, rnn_of_one, twins

import flax_srnn
import flax_srnn.nnx as fnnx

# --- dropout -----------------------------------------------------------------------------------------------------------


def test_dropout_draws_from_the_stream_and_follows_train_and_eval():
    x = numbers(B, T, F)
    layer = fnnx.SimpleRNN(F, U, dropout=0.5, rngs=nnx.Rngs(params=0, dropout=1))
    first, second = layer(x), layer(x)  # a new module is in training mode, as nnx.Dropout is
    assert not np.array_equal(first, second)
    layer.eval()
    quiet = layer(x)
    np.testing.assert_array_equal(layer(x), quiet)
    assert not np.array_equal(layer(x, training=True), quiet)
    layer.train()
    assert not np.array_equal(layer(x), quiet)
    np.testing.assert_array_equal(layer(x, training=False), quiet)
    # The key sequence is the stream's: the same seed, the same masks, under jit too.
    again = fnnx.SimpleRNN(F, U, dropout=0.5, rngs=nnx.Rngs(params=0, dropout=1))
    forward = nnx.jit(lambda layer, x: layer(x))
    np.testing.assert_allclose(forward(again, x), first, atol=1e-6)
    np.testing.assert_allclose(forward(again, x), second, atol=1e-6)


def test_train_and_eval_reach_the_cells_of_layers():
    rngs = nnx.Rngs(0)
    _, cells = cells_of({"dropout": 0.5}, {"recurrent_dropout": 0.5}, rngs=rngs)
    layer = fnnx.Bidirectional(fnnx.RNN(cells), rngs=rngs)
    x = numbers(B, T, F)
    layer.eval()
    np.testing.assert_array_equal(layer(x), layer(x))
    layer.train()
    assert not np.array_equal(layer(x), layer(x))


def test_which_stream_dropout_uses():
    x = numbers(B, T, F)
    with pytest.raises(KeyError, match="dropout"):
        fnnx.SimpleRNN(F, U, dropout=0.5, rngs=nnx.Rngs(params=0))
    assert fnnx.SimpleRNN(F, U, rngs=nnx.Rngs(params=0)).rngs is None
    seeded = fnnx.SimpleRNN(F, U, dropout=0.5, seed=1, rngs=nnx.Rngs(0))
    assert seeded.rngs is None
    np.testing.assert_array_equal(seeded(x), seeded(x))
    streamed = fnnx.SimpleRNN(F, U, dropout=0.5, seed=1, rngs=nnx.Rngs(0, dropout=1))
    assert not np.array_equal(streamed(x), streamed(x))


@pytest.mark.skipif(not hasattr(nnx, "view"), reason="this Flax has no nnx.view")
def test_view():
    layer = fnnx.SimpleRNN(F, U, dropout=0.5, rngs=nnx.Rngs(0))
    view = nnx.view(layer, deterministic=True)
    assert view.deterministic
    assert not layer.deterministic


# --- states between calls ----------------------------------------------------------------------------------------------


def test_stateful_layers_carry_states_as_linen_does():
    x = numbers(B, 2 * T, F)
    for make in (functools.partial(rnn, False), bidirectional, rnn_of_one):
        arguments = {} if make is not rnn_of_one else {"in_list": False}
        linen, layer = make(**arguments, stateful=True, return_state=True)
        variables = twins(linen, layer)
        apply = functools.partial(linen.apply, mutable=["carry"])
        run = nnx.jit(lambda layer, x: layer(x, training=False))
        for piece in (x[:, :T], x[:, T:]):
            expected, updated = apply(variables, piece)
            variables = {**variables, **updated}
            actual = run(layer, piece)
            for a, e in zip(actual, expected, strict=True):
                np.testing.assert_allclose(a, e, atol=1e-6)
        carried = nnx.state(layer, fnnx.Carry)
        assert len(jax.tree.leaves(carried)) == len(jax.tree.leaves(variables["carry"]))
        # Split, merged and set back, it starts anew.
        layer = nnx.merge(*nnx.split(layer))
        fnnx.reset_states(layer)
        expected, _ = apply(flax_srnn.reset_states(variables), x)
        for a, e in zip(layer(x, training=False), expected, strict=True):
            np.testing.assert_array_equal(a, e)


def test_reset_states():
    layer = fnnx.SimpleRNN(F, U, stateful=True, initial_state_initializer="ones", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="call the layer once"):
        layer.reset_states()
    fnnx.reset_states(layer)  # nothing to do yet
    x = numbers(B, T, F)
    first = layer(x)
    assert not np.array_equal(layer(x), first)
    layer.reset_states()
    np.testing.assert_array_equal(layer.states[0][...], np.ones((B, U)))
    np.testing.assert_array_equal(layer(x), first)
    given = numbers(B, U, seed=5)
    layer.reset_states(given)
    after = layer(x)
    np.testing.assert_array_equal(layer(x, initial_state=given), after)
    np.testing.assert_array_equal(layer.states[0][...], after)
    for wrong in (given[:1], [given, given], [1j * given]):
        with pytest.raises(ValueError, match="`states`"):
            layer.reset_states(wrong)
    with pytest.raises(
        ValueError,
        match=r"`inputs` has the batch shape \(2,\), but the recorded state .*: a stateful layer keeps its batch",
    ):
        layer(x[:2])
    assert layer(x[:2], initial_state=given[:2]).shape == (2, U)
    assert layer.states[0].shape == (2, U)
    with pytest.raises(AttributeError, match="Layer must be stateful"):
        fnnx.SimpleRNN(F, U, rngs=nnx.Rngs(0)).reset_states()


def test_reset_states_of_both_directions():
    _, layer = bidirectional(stateful=True, return_state=True)
    x = numbers(B, T, F)
    layer(x, training=False)
    given = [numbers(B, U, seed=i) for i in range(2)]
    layer.reset_states(given)
    expected = layer(x, initial_state=given, training=False)
    layer.reset_states(given)
    assert_identical(layer(x, training=False), expected)
    with pytest.raises(ValueError, match="`states` must hold 2 states"):
        layer.reset_states(given[:1])


# --- training ----------------------------------------------------------------------------------------------------------


def test_penalties_equal_linen():
    penalties = {"kernel_regularizer": "l2", "recurrent_regularizer": "l1", "bias_regularizer": "l1_l2"}
    arguments = {**penalties, "activity_regularizer": {"class_name": "L2", "config": {"l2": 0.5}}, **SEQUENCES}
    linen, layer = flax_srnn.SimpleRNN(U, **arguments), fnnx.SimpleRNN(F, U, **arguments, rngs=nnx.Rngs(0))
    variables = twins(linen, layer)
    x = numbers(B, T, F)

    def linen_loss(params):
        _, sown = linen.apply({"params": params}, x, mutable=["losses"])
        return flax_srnn.regularization_loss(sown)

    def loss(layer):
        layer(x)
        return fnnx.regularization_loss(layer)

    expected, grads = jax.value_and_grad(linen_loss)(variables["params"])
    for _ in range(2):  # what one call left behind is not in the next
        actual, layer_grads = nnx.jit(nnx.value_and_grad(loss))(layer)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
        for name, grad in grads.items():
            np.testing.assert_allclose(layer_grads[name][...], grad, rtol=1e-5, atol=1e-6)

    # Called twice, weights count once and activities twice, as in Linen.
    weights = fnnx.regularization_loss(layer)
    layer(x), layer(x)
    np.testing.assert_allclose(fnnx.regularization_loss(layer), 2 * expected - weights, rtol=1e-6)


def test_penalties_are_found_anywhere_in_a_model():
    rngs = nnx.Rngs(0)
    _, cells = cells_of({"kernel_regularizer": "l1"}, {"recurrent_regularizer": "l1"}, rngs=rngs)
    model = nnx.Sequential(fnnx.RNN(cells, return_sequences=True), nnx.RNN(nnx.SimpleCell(6, 2, rngs=rngs)))
    expected = 0.01 * (jnp.abs(cells[0].kernel[...]).sum() + jnp.abs(cells[1].recurrent_kernel[...]).sum())
    np.testing.assert_allclose(fnnx.regularization_loss(model), expected, rtol=1e-6)


def test_an_optimizer_keeps_constraints():
    rngs = nnx.Rngs(0)
    layer = fnnx.Bidirectional(
        fnnx.SimpleRNN(F, U, kernel_constraint="non_neg", recurrent_constraint="unit_norm", rngs=rngs), rngs=rngs
    )
    constraints = fnnx.collect_constraints(layer)
    assert set(constraints) == {"layer", "backward_layer"}
    optimizer = nnx.Optimizer(
        layer, optax.chain(optax.adam(0.1), flax_srnn.keep_constraints(constraints)), wrt=nnx.Param
    )
    x = numbers(B, T, F)

    @nnx.jit
    def train_step(layer, optimizer):
        loss, grads = nnx.value_and_grad(lambda layer: jnp.mean((layer(x) - 0.5) ** 2))(layer)
        optimizer.update(layer, grads)
        return loss

    losses = [train_step(layer, optimizer) for _ in range(5)]
    assert losses[-1] < losses[0]
    for direction in (layer.layer, layer.backward_layer):
        assert (direction.kernel[...] >= 0).all()
        norms = np.linalg.norm(direction.recurrent_kernel[...], axis=0)
        np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_options_are_static_and_modules_are_compared_by_identity():
    def make():
        return fnnx.SimpleRNN(
            F,
            U,
            kernel_regularizer={"class_name": "L2", "config": {"l2": 0.1}},
            kernel_constraint={"class_name": "MaxNorm", "config": {"max_value": 2, "axis": [0]}},
            recurrent_initializer=np.eye(U),
            rngs=nnx.Rngs(0),
        )

    a, b = make(), make()
    assert a != b
    assert a == a
    assert {a, b} == {b, a}
    graphs = [nnx.split(layer)[0] for layer in (a, b)]
    assert graphs[0] == graphs[1]
    assert hash(graphs[0]) == hash(graphs[1])
    assert repr(a).startswith("SimpleRNN(")
    np.testing.assert_array_equal(a.recurrent_kernel[...], np.eye(U))


def test_jit_compiles_once():
    layer = fnnx.SimpleRNN(F, U, stateful=True, dropout=0.5, activity_regularizer="l2", rngs=nnx.Rngs(0))
    traces = []

    @nnx.jit
    def run(layer, x):
        traces.append(1)
        return layer(x), fnnx.regularization_loss(layer)

    x = numbers(B, T, F)
    layer(x)
    for _ in range(3):
        run(layer, x)
    assert len(traces) == 1


def test_sharding_metadata():
    mesh = jax.make_mesh((2, 4), ("data", "model"), devices=jax.devices()[:8])
    partitioned = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))

    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else mesh:

        @nnx.jit
        def make():
            return fnnx.SimpleRNN(
                F, 8, kernel_initializer=partitioned, recurrent_initializer=partitioned, rngs=nnx.Rngs(0)
            )

        layer = make()
    specs = nnx.get_partition_spec(nnx.state(layer, nnx.Param))
    spec = jax.sharding.PartitionSpec(None, "model")
    leaves = {
        str(path[0].key): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            specs, is_leaf=lambda s: isinstance(s, jax.sharding.PartitionSpec)
        )
    }
    assert leaves["kernel"] == leaves["recurrent_kernel"] == spec
    plain = fnnx.SimpleRNN(F, 8, rngs=nnx.Rngs(0))
    fnnx.from_linen(plain, jax.device_get(fnnx.to_linen(layer)))
    x = numbers(B, T, F)
    np.testing.assert_allclose(jax.device_get(nnx.jit(lambda layer, x: layer(x))(layer, x)), plain(x), atol=1e-6)


# --- Flax's own cells and loops ----------------------------------------------------------------------------------------


def test_the_cell_in_flax_rnn():
    cell = fnnx.SimpleRNNCell(F, U, kernel_regularizer="l2", rngs=nnx.Rngs(0))
    x = numbers(B, T, F)
    expected = fnnx.RNN(cell, **SEQUENCES)(x)
    state, outputs = nnx.RNN(cell, return_carry=True)(x)
    np.testing.assert_allclose(outputs, expected[0], atol=1e-6)
    np.testing.assert_allclose(state, expected[1], atol=1e-6)
    stacked = fnnx.StackedRNNCells([cell, fnnx.SimpleRNNCell(U, 2, rngs=nnx.Rngs(1))])
    np.testing.assert_allclose(nnx.RNN(stacked)(x), fnnx.RNN(stacked, return_sequences=True)(x), atol=1e-6)


def test_dropout_of_the_cell_in_flax_rnn():
    x = jnp.ones((B, T, F))
    cell = fnnx.SimpleRNNCell(F, U, dropout=0.5, recurrent_initializer="zeros", rngs=nnx.Rngs(0, dropout=1))
    # One mask for all steps: without recurrence, equal inputs give equal outputs.
    ours = fnnx.RNN(cell, return_sequences=True)(x)
    np.testing.assert_array_equal(ours, np.broadcast_to(ours[:, :1], ours.shape))
    theirs = nnx.RNN(cell, broadcast_rngs="dropout")(x)
    np.testing.assert_array_equal(theirs, np.broadcast_to(theirs[:, :1], theirs.shape))
    per_step = nnx.RNN(cell)(x)
    assert not np.array_equal(per_step, np.broadcast_to(per_step[:, :1], per_step.shape))


@pytest.mark.parametrize(
    "pair", cases.thinned([(nnx.LSTMCell, True), (nnx.LSTMCell, False), (nnx.GRUCell, False)], 1), ids=str
)
def test_flax_cells_in_our_rnn(pair):
    kind, backwards = pair
    cell = kind(F, U, rngs=nnx.Rngs(0))
    x = numbers(B, T, F)
    lengths = jnp.array([6, 2, 3, 5])
    flax_rnn = nnx.RNN(cell, return_carry=True, reverse=backwards, keep_order=True)
    state, outputs = flax_rnn(x, seq_lengths=lengths)
    layer = fnnx.RNN(cell, go_backwards=backwards, keep_order=True, zero_output_for_mask=True, **SEQUENCES)
    # Flax leaves padding at the end when it reverses, so that both see the same steps in the same order.
    output, *states = nnx.jit(lambda layer, x: layer(x, seq_lengths=lengths))(layer, x)
    for a, e in zip(jax.tree.leaves(states), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-6)
    used = np.arange(T) < np.asarray(lengths)[:, None]
    np.testing.assert_allclose(output, np.where(used[..., None], outputs, 0), atol=1e-6)


def test_states_of_flax_cells():
    x = numbers(B, T, F)
    cells = [nnx.LSTMCell(F, U, rngs=nnx.Rngs(0)), fnnx.SimpleRNNCell(U, 2, rngs=nnx.Rngs(1))]
    layer = fnnx.RNN(cells, stateful=True, **SEQUENCES)
    whole, *states = layer(x)
    layer.reset_states()
    pieces = [layer(x[:, :2])[0], layer(x[:, 2:])[0]]
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, atol=1e-6)
    for a, e in zip(jax.tree.leaves(nnx.state(layer, fnnx.Carry)), jax.tree.leaves(states), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-6)
    with pytest.raises(ValueError, match="`initial_state` must be like the cell's state"):
        layer(x, initial_state=[numbers(B, U), numbers(B, 2)])
    with pytest.raises(ValueError, match="implementation='scan' is for SimpleRNNCell; a LSTMCell"):
        fnnx.RNN(cells[0], implementation="scan")(x)


class _Counting(nnx.RNNCellBase):
    """A cell with everything that NNX modules may have: dropout, a statistic, and something sown."""

    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.steps = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, carry, inputs, *, training=False):
        self.steps[...] = self.steps[...] + 1
        dropped = self.dropout(jnp.ones_like(inputs), deterministic=not training)
        self.sow(nnx.Intermediate, "seen", dropped)
        return carry + inputs, dropped

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros(input_shape)

    @property
    def num_feature_axes(self):
        return 1


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_other_variables_of_a_cell():
    cell = _Counting(nnx.Rngs(0))
    layer = fnnx.RNN(cell, **SEQUENCES)
    x = numbers(B, T, F)
    output, state = layer(x, training=True)
    assert cell.steps[...] == T
    np.testing.assert_allclose(state, x.sum(1), atol=1e-5)
    np.testing.assert_array_equal(output, np.broadcast_to(output[:, :1], output.shape))  # one mask for all steps
    assert set(np.unique(output)) == {0, 2}
    again, _ = layer(x, training=True)
    assert not np.array_equal(again, output)  # and another in the next call
    np.testing.assert_array_equal(layer(x, training=False)[0], np.ones_like(x))
    assert not jax.tree.leaves(nnx.state(layer, nnx.Intermediate))


class _Doubling(fnnx.SimpleRNNCell):
    def __call__(self, carry, inputs, *, training=None):
        state, output = super().__call__(carry, inputs, training=training)
        return state, 2 * output


def test_a_subclass_with_its_own_step_is_used():
    cell = _Doubling(F, U, rngs=nnx.Rngs(0))
    plain = fnnx.SimpleRNNCell(F, U, rngs=nnx.Rngs(1))
    fnnx.from_linen(plain, fnnx.to_linen(cell))
    x = numbers(B, T, F)
    np.testing.assert_allclose(fnnx.RNN(cell)(x), 2 * fnnx.RNN(plain)(x), atol=1e-6)
