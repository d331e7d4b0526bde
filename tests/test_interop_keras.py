"""Keras's files against Keras itself, and against files of versions that are not installed.

`pytest tests/test_interop_keras.py -n0 -s` prints the worst error of every model, format and version tried.
"""

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers
from keras_models import MARKS, B, F, T, lenient, randomised, reals  # noqa: F401 - the fixture is used by every test

import flax_srnn
from flax_srnn import constraints, initializers, regularizers
from flax_srnn.__main__ import main
from flax_srnn.interop.keras import convert, from_config, load_model, load_weights, save_weights, to_config

DATA = Path(__file__).parent / "data"
VERSIONS = ("2.15.0", "3.0.5", "3.6.0")

pytestmark = MARKS


def strictly(module, variables, *arguments, **options):
    with jax.numpy_rank_promotion("raise"):
        return module.apply(variables, *arguments, **options)


@pytest.fixture(scope="module")
def worst():
    """Worst errors by what was compared, printed at the end."""
    errors = {}
    yield errors
    for what, error in errors.items():
        print(f"{what:60} {error:.1e}")


WORDS = np.array([[1, 2, 0, 0, 0], [3, 0, 4, 5, 6], [0, 0, 0, 0, 0]], np.int32)


def real_input(*more, **options):
    return [keras.Input((T, F), **options), *more]


def word_input(*more):
    return [keras.Input((T,)), layers.Embedding(7, 3, mask_zero=True), *more]


MODELS = {
    "SimpleRNN": lambda: real_input(layers.SimpleRNN(3, "relu", use_bias=False)),
    "RNN of one cell": lambda: real_input(layers.RNN(layers.SimpleRNNCell(3), return_sequences=True)),
    "RNN of a list of one cell": lambda: real_input(layers.RNN([layers.SimpleRNNCell(3)], unroll=True)),
    "masked, backwards": lambda: real_input(
        # The mask of a reversed sequence is passed on unreversed.
        layers.Masking(),
        layers.SimpleRNN(3, return_sequences=True, go_backwards=True),
        layers.SimpleRNN(2, return_sequences=True, zero_output_for_mask=True),
        layers.RNN([layers.SimpleRNNCell(n) for n in (3, 5, 2)]),
    ),
    "masked words, bidirectional": lambda: word_input(
        layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True), merge_mode="mul"),
        layers.Dropout(0.5),
        layers.Bidirectional(layers.RNN([layers.SimpleRNNCell(2), layers.SimpleRNNCell(3)], return_sequences=True)),
        layers.TimeDistributed(layers.Dense(4, "relu")),
        layers.Bidirectional(layers.SimpleRNN(3), merge_mode="ave"),
    ),
    "masked, normalised, two different directions": lambda: real_input(
        layers.Masking(),
        layers.BatchNormalization(),
        layers.LayerNormalization(),
        layers.Activation("silu"),
        layers.Bidirectional(
            layers.SimpleRNN(3, return_sequences=True, go_backwards=True),
            backward_layer=layers.SimpleRNN(3, "selu", return_sequences=True),
            merge_mode="sum",
        ),
    ),
    "nested": lambda: word_input(
        keras.Sequential([layers.Dense(3), keras.Sequential([layers.SimpleRNN(4, return_sequences=True)])]),
        layers.SimpleRNN(2),
    ),
    "normalised, flat": lambda: real_input(
        layers.Masking(0.5),
        layers.BatchNormalization(scale=False),
        layers.LayerNormalization(axis=[1, 2], center=False),
        layers.BatchNormalization(axis=1),
        layers.Activation("gelu"),
        layers.LayerNormalization(epsilon=0.1),
        layers.Flatten(),
        layers.Dense(5, "softmax"),
    ),
    "several outputs": lambda: real_input(
        layers.Masking(), layers.Bidirectional(layers.SimpleRNN(3, return_state=True), merge_mode=None)
    ),
    "stateful": lambda: real_input(layers.SimpleRNN(3, return_sequences=True, stateful=True), batch_size=B),
}


@pytest.mark.parametrize("name", MODELS)
def test_predictions_equal_those_of_keras(name, tmp_path, worst):
    model = randomised(keras.Sequential(MODELS[name]()))
    x = WORDS if "words" in name or name == "nested" else reals()
    module, variables = load_saved(model, tmp_path)
    outputs = jax.tree.leaves(strictly(module, variables, x))
    errors = [np.abs(y - e).max() for y, e in zip(outputs, jax.tree.leaves(model(x)), strict=True)]
    worst[f"prediction, {name}"] = max(errors)
    assert max(errors) <= 1e-5

    # The legacy format says the same.
    model.save(tmp_path / "model.h5")
    same, again = load_model(tmp_path / "model.h5")
    assert same == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)

    # And back: other weights, into Keras's model.
    save_weights(tmp_path / "back.weights.h5", module, jax.tree.map(lambda leaf: leaf + 1, variables))
    before = model.get_weights()
    model.load_weights(tmp_path / "back.weights.h5")
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old + 1)


def test_nothing_masked_changes_a_prediction(tmp_path):
    """The masks really flow: what stands in masked steps does not matter, in any model that masks its inputs."""
    module, variables = load_saved(randomised(keras.Sequential(MODELS["masked words, bidirectional"]())), tmp_path)
    table = variables["params"]["embedding"]["embedding"]
    other = jax.tree.map(jnp.asarray, variables)
    other["params"]["embedding"]["embedding"] = table.at[0].set(100.0)
    np.testing.assert_array_equal(module.apply(variables, WORDS), module.apply(other, WORDS))


def load_saved(model, folder):
    model.save(folder / "saved.keras")
    return load_model(folder / "saved.keras")


def of_policy(policy):
    recurrent = "glorot_uniform"  # Keras cannot draw an orthogonal bfloat16 matrix
    rnn = layers.SimpleRNN(3, return_sequences=True, recurrent_initializer=recurrent, dtype=policy, name="rnn")
    return randomised(
        keras.Sequential(
            real_input(
                rnn, layers.LayerNormalization(dtype=policy), layers.Dense(2, "relu", dtype=policy, name="dense")
            )
        )
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_half_precision(policy, tmp_path, worst):
    model = of_policy(policy)
    module, variables = load_saved(model, tmp_path)
    y, expected = strictly(module, variables, reals()), np.asarray(model(reals()))
    assert y.dtype == expected.dtype
    worst[f"prediction, {policy}"] = error = np.abs(np.asarray(y - expected, np.float32)).max()
    assert error <= (0.01 if policy == "mixed_float16" else 0.08)  # Keras rounds at every step, we once

    kernel = np.asarray(model.get_layer("rnn").get_weights()[0])
    assert variables["params"]["rnn"]["kernel"].dtype == kernel.dtype
    np.testing.assert_array_equal(load_weights(tmp_path / "saved.keras")["rnn"]["kernel"], kernel)
    save_weights(tmp_path / "back.weights.h5", module, jax.tree.map(lambda leaf: leaf / 2, variables))
    model.load_weights(tmp_path / "back.weights.h5")
    np.testing.assert_array_equal(model.get_layer("rnn").get_weights()[0], kernel / 2)


def test_double_precision(x64, tmp_path):
    """Against NumPy: Keras on JAX cannot run a float64 SimpleRNN."""
    model = of_policy("float64")
    module, variables = load_saved(model, tmp_path)
    (w, u, b), (gamma, beta), (v, c) = (layer.get_weights() for layer in model.layers)
    assert w.dtype == np.float64
    h, expected = np.zeros((B, 3)), []
    for t in range(T):
        h = np.tanh(reals()[:, t].astype(np.float64) @ w + h @ u + b)
        normal = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-3)
        expected.append(np.maximum((normal * gamma + beta) @ v + c, 0))
    y = strictly(module, variables, reals())
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, np.stack(expected, 1), rtol=1e-12, atol=1e-12)


def test_training_a_loaded_model(tmp_path):
    """Batch statistics as Keras updates them, under a mask; dropout from the RNG stream; gradients."""
    stack = real_input(layers.Masking(), layers.BatchNormalization(momentum=0.9), layers.SimpleRNN(3, dropout=0.5))
    model = randomised(keras.Sequential(stack))
    module, variables = load_saved(model, tmp_path)
    apply = jax.jit(
        lambda v, key: module.apply(v, reals(), training=True, rngs={"dropout": key}, mutable=["batch_stats"])
    )
    y, updated = apply(variables, jax.random.key(0))
    assert np.any(y != apply(variables, jax.random.key(1))[0])
    model(reals(), training=True)
    names = ("scale", "bias", "mean", "var")
    for name, expected in zip(names[2:], model.layers[1].get_weights()[2:], strict=True):
        np.testing.assert_allclose(updated["batch_stats"]["batch_normalization"][name], expected, rtol=1e-5)
    gradient = jax.grad(lambda p: module.apply({**variables, "params": p}, reals()).sum())(variables["params"])
    assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in jax.tree.leaves(gradient))


def test_stateful_model_goes_on_where_it_stopped(tmp_path):
    model = randomised(keras.Sequential(MODELS["stateful"]()))
    module, variables = load_saved(model, tmp_path)
    x = reals()
    first, carry = module.apply(variables, x, mutable=["carry"])
    second = module.apply({**variables, **carry}, x)
    np.testing.assert_allclose(first, model(x), atol=1e-6)
    np.testing.assert_allclose(second, model(x), atol=1e-6)
    assert np.abs(np.asarray(first) - second).max() > 0.01


def test_loaded_module_checks_its_inputs_and_equals_itself(tmp_path):
    module, variables = load_saved(randomised(keras.Sequential(MODELS["SimpleRNN"]())), tmp_path)
    assert module == load_model(tmp_path / "saved.keras")[0]
    assert hash(module) == hash(load_model(tmp_path / "saved.keras")[0])
    for shape in [(B, T), (B, T + 1, F), (B, T, F, 1)]:
        with pytest.raises(ValueError, match=r"`inputs` must have the shape \(None, 5, 4\)"):
            module.apply(variables, np.ones(shape, np.float32))
    assert module.apply(variables, np.ones((7, T, F))).shape == (7, 3)


# Weights


def stack():
    """One of every kind of layer, and enough of one kind that alphabet and number disagree."""
    more = [layers.SimpleRNN(2, return_sequences=True) for _ in range(12)]
    inner = keras.Sequential([layers.Dense(3, name="deep"), layers.SimpleRNN(2, return_sequences=True)], name="inside")
    return randomised(
        keras.Sequential(
            word_input(
                *more,
                layers.RNN(layers.SimpleRNNCell(3, use_bias=False), return_sequences=True, name="zebra"),
                layers.RNN([layers.SimpleRNNCell(4), layers.SimpleRNNCell(3)], return_sequences=True, name="cells"),
                layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True), name="apple"),
                inner,
                layers.BatchNormalization(name="middle"),
                layers.Dense(2),
            )
        )
    )


def by_hand(model):
    """The mapping that `load_weights` promises, written out for `stack`."""

    def named(layer, *names):
        return dict(zip(names, layer.get_weights(), strict=True))

    rnn = ("kernel", "recurrent_kernel", "bias")
    found = {}
    for layer in model.layers:
        if isinstance(layer, layers.SimpleRNN):
            found[layer.name] = named(layer, *rnn)
    cells, apple, inside = (model.get_layer(name) for name in ("cells", "apple", "inside"))
    deep, inner = inside.layers
    return {
        "embedding": named(model.layers[0], "embedding"),
        **found,
        "zebra": named(model.get_layer("zebra"), *rnn[:2]),
        "cells": {f"cells_{i}": named(cell, *rnn) for i, cell in enumerate(cells.cell.cells)},
        "apple": {name: named(getattr(apple, name), *rnn) for name in ("forward_layer", "backward_layer")},
        "inside": {"deep": named(deep, "kernel", "bias"), inner.name: named(inner, *rnn)},
        "middle": named(model.get_layer("middle"), "scale", "bias", "mean", "var"),
        model.layers[-1].name: named(model.layers[-1], "kernel", "bias"),
    }


@pytest.fixture(scope="module")
def saved_stack(tmp_path_factory):
    keras.utils.clear_session(free_memory=False)
    with jax.numpy_rank_promotion("allow"):
        folder, model = tmp_path_factory.mktemp("stack"), stack()
        model.compile("adam", "mse", metrics=["mae"])  # whose arrays are in the file too
        model.optimizer.build(model.trainable_variables)
    for ending in (".keras", ".h5"):
        model.save(folder / f"stack{ending}")
    model.save_weights(folder / "stack.weights.h5")
    return folder, by_hand(model)


def assert_same_tree(tree, expected):
    if isinstance(expected, dict):
        assert list(tree) == list(expected)  # the order too
        for key, value in expected.items():
            assert_same_tree(tree[key], value)
    else:
        assert isinstance(tree, jax.Array)
        assert tree.dtype == expected.dtype
        np.testing.assert_array_equal(tree, expected)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5", ".h5"])
def test_load_weights_of_every_format(saved_stack, ending):
    folder, expected = saved_stack
    assert_same_tree(load_weights(folder / f"stack{ending}"), expected)


def test_params_of_a_layer_are_those_of_ours(saved_stack):
    folder, _ = saved_stack
    weights = load_weights(folder / "stack.keras")
    for name, layer in {
        "zebra": flax_srnn.RNN(flax_srnn.SimpleRNNCell(3, use_bias=False)),
        "simple_rnn": flax_srnn.SimpleRNN(2),
        "cells": flax_srnn.RNN([flax_srnn.SimpleRNNCell(4), flax_srnn.SimpleRNNCell(3)]),
        "apple": flax_srnn.Bidirectional(flax_srnn.SimpleRNN(2)),
    }.items():
        first = next(iter(weights[name].values()))
        features = (first["kernel"] if isinstance(first, dict) else first).shape[0]
        init = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((B, T, features)))["params"]
        assert jax.tree.map(jnp.shape, weights[name]) == jax.tree.map(jnp.shape, init)


def test_a_rearranged_file_is_read_by_number(saved_stack, tmp_path):
    """Written anew in alphabetical order, as h5repack does, without the names of layers, as before Keras 3.6."""

    def copy(group, to):
        for name in sorted(group):
            if isinstance(group[name], h5py.Group):
                copy(group[name], to.create_group(name))
            else:
                to.create_dataset(name, data=group[name][()])

    folder, expected = saved_stack
    with h5py.File(folder / "stack.weights.h5") as original, h5py.File(tmp_path / "new.weights.h5", "w") as new:
        copy(original, new)
    weights = load_weights(tmp_path / "new.weights.h5")
    rnns = [name for name in weights if name.startswith("simple_rnn")]
    assert rnns == ["simple_rnn"] + [f"simple_rnn_{i}" for i in range(1, 12)]
    assert set(weights) == {
        *rnns,
        "batch_normalization",
        "bidirectional",
        "dense",
        "embedding",
        "rnn",
        "rnn_1",
        "sequential",
    }
    for name in rnns:
        assert_same_tree(weights[name], expected[name])
    assert_same_tree(weights["rnn_1"], expected["cells"])


def test_functional_and_subclassed_models(tmp_path):
    inputs = keras.Input((T, F))
    merged = layers.Concatenate()(
        [layers.SimpleRNN(2, name="a")(inputs), layers.Bidirectional(layers.SimpleRNN(3), name="b")(inputs)]
    )
    model = randomised(keras.Model(inputs, layers.Dense(2, name="c")(layers.Lambda(lambda t: 2 * t)(merged))))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = layers.SimpleRNN(3, return_sequences=True, name="encoder_rnn")
            self.blocks = [layers.SimpleRNN(2, name="block_rnn"), layers.Dense(2, name="block_dense")]
            self.head = layers.Dense(1, use_bias=False, name="dense")

        def call(self, x):
            x = self.encoder(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    subclassed = Subclassed()
    subclassed(np.ones((B, T, F)))
    for name, each in {"functional": model, "subclassed": subclassed}.items():
        each.save(tmp_path / f"{name}.keras")
        each.save_weights(tmp_path / f"{name}.weights.h5")
    model.save(tmp_path / "functional.h5")
    for ending in (".keras", ".weights.h5", ".h5"):
        weights = load_weights(tmp_path / f"functional{ending}")
        assert list(weights) == ["a", "b", "c"]
        np.testing.assert_array_equal(weights["c"]["kernel"], model.get_layer("c").get_weights()[0])
    for ending in (".keras", ".weights.h5"):
        weights = load_weights(tmp_path / f"subclassed{ending}")
        assert list(weights["blocks"]) == ["block_rnn", "block_dense"]
        np.testing.assert_array_equal(weights["encoder_rnn"]["bias"], subclassed.encoder.get_weights()[2])
        np.testing.assert_array_equal(weights["blocks"]["block_dense"]["bias"], subclassed.blocks[1].get_weights()[1])
    for name, kind in (("functional", "'Functional' cannot be represented"), ("subclassed", "Subclassed")):
        with pytest.raises(ValueError, match=kind):
            load_model(tmp_path / f"{name}.keras")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (flax_srnn.SimpleRNN(3, use_bias=False), lambda: layers.SimpleRNN(3, use_bias=False)),
        (flax_srnn.SimpleRNN(3, activation=jnp.sin, keep_order=True, name="own"), lambda: layers.SimpleRNN(3)),
        (flax_srnn.RNN(flax_srnn.SimpleRNNCell(3)), lambda: layers.RNN(layers.SimpleRNNCell(3))),
        (flax_srnn.RNN([flax_srnn.SimpleRNNCell(3)]), lambda: layers.RNN([layers.SimpleRNNCell(3)], unroll=True)),
        (
            flax_srnn.RNN(flax_srnn.StackedRNNCells([flax_srnn.SimpleRNNCell(3), flax_srnn.SimpleRNNCell(2)])),
            lambda: layers.RNN([layers.SimpleRNNCell(3), layers.SimpleRNNCell(2)]),
        ),
        (flax_srnn.Bidirectional(flax_srnn.SimpleRNN(3)), lambda: layers.Bidirectional(layers.SimpleRNN(3))),
        (
            flax_srnn.Bidirectional(flax_srnn.RNN([flax_srnn.SimpleRNNCell(3), flax_srnn.SimpleRNNCell(2)])),
            lambda: layers.Bidirectional(layers.RNN([layers.SimpleRNNCell(3), layers.SimpleRNNCell(2)])),
        ),
    ],
)
def test_a_layer_of_ours_goes_to_keras_and_back(ours, theirs, tmp_path):
    x = reals()
    variables = jax.jit(ours.init)(jax.random.key(0), x)
    save_weights(tmp_path / "ours.weights.h5", ours, variables)
    model = keras.Sequential(real_input(theirs()))
    model.load_weights(tmp_path / "ours.weights.h5")
    if ours.activation is not jnp.sin if isinstance(ours, flax_srnn.SimpleRNN) else True:
        np.testing.assert_allclose(model(x), ours.apply(variables, x), atol=1e-6)
    ((name, params),) = load_weights(tmp_path / "ours.weights.h5").items()
    assert name == (ours.name or {"SimpleRNN": "simple_rnn"}.get(type(ours).__name__, type(ours).__name__.lower()))
    jax.tree.map(np.testing.assert_array_equal, params, variables["params"])
    model.save(tmp_path / "theirs.keras")
    ((_, params),) = load_weights(tmp_path / "theirs.keras").items()
    jax.tree.map(np.testing.assert_array_equal, params, variables["params"])


def test_save_weights_refuses(tmp_path):
    layer, x = flax_srnn.SimpleRNN(3), reals()
    variables = layer.init(jax.random.key(0), x)
    path = tmp_path / "a.weights.h5"
    cell = flax_srnn.SimpleRNNCell(3)
    learned = flax_srnn.SimpleRNN(3, initial_state_initializer="zeros")
    lstm = flax_srnn.RNN(flax_srnn.layers.nn.LSTMCell(3))
    params = variables["params"]
    for error, match, arguments in [
        (ValueError, "must end in '.weights.h5'", (tmp_path / "a.h5", layer, variables)),
        (TypeError, "`model` must be", (path, cell, cell.init(jax.random.key(0), jnp.ones((2, 3)), jnp.ones((2, 4))))),
        (TypeError, "`model` must be", (path, "layer", variables)),
        (TypeError, "`variables` must be a mapping", (path, layer, None)),
        (
            ValueError,
            "lacks .*simple_rnn/bias",
            (path, layer, {"params": {k: params[k] for k in ("kernel", "recurrent_kernel")}}),
        ),
        (ValueError, "lacks", (path, layer, {})),
        (ValueError, "no place for.*initial_state", (path, learned, learned.init(jax.random.key(0), x))),
        (ValueError, "LSTMCell cannot be represented", (path, lstm, lstm.init(jax.random.key(0), x))),
        (
            ValueError,
            "'recurrent_kernel' .*shape",
            (path, layer, {"params": params | {"recurrent_kernel": jnp.ones((4, 3))}}),
        ),
        (ValueError, "must hold floats", (path, layer, {"params": params | {"bias": jnp.ones(3, jnp.int32)}})),
        (ValueError, "does not exist", (tmp_path / "absent" / "a.weights.h5", layer, variables)),
    ]:
        with pytest.raises(error, match=match):
            save_weights(*arguments)
    assert list(tmp_path.iterdir()) == []
    save_weights(path, layer, variables)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        save_weights(path, layer, variables)
    assert path.read_bytes() == before
    save_weights(path, layer, jax.tree.map(jnp.zeros_like, variables), overwrite=True)
    assert np.all(load_weights(path)["simple_rnn"]["bias"] == 0)
    assert list(tmp_path.iterdir()) == [path]


# Other versions of Keras


@pytest.fixture(scope="module", params=VERSIONS)
def other_version(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with zipfile.ZipFile(DATA / f"keras_{request.param}.zip") as archive:
        archive.extractall(folder)
    return request.param, folder


@pytest.mark.parametrize("name", ["plain", "nested"])
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


# The command line, and what is imported


def test_convert_there_and_back(tmp_path, capsys):
    model = randomised(keras.Sequential(MODELS["normalised, flat"]()))
    model.save(tmp_path / "model.keras")
    assert main(["convert", str(tmp_path / "model.keras"), str(tmp_path / "out")]) == 0
    module, variables = load_model(tmp_path / "out")
    np.testing.assert_allclose(module.apply(variables, reals()), model(reals()), atol=1e-6)
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "model.weights.h5")]) == 0
    expected = model(reals())
    randomised(model, seed=5).load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(model(reals()), expected)
    assert capsys.readouterr().err == ""

    # Nothing is overwritten, nothing is left behind.
    there = sorted(tmp_path.rglob("*"))
    for source, target in [
        ("model.keras", "b.h5"),
        ("model.keras", "out"),
        ("out", "model.weights.h5"),
        ("model.keras", "absent/out"),
        ("model.weights.h5", "b"),
    ]:
        assert main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 2
    for source in ("absent.keras", "."):
        assert main(["convert", str(tmp_path / source), str(tmp_path / "c.weights.h5")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 7
    assert sorted(tmp_path.rglob("*")) == there
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "absent.keras", tmp_path / "d")


def test_reading_needs_neither_keras_nor_tensorflow_nor_h5py(saved_stack, tmp_path):
    folder, _ = saved_stack
    keras.Sequential(MODELS["SimpleRNN"]()).save(tmp_path / "model.keras")
    code = f"""
        import sys
        for name in ("keras", "tensorflow", "tf_keras", "h5py", "torch"):
            sys.modules[name] = None
        import jax, pathlib
        from flax_srnn.interop.keras import from_config, load_model, load_weights, save_weights, to_config
        folder = pathlib.Path({str(folder)!r})
        for ending in (".keras", ".weights.h5", ".h5"):
            load_weights(folder / f"stack{{ending}}")
        module, variables = load_model({str(tmp_path / "model.keras")!r})
        module.apply(variables, jax.numpy.ones((2, {T}, {F})))
        try:
            save_weights({str(tmp_path / "not.weights.h5")!r}, module, variables)
        except ImportError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'flax-srnn[interop]'" in done.stdout
    assert not (tmp_path / "not.weights.h5").exists()
