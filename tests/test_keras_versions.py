"""Files and configurations of Keras versions that are not installed, recorded by `data/make_keras_files.py`."""

import json
import zipfile
from pathlib import Path

import cases
import jax
import keras
import numpy as np
import pytest
from keras_models import MARKS, assert_same_tree, lenient, strictly  # noqa: F401 - a fixture

import flax_srnn
from flax_srnn import constraints, initializers, regularizers
from flax_srnn.interop.keras import from_config, load_model, load_weights, to_config

DATA = Path(__file__).parent / "data"
VERSIONS = ("2.15.0", "3.0.5", "3.6.0")

pytestmark = MARKS


@pytest.fixture(scope="module", params=VERSIONS)
def other_version(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with zipfile.ZipFile(DATA / f"keras_{request.param}.zip") as archive:
        archive.extractall(folder)
    return request.param, folder


@pytest.mark.parametrize("name", cases.thinned(["plain", "nested"], 1))
def test_predictions_of_other_versions(other_version, name, worst):
    version, folder = other_version
    recorded = np.load(folder / f"{name}.npz")
    weights = []
    for path in sorted(folder.glob(f"{name}.*")):
        if path.suffix != ".npz":
            weights.append(load_weights(path))
        if path.suffix in (".keras", ".h5") and ".weights" not in path.name:
            module, variables = load_model(path)
            error = np.abs(np.asarray(strictly(module, variables, recorded["inputs"])) - recorded["outputs"]).max()
            worst[f"prediction, Keras {version}, {path.name}"] = error
            assert error <= 1e-6
    # Formats differ in what they know of names, not in order or values.
    for other in weights[1:]:
        for one, two in zip(weights[0].values(), other.values(), strict=True):
            leaves = [sorted(np.sum(leaf) for leaf in jax.tree.leaves(tree)) for tree in (one, two)]
            np.testing.assert_array_equal(*leaves)


def test_legacy_weights_files_without_a_model(other_version):
    version, folder = other_version
    if version != "2.15.0":
        pytest.skip("Keras 3 does not write them")
    for name in ("plain", "nested"):
        whole = load_weights(folder / f"{name}.h5")
        alone = load_weights(folder / f"{name}_legacy.h5")
        assert_same_tree(alone, in_order_of(whole, alone))


def in_order_of(tree, other):
    """`tree` with its keys in the order of `other`: a frozen layer comes last in a legacy file."""
    return {k: in_order_of(tree[k], other[k]) for k in other} if isinstance(other, dict) else np.asarray(tree)


def test_configs_of_other_versions(other_version):
    version, folder = other_version
    for config in json.loads((folder / "configs.json").read_text()):
        cell = from_config(config)
        given = config["config"]
        theirs = keras.layers.SimpleRNNCell.from_config({k: v for k, v in given.items() if k != "dtype"})
        w = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        if given["activation"] == "hard_sigmoid" and version == "2.15.0":
            x = np.linspace(-4, 4, 9, dtype=np.float32)
            np.testing.assert_allclose(cell.activation(x), np.clip(0.2 * x + 0.5, 0, 1), rtol=1e-6)
            with pytest.raises(ValueError, match="activation"):
                to_config(cell)
        elif given["activation"] != "tanh":
            ours = flax_srnn.activations.get(cell.activation)
            np.testing.assert_allclose(ours(w), theirs.activation(w), rtol=1e-5, atol=1e-7)
        for name, module in (("kernel_regularizer", regularizers), ("kernel_constraint", constraints)):
            if given[name]:
                ours = module.get(getattr(cell, name))
                np.testing.assert_allclose(ours(w), getattr(theirs, name)(w), rtol=1e-5)
        ours = initializers.get(cell.kernel_initializer)
        if isinstance(ours, initializers.Identity):  # whose gain Keras 3 loses
            assert ours.gain == (2 if version == "2.15.0" else 1)
        else:
            assert initializers.to_config(ours) == keras.saving.serialize_keras_object(theirs.kernel_initializer)
