"""Parity with Keras 3 on the JAX backend: outputs, states and all gradients over random combinations of the layers' options.

Keras runs one operation after the other (`jax.disable_jit`), which spares the compilation of every scan; ours runs so too, and
compiled in every tenth configuration. The terminal summary shows how many configurations were tried and the worst errors.

Where Keras contradicts itself, a test below says what we do instead.
"""

import contextlib
import dataclasses
import functools
import itertools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_srnn import RNN, Bidirectional, SimpleRNN, SimpleRNNCell, StackedRNNCells, simple_rnn

keras = pytest.importorskip("keras")

B, T, F = 3, 4, 2
UNITS = (4, 3)
ACTIVATIONS = (*cases.ACTIVATIONS, "elu", "gelu", "leaky_relu", "hard_sigmoid", "softsign")


@dataclasses.dataclass(frozen=True)
class Config:
    """A layer with its options, and the arrays that it is called with."""

    layer: str
    activation: str | None
    use_bias: bool
    return_sequences: bool
    return_state: bool
    go_backwards: bool
    unroll: bool
    zero_output_for_mask: bool
    mask: bool
    initial_state: bool
    merge_mode: str | None

    def __str__(self):
        fields = dataclasses.asdict(self).items()
        return "-".join(name if value is True else str(value) for name, value in fields if value is not False)

    @property
    def cells(self):
        """How many cells one direction has."""
        return 2 if "stacked" in self.layer else 1

    @property
    def bidirectional(self):
        return self.layer.startswith("Bidirectional")

    @property
    def held_by_keras(self):
        """Where Keras's scan takes the first cell's state for the output of the last one."""
        return self.mask and self.cells == 2 and not self.zero_output_for_mask


LAYERS = (
    "SimpleRNN",
    "RNN",
    "RNN stacked",
    "Bidirectional SimpleRNN",
    "Bidirectional RNN",
    "Bidirectional RNN stacked",
)


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)

    def pick(*values):
        return values[rng.integers(len(values))]

    for layer in itertools.islice(itertools.cycle(LAYERS), count):
        names = [field.name for field in dataclasses.fields(Config) if field.type is bool]
        chosen = {name: pick(False, True) for name in names}
        config = Config(
            layer=layer,
            activation=pick(*ACTIVATIONS),
            merge_mode=pick("concat", "sum", "ave", "mul", None),
            **chosen,
        )
        if config.bidirectional:
            # Keras's Bidirectional sets this option itself; go_backwards is for its layers to differ in.
            config = dataclasses.replace(config, zero_output_for_mask=config.return_sequences, go_backwards=False)
            if config.cells == 2 and not config.return_sequences:
                config = dataclasses.replace(config, mask=False)
        yield config


CONFIGS = list(drawn(120))


def build(library, config):
    """The layer in Keras (`keras.layers`) or here: the same names and arguments."""
    options = {
        name: getattr(config, name)
        for name in ("return_sequences", "return_state", "go_backwards", "zero_output_for_mask")
    }
    # Unrolled, Keras treats masks in another way than its own scan does.
    options["unroll"] = config.unroll and not (library is keras.layers and config.mask)
    shared = {"activation": config.activation, "use_bias": config.use_bias}
    if "SimpleRNN" in config.layer:
        layer = library.SimpleRNN(UNITS[0], **shared, **options)
    else:
        cells = [library.SimpleRNNCell(units, **shared) for units in UNITS[: config.cells]]
        layer = library.RNN(cells if config.cells == 2 else cells[0], **options)
    return library.Bidirectional(layer, merge_mode=config.merge_mode) if config.bidirectional else layer


class Ours:
    SimpleRNN, SimpleRNNCell, RNN, Bidirectional = SimpleRNN, SimpleRNNCell, RNN, Bidirectional


def as_params(config, weights):
    """Keras's flat list of weights as our tree of parameters."""
    remaining = iter(weights)

    def cell():
        names = ("kernel", "recurrent_kernel", "bias")[: 3 if config.use_bias else 2]
        return {name: next(remaining) for name in names}

    def layer():
        return cell() if config.cells == 1 else {f"cells_{i}": cell() for i in range(config.cells)}

    if config.bidirectional:
        return {"forward_layer": layer(), "backward_layer": layer()}
    return layer()


def arrays(config, seed):
    """(weights, inputs, initial state) as NumPy arrays, and the mask."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return (rng.normal(size=shape) / 2).astype(np.float32)

    directions = 2 if config.bidirectional else 1
    weights, states = [], []
    for _ in range(directions):
        for features, units in zip((F, UNITS[0]), UNITS[: config.cells], strict=False):
            weights += [normal(features, units), normal(units, units)] + ([normal(units)] if config.use_bias else [])
            states.append(normal(B, units))
    mask = rng.random((B, T)) < 0.6 if config.mask else None
    if config.mask and seed % 4 == 0:
        mask[0] = False
    return (weights, 2 * normal(B, T, F), states if config.initial_state else None), mask


def value_and_gradients(function, arguments):
    """What `function` returns, as a flat list, and the gradients of a random weighting of it."""
    arguments = jax.tree.map(jnp.asarray, arguments)

    def loss(arguments):
        returned = jax.tree.leaves(function(*arguments))
        rng = np.random.default_rng(1)
        return sum((x * rng.normal(size=x.shape).astype(np.float32)).sum() for x in returned), returned

    grads, returned = jax.grad(loss, has_aux=True)(arguments)
    return returned, jax.tree.leaves(grads)


def keras_stack_layer_by_layer(layer, config, mask):
    """The layers that a masked stack stands for: Keras's own stack puts out the first cell's state at masked steps."""
    cells = layer.cell.cells
    lower = keras.layers.RNN(cells[0], return_sequences=True, return_state=True, go_backwards=config.go_backwards)
    upper = keras.layers.RNN(cells[1], return_sequences=config.return_sequences, return_state=True)
    in_order = mask[:, ::-1] if config.go_backwards else mask  # the lower layer's outputs come as it went
    lower.build((B, T, F)), upper.build((B, T, UNITS[0]))

    def run(weights, inputs, states):
        first, second = [[h] for h in states] if config.initial_state else (None, None)
        size = len(weights) // 2
        hidden, state_1 = stateless(lower, weights[:size], inputs, first, mask)
        output, state_2 = stateless(upper, weights[size:], hidden, second, in_order)
        return (output, state_1, state_2) if config.return_state else output

    return run


def stateless(layer, weights, inputs, states, mask):
    others = [variable.value for variable in layer.non_trainable_variables]
    return layer.stateless_call(weights, others, inputs, initial_state=states, mask=mask)[0]


def run_keras(config, arguments, mask):
    with jax.numpy_rank_promotion("allow"):
        layer = build(keras.layers, config)
        layer.build((B, T, F))
    mask = None if mask is None else jnp.asarray(mask)

    def run(weights, inputs, states):
        return stateless(layer, weights, inputs, states, mask)

    if config.held_by_keras:
        run = keras_stack_layer_by_layer(layer, config, mask)
    with jax.disable_jit(), jax.numpy_rank_promotion("allow"):
        return value_and_gradients(run, arguments)


def run_ours(config, arguments, mask, compiled):
    layer = build(Ours, config)

    def run(weights, inputs, states):
        variables = {"params": as_params(config, weights)}
        return layer.apply(variables, inputs, initial_state=states, mask=mask)

    with contextlib.nullcontext() if compiled else jax.disable_jit():
        function = functools.partial(value_and_gradients, run)
        return jax.jit(function)(arguments) if compiled else function(arguments)


def error(actual, expected):
    """The largest |difference| / (1 + |expected|), which is what rtol = atol bound."""
    assert [x.shape for x in actual] == [x.shape for x in expected]
    return max(float((np.abs(a - e) / (1 + np.abs(e))).max()) for a, e in zip(actual, expected, strict=True))


@pytest.fixture
def compare(record_property):
    """Compares two (returned arrays, gradients) and enters the errors for the terminal summary."""

    def check(actual, expected):
        errors = [error(ours, theirs) for ours, theirs in zip(actual, expected, strict=True)]
        record_property("keras parity", errors)
        assert errors[0] <= 2e-5, "outputs or states"
        assert errors[1] <= 1e-4, "gradients"

    return check


@pytest.mark.parametrize(
    "number", cases.thinned(range(len(CONFIGS)), 3), ids=lambda number: f"{number}-{CONFIGS[number]}"
)
def test_random_layers(number, compare):
    config = CONFIGS[number]
    arguments, mask = arrays(config, number)
    actual = run_ours(config, arguments, mask, compiled=number % 10 == 0)
    compare(actual, run_keras(config, arguments, mask))


DROPOUT = [case for case in cases.DRAWN if case.batch == (3,) and case.mask and not case.resets]


@pytest.mark.slow
@pytest.mark.parametrize("case", DROPOUT[:4], ids=str)
def test_dropout_masks(case, compare):
    """Keras's layer in training, with our masks put in place of those that it draws."""
    case = dataclasses.replace(
        case,
        input_dropout_mask=True,
        recurrent_dropout_mask=True,
        learned_state=False,
        initial_state=False,
        seq_lengths=False,
        time_major=False,
        keep_order=False,
    )
    params, inputs, masks, flags, options = case.problem(dtype=np.float32)
    shared = {
        name: options[name] for name in ("activation", "return_sequences", "go_backwards", "zero_output_for_mask")
    }

    def theirs(params, inputs, masks):
        layer.cell.get_dropout_mask = lambda x: masks["input_dropout_mask"]
        layer.cell.get_recurrent_dropout_mask = lambda h: masks["recurrent_dropout_mask"]
        others = [variable.value for variable in layer.non_trainable_variables]
        weights = [params[name] for name in ("kernel", "recurrent_kernel", "bias") if name in params]
        returned, _ = layer.stateless_call(weights, others, inputs, mask=jnp.asarray(flags["mask"]), training=True)
        return returned[::-1]  # the state first, as ours

    def ours(params, inputs, masks):
        return simple_rnn(params, inputs, **masks, **flags, **shared)

    with jax.numpy_rank_promotion("allow"), jax.disable_jit():
        layer = keras.layers.SimpleRNN(
            case.sizes[2], use_bias=case.bias, return_state=True, dropout=0.5, recurrent_dropout=0.5, **shared
        )
        layer.build(inputs.shape)
        expected = value_and_gradients(theirs, (params, inputs, masks))
    compare(value_and_gradients(ours, (params, inputs, masks)), expected)


def test_stateful_layers():
    """Two calls of a stateful layer, eagerly, which is where Keras's works."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, B, T, F)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"):
        layer = keras.layers.SimpleRNN(UNITS[0], stateful=True, bias_initializer="ones")
        layer.build((B, T, F))
        expected = [layer(x) for x in inputs]
    weights = [variable.value for variable in layer.trainable_variables]
    variables = {"params": dict(zip(("kernel", "recurrent_kernel", "bias"), weights, strict=True))}
    for x, wanted in zip(inputs, expected, strict=True):
        output, updated = SimpleRNN(UNITS[0], stateful=True).apply(variables, x, mutable=["carry"])
        variables |= updated
        np.testing.assert_allclose(output, wanted, rtol=2e-5, atol=2e-5)


# --- where Keras contradicts itself ------------------------------------------------------------------------------------

FIXED = Config(
    layer="SimpleRNN",
    activation="tanh",
    use_bias=True,
    return_sequences=True,
    return_state=True,
    go_backwards=False,
    unroll=False,
    zero_output_for_mask=False,
    mask=True,
    initial_state=True,
    merge_mode="concat",
)


@pytest.mark.parametrize("zero_output_for_mask", [False, True])
def test_masks_mean_the_same_unrolled(zero_output_for_mask, compare):
    """Unrolled, Keras puts out zeros before the first used step, and ignores zero_output_for_mask; we do as its scan does."""
    config = dataclasses.replace(FIXED, zero_output_for_mask=zero_output_for_mask)
    arguments, mask = arrays(config, 0)
    unrolled = dataclasses.replace(config, unroll=True)
    compare(run_ours(unrolled, arguments, mask, compiled=True), run_keras(config, arguments, mask))


def test_a_list_of_one_cell(compare):
    """Keras's RNN([cell]) raises a TypeError; ours is RNN(cell)."""
    config = dataclasses.replace(FIXED, layer="RNN")
    (weights, inputs, states), mask = arrays(config, 0)
    layer = RNN([SimpleRNNCell(UNITS[0])], return_sequences=True, return_state=True)

    def ours(weights, inputs, states):
        return layer.apply({"params": as_params(config, weights)}, inputs, initial_state=states, mask=mask)

    actual = value_and_gradients(ours, (weights, inputs, states))
    compare(actual, run_keras(config, (weights, inputs, states), mask))


def test_a_stack_as_one_cell(compare):
    """`StackedRNNCells` and the list of its cells are the same here, as in Keras."""
    config = dataclasses.replace(FIXED, layer="RNN stacked", mask=False)
    arguments, _ = arrays(config, 0)
    layer = RNN(StackedRNNCells([SimpleRNNCell(units) for units in UNITS]), return_sequences=True, return_state=True)

    def ours(weights, inputs, states):
        return layer.apply({"params": as_params(config, weights)}, inputs, initial_state=states)

    compare(value_and_gradients(ours, arguments), run_keras(config, arguments, None))


def test_a_stack_holds_its_last_cells_output(compare):
    """At masked steps Keras's scan puts out the first cell's state; we put out the last cell's, as Keras layer by layer."""
    config = dataclasses.replace(FIXED, layer="RNN stacked")
    assert config.held_by_keras
    arguments, mask = arrays(config, 0)
    compare(run_ours(config, arguments, mask, compiled=True), run_keras(config, arguments, mask))


@pytest.mark.parametrize("return_sequences", [False, True])
def test_bidirectional_decides_about_masked_outputs(return_sequences, compare):
    """Keras's Bidirectional overrides zero_output_for_mask of its layers with return_sequences."""
    options = {"layer": "Bidirectional SimpleRNN", "return_sequences": return_sequences}
    config = dataclasses.replace(FIXED, zero_output_for_mask=not return_sequences, **options)
    arguments, mask = arrays(config, 1)
    assert not mask[:, [0, -1]].all()
    compare(run_ours(config, arguments, mask, compiled=True), run_keras(config, arguments, mask))
