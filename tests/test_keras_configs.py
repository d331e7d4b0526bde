"""Keras's configurations and live layers against Keras itself."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax.core import FrozenDict
from keras import layers
from keras_models import MARKS, lenient, randomised, reals  # noqa: F401 - the fixture is used by every test

import flax_srnn
from flax_srnn import activations, constraints, initializers, regularizers
from flax_srnn.interop.keras import from_config, from_keras, to_config
from flax_srnn.layers.options import MERGING

pytestmark = MARKS


@pytest.mark.parametrize("mode", [*MERGING, None])
def test_every_merge_mode_is_one_of_keras(mode):
    """One that Keras lacks must be refused by `to_config` and `from_config`, which this test does not know of yet."""
    config = to_config(flax_srnn.Bidirectional(flax_srnn.SimpleRNN(3), mode))
    assert keras.layers.deserialize(config).merge_mode == mode
    assert from_config(config).merge_mode == mode


def plain(config):
    """A configuration without Keras's notes of how objects were shared and built."""
    if isinstance(config, dict):
        return {k: plain(v) for k, v in config.items() if k not in ("shared_object_id", "build_config")}
    return [plain(each) for each in config] if isinstance(config, (list, tuple)) else config


KERAS_LAYERS = [
    lambda: layers.SimpleRNN(3),
    lambda: layers.SimpleRNN(
        3,
        "selu",
        use_bias=False,
        kernel_initializer="he_normal",
        recurrent_initializer=keras.initializers.RandomUniform(-0.1, 0.2, seed=7),
        kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2),
        recurrent_regularizer=keras.regularizers.OrthogonalRegularizer(0.2),
        activity_regularizer="l2",
        kernel_constraint="non_neg",
        recurrent_constraint=keras.constraints.MinMaxNorm(0.1, 2, 0.5, axis=1),
        dropout=0.25,
        recurrent_dropout=0.5,
        return_sequences=True,
        return_state=True,
        go_backwards=True,
        stateful=True,
        unroll=True,
        zero_output_for_mask=True,
        name="named",
        dtype="mixed_bfloat16",
    ),
    lambda: layers.SimpleRNNCell(3, seed=5, bias_initializer=keras.initializers.Constant(0.5), dtype="float64"),
    lambda: layers.RNN(layers.SimpleRNNCell(3), return_sequences=True, dtype="mixed_float16"),
    lambda: layers.RNN([layers.SimpleRNNCell(3, seed=1), layers.SimpleRNNCell(2)], go_backwards=True),
    lambda: layers.StackedRNNCells([layers.SimpleRNNCell(3), layers.SimpleRNNCell(4, "gelu")]),
    lambda: layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True), merge_mode=None),
    lambda: layers.Bidirectional(
        layers.RNN([layers.SimpleRNNCell(3)]), backward_layer=layers.SimpleRNN(3, go_backwards=True)
    ),
]


@pytest.mark.parametrize("make", KERAS_LAYERS)
def test_a_configuration_of_keras_survives(make):
    config = plain(keras.saving.serialize_keras_object(make()))
    if (
        config["config"].get("dtype", {}).get("config", {}).get("name", "").startswith("mixed")
        and "cell" in config["config"]
    ):
        config["config"]["cell"]["config"]["dtype"] = config["config"]["dtype"]
    layer = from_config(config)
    assert to_config(layer) == config
    assert json.loads(json.dumps(to_config(layer))) == config
    assert from_config(to_config(layer)) == layer
    assert plain(keras.saving.serialize_keras_object(keras.saving.deserialize_keras_object(to_config(layer)))) == config


@pytest.mark.parametrize(
    "layer",
    [
        flax_srnn.SimpleRNN(3),
        flax_srnn.SimpleRNN(3, seed=4, dtype=jnp.dtype("float16"), param_dtype=jnp.dtype("float16"), name="n"),
        flax_srnn.SimpleRNN(
            3, kernel_regularizer=regularizers.L1(0.5), recurrent_initializer=initializers.Identity(0.5)
        ),
        flax_srnn.RNN([flax_srnn.SimpleRNNCell(3, seed=1), flax_srnn.SimpleRNNCell(2, seed=2)]),
        flax_srnn.RNN(flax_srnn.SimpleRNNCell(3), activity_regularizer=regularizers.L2(0.5)),
        flax_srnn.StackedRNNCells([flax_srnn.SimpleRNNCell(3)]),
        flax_srnn.Bidirectional(flax_srnn.SimpleRNN(3), "sum"),
    ],
)
def test_a_layer_of_ours_survives(layer):
    config = to_config(layer)
    assert from_config(config) == layer
    keras.saving.deserialize_keras_object(config)


def test_dtype_policies_of_configurations():
    def layer_of(policy):
        return from_config({"class_name": "SimpleRNN", "config": {"units": 3, "dtype": policy}})

    policy = {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": "mixed_bfloat16"},
        "registered_name": None,
    }
    old = {"class_name": "Policy", "config": {"name": "mixed_bfloat16"}}
    for each in ("mixed_bfloat16", policy, old):
        assert (layer_of(each).dtype, layer_of(each).param_dtype) == (jnp.bfloat16, jnp.float32)
    for name in ("float16", "bfloat16", "float32", "float64"):
        assert (layer_of(name).dtype, layer_of(name).param_dtype) == (jnp.dtype(name),) * 2
    for bad in ("int8", 3, {}, {"class_name": "QuantizedDTypePolicy", "config": {"name": "int8"}}, "mixed_float32"):
        with pytest.raises(ValueError, match="dtype policy"):
            layer_of(bad)


def config_of(kind="SimpleRNN", outer=None, **arguments):
    return {"class_name": kind, "config": {"units": 3, **arguments} if "RNN" in kind else arguments, **(outer or {})}


CELL = config_of("SimpleRNNCell")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (config_of("Lambda"), "'Lambda'"),
        (config_of("LSTM"), "'LSTM'"),
        (config_of("Dense"), "'Dense'"),
        (config_of(outer={"module": "mine", "registered_name": "mine>SimpleRNN"}), "custom object"),
        (config_of(outer={"extra": 1}), "'extra'"),
        (config_of(depth=3), "'depth'"),
        (config_of(precision="high"), "'precision'"),
        (config_of(keep_order=True), "'keep_order'"),
        (config_of(parent=3), "'parent'"),
        (config_of(activation="threshold"), "threshold"),
        (config_of(activation="glu"), "glu"),
        (config_of(activation="mine"), "'mine'"),
        (config_of(activation={"class_name": "__lambda__", "config": {"value": "4wEAAA=="}}), "__lambda__"),
        (
            config_of(
                kernel_initializer={"module": "mine", "class_name": "Mine", "config": {}, "registered_name": "Mine"}
            ),
            "Mine",
        ),
        (config_of(kernel_regularizer={"class_name": "L3", "config": {}}), "L3"),
        (config_of(kernel_constraint="RadialConstraint"), "RadialConstraint"),
        (config_of(trainable=False), "frozen"),
        (config_of(name=3), "`name`"),
        (config_of(units=0), "units"),
        (config_of(units="3"), "units"),
        (config_of(units=None), "units"),
        (config_of(dropout=2), "dropout"),
        (config_of(return_sequences="yes"), "return_sequences"),
        (config_of(seed=[1]), "seed"),
        ({"class_name": "SimpleRNN", "config": {}}, "units"),
        ({"class_name": "SimpleRNN"}, "units"),
        ({"class_name": "RNN", "config": {}}, "cell"),
        ({"class_name": "RNN", "config": {"cell": None}}, "cell"),
        ({"class_name": "RNN", "config": {"cell": config_of()}}, "cell"),
        ({"class_name": "RNN", "config": {"cell": config_of("LSTMCell")}}, "'LSTMCell'"),
        ({"class_name": "RNN", "config": {"cell": CELL, "dtype": "float16"}}, "float16"),
        ({"class_name": "StackedRNNCells", "config": {"cells": []}}, "cells"),
        ({"class_name": "StackedRNNCells", "config": {"cells": 3}}, "cells|int"),
        ({"class_name": "Bidirectional", "config": {"layer": CELL}}, "layer"),
        ({"class_name": "Bidirectional", "config": {"layer": config_of(), "merge_mode": "max"}}, "merge_mode"),
        (
            {"class_name": "Bidirectional", "config": {"layer": config_of(), "backward_layer": config_of()}},
            "directions",
        ),
        ({"class_name": 3, "config": {}}, "class_name"),
        ({}, "class_name"),
    ],
)
def test_configurations_that_cannot_be_represented(config, match):
    with pytest.raises(ValueError, match=match):
        from_config(config)


def nested(depth, wrap, inner):
    for _ in range(depth):
        inner = wrap(inner)
    return inner


NESTED = {
    "Bidirectional": (nested(1000, lambda c: config_of("Bidirectional", layer=c), config_of()), 2002),
    "RNN": (nested(1000, lambda c: {"class_name": "RNN", "config": {"cell": c}}, CELL), 2002),
    "StackedRNNCells": (nested(60, lambda c: {"class_name": "StackedRNNCells", "config": {"cells": [c]}}, CELL), 182),
    "TimeDistributed": (nested(50, lambda c: config_of("TimeDistributed", layer=c), config_of()), 102),
    "a list": (nested(1000, lambda c: [c], 0), 1000),
    **{
        argument: (config_of(**{argument: nested(5000, lambda c: {"config": c}, 1)}), 5002)
        for argument in ("activation", "kernel_initializer", "bias_regularizer", "units", "name", "dtype", "unknown")
    },
}


@pytest.mark.parametrize("name", NESTED)
def test_configurations_nested_too_deeply(name):
    """None reaches the recursion limit, neither when it is read nor when a message shows it."""
    config, depth = NESTED[name]
    with pytest.raises(ValueError, match=f"`config` is nested {depth} deep; at most 100 is read"):
        from_config(config)


def test_nesting_is_counted_by_the_longest_way():
    """Each part is looked at once a level, however often it is shared. The limit itself is read."""
    shared = nested(98, lambda c: [c, c], 1)
    for config, match in [
        (config_of(kernel_regularizer=nested(98, lambda c: [c], 1)), "must be a Keras name"),
        (config_of(kernel_regularizer=nested(99, lambda c: [c], 1)), "nested 101 deep"),
        (config_of(kernel_regularizer=[shared, [[shared]]]), "nested 103 deep"),
        (FrozenDict(config_of(kernel_regularizer=nested(20, lambda c: {"config": c}, 1))), "kernel_regularizer"),
    ]:
        with pytest.raises(ValueError, match=match):
            from_config(config)
    endless = config_of("Bidirectional")
    endless["config"]["layer"] = endless
    with pytest.raises(ValueError, match="`config` contains itself"):
        from_config(endless)


@pytest.mark.parametrize("module", [activations, initializers, regularizers, constraints])
def test_identifiers_nested_too_deeply(module):
    kind = {"config": nested(1000, lambda c: {"config": c}, 1), "class_name": "Constant"}
    for identifier, depth in [(kind, 1001), (kind["config"], 1000), (nested(1000, lambda c: [c], 1), 1000)]:
        with pytest.raises(ValueError, match=f"`each` is nested {depth} deep; at most 100 is read"):
            module.get(identifier, argument="each")


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        (flax_srnn.SimpleRNN(3, activation=jnp.sin), ValueError, "activation"),
        (flax_srnn.SimpleRNN(3, kernel_initializer=jax.nn.initializers.ones), ValueError, "kernel_initializer"),
        (flax_srnn.SimpleRNN(3, kernel_regularizer=jnp.sum), ValueError, "kernel_regularizer"),
        (flax_srnn.SimpleRNN(3, time_major=True), ValueError, "time_major"),
        (flax_srnn.SimpleRNN(3, keep_order=True), ValueError, "keep_order"),
        (flax_srnn.SimpleRNN(3, precision="high"), ValueError, "precision"),
        (flax_srnn.SimpleRNN(3, implementation="scan"), ValueError, "implementation"),
        (flax_srnn.SimpleRNN(3, initial_state_initializer="zeros"), ValueError, "initial_state_initializer"),
        (flax_srnn.SimpleRNN(3, unroll=4), ValueError, "unroll"),
        (flax_srnn.SimpleRNN(3, dtype=jnp.float32, param_dtype=jnp.float16), ValueError, "dtype"),
        (flax_srnn.RNN(nn.GRUCell(3)), ValueError, "GRUCell"),
        (nn.Dense(3), TypeError, "`layer`"),
        (3, TypeError, "`layer`"),
    ],
)
def test_layers_that_keras_does_not_have(layer, error, match):
    with pytest.raises(error, match=match):
        to_config(layer)


def test_numbers_of_numpy_become_plain():
    config = to_config(
        flax_srnn.SimpleRNN(np.int64(3), dropout=np.float32(0.5), unroll=np.bool_(True), seed=np.int32(1))
    )
    assert json.loads(json.dumps(config)) == config
    assert config["config"]["units"] == 3


def test_from_config_wants_a_mapping():
    with pytest.raises(TypeError, match="mapping"):
        from_config("SimpleRNN")


# Live layers


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.SimpleRNN(3, "relu", use_bias=False, return_sequences=True, return_state=True, seed=11),
        lambda: layers.SimpleRNN(3, stateful=True, name="stateful"),
        lambda: layers.RNN(
            [layers.SimpleRNNCell(3, seed=2), layers.SimpleRNNCell(2)], stateful=True, return_sequences=True
        ),
        lambda: layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True, stateful=True), merge_mode=None),
    ],
)
def test_live_layers(make):
    theirs, x = make(), reals()
    theirs(x)
    randomised(theirs)
    ours, variables = from_keras(theirs)
    assert ours.name == theirs.name
    theirs_now = theirs(x)  # a stateful layer goes on from the first call in both
    for y, expected in zip(
        jax.tree.leaves(ours.apply(variables, x, mutable=["carry"])[0]), jax.tree.leaves(theirs_now), strict=True
    ):
        np.testing.assert_allclose(y, expected, atol=2e-6)
    if isinstance(ours, flax_srnn.SimpleRNN):
        assert ours.seed == theirs.cell.seed


def test_what_is_no_live_layer():
    class Mine(layers.SimpleRNN):
        pass

    built = Mine(3)
    built(reals())
    lstm = layers.LSTM(3)
    frozen = layers.SimpleRNN(3, trainable=False)
    frozen(reals())
    cell = layers.SimpleRNNCell(3)
    for layer, error, match in [
        (built, ValueError, "Mine"),
        (lstm, ValueError, "LSTM"),
        (layers.SimpleRNN(3), ValueError, "build"),
        (frozen, ValueError, "frozen"),
        (cell, ValueError, "RNN"),
        (flax_srnn.SimpleRNN(3), TypeError, "Keras layer"),
        (None, TypeError, "Keras layer"),
    ]:
        with pytest.raises(error, match=match):
            from_keras(layer)
