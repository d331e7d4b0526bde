"""A cell that stands in a stack several times: what Keras writes of it, and what is read."""

import json

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers
from keras.src.saving.serialization_lib import ObjectSharingScope
from keras_models import MARKS, F, T, lenient, randomised, real_input, reals  # noqa: F401 - a fixture

from flax_srnn import simple_rnn
from flax_srnn.interop.keras import from_config, from_keras, load_model, load_weights, save_weights, to_config

pytestmark = MARKS

# Which cells are the same, by the place where each stands first.
STACKS = {"twice": [0, 0], "in between": [0, 1, 0], "then another": [0, 0, 2]}


def stack(name):
    own = {place: layers.SimpleRNNCell(F, activation="softsign") for place in STACKS[name]}
    return layers.RNN([own[place] for place in STACKS[name]], return_sequences=True)


def model_of(name):
    return randomised(keras.Sequential(real_input(stack(name))))


def by_hand(params, name):
    """The recurrences one after the other, from the parameters by place."""
    x = jnp.asarray(reals())
    for place in STACKS[name]:
        x = simple_rnn(params[f"cells_{place}"], x, activation="softsign")[1]
    return x


def same_objects(cells):
    """Where each stands first."""
    return [next(i for i, other in enumerate(cells) if other is cell) for cell in cells]


def check(layer, params, name, expected):
    assert same_objects(layer.cell.cells) == STACKS[name]
    assert list(params) == [f"cells_{place}" for place in sorted(set(STACKS[name]))]
    np.testing.assert_allclose(by_hand(params, name), expected, atol=1e-6)


@pytest.mark.parametrize("name", STACKS)
def test_configurations_and_weights(name, tmp_path):
    model = model_of(name)
    expected = model(reals())
    for file in ("model.keras", "model.h5"):  # the second of which Keras itself cannot load
        model.save(tmp_path / file)
        params = load_weights(tmp_path / file)["rnn"]
        check(from_config(to_config(from_keras(model.layers[0])[0])), params, name, expected)
    # A file of weights alone counts the cells, but after the last of its own.
    model.save_weights(tmp_path / "model.weights.h5")
    alone = load_weights(tmp_path / "model.weights.h5")["rnn"]
    assert jax.tree.all(jax.tree.map(np.array_equal, alone if len(params) > 1 else {"cells_0": alone}, params))
    # A cell that is there twice is written once.
    save_weights(tmp_path / "back.weights.h5", from_keras(model.layers[0])[0], {"params": params})
    randomised(model, seed=5).load_weights(tmp_path / "back.weights.h5")
    np.testing.assert_array_equal(model(reals()), expected)


@pytest.mark.parametrize("name", STACKS)
def test_live_layers(name):
    theirs = model_of(name).layers[0]
    layer, variables = from_keras(theirs)
    check(layer, variables["params"], name, theirs(reals()))
    # Keras shares what is noted so within one scope.
    with ObjectSharingScope():
        again = keras.saving.deserialize_keras_object(to_config(layer))
    assert same_objects(again.cell.cells) == STACKS[name]


@pytest.mark.parametrize("cells", [3, None, "ab", ["cell"], [3], [{}], [{"class_name": "SimpleRNNCell", "config": 3}]])
def test_what_is_no_list_of_cells(cells, tmp_path):
    path = tmp_path / "model.h5"
    model_of("twice").save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1]["config"]["cell"]["config"]["cells"] = cells
        file.attrs["model_config"] = json.dumps(config)
    for load in (load_weights, load_model):
        with pytest.raises(ValueError, match="configuration"):
            load(path)


CELL = {"class_name": "SimpleRNNCell", "config": {"units": F, "name": "cell"}}


def test_only_what_keras_notes_is_shared():
    """Not what is equal: Keras gives the copies in a Bidirectional the same names."""
    for notes, first in [
        ([{}, {}], [0, 1]),
        ([{"shared_object_id": 7}, {}], [0, 1]),
        ([{"shared_object_id": 7}] * 2, [0, 0]),
    ]:
        cells = from_config(
            {"class_name": "StackedRNNCells", "config": {"cells": [CELL | note for note in notes]}}
        ).cells
        assert same_objects(cells) == first
    model = randomised(keras.Sequential(real_input(layers.Bidirectional(stack("twice")))))
    layer, variables = from_keras(model.layers[0])
    assert list(variables["params"]["forward_layer"]) == ["cells_0", "cells_1"]
    np.testing.assert_allclose(layer.apply(variables, reals()), model(reals()), atol=1e-6)


@pytest.mark.parametrize("name", STACKS)
def test_models(name, tmp_path):
    model = model_of(name)
    for file in ("model.keras", "model.h5"):
        model.save(tmp_path / file)
        module, variables = load_model(tmp_path / file)
        np.testing.assert_allclose(module.apply(variables, reals()), model(reals()), atol=1e-6)
    save_weights(tmp_path / "back.weights.h5", module, variables)
    randomised(model, seed=5).load_weights(tmp_path / "back.weights.h5")
    np.testing.assert_allclose(module.apply(variables, reals()), model(reals()), atol=1e-6)
