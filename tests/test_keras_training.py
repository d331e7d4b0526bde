"""A loaded model that is trained on: what is frozen, the penalties and the constraints of every layer, and back to Keras."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers
from keras_models import MARKS, lenient, randomised, real_input, reals  # noqa: F401 - a fixture
from pages import DOCS, fences

from flax_srnn import collect_constraints, keep_constraints, regularization_loss
from flax_srnn.interop.keras import labels, load_model, save_weights

pytestmark = MARKS

KEY = jax.random.key(0)


def loaded(model, folder):
    model.save(folder / "model.keras")
    return load_model(folder / "model.keras")


def penalised():
    """Every kind of penalty, on layers of every kind."""
    inputs = keras.Input((5, 4))
    shared = layers.Dense(3, kernel_regularizer="l1", activity_regularizer="l2", name="shared")
    gated = layers.Bidirectional(
        layers.LSTM(2, kernel_regularizer="l2", recurrent_regularizer="l1", return_sequences=True)
    )
    plain = layers.SimpleRNN(3, bias_regularizer="l1", activity_regularizer="l1")
    x = layers.Conv1D(4, 2, kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2), bias_regularizer="l2")(inputs)
    x = layers.BatchNormalization(gamma_regularizer="l2", beta_regularizer="l1")(gated(x))
    x = layers.ActivityRegularization(0.1, 0.2)(shared(shared(layers.Dense(3)(x))))
    inner = keras.Sequential([keras.Input((4, 3)), layers.GRU(2, bias_regularizer="l1", reset_after=False)])
    each = layers.TimeDistributed(layers.Dense(2, kernel_regularizer="l2"))
    return keras.Model(inputs, [plain(x), inner(x), each(x)])


@pytest.mark.slow
def test_penalties_are_those_of_keras(tmp_path):
    model = randomised(penalised())
    module, variables = loaded(model, tmp_path)
    _, sown = module.apply(variables, reals(), mutable=["losses"])
    model(reals())
    expected = float(sum(model.losses))
    np.testing.assert_allclose(regularization_loss(sown), expected, rtol=1e-5)
    again = module.apply({**variables, **sown}, reals(), mutable=["losses"])[1]
    np.testing.assert_allclose(regularization_loss(again), expected, rtol=1e-5)  # and not twice that


def frozen():
    inner = keras.Sequential([keras.Input((5, 3)), layers.Dense(3), layers.GRU(2, return_sequences=True)], name="inner")
    inner.trainable = False
    return keras.Sequential(
        real_input(
            layers.LSTM(3, return_sequences=True, use_bias=False, name="no_bias"),
            layers.BatchNormalization(trainable=False, name="still"),
            inner,
            layers.BatchNormalization(name="moving"),
            layers.SimpleRNN(2, trainable=False, name="held"),
            layers.Dense(2, name="head"),
        )
    )


def test_what_is_frozen_in_keras_is_labelled_so(tmp_path):
    model = frozen()
    module, variables = loaded(model, tmp_path)
    tree = labels(module, variables["params"])
    assert jax.tree.structure(tree) == jax.tree.structure(variables["params"])
    each = {name: set(jax.tree.leaves(tree[name])) for name in tree}
    assert each.pop("no_bias") == {"trained", "frozen"}
    assert each == {name: {"frozen"} for name in ("still", "inner", "held")} | {
        name: {"trained"} for name in ("moving", "head")
    }
    assert tree["no_bias"]["hi"] == {"kernel": "trained", "bias": "frozen"}
    trained = sum(
        leaf.size
        for leaf, label in zip(*map(jax.tree.leaves, (variables["params"], tree)), strict=True)
        if label == "trained"
    )
    assert trained == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.mark.slow
def test_trained_on_and_given_back(tmp_path, monkeypatch):
    """The program of docs/keras_files.md: what was frozen is the same to the last bit, and Keras predicts the same."""
    model = randomised(frozen())
    model.save(tmp_path / "model.keras")
    monkeypatch.chdir(tmp_path)
    (program,) = (fence.text for fence in fences((DOCS / "keras_files.md").read_text()) if "optimizer" in fence.text)
    y = np.random.default_rng(2).normal(size=(3, 2)).astype(np.float32)
    found = {"x": reals(), "y": y}
    exec(compile(program, "keras_files.md", "exec"), found)
    module, variables = found["module"], {"params": found["params"], "batch_stats": found["stats"]}
    assert found["value"] < 0.5 * np.mean((np.asarray(model(reals())) - y) ** 2)

    before = {weight.path: np.asarray(weight) for weight in model.weights}
    model.load_weights("trained.weights.h5")
    np.testing.assert_allclose(model(reals()), module.apply(variables, reals()), atol=1e-5)
    moving = {weight.path for weight in model.trainable_weights} | {
        f"moving/moving_{name}" for name in ("mean", "variance")
    }
    # The two biases of a GRU are one sum here.
    still = [
        w for w in model.weights if not any(w.path.endswith(name) for name in moving) and "gru_cell/bias" not in w.path
    ]
    assert len(still) == 11
    for weight in still:
        np.testing.assert_array_equal(weight, before[weight.path])


def constrained():
    norm = keras.constraints.MaxNorm
    return keras.Sequential(
        real_input(
            layers.Conv1D(4, 2, kernel_constraint=norm(0.5, axis=[0, 1]), bias_constraint="non_neg"),
            layers.Bidirectional(
                layers.LSTM(3, kernel_constraint=norm(0.3), bias_constraint="non_neg", return_sequences=True)
            ),
            layers.GRU(2, recurrent_constraint="unit_norm", return_sequences=True),
            layers.SimpleRNN(3, kernel_constraint=norm(0.2)),
            layers.Dense(2, kernel_constraint=keras.constraints.MinMaxNorm(0.1, 0.4, axis=1)),
        )
    )


@pytest.mark.slow
def test_constraints_are_those_of_keras(tmp_path):
    model = randomised(constrained())
    model.set_weights([weight - 0.5 for weight in model.get_weights()])
    module, variables = loaded(model, tmp_path)
    constraints = collect_constraints(module, KEY, reals())
    assert sorted(constraints) == ["bidirectional", "conv1d", "dense", "gru", "simple_rnn"]
    keep, zeros = keep_constraints(constraints), jax.tree.map(jnp.zeros_like, variables["params"])
    updates, _ = keep.update(zeros, keep.init(variables["params"]), variables["params"])
    save_weights(tmp_path / "kept.weights.h5", module, {"params": optax.apply_updates(variables["params"], updates)})
    expected = [np.asarray(w.constraint(w.value) if w.constraint is not None else w.value) for w in model.weights]
    changed = [not np.array_equal(w, e) for w, e in zip(model.weights, expected, strict=True)]
    assert sum(changed) == 9
    model.load_weights(tmp_path / "kept.weights.h5")
    for weight, e in zip(model.weights, expected, strict=True):
        if "gru" not in weight.path or "bias" not in weight.path:
            np.testing.assert_allclose(weight, e, rtol=1e-6, atol=1e-6)


def test_a_constraint_of_all_gates_together_is_refused(tmp_path):
    lstm = layers.LSTM(3, kernel_constraint=keras.constraints.MaxNorm(0.5, axis=1))
    module, _ = loaded(keras.Sequential(real_input(lstm)), tmp_path)
    with pytest.raises(ValueError, match="takes all gates of a LSTMCell together"):
        collect_constraints(module, KEY, reals())


def test_labels_say_what_does_not_fit(tmp_path):
    module, variables = loaded(keras.Sequential(real_input(layers.SimpleRNN(2), layers.Dense(3))), tmp_path)
    with pytest.raises(ValueError, match="lacks 'dense/kernel'"):
        labels(module, {"simple_rnn": variables["params"]["simple_rnn"]})
    with pytest.raises(TypeError, match="what `load_model` returned"):
        labels(module.layers[0], variables["params"])
