"""Activations with settings, which Keras writes as the configurations of layers: in its configurations, files and live layers."""

import json

import cases
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers
from keras_models import MARKS, F, T, lenient, randomised, real_input, reals  # noqa: F401 - a fixture

import flax_srnn
from flax_srnn import activations
from flax_srnn.activations import ELU, LeakyReLU, ReLU
from flax_srnn.interop.keras import from_config, from_keras, load_model, load_weights, save_weights, to_config

pytestmark = MARKS

SETTINGS = [
    *[(LeakyReLU(0.1), layers.LeakyReLU(0.1)), (LeakyReLU(), layers.LeakyReLU()), (ELU(0.5), layers.ELU(0.5))],
    *[(ReLU(6), layers.ReLU(6)), (ReLU(1.5), layers.ReLU(1.5)), (ReLU(threshold=0.5), layers.ReLU(threshold=0.5))],
    *[(ReLU(6, 0.5), layers.ReLU(6, 0.5)), (ReLU(1.5, 0.25), layers.ReLU(1.5, 0.25)), (ReLU(0), layers.ReLU(0))],
    *[(ReLU(6, 0, 1), layers.ReLU(6, 0, 1)), (ReLU(3, 0.5, 1), layers.ReLU(3, 0.5, 1))],
    *[(ReLU(None, 0.5, 0.5), layers.ReLU(None, 0.5, 0.5)), (ReLU(0.5, 0.25, 1), layers.ReLU(0.5, 0.25, 1))],
]


@pytest.mark.parametrize(("ours", "theirs"), SETTINGS, ids=lambda each: repr(each) if callable(each) else None)
def test_value_and_derivative_are_those_of_keras(ours, theirs):
    """On the kinks too, and in half precision."""
    x = np.concatenate([np.random.default_rng(0).normal(size=40) * 3, [-1, -0.5, -0.0, 0, 0.5, 1, 1.5, 3, 6, 80, -80]])
    for dtype in ("float32", "bfloat16"):
        at = jnp.asarray(x, dtype)
        found, expected = (jax.vjp(function, at) for function in (ours, theirs.call))
        assert found[0].dtype == dtype
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1](at)[0], expected[1](at)[0])


MODELS = {
    "SimpleRNN": lambda: [layers.SimpleRNN(4, activation=layers.LeakyReLU(0.1))],
    "cell": lambda: [layers.RNN(layers.SimpleRNNCell(4, activation=layers.ReLU(1.5, 0.25, 0.1)))],
    "cells": lambda: [
        layers.RNN([layers.SimpleRNNCell(4, layers.ELU(0.5)), layers.SimpleRNNCell(3, layers.LeakyReLU(0.5))])
    ],
    "both directions": lambda: [layers.Bidirectional(layers.SimpleRNN(4, layers.ReLU(0.5)))],
    "other layers": lambda: [
        layers.SimpleRNN(4, layers.Softmax(), return_sequences=True),
        layers.TimeDistributed(layers.Dense(4, layers.ELU(0.3))),
        layers.Dense(3, layers.LeakyReLU(0.2)),
        layers.Activation(layers.ReLU(threshold=0.25)),
        layers.Dense(3, layers.Activation("selu")),
    ],
}


@pytest.mark.parametrize("name", cases.thinned(MODELS, 2))
@pytest.mark.slow
def test_files(name, tmp_path):
    model, x = randomised(keras.Sequential(real_input(*MODELS[name]()))), reals()
    expected = model(x)
    for file in ("model.keras", "model.h5"):
        model.save(tmp_path / file)
        module, variables = load_model(tmp_path / file)
        np.testing.assert_allclose(module.apply(variables, x), expected, atol=1e-6)
    # In a file of weights the activation is a group without arrays.
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = load_weights(tmp_path / "model.weights.h5")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, variables["params"]))
    # And back, into the same model with other weights.
    save_weights(tmp_path / "back.weights.h5", module, variables)
    randomised(model, seed=5).load_weights(tmp_path / "back.weights.h5")
    np.testing.assert_array_equal(model(x), expected)


@pytest.mark.parametrize("name", ["SimpleRNN", "cells", "both directions"])
@pytest.mark.slow
def test_live_layers_and_their_configurations(name):
    (theirs,), x = MODELS[name](), reals()
    theirs(x)
    expected = randomised(theirs)(x)
    ours, variables = from_keras(theirs)
    np.testing.assert_allclose(ours.apply(variables, x), expected, atol=1e-6)
    # What is written is read by both, and means the same.
    config = json.loads(json.dumps(to_config(ours)))
    assert from_config(config) == ours
    again = keras.saving.deserialize_keras_object(config)
    again(x)
    again.set_weights(theirs.get_weights())
    np.testing.assert_array_equal(again(x), expected)


@pytest.mark.parametrize("ours", [ours for ours, _ in SETTINGS])
def test_every_setting_survives(ours):
    layer = flax_srnn.SimpleRNN(3, activation=ours)
    read = from_config(to_config(layer))
    assert read == layer or activations.name(read.activation) == activations.name(ours)
    back = keras.layers.deserialize(to_config(layer)).activation
    np.testing.assert_array_equal(back(reals()), ours(reals()))


def test_what_has_a_name_keeps_it():
    """The rule of the derivative and what is compiled are those of the name."""
    for function, name in [
        (ReLU(), "relu"),
        (ReLU(6), "relu6"),
        (ReLU(negative_slope=0.2), "leaky_relu"),
        (ELU(), "elu"),
    ]:
        assert activations.to_config(function) == name
        assert activations.from_output(function) is activations.from_output(activations.get(name)) is not None
        x = reals()
        np.testing.assert_array_equal(function(x), activations.get(name)(x))


def test_half_precision_reaches_the_activation():
    """Keras gives an activation without a dtype its default one, in which a recurrence of another fails."""
    layer = flax_srnn.SimpleRNN(
        3, activation=LeakyReLU(0.1), recurrent_initializer="zeros", dtype="bfloat16", param_dtype="float32"
    )
    theirs = keras.layers.deserialize(to_config(layer))
    assert theirs(reals()).dtype == "bfloat16"
    assert from_config(to_config(layer)).activation == LeakyReLU(0.1)


def leaky(config, **outer):
    return {"class_name": "LeakyReLU", "config": config, **outer}


def relu(**config):
    return {"class_name": "ReLU", "config": config}


OF_ANY_LAYER = {"name": "a", "trainable": True, "dtype": "float32", "batch_input_shape": [None, 3]}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (leaky(OF_ANY_LAYER | {"alpha": 0.5}), LeakyReLU(0.5)),  # Keras 2
        (leaky({"alpha": {"type": "ndarray", "value": 0.5}}), LeakyReLU(0.5)),  # Keras 2 before TensorFlow's
        (leaky({"alpha": np.asarray(0.5, np.float32)}), LeakyReLU(0.5)),  # a live layer of tf.keras
        (leaky({"negative_slope": np.float32(0.5)}), LeakyReLU(0.5)),
        (
            leaky({"negative_slope": {"class_name": "__numpy__", "config": {"value": 0.5, "dtype": "float32"}}}),
            LeakyReLU(0.5),
        ),
        (leaky({"negative_slope": 0.5}, module="keras.layers", registered_name="LeakyReLU"), LeakyReLU(0.5)),
        (leaky({"negative_slope": 0.5}, build_config={"input_shape": [None, 3]}, shared_object_id=3), LeakyReLU(0.5)),
        (leaky({"negative_slope": 0.5, "activity_regularizer": None}), LeakyReLU(0.5)),
        (relu(max_value=None, negative_slope={"type": "ndarray", "value": 0.0}, threshold=0.0), ReLU()),
        (relu(max_value={"type": "ndarray", "value": 2.0}), ReLU(2)),
        ({"class_name": "ELU", "config": {"alpha": np.float32(2), "name": "elu"}}, ELU(2)),
        ({"class_name": "Softmax", "config": {"axis": -1}}, jax.nn.softmax),
        ({"class_name": "Softmax", "config": {"axis": [-1]}}, jax.nn.softmax),
        ({"class_name": "Activation", "config": {**OF_ANY_LAYER, "activation": "selu"}}, jax.nn.selu),
    ],
)
def test_configurations_of_other_versions(config, expected):
    assert activations.get(config) == expected
    read = from_config({"class_name": "SimpleRNN", "config": {"units": 3, "activation": config}}).activation
    assert read == activations.to_config(expected) or read == expected


def test_hard_sigmoid_of_keras_2_inside_a_layer():
    config = {"class_name": "Activation", "config": {"activation": "hard_sigmoid"}}
    layer = from_config({"class_name": "SimpleRNN", "config": {"units": 3, "activation": config, "time_major": False}})
    assert float(layer.activation(jnp.asarray(1.0))) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class_name": "PReLU", "config": {"alpha_initializer": "zeros"}}, "'PReLU' .*weights of its own"),
        ("PReLU", "'PReLU' .*weights of its own"),
        ({"class_name": "Dropout", "config": {"rate": 0.5}}, "'Dropout'"),
        ({"class_name": "Dense", "config": {"units": 3}}, "'Dense'"),
        (leaky({"negative_slope": -0.1}), "`negative_slope` must be .* at least 0"),  # Keras 3 refuses it too
        (leaky({"negative_slope": 0.1, "alpha": 0.2}), "no argument 'alpha'"),
        (leaky({"negative_slope": [0.1]}), "`negative_slope` must be"),
        (leaky({"slope": 0.1}), "no argument 'slope'"),
        (leaky({"activity_regularizer": "l2"}), "no argument 'activity_regularizer'"),
        (leaky({"negative_slope": 0.1}, module="mine", registered_name="mine>LeakyReLU"), "custom object"),
        (relu(max_value=-1), "`max_value` must be .* at least 0"),
        (relu(negative_slope=None), "`negative_slope` must be"),
        (relu(threshold="1"), "`threshold` must be"),
        (relu(threshold=float("nan")), "`threshold` must be"),
        ({"class_name": "Softmax", "config": {"axis": 1}}, "`axis` of a Softmax layer must be -1"),
        ({"class_name": "Activation", "config": {"activation": "glu"}}, "'glu'"),
        ({"class_name": "Activation", "config": {"activation": relu()}}, "must be a name"),
        (leaky({"negative_slope": 0.1, "dtype": "mixed_bfloat16"}), "computes in bfloat16, inside .* float32"),
    ],
)
def test_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        from_config({"class_name": "SimpleRNN", "config": {"units": 3, "activation": config}})


def test_files_that_are_refused(tmp_path):
    """An activation with weights, and one that computes in another dtype than its layer."""
    for layer, message in [
        (layers.SimpleRNN(3, activation=layers.PReLU()), "'PReLU'"),
        (layers.Dense(3, activation=layers.PReLU()), "'PReLU'"),
        (layers.Dense(3, layers.LeakyReLU(0.1), dtype="mixed_bfloat16"), "computes in float32, inside .* bfloat16"),
    ]:
        model = keras.Sequential(real_input(layer))
        model(reals())  # only then is a PReLU built
        model.save(tmp_path / "model.keras")
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "model.keras")
        if "PReLU" in message:
            model.save_weights(tmp_path / "model.weights.h5")
            with pytest.raises(ValueError, match=r"activation.* not known here"):
                load_weights(tmp_path / "model.weights.h5")
