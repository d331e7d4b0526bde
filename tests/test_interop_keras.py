"""Models in Keras's files against Keras itself.

`pytest tests/test_interop_keras.py tests/test_keras_versions.py -n0 -s` prints the worst errors of all models, formats and
versions.
"""

import cases
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
    lenient,
    randomised,
    real_input,
    reals,
    strictly,
    word_input,
)

from flax_srnn.__main__ import main
from flax_srnn.interop.keras import convert, describe, load_model, load_weights, save_weights
from flax_srnn.interop.keras.layers import LAYERS

pytestmark = MARKS


WORDS = np.array([[1, 2, 0, 0, 0], [3, 0, 4, 5, 6], [0, 0, 0, 0, 0]], np.int32)


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


@pytest.mark.parametrize("name", cases.thinned(MODELS, 3))
def test_predictions_equal_those_of_keras(name, tmp_path, worst):
    model = randomised(keras.Sequential(MODELS[name]()))
    x = WORDS if "words" in name or name == "nested" else reals()
    module, variables = load_saved(model, tmp_path)
    outputs = jax.tree.leaves(strictly(module, variables, x, mutable=["carry"])[0])
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


def test_a_step_is_masked_where_every_feature_says_so(tmp_path):
    model = randomised(keras.Sequential(real_input(layers.Masking(), layers.SimpleRNN(3, return_sequences=True))))
    module, variables = load_saved(model, tmp_path)
    x = reals()
    x[:, 1, 0] = 0
    np.testing.assert_allclose(module.apply(variables, x), model(x), atol=1e-6)


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


@pytest.mark.parametrize("policy", cases.thinned(["mixed_bfloat16", "mixed_float16", "bfloat16"], 1))
@pytest.mark.slow
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


@pytest.mark.slow
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
    second, _ = module.apply({**variables, **carry}, x, mutable=["carry"])
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


def test_what_is_in_a_file_is_shown(tmp_path, capsys):
    inner = keras.Sequential([keras.Input((5, 3)), layers.LSTM(2, name="gated")], name="inner")
    stack = word_input(layers.Dense(3, name="\N{GREEK SMALL LETTER LAMDA}\x1b[31m"), inner, layers.Lambda(lambda x: x))
    model = randomised(keras.Sequential(stack, name="all"))
    model.save(tmp_path / "model.keras")
    told = describe(tmp_path / "model.keras")
    assert [layer.class_name for layer in told][2:] == ["Dense", "Sequential", "InputLayer", "LSTM", "Lambda"]
    assert told[5] == ("inner/gated", "LSTM", {"kernel": (3, 8), "recurrent_kernel": (2, 8), "bias": (8,)}, True, "")
    assert [layer.name for layer in told if not layer.supported] == ["lambda"]
    assert "'Lambda' cannot be represented" in told[-1].reason
    assert main(["show", str(tmp_path / "model.keras")]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert out.isascii()
    assert "\x1b" not in out
    assert lines[0] == f"Sequential of Keras {keras.__version__}: 7 layers, 81 parameters"
    assert lines[5].split() == ["\\u03bb\\x1b[31m", "Dense", "kernel", "3", "x", "3,", "bias", "3", "12", "yes"]
    assert "`load_model` does not: " in lines[-1]
    assert "'Lambda' cannot be represented" in lines[-1]

    model.save_weights(tmp_path / "model.weights.h5")
    assert main(["show", str(tmp_path / "model.weights.h5")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "weights without a model: 3 layers, 81 parameters"
    assert main(["show", str(tmp_path / "none.h5")]) == 2
    assert capsys.readouterr().err == f"flax-srnn: error: {tmp_path / 'none.h5'}: No such file or directory\n"


def test_every_layer_that_is_read_is_named():
    assert [name for name in LAYERS if name not in load_model.__doc__] == []


@pytest.mark.slow
def test_convert_there_and_back(tmp_path, capsys):
    model = randomised(keras.Sequential(MODELS["normalised, flat"]()))
    model.save(tmp_path / "model.keras")
    assert main(["convert", str(tmp_path / "model.keras"), str(tmp_path / "out")]) == 0
    first, *files, then = capsys.readouterr().out.splitlines()
    assert first == f"wrote {tmp_path / 'out'}: 5 layers with 12 arrays, 165 parameters"
    assert sorted(line.split()[0] for line in files) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert then == (
        "next: in Python: from flax_srnn.interop.keras import load_model; "
        f"module, variables = load_model('{tmp_path / 'out'}')"
    )
    module, variables = load_model(tmp_path / "out")
    np.testing.assert_allclose(module.apply(variables, reals()), model(reals()), atol=1e-6)
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "model.weights.h5")]) == 0
    expected = model(reals())
    randomised(model, seed=5).load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(model(reals()), expected)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == (
        f"wrote {tmp_path / 'model.weights.h5'}: 5 layers with 12 arrays, 165 parameters\n"
        f"next: in Keras: model.load_weights('{tmp_path / 'model.weights.h5'}')\n"
    )

    # Nothing is overwritten, nothing is left behind.
    there = sorted(tmp_path.rglob("*"))
    for source, target in [
        ("model.keras", "b.h5"),
        ("model.keras", "out"),
        ("out", "model.weights.h5"),
        ("model.keras", "absent/out"),
        ("model.weights.h5", "b"),
        ("model.keras", "b.npz"),
    ]:
        assert main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 2
    for source in ("absent.keras", "."):
        assert main(["convert", str(tmp_path / source), str(tmp_path / "c.weights.h5")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 8
    assert sorted(tmp_path.rglob("*")) == there
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "absent.keras", tmp_path / "d")
