"""Weights in Keras's files, and layers of ours in Keras's formats and back."""

import os
import resource
import subprocess
import sys
import textwrap

import flax.linen as nn
import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers
from keras_models import (  # noqa: F401 - a fixture
    MARKS,
    B,
    F,
    T,
    assert_same_tree,
    lenient,
    randomised,
    real_input,
    reals,
    word_input,
)

import flax_srnn
from flax_srnn.interop.keras import describe, load_model, load_weights, save_weights

pytestmark = MARKS


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
    for name, kind in (("functional", "'Lambda' cannot be represented"), ("subclassed", "Subclassed")):
        with pytest.raises(ValueError, match=kind):
            load_model(tmp_path / f"{name}.keras")


def test_arrays_of_unknown_layers(tmp_path):
    """A known layer beside two that are not, one of them with layers inside: every array of the file is there."""
    inputs = keras.Input((4, 6))
    x = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    x = layers.DepthwiseConv1D(3, name="depth")(layers.SimpleRNN(5, return_sequences=True, name="rnn")(x))
    model = randomised(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    for ending in (".keras", ".weights.h5", ".h5"):
        (model.save_weights if "weights" in ending else model.save)(tmp_path / f"model{ending}")
        weights = load_weights(tmp_path / f"model{ending}")
        for name in ("rnn", "head"):
            expected = dict(zip(weights[name], model.get_layer(name).get_weights(), strict=True))
            assert_same_tree(weights[name], expected)
        leaves = jax.tree.leaves((weights["attention"], weights["depth"]))
        theirs = [w for name in ("attention", "depth") for w in model.get_layer(name).get_weights()]
        sums = [sorted(np.sum(leaf, dtype=np.float64) for leaf in each) for each in (map(np.asarray, leaves), theirs)]
        np.testing.assert_allclose(*sums, rtol=1e-12)
    assert list(weights["depth"]) == ["depth/kernel", "depth/bias"]
    assert list(load_weights(tmp_path / "model.keras")["depth"]) == ["vars/0", "vars/1"]
    with pytest.raises(ValueError, match="'MultiHeadAttention' cannot be represented"):
        load_model(tmp_path / "model.h5")
    told = {layer.name: layer for layer in describe(tmp_path / "model.keras")}
    assert [name for name, layer in told.items() if not layer.supported] == ["attention", "depth"]
    assert told["depth"].class_name == "DepthwiseConv1D"
    assert told["depth"].arrays == {"vars/0": (3, 5, 1), "vars/1": (5,)}
    assert told["rnn"].arrays == {"kernel": (6, 5), "recurrent_kernel": (5, 5), "bias": (5,)}


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
@pytest.mark.slow
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
    lstm = flax_srnn.RNN(nn.LSTMCell(3))
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


def test_a_disk_that_fills_up_is_an_error_that_names_the_file(tmp_path):
    """And nothing else: HDF5's own writing to a full disk ends in pages on stderr."""
    layer = flax_srnn.SimpleRNN(64)
    variables = layer.init(jax.random.key(0), jnp.ones((2, T, F)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # in bytes; the file has more
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_weights(tmp_path / "new.weights.h5", layer, variables)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "new.weights.h5")
    assert not list(tmp_path.iterdir())


def test_reading_needs_neither_keras_nor_tensorflow_nor_h5py(saved_stack, tmp_path):
    folder, _ = saved_stack
    model = keras.Sequential([keras.Input((T, F)), layers.SimpleRNN(3)])
    model.save(tmp_path / "new.keras")
    model.save(tmp_path / "legacy.h5")
    code = f"""
        import sys
        for name in ("keras", "tensorflow", "tf_keras", "h5py", "torch"):
            sys.modules[name] = None
        import jax, os
        from flax_srnn.__main__ import main
        from flax_srnn.interop.keras import describe, load_model, load_weights, save_weights
        for ending in (".keras", ".weights.h5", ".h5"):
            path = {str(folder / "stack")!r} + ending
            load_weights(path)
            describe(path)
            assert main(["show", path]) == 0
        os.chdir({str(tmp_path)!r})
        for path, converted in ("new.keras", "a"), ("legacy.h5", "b"):
            load_model(path)
            assert main(["convert", path, converted]) == 0
            module, variables = load_model(converted)
            module.apply(variables, jax.numpy.ones((2, {T}, {F})))
        assert main(["convert", "a", "not.weights.h5"]) == 2
        try:
            save_weights("not.weights.h5", module, variables)
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
    assert done.stderr == "flax-srnn: error: h5py is not installed: pip install 'flax-srnn[interop]'\n"
    assert done.stdout.endswith("writing Keras's files needs h5py: pip install 'flax-srnn[interop]'\n")
    assert not (tmp_path / "not.weights.h5").exists()
