"""Files and configurations of Keras versions that are not installed, recorded by `data/make_keras_files.py`.

`pytest -m '' tests/test_keras_versions.py -n0 -s` prints the worst errors of all versions.
"""

import functools
import io
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
from flax_srnn.interop.keras import describe, from_config, load_model, load_weights, to_config

DATA = Path(__file__).parent / "data"
VERSIONS = sorted(path.stem.removeprefix("keras_") for path in DATA.glob("keras_*.zip"))
MODELS = ("plain", "nested", "imdb", "gated", "conv", "graph", "seq2seq", "nested_graph", "stateful")

pytestmark = MARKS


@functools.cache
def recorded(version):
    """Of every model by name: its files by ending, inputs, and the outputs of one call or of two."""
    models = {}
    with zipfile.ZipFile(DATA / f"keras_{version}.zip") as archive:
        for name in [each for each in archive.namelist() if each.endswith(".npz")]:
            arrays = np.load(io.BytesIO(archive.read(name)))
            stem = name.removesuffix(".npz")
            files = [
                each for each in archive.namelist() if each.startswith((f"{stem}.", f"{stem}_legacy.")) and each != name
            ]
            models[stem] = (
                {each.removeprefix(stem): archive.read(each) for each in files},
                [arrays[key] for key in sorted(arrays) if key.startswith("input")],
                [arrays[key] for key in sorted(arrays) if key.startswith("output")],
            )
    return models


def written(folder, name, files):
    for ending, data in files.items():
        (folder / (name + ending)).write_bytes(data)
        yield folder / (name + ending)


def is_whole(path):
    return path.suffix in (".keras", ".h5") and ".weights" not in path.name and "_legacy" not in path.name


CASES = [(version, name) for version in VERSIONS for name in MODELS if name in recorded(version)]
QUICK = [("2.0.9", "imdb"), ("2.2.5", "plain"), ("3.9.2", "graph")]


def test_every_generation_is_there():
    assert {"2.0.9", "2.1.6", "2.2.5", "2.2.4-tf", "2.4.0", "2.9.0", "2.12.0", "2.15.0"} < set(VERSIONS)
    assert {"3.0.5", "3.3.3", "3.6.0", "3.9.2", "3.15.1"} < set(VERSIONS)
    assert [name for name in MODELS if sum(name == each for _, each in CASES) < 3] == []


@pytest.mark.parametrize(
    ("version", "name"), [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_predictions_of_other_versions(version, name, tmp_path, worst):
    files, inputs, outputs = recorded(version)[name]
    weights = []
    for path in written(tmp_path, name, files):
        weights.append(load_weights(path))
        assert [each for each in describe(path) if not each.supported] == []
        if is_whole(path):
            module, variables = load_model(path)
            returned, carry = strictly(module, variables, *inputs, mutable=["carry"])
            found = jax.tree.leaves(returned)
            if name == "stateful":  # Keras 3.15 on JAX does not go on from one `predict` to the next
                again = variables if version.startswith("3.15") else {**variables, **carry}
                found.append(strictly(module, again, *inputs, mutable=["carry"])[0])
            errors = [np.abs(np.asarray(y) - e).max() for y, e in zip(found, outputs, strict=True)]
            worst[f"prediction, Keras {version}, {path.name}"] = max(errors)
            assert max(errors) <= 1e-6
    # Formats differ in what they know of names, not in order or values.
    for other in weights[1:]:
        for one, two in zip(weights[0].values(), other.values(), strict=True):
            leaves = [sorted(np.sum(leaf) for leaf in jax.tree.leaves(tree)) for tree in (one, two)]
            np.testing.assert_array_equal(*leaves)


@pytest.mark.parametrize("version", cases.thinned([version for version in VERSIONS if version.startswith("2.")], 1))
def test_legacy_weights_files_without_a_model(version, tmp_path):
    for name in ("plain", "nested", "gated"):
        paths = {path.name: path for path in written(tmp_path, name, recorded(version).get(name, ({}, [], []))[0])}
        if f"{name}_legacy.h5" in paths:
            whole, alone = (load_weights(paths[each]) for each in (f"{name}.h5", f"{name}_legacy.h5"))
            if version.startswith(("2.0", "2.1", "2.2")):  # which give nested arrays no places of their own in names
                assert_same_leaves(alone, whole)
            else:
                assert_same_tree(alone, in_order_of(whole, alone))


def assert_same_leaves(tree, other):
    sums = [sorted(np.sum(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(each)) for each in (tree, other)]
    np.testing.assert_allclose(*sums, rtol=1e-12)


def in_order_of(tree, other):
    """`tree` with its keys in the order of `other`: a frozen layer comes last in a legacy file."""
    return {k: in_order_of(tree[k], other[k]) for k in other} if isinstance(other, dict) else np.asarray(tree)


def test_a_cell_that_keras_2_0_did_not_write_down(tmp_path):
    with zipfile.ZipFile(DATA / "keras_2.0.9.zip") as archive:
        (tmp_path / "cells.h5").write_bytes(archive.read("cells.h5"))
    with pytest.raises(ValueError, match="has no `units`: Keras before"):
        load_model(tmp_path / "cells.h5")
    [reason] = [each.reason for each in describe(tmp_path / "cells.h5") if not each.supported]
    assert "has no `units`" in reason


@pytest.mark.parametrize("version", cases.thinned([version for version in VERSIONS if version != "2.0.9"], 1))
def test_configs_of_other_versions(version):
    with zipfile.ZipFile(DATA / f"keras_{version}.zip") as archive:
        configs = json.loads(archive.read("configs.json"))
    keras_2 = version.startswith("2.")
    for config in configs:
        cell = from_config(config)
        given = dict(config["config"])
        for key in [
            key for key in given if key.endswith("_initializer")
        ]:  # today's Keras does not know tf.keras 1's dtype
            given[key] = {**given[key], "config": {k: v for k, v in given[key]["config"].items() if k != "dtype"}}
        theirs = keras.layers.SimpleRNNCell.from_config({k: v for k, v in given.items() if k != "dtype"})
        w = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        if given["activation"] == "hard_sigmoid" and keras_2:
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
            assert ours.gain == (2 if keras_2 else 1)
        else:
            assert initializers.to_config(ours) == keras.saving.serialize_keras_object(theirs.kernel_initializer)
