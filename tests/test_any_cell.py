"""`RNN` with any Flax cell against a loop written by hand, and our cells in Flax's own wrappers."""

import functools

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import KEY, LENGTHS, MASK, RESETS, B, F, T, U, X, check_tree, close, drawn, run, same, shapes

from flax_srnn import RNN, Bidirectional, SimpleRNN, SimpleRNNCell, StackedRNNCells


def select(flag, new, old):
    return jax.tree.map(lambda n, o: np.where(flag.reshape(-1, *[1] * (np.ndim(n) - 1)), n, o), new, old)


def by_hand(step, x, initial, *, mask=None, lengths=None, resets=None, backwards=False, zero=False, is_state=False):
    """(final state, last output, outputs in the order of processing), one step after the other, state and output apart."""
    state, held, shown = initial, None, []
    for t in range(x.shape[1])[:: -1 if backwards else 1]:
        if resets is not None:
            state = select(resets[:, t], initial, state)
        use = np.ones(len(x), bool) if mask is None else mask[:, t]
        if lengths is not None:
            use = use & (t < lengths)
        new, output = jax.tree.map(np.asarray, step(state, x[:, t]))
        held = select(use, output, np.zeros_like(output) if held is None else held)
        state = select(use, new, state)
        held = state if is_state else held
        shown.append(select(use, output, np.zeros_like(output)) if zero else held)
    return state, shown[-1], np.stack(shown, 1)


class DoubledCell(SimpleRNNCell):
    """A subclass with a step of its own: the output is not the state."""

    def __call__(self, carry, inputs, *, training=False):
        carry, output = super().__call__(carry, inputs, training=training)
        return carry, 2 * output


CELLS = [nn.LSTMCell(6), nn.OptimizedLSTMCell(6), nn.GRUCell(6), nn.SimpleCell(6), DoubledCell(6), SimpleRNNCell(6)]


@pytest.mark.parametrize("cell", cases.thinned(CELLS, 2), ids=lambda cell: type(cell).__name__)
def test_any_cell_equals_the_loop(cell):
    zeros = cell.initialize_carry(KEY, (B, F))
    variables = drawn(RNN(cell), X)
    given = jax.tree.map(lambda leaf: np.random.default_rng(5).normal(size=leaf.shape).astype(np.float32), zeros)
    step = jax.jit(lambda state, x: cell.apply(variables, state, x))
    layer = RNN(cell, return_sequences=True, return_state=True)
    # A masked step may hold anything.
    x = np.where(MASK[..., None], X, np.nan)

    final, _, outputs = by_hand(step, np.nan_to_num(x), zeros, mask=MASK)
    check_tree(run(layer, variables, x, mask=MASK), (outputs, final))

    final, last, outputs = by_hand(step, X, given, mask=MASK, lengths=LENGTHS, backwards=True, zero=True)
    layer = layer.clone(go_backwards=True, zero_output_for_mask=True, unroll=2)
    arguments = {"initial_state": given, "mask": MASK, "seq_lengths": LENGTHS}
    ordered = layer.clone(keep_order=True, time_major=True)
    check_tree(run(ordered, variables, X.swapaxes(0, 1), **arguments), (outputs[:, ::-1].swapaxes(0, 1), final))
    check_tree(run(layer.clone(return_sequences=False), variables, X, **arguments), (last, final))

    # A reset at a masked step is a reset all the same.
    final, last, outputs = by_hand(step, X, given, mask=MASK, resets=RESETS, is_state=type(cell) is SimpleRNNCell)
    unrolled = RNN(cell, return_sequences=True, return_state=True, unroll=True)
    check_tree(run(unrolled, variables, X, initial_state=given, mask=MASK, resets=RESETS), (outputs, final))

    nothing = run(layer, variables, X[:, :0], initial_state=[given])
    check_tree(nothing, (np.zeros((B, 0, 6)), given))


def test_masked_steps_with_a_given_state_hold_the_output_not_the_state():
    """Zeros before the first used step where the output is not the state; the state where it is."""
    state = np.full((B, U), 0.5, np.float32)
    doubled, plain = DoubledCell(U), SimpleRNNCell(U)
    variables = drawn(RNN(plain), X)
    first = {}
    for cell in (doubled, plain):
        y = RNN(cell, return_sequences=True).apply(variables, X, mask=MASK, initial_state=state)
        first[type(cell)] = y[1, 0]
    same(first[DoubledCell], np.zeros(U))
    same(first[SimpleRNNCell], state[0])


def test_images_are_refused():
    with pytest.raises(ValueError, match=r"ConvLSTMCell.*3"):
        RNN(nn.ConvLSTMCell(2, (3, 3)))


class RememberingCell(nn.RNNCellBase):
    """A user's cell: dropout inside, `training`, and a number in its state that is no vector of features."""

    units: int

    @nn.compact
    def __call__(self, carry, x, *, training=False):
        h, count = carry
        x = nn.Dropout(0.5, deterministic=not training)(x)
        h = jnp.tanh(nn.Dense(self.units)(jnp.concatenate([h, x], -1)))
        return (h, count + 1), h * jnp.expand_dims(count, -1)

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.units)), jnp.zeros(input_shape[:-1], jnp.int32)

    @property
    def num_feature_axes(self):
        return 1


def test_a_users_cell():
    cell = RememberingCell(U)
    layer = RNN(cell, return_sequences=True, return_state=True)
    variables = drawn(layer, X)
    zeros = cell.initialize_carry(KEY, (B, F))
    final, _, outputs = by_hand(lambda s, x: cell.apply(variables, s, x), X, zeros, mask=MASK)
    check_tree(run(layer, variables, X, mask=MASK), (outputs, final))
    same(final[1], MASK.sum(1))

    trained = functools.partial(layer.apply, variables, training=True)
    constant = np.repeat(X[:, :1], T, 1)
    kept, (_, _) = trained(constant, rngs={"dropout": KEY})
    again, _ = trained(constant, rngs={"dropout": KEY})
    other, _ = trained(constant, rngs={"dropout": KEY + 1})
    same(kept, again)
    assert not np.allclose(kept, other)
    assert not np.allclose(kept, layer.apply(variables, constant)[0])
    # One mask for all steps: the first step's input, met again with the first state, gives the first state again.
    rewound = trained(constant, rngs={"dropout": KEY}, resets=np.ones((B, T), bool))[1][0]
    one_step = trained(constant[:, :1], rngs={"dropout": KEY})[1][0]
    close(rewound, one_step)
    with pytest.raises(nn.module.errors.InvalidRngError):
        trained(X)


def test_training_reaches_only_cells_that_accept_it():
    layer = RNN([nn.LSTMCell(6), SimpleRNNCell(U, dropout=0.9)])
    variables = drawn(layer, X)
    close(layer.apply(variables, X, training=False), layer.apply(variables, X))
    assert not np.allclose(layer.apply(variables, X, training=True, rngs={"dropout": KEY}), layer.apply(variables, X))


# --- Flax's own wrappers -----------------------------------------------------------------------------------------------


def test_flax_rnn_drives_our_cell():
    cell = SimpleRNNCell(U)
    variables = drawn(RNN(cell), X)
    inside = {"params": {"cell": variables["params"]}}
    assert shapes(jax.eval_shape(nn.RNN(cell).init, KEY, X)) == shapes(inside)
    ours = RNN(cell, return_sequences=True, return_state=True)
    y, state = ours.apply(variables, X)
    check_tree(nn.RNN(cell, return_carry=True).apply(inside, X), (state, y))
    reverse = nn.RNN(cell, return_carry=True, reverse=True, keep_order=True)
    y, state = ours.clone(go_backwards=True, keep_order=True).apply(variables, X)
    check_tree(reverse.apply(inside, X), (state, y))


@pytest.mark.parametrize(
    "cell", cases.thinned([SimpleRNNCell(U), nn.LSTMCell(U), StackedRNNCells([SimpleRNNCell(6), nn.GRUCell(U)])], 1)
)
def test_flax_rnn_agrees_about_lengths(cell):
    """At the steps that count, and in the final state; what Flax leaves in the padding differs."""
    ours = RNN(cell, return_sequences=True, return_state=True)
    variables = drawn(ours, X)
    y, *state = run(ours, variables, X, seq_lengths=LENGTHS)
    theirs = nn.RNN(cell, return_carry=True)
    carry, z = run(theirs, {"params": {"cell": variables["params"]}}, X, seq_lengths=LENGTHS)
    counts = np.arange(T) < LENGTHS[:, None]
    close(np.asarray(y)[counts], np.asarray(z)[counts])
    check_tree(tuple(state) if len(state) > 1 else state[0], carry)


def test_flax_bidirectional_takes_our_cells():
    cells = SimpleRNNCell(U), SimpleRNNCell(6)
    theirs = nn.Bidirectional(*map(nn.RNN, cells))
    ours = Bidirectional(
        RNN(cells[0], return_sequences=True), None, RNN(cells[1], return_sequences=True, go_backwards=True)
    )
    variables = drawn(ours, X)
    params = [{"cell": variables["params"][name]} for name in ("forward_layer", "backward_layer")]
    inside = {"params": dict(zip(("forward_rnn", "backward_rnn"), params, strict=True))}
    z = run(theirs, inside, X, seq_lengths=LENGTHS)
    y = np.concatenate(run(ours, variables, X, seq_lengths=LENGTHS), -1)
    counts = np.arange(T) < LENGTHS[:, None]
    close(y[counts], np.asarray(z)[counts])


CELLS_IN_ORDER = [
    (StackedRNNCells([SimpleRNNCell(6), nn.LSTMCell(2)]), SimpleRNNCell(U)),
    (SimpleRNNCell(6), nn.LSTMCell(2), SimpleRNNCell(U)),
    (SimpleRNNCell(6), SimpleRNNCell(U)),
]


@pytest.mark.parametrize("cells", cases.thinned(CELLS_IN_ORDER, 1))
def test_cell_by_cell_equals_step_by_step(cells):
    ours = RNN(list(cells), return_sequences=True, return_state=True)
    variables = drawn(ours, X)
    y, *states = run(ours, variables, X)
    carry, z = run(nn.RNN(StackedRNNCells(cells), return_carry=True), {"params": {"cell": variables["params"]}}, X)
    check_tree((tuple(states), y), (carry, z))
    again = RNN(StackedRNNCells(cells), return_sequences=True, return_state=True)
    check_tree(run(again, variables, X), (y, *states), same)


def test_a_stack_backwards_is_its_cells_backwards():
    """The second cell meets the steps in the order in which the first did."""
    cells = SimpleRNNCell(6), nn.LSTMCell(U)
    stack = RNN(list(cells), return_sequences=True, go_backwards=True)
    variables = drawn(stack, X)
    expected = X[:, ::-1]
    for number, cell in enumerate(cells):
        params = variables["params"][f"cells_{number}"]
        expected = run(RNN(cell, return_sequences=True), {"params": params}, expected)
    close(run(stack, variables, X), expected)


def test_a_nested_stack_is_one_cell_with_one_state():
    cells = SimpleRNNCell(6), SimpleRNNCell(U)
    flat = RNN([*cells, DoubledCell(2)], return_state=True)
    variables = drawn(flat, X)
    params = variables["params"]
    nested = {"cells_0": {"cells_0": params["cells_0"], "cells_1": params["cells_1"]}, "cells_1": params["cells_2"]}
    y, first, second, third = run(flat, variables, X, mask=MASK)
    expected = y, (first, second), third
    layer = RNN([StackedRNNCells(cells), DoubledCell(2)], return_state=True)
    check_tree(run(layer, {"params": nested}, X, mask=MASK), expected)


def test_one_cell_in_every_wrapping():
    variables = drawn(SimpleRNN(U), X)
    expected = SimpleRNN(U, return_sequences=True, return_state=True).apply(variables, X, mask=MASK)
    for cell in (SimpleRNNCell(U), [SimpleRNNCell(U)], (SimpleRNNCell(U),), StackedRNNCells([SimpleRNNCell(U)])):
        layer = RNN(cell, return_sequences=True, return_state=True)
        check_tree(layer.apply(variables, X, mask=MASK), expected, same)
