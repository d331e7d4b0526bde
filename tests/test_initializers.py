"""Initializers by name, configuration and callable: the numbers of Keras."""

import json

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax.core import FrozenDict
from keras.src.initializers import ALL_OBJECTS_DICT as KERAS_INITIALIZERS

from flax_srnn import SimpleRNN, initializers

RANDOM_INITIALIZERS = sorted(
    {"GlorotUniform", "GlorotNormal", "HeUniform", "HeNormal", "LecunUniform", "LecunNormal", "VarianceScaling"}
    | {"RandomNormal", "RandomUniform", "TruncatedNormal", "Orthogonal"}
)


def keras_draw(initializer, shape, dtype="float32"):
    with jax.numpy_rank_promotion("allow"):  # Keras's own
        return np.asarray(initializer(shape, dtype))


def test_every_keras_initializer_is_known():
    """But the base class, and the one for Fourier transforms, which makes no matrix."""
    unknown = {name for name in KERAS_INITIALIZERS if name not in initializers._TABLE}
    assert unknown == {"Initializer", "initializer", "STFT", "stft", "STFTInitializer"}


@pytest.mark.parametrize("class_name", RANDOM_INITIALIZERS)
@pytest.mark.parametrize("shape", cases.thinned([(5, 3), (2, 7), (4,), (2, 3, 5)], 1), ids=str)
def test_random_initializer_gives_keras_values_for_a_seed(class_name, shape):
    if class_name == "Orthogonal" and len(shape) < 2:
        return  # refused, see below
    theirs = KERAS_INITIALIZERS[class_name](seed=7)
    ours = initializers.get(keras.initializers.serialize(theirs))
    for key in (jax.random.key(0), jax.random.PRNGKey(1)):
        np.testing.assert_array_equal(ours(key, shape, jnp.float32), keras_draw(theirs, shape))


@pytest.mark.parametrize("class_name", RANDOM_INITIALIZERS)
def test_random_initializer_draws_from_its_key(class_name):
    snake_case = keras.src.utils.naming.to_snake_case(class_name)
    ours, theirs = initializers.get(snake_case), KERAS_INITIALIZERS[class_name](seed=11)
    assert ours == initializers.get(class_name)
    key = jnp.array([11, 0], jnp.uint32)
    values = ours(key, (5, 3), jnp.float32)
    np.testing.assert_array_equal(values, keras_draw(theirs, (5, 3)))
    assert np.abs(values - ours(jax.random.key(12), (5, 3), jnp.float32)).max() > 1e-3


@pytest.mark.parametrize(
    "theirs",
    [
        *[keras.initializers.Orthogonal(gain=2.5, seed=3), keras.initializers.RandomNormal(1.5, 0.25, seed=3)],
        *[keras.initializers.RandomUniform(-2, 3, seed=3), keras.initializers.TruncatedNormal(-1, 0.1, seed=3)],
        *[keras.initializers.VarianceScaling(3.0, mode, d, seed=3) for mode, d in [("fan_in", "uniform")]],
        *[keras.initializers.VarianceScaling(0.5, "fan_out", "untruncated_normal", seed=2**32 - 1)],
        *[keras.initializers.VarianceScaling(0.5, "fan_avg", "normal", seed=0)],
        *[keras.initializers.GlorotUniform(seed=3, input_axes=[1], output_axes=[0])],
        *[
            keras.initializers.HeNormal(seed=keras.random.SeedGenerator(5)),
            keras.initializers.Constant(np.float32(2.5)),
        ],
        *[keras.initializers.Constant(jnp.asarray(-1.5)), keras.initializers.Zeros(), keras.initializers.Ones()],
        keras.initializers.Identity(),
    ],
    ids=lambda theirs: type(theirs).__name__,
)
def test_initializer_configuration_round_trip(theirs):
    config = keras.initializers.serialize(theirs)
    ours = initializers.get(config)
    expected = keras_draw(theirs, (4, 6))
    np.testing.assert_array_equal(ours(jax.random.key(0), (4, 6), jnp.float32), expected)
    written = initializers.to_config(ours)
    if not isinstance(theirs.get_config().get("seed"), dict) and "value" not in config["config"]:
        assert written == config
    back = keras.initializers.deserialize(json.loads(json.dumps(written)))
    np.testing.assert_array_equal(keras_draw(back, (4, 6)), expected)
    for same in (FrozenDict(config), json.loads(json.dumps(config)), {k: config[k] for k in ("class_name", "config")}):
        assert initializers.get(same) == ours
        assert hash(initializers.get(same)) == hash(ours)
    assert initializers.get(written) == ours


def test_initializers_without_randomness():
    key = jax.random.key(0)
    assert initializers.get("zero") == initializers.get("Zeros") == initializers.Zeros()
    np.testing.assert_array_equal(initializers.get("one")(key, (2, 3)), np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(initializers.get("constant")(key, (2,)), np.zeros(2))
    np.testing.assert_array_equal(initializers.Identity(2.0)(key, (2, 3), jnp.bfloat16), 2 * np.eye(2, 3))
    back = keras.initializers.deserialize(initializers.to_config(initializers.Identity(2.0)))
    np.testing.assert_array_equal(keras_draw(back, (2, 3)), 2 * np.eye(2, 3))
    assert initializers.get("OrthogonalInitializer") == initializers.Orthogonal()
    assert initializers.get("IdentityInitializer") == initializers.Identity()


def test_initializer_none_is_what_keras_layers_take():
    layer = keras.layers.SimpleRNN(400, kernel_initializer=None, recurrent_initializer="zeros", bias_initializer=None)
    layer.build((1, 2, 800))
    kernel = initializers.get(None)(jax.random.key(0), (800, 400), jnp.float32)
    bias = initializers.get(None)(jax.random.key(0), (400,), jnp.float32)
    for ours, theirs in [(kernel, layer.weights[0]), (bias, layer.weights[2])]:
        np.testing.assert_allclose(np.abs(ours).max(), np.abs(np.asarray(theirs.value)).max(), rtol=0.02)
    assert initializers.to_config(None) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_initializers_in_half_precision(dtype):
    for name in ["orthogonal", "glorot_uniform", "he_normal", "random_normal", "zeros", "identity", "truncated_normal"]:
        initializer = initializers.get(name)
        assert jax.eval_shape(lambda key, init=initializer: init(key, (5, 3), dtype), jax.random.key(0)).dtype == dtype
    q = initializers.get("orthogonal")(jax.random.key(0), (5, 5), dtype).astype(jnp.float32)
    np.testing.assert_allclose(q @ q.T, np.eye(5), atol=0.02)
    np.testing.assert_array_equal(
        q, initializers.get("orthogonal")(jax.random.key(0), (5, 5), jnp.float32).astype(dtype).astype(jnp.float32)
    )


def test_initializers_in_float64(x64):
    q = initializers.get("orthogonal")(jax.random.key(0), (5, 3), jnp.float64)
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-14)


def test_a_live_initializer_of_keras_is_what_its_configuration_is():
    live = keras.initializers.RandomNormal(stddev=0.3)
    assert initializers.get(live) == initializers.RandomNormal(stddev=0.3)
    layer = SimpleRNN(4, kernel_initializer=live)
    assert layer.init(jax.random.key(0), np.ones((2, 5, 3)))["params"]["kernel"].shape == (3, 4)


def test_callable_initializers_pass_untouched():
    boxed = nn.with_partitioning(initializers.get("orthogonal"), ("in", "out"))
    assert initializers.get(boxed) is boxed
    value = boxed(jax.random.key(0), (3, 3), jnp.float32)
    assert value.names == ("in", "out")
    lecun = nn.initializers.lecun_normal()
    assert initializers.get(lecun) is lecun
    glorot = initializers.get("glorot_uniform")
    assert initializers.get(glorot) is glorot


def test_array_initializer():
    array = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    ours = initializers.get(array)
    np.testing.assert_array_equal(ours(jax.random.key(0), (2, 3), jnp.bfloat16), jnp.asarray(array, jnp.bfloat16))
    assert ours == initializers.get(jnp.asarray(array))
    assert hash(ours) == hash(initializers.get(array.copy()))
    assert ours != initializers.get(array + 1)
    assert ours != initializers.get(array.reshape(3, 2))
    before = array.copy()
    array[:] = 0
    np.testing.assert_array_equal(ours(jax.random.key(0), (2, 3)), before)
    for shape in [(3, 2), (1, 2, 3), (2,), (3,)]:
        with pytest.raises(ValueError, match=r"has the shape \(2, 3\).*nothing is broadcast"):
            ours(jax.random.key(0), shape)
    with pytest.raises(ValueError, match="nothing is broadcast"):
        initializers.get(np.float32(1.0))(jax.random.key(0), (2, 3))
