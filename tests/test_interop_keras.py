"""Keras's files, configurations and live layers against Keras itself, and against files of versions that are not installed.

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

import flax_srnn
from flax_srnn import constraints, initializers, regularizers
from flax_srnn.__main__ import main
from flax_srnn.interop.keras import convert, from_config, from_keras, load_model, load_weights, save_weights, to_config

DATA = Path(__file__).parent / "data"
VERSIONS = ("2.15.0", "3.0.5", "3.6.0")
B, T, F = 3, 5, 4

# Keras warns where a mask ends, and its variables do not know NumPy's newest protocol.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def lenient():
    """Keras relies on rank promotion; ours is applied by `strictly`."""
    keras.utils.clear_session(free_memory=False)  # which numbers the names of layers anew
    with jax.numpy_rank_promotion("allow"):
        yield


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


def randomised(model, seed=0):
    """The model with random weights: no zero biases, no symmetric matrices."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(-1 if w.ndim == 2 else 0.2, 1, w.shape) for w in model.get_weights()])
    return model


def reals():
    """(B, T, F) with padding at the end, at the beginning and in between."""
    x = np.random.default_rng(1).normal(size=(B, T, F)).astype(np.float32)
    x[0, 3:] = x[1, 0] = x[2, 2] = 0
    return x


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


# Configurations


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
        (flax_srnn.RNN(flax_srnn.layers.nn.GRUCell(3)), ValueError, "GRUCell"),
        (flax_srnn.layers.nn.Dense(3), TypeError, "`layer`"),
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
    for y, expected in zip(jax.tree.leaves(ours.apply(variables, x)), jax.tree.leaves(theirs_now), strict=True):
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
