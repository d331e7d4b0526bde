"""The two Keras documents that this library answers to: their arguments, attributes, methods and examples, with our imports.

tf.keras 2.15 `SimpleRNN` and Keras 3.6 `SimpleRNNCell`. The examples are theirs but for the two lines in which Flax makes
and applies variables.
"""

import dataclasses
import inspect

import jax
import keras
import numpy as np
import pytest

from flax_srnn import RNN, SimpleRNN, SimpleRNNCell

KEY = jax.random.key(0)
CELL = {
    "units": dataclasses.MISSING,
    "activation": "tanh",
    "use_bias": True,
    "kernel_initializer": "glorot_uniform",
    "recurrent_initializer": "orthogonal",
    "bias_initializer": "zeros",
    "kernel_regularizer": None,
    "recurrent_regularizer": None,
    "bias_regularizer": None,
    "kernel_constraint": None,
    "recurrent_constraint": None,
    "bias_constraint": None,
    "dropout": 0.0,
    "recurrent_dropout": 0.0,
    "seed": None,
}
LAYER = {
    **{name: default for name, default in CELL.items() if name != "seed"},
    "activity_regularizer": None,
    "return_sequences": False,
    "return_state": False,
    "go_backwards": False,
    "stateful": False,
    "unroll": False,
}
ATTRIBUTES = [
    *("activation", "bias_constraint", "bias_initializer", "bias_regularizer", "dropout", "kernel_constraint"),
    *("kernel_initializer", "kernel_regularizer", "recurrent_constraint", "recurrent_dropout", "recurrent_initializer"),
    *("recurrent_regularizer", "states", "units", "use_bias"),
]


@pytest.fixture
def inputs():
    return np.random.default_rng(0).random([32, 10, 8]).astype(np.float32)


@pytest.mark.parametrize(("layer", "documented"), [(SimpleRNN, LAYER), (SimpleRNNCell, CELL)])
def test_every_documented_argument_with_its_default(layer, documented):
    fields = {field.name: field.default for field in dataclasses.fields(layer)}
    assert {name: fields[name] for name in documented} == documented
    assert next(iter(fields)) == "units"
    with pytest.raises(TypeError, match="no_such_argument"):
        layer(4, no_such_argument=1)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(SimpleRNN, keras.layers.SimpleRNN), (SimpleRNNCell, keras.layers.SimpleRNNCell), (RNN, keras.layers.RNN)],
)
def test_nothing_is_missing_that_the_keras_of_today_has(ours, theirs):
    parameters = list(inspect.signature(theirs.__init__).parameters.values())[1:]
    fields = {field.name: field.default for field in dataclasses.fields(ours)}
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            assert parameter.name in fields
            if parameter.default is not inspect.Parameter.empty:
                assert fields[parameter.name] == parameter.default, parameter.name


def test_documented_call_arguments(inputs):
    """inputs, mask, training, and a list of initial states."""
    layer = SimpleRNN(4, dropout=0.5)
    variables = layer.init(KEY, inputs)
    mask = np.arange(10) < 7 + np.zeros((32, 1))
    state = [np.ones((32, 4), np.float32)]
    y = layer.apply(variables, inputs, mask=mask, training=True, initial_state=state, rngs={"dropout": KEY})
    assert y.shape == (32, 4)


def test_documented_attributes_and_method(inputs):
    layer = SimpleRNN(4, stateful=True)
    bound = layer.bind(layer.init(KEY, inputs))
    expected = LAYER | {"units": 4, "states": None}
    for name in ATTRIBUTES:
        assert getattr(layer, name) == expected[name]
        assert hasattr(bound, name)
    (state,) = bound.states
    assert state.shape == (32, 4)
    assert list(inspect.signature(SimpleRNN.reset_states).parameters) == ["self", "variables", "states", "batch_size"]


def test_examples_of_simple_rnn(inputs):
    simple_rnn = SimpleRNN(4)

    output, variables = simple_rnn.init_with_output(KEY, inputs)  # The output has shape `[32, 4]`.
    assert output.shape == (32, 4)

    simple_rnn = SimpleRNN(4, return_sequences=True, return_state=True)

    # whole_sequence_output has shape `[32, 10, 4]`.
    # final_state has shape `[32, 4]`.
    whole_sequence_output, final_state = simple_rnn.apply(variables, inputs)
    assert whole_sequence_output.shape == (32, 10, 4)
    assert final_state.shape == (32, 4)
    np.testing.assert_array_equal(whole_sequence_output[:, -1], final_state)
    np.testing.assert_array_equal(final_state, output)


def test_examples_of_simple_rnn_cell(inputs):
    rnn = RNN(SimpleRNNCell(4))
    output, variables = rnn.init_with_output(KEY, inputs)  # The output has shape `(32, 4)`.
    assert output.shape == (32, 4)
    rnn = RNN(SimpleRNNCell(4), return_sequences=True, return_state=True)
    # whole_sequence_output has shape `(32, 10, 4)`.
    # final_state has shape `(32, 4)`.
    whole_sequence_output, final_state = rnn.apply(variables, inputs)
    assert whole_sequence_output.shape == (32, 10, 4)
    assert final_state.shape == (32, 4)
    np.testing.assert_array_equal(whole_sequence_output[:, -1], output)


@pytest.mark.parametrize("wrap", [False, True])
def test_examples_give_the_numbers_of_keras(inputs, wrap):
    options = {"return_sequences": True, "return_state": True}
    with jax.numpy_rank_promotion("allow"):
        theirs = keras.layers.SimpleRNN(4, **options)
        if wrap:
            theirs = keras.layers.RNN(keras.layers.SimpleRNNCell(4), **options)
        expected = theirs(inputs)
    weights = [np.asarray(variable.value) for variable in theirs.trainable_variables]
    params = dict(zip(("kernel", "recurrent_kernel", "bias"), weights, strict=True))
    ours = RNN(SimpleRNNCell(4), **options) if wrap else SimpleRNN(4, **options)
    for actual, wanted in zip(ours.apply({"params": params}, inputs), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=1e-5)
