"""The layers of Keras's models that are not recurrent, each in all its options, against Keras itself.

`pytest tests/test_keras_layers.py tests/test_keras_merging.py -n0 -s -m ""` prints the worst errors.
"""

import cases
import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers
from keras_models import MARKS, B, F, T, layer_of, lenient, randomised, reals, strictly  # noqa: F401 - a fixture

from flax_srnn import regularization_loss
from flax_srnn.interop.keras import convert, load_model, load_weights
from flax_srnn.interop.keras.layers import LAYERS

pytestmark = MARKS

N = 6  # sequences in a sequence, for TimeDistributed


def loaded(model, folder):
    """The model as it is read from both of Keras's formats, which must say the same."""
    model.save(folder / "model.keras")
    module, variables = load_model(folder / "model.keras")
    model.save(folder / "model.h5")
    same, again = load_model(folder / "model.h5")
    assert same == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    return module, variables


ONE_INPUT = {
    "Dense": lambda: layers.Dense(3, "tanh"),
    "Conv1D": lambda: layers.Conv1D(6, 2),
    "Conv1D, valid, strides": lambda: layers.Conv1D(6, 2, strides=2, activation="elu"),
    "Conv1D, same": lambda: layers.Conv1D(6, 4, padding="same", use_bias=False),
    "Conv1D, same, strides": lambda: layers.Conv1D(6, 2, strides=2, padding="same", activation="relu"),
    "Conv1D, causal, dilation": lambda: layers.Conv1D(6, 3, padding="causal", dilation_rate=2),
    "Conv1D, causal, strides": lambda: layers.Conv1D(6, 3, padding="causal", strides=3),
    "Conv1D, same, dilation": lambda: layers.Conv1D(6, 2, padding="same", dilation_rate=2),
    "Conv1D, groups": lambda: layers.Conv1D(6, 3, groups=2),
    "MaxPooling1D": lambda: layers.MaxPooling1D(),
    "MaxPooling1D, overlapping": lambda: layers.MaxPooling1D(3, strides=1),
    "MaxPooling1D, same": lambda: layers.MaxPooling1D(3, strides=2, padding="same"),
    "AveragePooling1D": lambda: layers.AveragePooling1D(2),
    "AveragePooling1D, overlapping": lambda: layers.AveragePooling1D(3, strides=1),
    "AveragePooling1D, same": lambda: layers.AveragePooling1D(3, strides=2, padding="same"),
    "GlobalMaxPooling1D": lambda: layers.GlobalMaxPooling1D(),
    "GlobalMaxPooling1D, keepdims": lambda: layers.GlobalMaxPooling1D(keepdims=True),
    "GlobalAveragePooling1D": lambda: layers.GlobalAveragePooling1D(),
    "GlobalAveragePooling1D, keepdims": lambda: layers.GlobalAveragePooling1D(keepdims=True),
    "ZeroPadding1D": lambda: layers.ZeroPadding1D(),
    "ZeroPadding1D, two": lambda: layers.ZeroPadding1D((2, 1)),
    "ZeroPadding1D, none": lambda: layers.ZeroPadding1D((0, 0)),
    "Reshape": lambda: layers.Reshape((4, 5)),
    "Reshape, the rest": lambda: layers.Reshape((2, -1)),
    "Reshape, more dimensions": lambda: layers.Reshape((-1, 1, 5)),
    "Permute": lambda: layers.Permute((2, 1)),
    "Permute, nothing": lambda: layers.Permute((1, 2)),
    "Flatten": lambda: layers.Flatten(),
    "Dropout": lambda: layers.Dropout(0.5),
    "SpatialDropout1D": lambda: layers.SpatialDropout1D(0.5),
    "GaussianNoise": lambda: layers.GaussianNoise(0.5),
    "Activation": lambda: layers.Activation("softsign"),
    "ReLU": lambda: layers.ReLU(),
    "ReLU, all": lambda: layers.ReLU(max_value=1.5, negative_slope=0.3, threshold=0.2),
    "LeakyReLU": lambda: layers.LeakyReLU(),
    "LeakyReLU, slope": lambda: layers.LeakyReLU(negative_slope=0.1),
    "PReLU": lambda: layers.PReLU(),
    "PReLU, shared": lambda: layers.PReLU(shared_axes=[1]),
    "PReLU, shared features": lambda: layers.PReLU(shared_axes=[2]),
    "PReLU, one for all": lambda: layers.PReLU(shared_axes=[1, 2]),
    "ELU": lambda: layers.ELU(),
    "ELU, alpha": lambda: layers.ELU(alpha=0.4),
    "Softmax": lambda: layers.Softmax(),
    "Softmax, axis": lambda: layers.Softmax(axis=1),
    "Softmax, axes": lambda: layers.Softmax(axis=[1, 2]),
    "Rescaling": lambda: layers.Rescaling(1 / 255),
    "Rescaling, offset": lambda: layers.Rescaling(scale=2.0, offset=-1),
    "Rescaling, lists": lambda: layers.Rescaling(scale=[1.0, 2.0, 3.0, 4.0], offset=[0.5, 0.0, -0.5, 1.0]),
    "Rescaling, array": lambda: layers.Rescaling(scale=np.arange(1.0, 1 + T * F).reshape(T, F)),
    "Normalization": lambda: layers.Normalization(),
    "Normalization, axis": lambda: layers.Normalization(axis=1),
    "Normalization, axes": lambda: layers.Normalization(axis=(-1, 1)),
    "Normalization, no axis": lambda: layers.Normalization(axis=None),
    "Normalization, invert": lambda: layers.Normalization(invert=True),
    "Normalization, numbers": lambda: layers.Normalization(mean=0.5, variance=2.0),
    "Normalization, arrays": lambda: layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[0.0, 1.0, 4.0, 9.0]),
    "Normalization, one array for two axes": lambda: layers.Normalization(
        axis=(1, 2), mean=[1.0, 2.0, 3.0, 4.0], variance=[1.0, 1.0, 4.0, 9.0], invert=True
    ),
    "UnitNormalization": lambda: layers.UnitNormalization(),
    "UnitNormalization, axis": lambda: layers.UnitNormalization(axis=1),
    "UnitNormalization, axes": lambda: layers.UnitNormalization(axis=[1, 2]),
    "BatchNormalization": lambda: layers.BatchNormalization(),
    "BatchNormalization, axis": lambda: layers.BatchNormalization(axis=1, scale=False),
    "LayerNormalization": lambda: layers.LayerNormalization(axis=1),
    "ActivityRegularization": lambda: layers.ActivityRegularization(l1=0.1, l2=0.2),
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Dense(3, "relu")),
    "TimeDistributed, pointwise": lambda: layers.TimeDistributed(layers.PReLU()),
    "TimeDistributed, repeated": lambda: layers.TimeDistributed(layers.RepeatVector(3)),
    "TimeDistributed, noise": lambda: layers.TimeDistributed(layers.GaussianNoise(0.3)),
}
# Keras wants a mask of the shape of the inputs, and fails; and on JAX nothing permuted is the very array with its mask.
NO_MASK = [*(name for name in ONE_INPUT if name.startswith("Softmax")), "Permute, nothing"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", cases.thinned(ONE_INPUT, 4))
def test_predictions_and_masks_equal_those_of_keras(name, masked, tmp_path, worst):
    """Behind the layer a SimpleRNN shows which steps are masked. A padded step may be of any number: it is 0 by then."""
    if masked and name in NO_MASK:
        pytest.skip("Keras fails, or does as it should not")
    layer = ONE_INPUT[name]()
    stack = [keras.Input((T, F)), *([layers.Masking()] if masked else []), layer]
    if len(keras.Sequential(stack).output_shape) == 3:
        stack.append(layers.SimpleRNN(2, return_sequences=True))
    model = randomised(keras.Sequential(stack))
    if isinstance(layer, layers.Normalization):
        model.set_weights([np.abs(w) for w in model.get_weights()])  # a variance is no negative number
        layer.finalize_state()
    module, variables = loaded(model, tmp_path)
    y, expected = strictly(module, variables, reals()), model(reals())
    assert y.shape == expected.shape
    worst[f"{type(layer).__name__}"] = error = np.abs(y - expected).max()
    assert error <= 3e-6 * max(1, np.abs(expected).max())


@pytest.mark.slow
def test_a_loaded_model_is_shown_by_its_layers(tmp_path):
    stack = [keras.Input((5, 3)), layers.SimpleRNN(4, name="first"), layers.Dense(1, name="head")]
    keras.Sequential(stack).save(tmp_path / "model.keras")
    module, _ = load_model(tmp_path / "model.keras")
    assert repr(module) == "Model(first: SimpleRNN, head: Dense)"


def test_repeated_vectors(tmp_path):
    stack = [keras.Input((T, F)), layers.SimpleRNN(3), layers.RepeatVector(4), layers.SimpleRNN(2)]
    model = randomised(keras.Sequential(stack))
    module, variables = loaded(model, tmp_path)
    np.testing.assert_allclose(strictly(module, variables, reals()), model(reals()), atol=1e-6)


INSIDE = {
    "Dense": lambda: layers.Dense(3),
    "Conv1D": lambda: layers.Conv1D(3, 2, padding="causal"),
    "MaxPooling1D": lambda: layers.MaxPooling1D(2),
    "AveragePooling1D": lambda: layers.AveragePooling1D(4, strides=1, padding="same"),
    "GlobalMaxPooling1D": lambda: layers.GlobalMaxPooling1D(),
    "GlobalAveragePooling1D": lambda: layers.GlobalAveragePooling1D(),
    "ZeroPadding1D": lambda: layers.ZeroPadding1D((1, 2)),
    "Flatten": lambda: layers.Flatten(),
    "Reshape": lambda: layers.Reshape((-1, 3)),
    "Permute": lambda: layers.Permute((2, 1)),
    "PReLU": lambda: layers.PReLU(shared_axes=[1]),
    "Softmax": lambda: layers.Softmax(axis=1),
    "Rescaling": lambda: layers.Rescaling([1.0, 2.0, 3.0, 4.0]),
    "Normalization": lambda: layers.Normalization(),
    "UnitNormalization": lambda: layers.UnitNormalization(axis=1),
    "BatchNormalization": lambda: layers.BatchNormalization(),
    "LayerNormalization": lambda: layers.LayerNormalization(axis=1),
    "SpatialDropout1D": lambda: layers.SpatialDropout1D(0.5),
    "Masking": lambda: layers.Masking(),
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Dense(3)),
}


@pytest.mark.parametrize("name", cases.thinned(INSIDE, 1))
def test_time_distributed(name, tmp_path, worst):
    """Sequences of sequences; a mask of the inner ones is what the layer inside gets, and what comes out is masked alike."""
    x = np.random.default_rng(3).normal(size=(B, T, N, F)).astype(np.float32)
    x[0, :, 4:] = x[1, 2, 0] = 0
    for masking in ([], [layers.Masking()]):
        if masking and name in ("Softmax", "TimeDistributed"):  # Keras fails, as without a TimeDistributed
            continue
        inner = INSIDE[name]()
        model = keras.Sequential([keras.Input((T, N, F)), *masking, layers.TimeDistributed(inner)])
        randomised(model)
        if name == "Normalization":
            inner.finalize_state()
        module, variables = loaded(model, tmp_path)
        y, expected = strictly(module, variables, x), model(x)
        worst[f"TimeDistributed, {name}"] = error = np.abs(y - expected).max()
        assert error <= 2e-6 * max(1, np.abs(expected).max())
    held = {key for tree in variables.values() for key in tree.get("time_distributed_1", {})}
    assert len(held) == len(inner.weights)


@pytest.mark.slow
def test_time_distributed_hands_on_its_own_mask(tmp_path):
    inner = layers.Masking(0.5)  # whose own mask goes nowhere
    stack = [keras.Input((T, F)), layers.Masking(), layers.TimeDistributed(inner), layers.SimpleRNN(2)]
    model = randomised(keras.Sequential(stack))
    module, variables = loaded(model, tmp_path)
    np.testing.assert_allclose(strictly(module, variables, reals()), model(reals()), atol=1e-6)


def test_a_mask_of_scores_makes_softmax_pass_over_them():
    layer, ours = layers.Softmax(), layer_of("Softmax", layers.Softmax().get_config())
    x = np.random.default_rng(0).normal(size=(B, T)).astype(np.float32)
    mask = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    y, handed_on = strictly(ours, {}, x, jnp.asarray(mask), False, method="step")
    np.testing.assert_allclose(y, layer(x, mask=mask), atol=1e-7)
    np.testing.assert_array_equal(handed_on, mask)


def test_a_sequence_of_which_no_step_is_used_has_no_mean():
    layer = layer_of("GlobalAveragePooling1D", {})
    mask = np.array([[False] * T, [True] * T, [True, False] * 2 + [True]])
    y, _ = strictly(layer, {}, reals(), jnp.asarray(mask), False, method="step")
    np.testing.assert_allclose(y, layers.GlobalAveragePooling1D()(reals(), mask=mask), rtol=1e-6)
    assert np.isnan(y[0]).all()
    with pytest.raises(ValueError, match="`mask` must have one flag for every step"):
        layer.apply({}, reals(), jnp.ones(B, bool), False, method="step")


def test_what_does_not_vary_is_not_divided_by_0():
    numbers = {"mean": [0.5, 1.0, 2.0, 3.0], "variance": [0.0, 1e-20, 1e-12, 1.0]}
    y, _ = strictly(layer_of("Normalization", numbers), {}, reals(), None, False, method="step")
    np.testing.assert_allclose(y, layers.Normalization(**numbers)(reals()), rtol=1e-6)


# Files


@pytest.mark.slow
@pytest.mark.parametrize("count", [np.int64(7), np.dtype(">i2").type(7), np.uint8(7)])
def test_statistics_of_data(count, tmp_path):
    """`adapt` counts in integers, which tf.keras 2 made of 8 bytes."""
    layer = layers.Normalization(axis=(1, 2))
    x = reals()
    layer.adapt(x)
    model = keras.Sequential([keras.Input((T, F)), layer])
    model.save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        group = file["model_weights/normalization/normalization"]
        del group["count"]
        group["count"] = count
    module, variables = load_model(tmp_path / "model.h5")
    statistics = variables["batch_stats"]["normalization"]
    assert sorted(statistics) == ["count", "mean", "var"]
    assert statistics["count"] == 7
    assert jnp.issubdtype(statistics["count"].dtype, jnp.integer)
    np.testing.assert_allclose(module.apply(variables, x), model(x), atol=1e-6)
    convert(tmp_path / "model.h5", tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "out")[1], variables)


@pytest.mark.slow
def test_weights_alone(tmp_path):
    stack = [layers.Conv1D(6, 2, padding="same"), layers.Normalization(), layers.PReLU(), layers.Conv1D(2, 3)]
    stack += [layers.Reshape((3, 1, 2)), layers.TimeDistributed(layers.Conv1D(3, 1, use_bias=False))]
    model = randomised(keras.Sequential([keras.Input((T, F)), *stack]))
    model.save_weights(tmp_path / "model.weights.h5")
    model.save(tmp_path / "model.keras")
    alone, of_model = load_weights(tmp_path / "model.weights.h5"), load_weights(tmp_path / "model.keras")
    assert list(alone) == ["conv1d", "normalization", "p_re_lu", "conv1d_1", "time_distributed"]
    jax.tree.map(np.testing.assert_array_equal, alone, of_model)


# Training


def in_training(layer, tmp_path, x, seed=0):
    module, variables = loaded(keras.Sequential([keras.Input(x.shape[1:]), layer]), tmp_path)
    keys = {"dropout": jax.random.key(seed)}
    return strictly(module, variables, x, training=True, rngs=keys, mutable=["batch_stats", "losses"])


@pytest.mark.slow
def test_spatial_dropout_drops_features_at_all_steps(tmp_path):
    x = np.ones((40, T, F), np.float32)
    y, _ = in_training(layers.SpatialDropout1D(0.25), tmp_path, x)
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    assert 0.1 < np.mean(y == 0) < 0.4
    assert np.any(y[:, 0, 0] != y[:, 0, 1])


@pytest.mark.slow
def test_dropout_inside_time_distributed_differs_from_step_to_step(tmp_path):
    y, _ = in_training(layers.TimeDistributed(layers.Dropout(0.5)), tmp_path, np.ones((8, T, F), np.float32))
    assert np.any(y[:, 0] != y[:, 1])


@pytest.mark.slow
def test_noise_is_added_in_training_alone(tmp_path):
    x = np.zeros((40, T, F), np.float32)
    y, _ = in_training(layers.GaussianNoise(0.5), tmp_path, x)
    again, _ = in_training(layers.GaussianNoise(0.5), tmp_path, x, seed=1)
    assert abs(np.mean(y)) < 0.1
    assert 0.4 < np.std(y) < 0.6
    assert np.all(y != again)


def test_frozen_batch_normalisation_does_not_use_the_batch(tmp_path):
    x = reals()
    for trainable in (True, False):
        model = randomised(keras.Sequential([keras.Input((T, F)), layers.BatchNormalization()]))
        model.layers[0].trainable = trainable
        module, variables = loaded(model, tmp_path)
        y, updated = strictly(module, variables, x, training=True, mutable=["batch_stats"])
        np.testing.assert_allclose(y, model(x, training=True), atol=1e-5)
        for name, expected in (("mean", model.layers[0].moving_mean), ("var", model.layers[0].moving_variance)):
            found, before = (tree["batch_stats"][model.layers[0].name][name] for tree in (updated, variables))
            np.testing.assert_allclose(found, expected, rtol=1e-5)
            assert np.array_equal(found, before) != trainable


@pytest.mark.slow
def test_activity_is_penalised_once_a_pass(tmp_path):
    x = reals()
    model = keras.Sequential([keras.Input((T, F)), layers.ActivityRegularization(l1=0.1, l2=0.2)])
    module, variables = loaded(model, tmp_path)
    model(x)
    for _ in range(2):  # the second time from what the first one left
        _, sown = module.apply(variables, x, mutable=["losses"])
        np.testing.assert_allclose(regularization_loss(sown), sum(model.losses), rtol=1e-6)
        variables = {**variables, **sown}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UnitNormalization", "PReLU", "Conv1D, same", "AveragePooling1D", "LeakyReLU"])
def test_gradients_are_finite(name, tmp_path):
    """Also where steps are padding: the length of nothing has no derivative."""
    model = randomised(keras.Sequential([keras.Input((T, F)), layers.Masking(), ONE_INPUT[name]()]))
    module, variables = loaded(model, tmp_path)
    params = variables.get("params", {})

    def loss(p, x):
        return jnp.sum(module.apply({**variables, "params": p}, x) ** 2)

    for gradient in jax.tree.leaves(jax.grad(loss, (0, 1))(params, jnp.asarray(reals()))):
        assert np.all(np.isfinite(gradient))


# What is refused


REFUSED = [
    ("Conv1D", {"filters": 4, "kernel_size": 2, "data_format": "channels_first"}, "`data_format`"),
    ("Conv1D", {"filters": 4, "kernel_size": [2, 2]}, "`kernel_size`"),
    ("Conv1D", {"filters": 4, "kernel_size": 0}, "`kernel_size`"),
    ("Conv1D", {"filters": 4, "kernel_size": 2**31}, "`kernel_size`"),
    ("Conv1D", {"filters": 4}, "`kernel_size`"),
    ("Conv1D", {"filters": 4, "kernel_size": 2, "padding": "full"}, "`padding`"),
    ("Conv1D", {"filters": 4, "kernel_size": 2, "padding": ["same"]}, "`padding`"),
    ("Conv1D", {"filters": 4, "kernel_size": 2, "strides": "2"}, "`strides`"),
    ("Conv1D", {"filters": 4, "kernel_size": 2, "surprise": 1}, "`surprise`"),
    ("MaxPooling1D", {"padding": "causal"}, "`padding`"),
    ("AveragePooling1D", {"pool_size": -1}, "`pool_size`"),
    ("GlobalMaxPooling1D", {"keepdims": 1}, "`keepdims`"),
    ("ZeroPadding1D", {"padding": [1, 2, 3]}, "`padding`"),
    ("ZeroPadding1D", {"padding": -1}, "`padding`"),
    ("ZeroPadding1D", {"padding": []}, "`padding`"),
    ("ZeroPadding1D", {"padding": [[1, 1]]}, "`padding`"),
    ("RepeatVector", {"n": 2**40}, "`n`"),
    ("RepeatVector", {"n": True}, "`n`"),
    ("Reshape", {"target_shape": [1] * 1000}, "`target_shape`"),
    ("Reshape", {"target_shape": [-1, -1]}, "`target_shape`"),
    ("Reshape", {"target_shape": [0, 3]}, "`target_shape`"),
    ("Permute", {"dims": [1, 1]}, "`dims`"),
    ("Permute", {"dims": [0, 1]}, "`dims`"),
    ("GaussianNoise", {"stddev": -1}, "`stddev`"),
    ("ReLU", {"max_value": "6"}, "`max_value`"),
    ("ReLU", {"negative_slope": -1}, "`negative_slope`"),
    ("LeakyReLU", {"alpha": -1}, "`alpha`"),
    ("PReLU", {"shared_axes": [0]}, "`shared_axes`"),
    ("Softmax", {"axis": []}, "`axis`"),
    ("Rescaling", {}, "`scale`"),
    ("Rescaling", {"scale": [[1.0], [1.0, 2.0]]}, "`scale`"),
    ("Rescaling", {"scale": "1"}, "`scale`"),
    ("Rescaling", {"scale": float("inf")}, "`scale`"),
    ("Normalization", {"mean": [1.0]}, "`mean` and `variance`"),
    ("Normalization", {"mean": [None], "variance": [1.0]}, "`mean`"),
    ("ActivityRegularization", {"l1": -1}, "`l1`"),
    ("BatchNormalization", {"trainable": "no"}, "`trainable`"),
    ("Concatenate", {"axis": [1, 2]}, "`axis`"),
    ("Dot", {"axes": 0}, "`axes`"),
    ("Dot", {"axes": [1, 2, 3]}, "`axes`"),
    ("Dot", {}, "`axes`"),
    ("Lambda", {"function": {}}, "'Lambda' cannot be represented"),
    ("TimeDistributed", {"layer": {"class_name": "Lambda", "config": {}}}, "'Lambda' cannot be represented"),
    (
        "TimeDistributed",
        {"layer": {"class_name": "Dense", "config": {}, "registered_name": "my>Dense"}},
        "custom object",
    ),
]


@pytest.mark.parametrize(("kind", "config", "match"), REFUSED)
def test_what_cannot_be_represented_is_refused(kind, config, match):
    with pytest.raises((TypeError, ValueError), match=match):
        layer_of(kind, config)


SEQUENCES, VECTORS = (B, T, F), (B, F)
HUGE = 2**31 - 1
FITTING = [
    ("RepeatVector", {"n": HUGE}, VECTORS, "at most"),
    ("RepeatVector", {"n": 3}, SEQUENCES, r"shape \(B, F\)"),
    ("ZeroPadding1D", {"padding": [0, HUGE]}, SEQUENCES, "at most"),
    ("Conv1D", {"filters": 1, "kernel_size": 2, "dilation_rate": HUGE, "padding": "same"}, SEQUENCES, "at most"),
    ("MaxPooling1D", {"pool_size": HUGE, "padding": "same"}, SEQUENCES, "at most"),
    ("Conv1D", {"filters": 1, "kernel_size": 2}, VECTORS, r"shape \(B, T, F\)"),
    ("AveragePooling1D", {}, (B, T, F, 1), r"shape \(B, T, F\)"),
    ("SpatialDropout1D", {"rate": 0.5}, VECTORS, r"shape \(B, T, F\)"),
    ("TimeDistributed", {"layer": {"class_name": "Dense", "config": {"units": 2}}}, VECTORS, "rank 3"),
    ("TimeDistributed", {"layer": {"class_name": "Add", "config": {}}}, SEQUENCES, "list of inputs"),
    ("Concatenate", {}, SEQUENCES, "list of inputs"),
    ("Rescaling", {"scale": [1.0, 2.0]}, SEQUENCES, "[Ii]ncompatible"),
    ("Reshape", {"target_shape": [HUGE]}, SEQUENCES, "reshape"),
]


@pytest.mark.parametrize(("kind", "config", "shape", "match"), FITTING)
def test_inputs_that_do_not_fit_and_outputs_that_would_fill_the_memory(kind, config, shape, match):
    layer, x = layer_of(kind, config), jax.ShapeDtypeStruct(shape, jnp.float32)
    key = jax.random.key(0)
    with pytest.raises((TypeError, ValueError), match=match):
        jax.eval_shape(lambda x: layer.init_with_output(key, x, None, False, method="step"), x)


@pytest.mark.slow
def test_short_sequences_are_no_error_when_a_model_is_tried(tmp_path):
    """Keras declares no number of steps; a convolution over more than it is tried on leaves none."""
    stack = [
        layers.Conv1D(6, 9, activation="relu"),
        layers.MaxPooling1D(2),
        layers.Conv1D(6, 3),
        layers.GlobalMaxPooling1D(),
    ]
    model = randomised(keras.Sequential([keras.Input((None, F)), *stack, layers.Dense(2)]))
    module, variables = loaded(model, tmp_path)
    x = np.random.default_rng(0).normal(size=(B, 20, F)).astype(np.float32)
    np.testing.assert_allclose(strictly(module, variables, x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "of_2", "of_3"),
    [
        ("LeakyReLU", {"alpha": 0.1}, {"negative_slope": 0.1}),
        (
            "LeakyReLU",
            {"alpha": {"class_name": "__numpy__", "config": {"value": 0.1, "dtype": "float32"}}},
            {"alpha": 0.1},
        ),
        ("ReLU", {"max_value": {"type": "ndarray", "value": 6.0}, "threshold": 0}, {"max_value": 6}),
        ("Conv1D", {"filters": 2, "kernel_size": [3], "strides": [1]}, {"filters": 2, "kernel_size": 3, "groups": 1}),
        ("MaxPooling1D", {"pool_size": [3], "strides": [3]}, {"pool_size": 3, "strides": None}),
        ("MaxPooling1D", {}, {"pool_size": 2, "padding": "valid", "data_format": "channels_last"}),
        ("ZeroPadding1D", {"padding": [1, 1]}, {"padding": 1}),
        ("Normalization", {}, {"axis": [-1], "mean": None, "variance": None}),
    ],
)
def test_other_ways_to_say_the_same(kind, of_2, of_3):
    assert layer_of(kind, of_2) == layer_of(kind, of_3)
    assert hash(layer_of(kind, of_2)) == hash(layer_of(kind, of_3))


def test_every_layer_is_tested():
    merging = {"Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract"}
    elsewhere = {"Embedding", "Masking", "RepeatVector"}
    assert {name.split(",")[0] for name in ONE_INPUT} | merging | elsewhere == LAYERS.keys() | {"TimeDistributed"}
