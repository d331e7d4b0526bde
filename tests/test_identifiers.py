"""Activations, regularizers and constraints by name, configuration and callable: Keras's numbers; what all refuse."""

import dataclasses
import functools
import json

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax.core import FrozenDict
from keras.src.activations import ALL_OBJECTS_DICT as KERAS_ACTIVATIONS
from keras.src.constraints import ALL_OBJECTS_DICT as KERAS_CONSTRAINTS
from keras.src.regularizers import ALL_OBJECTS_DICT as KERAS_REGULARIZERS

from flax_srnn import activations, constraints, initializers, regularizers

KINKS = np.array([-6, -3, -1, -0.5, -0.0, 0, 0.5, 1, 3, 6, -30, 30, 80], np.float32)
NOT_RECURRENT = {"glu", "threshold"}
ACTIVATIONS = sorted(set(KERAS_ACTIVATIONS) - NOT_RECURRENT)
WITHOUT_RULE = {
    *("gelu", "silu", "swish", "hard_silu", "hard_swish", "mish"),
    *("squareplus", "tanh_shrink", "hard_tanh", "sparse_sigmoid"),
}


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")
    jax.config.update("jax_enable_x64", False)


def draw(shape=(4, 7), seed=0, scale=2.0, dtype=np.float32):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(dtype)


# --- activations -------------------------------------------------------------------------------------------------------


def pre_activations(name, dtype=np.float32):
    x = draw((6, 13), dtype=dtype)
    return np.concatenate([x, KINKS[None].astype(dtype)]) if "softmax" not in name else x


def test_every_keras_activation_is_known():
    assert set(KERAS_ACTIVATIONS) == set(activations._FUNCTIONS) | NOT_RECURRENT


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"sparsemax"}))
def test_activation_equals_keras_in_value_and_gradient(name):
    x = pre_activations(name)

    @jax.jit
    def values_and_gradients(x, g):
        functions = activations.get(name), keras.activations.get(name)
        return [(y, pullback(g)[0]) for y, pullback in (jax.vjp(function, x) for function in functions)]

    (ours, our_gradient), (theirs, their_gradient) = values_and_gradients(x, draw(x.shape, seed=1))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(our_gradient, their_gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - WITHOUT_RULE))
def test_rule_from_output_is_the_gradient(name, x64):
    """In float64, also on kinks; the oracle is JAX's derivative of Keras's function."""
    function = activations.get(name)
    rule = activations.from_output(function)
    # Keras's sparsemax is wrong, and its tanh falls to float32.
    oracle = function if name in ("sparsemax", "tanh") else keras.activations.get(name)
    x = pre_activations(name, np.float64)

    @jax.jit
    def gradients(x, g):
        y, pullback = jax.vjp(oracle, x)
        return rule(y, g), rule(y.astype(np.float32), g.astype(np.float32)), pullback(g)[0]

    ours, in_float32, expected = gradients(x, draw(x.shape, seed=1, dtype=np.float64))
    assert (ours.dtype, in_float32.dtype) == (np.float64, np.float32)
    worst = [np.max(np.abs(found - expected) / (1 + np.abs(expected))) for found in (ours, in_float32)]
    print(f"rule of {name}: worst error {worst[0]:.0e} in float64, {worst[1]:.0e} in float32")
    assert worst[0] < 1e-15
    assert worst[1] < 4e-7


@pytest.mark.parametrize("name", cases.thinned(sorted(set(ACTIVATIONS) - WITHOUT_RULE), 8))
def test_rule_from_output_is_differentiable_and_finite(name, x64):
    """d/dx of rule(f(x), g) is the second derivative; y may be anything in a masked step."""
    function = activations.get(name)
    rule = activations.from_output(function)
    anywhere = np.concatenate([KINKS, [-1e4, 1e4], np.zeros(5)]).reshape(4, 5).astype(np.float32)

    @jax.jit
    def derivatives(x, g, t):
        ours = jax.vjp(lambda x: rule(function(x), g), x)[1](t)[0]
        expected = jax.vjp(lambda x: jax.vjp(function, x)[1](g)[0], x)[1](t)[0]
        value, pullback = jax.vjp(rule, anywhere, np.ones_like(anywhere))
        return ours, expected, (value, pullback(np.ones_like(anywhere)))

    ours, expected, finite = derivatives(*(draw((5, 4), seed=seed, dtype=np.float64) for seed in range(3)))
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)
    assert all(np.isfinite(values).all() for values in jax.tree.leaves(finite))


def test_activations_without_rule():
    assert all(activations.from_output(activations.get(name)) is None for name in WITHOUT_RULE)
    assert activations.from_output(jnp.sin) is None


@pytest.mark.parametrize(
    ("function", "name"),
    [
        *[(jnp.tanh, "tanh"), (jax.nn.tanh, "tanh"), (nn.tanh, "tanh"), (jax.lax.tanh, "tanh")],
        *[(jax.nn.sigmoid, "sigmoid"), (nn.sigmoid, "sigmoid"), (jax.lax.logistic, "sigmoid")],
        *[(jax.nn.relu, "relu"), (nn.relu, "relu"), (nn.softmax, "softmax"), (nn.elu, "elu"), (nn.silu, "silu")],
        *[(jnp.exp, "exponential"), (jax.nn.identity, "linear"), (None, "linear"), (nn.soft_sign, "softsign")],
    ],
)
def test_callables_of_jax_and_flax_are_recognised(function, name):
    assert activations.name(function) == name
    assert activations.from_output(activations.get(function)) is activations.from_output(activations.get(name))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_activations_keep_dtype_and_shape(dtype, x64):
    for name in ACTIVATIONS:
        function = activations.get(name)
        for shape in [(5,), (2, 1, 3)]:
            x = jax.ShapeDtypeStruct(shape, dtype)
            rule = activations.from_output(function)
            for result in [jax.eval_shape(function, x)] + ([jax.eval_shape(rule, x, x)] if rule else []):
                assert (result.shape, result.dtype) == (x.shape, x.dtype), name


def test_activation_configurations():
    builtin = {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"}
    for identifier in [builtin, builtin | {"registered_name": "relu"}, FrozenDict(builtin), {"class_name": "relu"}]:
        assert activations.get(identifier) is activations.get("relu") is jax.nn.relu
    assert activations.get("swish") is activations.get("silu")
    assert [activations.to_config(name) for name in ("tanh", None, "hard_swish", nn.relu)] == [
        *("tanh", "linear", "hard_silu", "relu")
    ]


@pytest.mark.parametrize(
    "layer",
    [
        *[keras.layers.LeakyReLU(negative_slope=0.1), keras.layers.LeakyReLU(), keras.layers.ELU(alpha=0.5)],
        *[keras.layers.ReLU(), keras.layers.ReLU(max_value=6), keras.layers.ReLU(negative_slope=0.25)],
    ],
    ids=lambda layer: layer.name,
)
def test_activation_layers(layer):
    config = keras.layers.SimpleRNN(3, activation=layer).get_config()["activation"]
    ours = activations.get(config)
    x = np.concatenate([draw((40,)), KINKS])
    np.testing.assert_array_equal(ours(x), layer(x))
    np.testing.assert_array_equal(jax.vjp(ours, x)[1](x)[0], jax.vjp(layer.call, x)[1](x)[0])
    back = keras.activations.get(activations.to_config(ours))
    np.testing.assert_array_equal(back(x), layer(x))
    assert ours == activations.get(config)
    assert hash(ours) == hash(activations.get(config))


def sparsemax_by_definition(z):
    """Martins & Astudillo 2016, Algorithm 1, for one vector in float64."""
    z = np.asarray(z, np.float64)
    descending = np.sort(z)[::-1]
    k = max(k for k in range(1, len(z) + 1) if 1 + k * descending[k - 1] > descending[:k].sum())
    return np.maximum(z - (descending[:k].sum() - 1) / k, 0)


@pytest.mark.slow
def test_sparsemax_is_that_of_its_paper(x64):
    x = np.concatenate([draw((50, 9), scale=0.5), draw((50, 9), seed=1, scale=5), np.zeros((1, 9)), np.eye(9)])
    expected = np.stack([sparsemax_by_definition(row) for row in x])
    np.testing.assert_allclose(activations.sparsemax(x), expected, atol=1e-15)
    np.testing.assert_allclose(activations.sparsemax(x.astype(np.float32)), expected, atol=1e-6)
    many = draw((2, 700), scale=0.1)
    half = activations.sparsemax(jnp.asarray(many, jnp.bfloat16)).astype(jnp.float32)
    by_definition = [sparsemax_by_definition(row) for row in np.asarray(jnp.asarray(many, jnp.bfloat16), np.float64)]
    np.testing.assert_allclose(half, by_definition, rtol=4e-3, atol=1e-4)
    # The derivative by differences; x is not on a kink.
    x, g, step = draw((9,), scale=0.5, dtype=np.float64), draw((9,), seed=2, dtype=np.float64), 1e-7
    rows = np.eye(9) * step
    differences = np.stack([(sparsemax_by_definition(x + r) - sparsemax_by_definition(x - r)) @ g for r in rows]) / (
        2 * step
    )
    np.testing.assert_allclose(jax.vjp(activations.sparsemax, x)[1](g)[0], differences, atol=1e-7)


def test_named_activations_share_one_compilation():
    traces = []

    @functools.partial(jax.jit, static_argnames="activation")
    def layer(x, activation):
        traces.append(activation)
        return activation(x)

    for identifier in ["tanh", "tanh", {"class_name": "function", "config": "tanh"}, jnp.tanh]:
        layer(jnp.ones(3), activation=activations.get(identifier))
    for slope in (0.1, 0.1):
        layer(jnp.ones(3), activation=activations.get({"class_name": "LeakyReLU", "config": {"negative_slope": slope}}))
    assert len(traces) == 2


# --- regularizers ------------------------------------------------------------------------------------------------------

REGULARIZERS = [
    *[regularizers.L1(), regularizers.L1(0.3), regularizers.L2(), regularizers.L2(0.3), regularizers.L1L2()],
    *[regularizers.L1L2(0.1, 0.2), regularizers.L1L2(l2=0.2), regularizers.OrthogonalRegularizer()],
    regularizers.OrthogonalRegularizer(0.3),
]


@pytest.mark.parametrize("ours", REGULARIZERS, ids=repr)
def test_regularizer_equals_keras(ours):
    theirs = keras.regularizers.deserialize(json.loads(json.dumps(regularizers.to_config(ours))))
    evaluate = jax.jit(lambda w: [jax.value_and_grad(penalty)(w) for penalty in (ours, theirs)])
    for shape in [(5, 3), (2, 4)]:
        (value, gradient), (expected, expected_gradient) = evaluate(draw(shape))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
    config = keras.regularizers.serialize(theirs)
    written = regularizers.to_config(ours)
    np.testing.assert_equal({**written, "config": None}, {**config, "config": None})
    assert written["config"].keys() == config["config"].keys()
    for key, number in config["config"].items():  # Keras rounds some of its factors to float32
        assert written["config"][key] == (pytest.approx(number, rel=1e-7) if key != "mode" else number)
    assert regularizers.to_config(config) == config
    assert regularizers.get(FrozenDict(written)) == ours
    assert hash(regularizers.get(written)) == hash(ours)


def test_regularizer_names():
    known = set(regularizers._TABLE)
    assert set(KERAS_REGULARIZERS) - known == {"Regularizer", "regularizer", "l1l2"}
    for name in set(KERAS_REGULARIZERS) & known - {"L1L2"}:
        assert type(regularizers.get(name)).__name__ == type(keras.regularizers.get(name)).__name__
        assert regularizers.get(name) == type(regularizers.get(name))()
    both = regularizers.L1L2(0.01, 0.01)
    assert regularizers.get("l1_l2") == regularizers.get("L1L2") == both
    assert regularizers.get({"class_name": "L1L2", "config": {"l1": 0.5}}) == regularizers.L1L2(0.5, 0.0)
    assert regularizers.get(regularizers.L2) == regularizers.L2(0.01)
    assert regularizers.get(both) is both
    assert regularizers.get(jnp.sum) is jnp.sum
    assert regularizers.get(None) is regularizers.to_config(None) is None
    with pytest.raises(ValueError, match="Did you mean 'L1L2'"):
        regularizers.get("l1l2")


def test_orthogonal_regularizer_by_its_definition(x64):
    """The mean of |cos| over pairs, in NumPy: the modes, a zero row, a single row."""

    def by_definition(w, factor):
        n = len(w)
        pairs = [(i, j) for i in range(n) for j in range(i)]
        cosines = [abs(w[i] @ w[j]) / np.linalg.norm(w[i]) / np.linalg.norm(w[j]) for i, j in pairs]
        return factor * np.mean(cosines)

    w = draw((4, 6), dtype=np.float64)
    rows, columns = regularizers.OrthogonalRegularizer(0.7), regularizers.OrthogonalRegularizer(0.7, mode="columns")
    np.testing.assert_allclose(rows(w), by_definition(w, 0.7), rtol=1e-14)
    np.testing.assert_allclose(columns(w), by_definition(w.T, 0.7), rtol=1e-14)
    gradient = jax.jit(jax.grad(columns))(w)
    step, expected = 1e-6, np.zeros_like(w)
    for index in np.ndindex(w.shape):
        shift = np.zeros_like(w)
        shift[index] = step
        expected[index] = (by_definition((w + shift).T, 0.7) - by_definition((w - shift).T, 0.7)) / (2 * step)
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    w[1] = 0
    value, gradient = jax.jit(jax.value_and_grad(rows))(w)
    np.testing.assert_allclose(value, by_definition(np.delete(w, 1, 0), 0.7) * 3 / 6, rtol=1e-14)
    assert np.isfinite(gradient).all()
    single, gradient = jax.value_and_grad(rows)(w[:1])
    assert single == 0
    np.testing.assert_array_equal(gradient, 0)


# --- constraints -------------------------------------------------------------------------------------------------------

CONSTRAINTS = [
    *[constraints.MaxNorm(), constraints.MaxNorm(0.5), constraints.MaxNorm(1, axis=1), constraints.MaxNorm(0)],
    *[constraints.MaxNorm(0.7, axis=(0, 1)), constraints.MinMaxNorm(), constraints.MinMaxNorm(0.5, 1.5, 0.25, -1)],
    *[constraints.MinMaxNorm(2, 2), constraints.NonNeg(), constraints.UnitNorm(), constraints.UnitNorm(axis=[1])],
]


@pytest.mark.parametrize("ours", CONSTRAINTS, ids=repr)
def test_constraint_equals_keras(ours):
    config = constraints.to_config(ours)
    theirs = keras.constraints.deserialize(config)
    assert keras.constraints.serialize(theirs) == config
    for seed, scale in enumerate((0.1, 1.0, 10.0)):
        w = draw((5, 3), seed=seed, scale=scale)
        w[:, 1] *= seed  # also a column of zeros
        axis = theirs.axis if hasattr(theirs, "axis") else None
        if isinstance(axis, list):
            theirs.axis = tuple(axis)  # Keras on JAX fails on a list
        np.testing.assert_allclose(ours(w), theirs(w), rtol=2e-7, atol=0)
    assert constraints.get(FrozenDict(json.loads(json.dumps(config)))) == ours
    assert hash(constraints.get(config)) == hash(ours)


def test_constraint_names():
    known = set(constraints._TABLE)
    assert set(KERAS_CONSTRAINTS) - known == {"Constraint", "constraint"}
    assert known - set(KERAS_CONSTRAINTS) == {"maxnorm", "nonneg", "unitnorm"}
    for name in set(KERAS_CONSTRAINTS) & known:
        assert type(constraints.get(name)).__name__ == type(keras.constraints.get(name)).__name__
        assert constraints.to_config(name) == keras.constraints.serialize(keras.constraints.get(name))
    assert constraints.get("maxnorm") == constraints.MaxNorm(2.0, 0)
    assert constraints.get("nonneg") == constraints.NonNeg()
    assert constraints.get("unitnorm") == constraints.UnitNorm()
    assert constraints.get(None) is constraints.to_config(None) is None
    assert constraints.get(jnp.abs) is jnp.abs


def test_constraint_on_a_bias_and_in_half_precision():
    bias = draw((5,), scale=3)
    np.testing.assert_allclose(np.linalg.norm(constraints.MaxNorm(1.0)(bias)), 1, rtol=1e-6)
    for dtype in ("float16", "bfloat16"):
        columns = jnp.asarray([[0, 1000]] * 4, dtype)  # the squares leave the range of float16
        rescaled = constraints.MinMaxNorm(1.0, 2.0)(columns)
        assert rescaled.dtype == dtype
        np.testing.assert_array_equal(rescaled, [[0, 1]] * 4)


# --- bad input ---------------------------------------------------------------------------------------------------------

L2 = {"class_name": "L2", "config": {"l2": 0.1}}
BAD = [
    (
        activations.get,
        "tahn",
        r"`activation` is the unknown name 'tahn'\. Did you mean 'tanh'\? Valid names: \w+, ",
    ),
    (activations.get, "Tanh", "Did you mean 'tanh'"),
    (activations.get, "glu", "cannot be 'glu' in a recurrent layer"),
    (activations.get, "threshold", "cannot be 'threshold' in a recurrent layer"),
    (activations.get, 3, r"must be a Keras name.*got 3 \(int\)"),
    (activations.get, "", "unknown name ''"),
    (activations.get, ["tanh"], "must be a Keras name"),
    (activations.get, np.tanh(np.ones(2)), "must be a Keras name"),
    (activations.get, nn.Dense, "must be a Keras name"),
    (activations.get, {}, "string 'class_name'"),
    (activations.get, {"class_name": "function", "config": {"a": 1}}, "string 'class_name'"),
    (activations.get, {"class_name": "relu", "config": {"max_value": 6}}, "takes no arguments"),
    (activations.get, {"class_name": "function", "config": "f", "registered_name": "mine>f"}, "custom object"),
    (activations.get, {"class_name": "function", "config": "f", "module": "builtins"}, "unknown name 'f'"),
    (activations.get, {"class_name": "ReLU", "config": {"max_value": -3}}, "`max_value` must be.*at least 0"),
    (activations.get, {"class_name": "ReLU", "config": {"alpha": 3}}, "no argument 'alpha'"),
    (
        activations.get,
        {"class_name": "LeakyReLU", "config": {"negative_slope": float("nan")}},
        "`negative_slope` must be",
    ),
    (activations.get, {"class_name": "PReLU", "config": {}}, "cannot be 'PReLU' .*weights of its own"),
    (activations.get, dataclasses.make_dataclass("F", [], namespace={"__call__": abs})(), "must be hashable"),
    (activations.name, jnp.sin, "to have a name"),
    (activations.name, jax.nn.gelu, "to have a name"),
    (activations.to_config, abs, "to have a name"),
    (initializers.get, "glorot", r"`initializer` is the unknown name 'glorot'\. Did you mean 'glorot_uniform'"),
    (initializers.get, "Orthogonall", "Did you mean 'orthogonal'"),
    (initializers.get, 0, "must be a Keras name"),
    (initializers.get, [1.0, 2.0], "must be a Keras name"),
    (initializers.get, {"class_name": "RandomNormal", "config": {"std": 1.0}}, "Did you mean 'stddev'"),
    (
        initializers.get,
        {"class_name": "RandomNormal", "config": {"stddev": -1}},
        "`stddev` must be.*at least 0, got -1",
    ),
    (initializers.get, {"class_name": "RandomNormal", "config": {"mean": float("inf")}}, "`mean` must be"),
    (initializers.get, {"class_name": "RandomUniform", "config": {"minval": 1.0}}, "`maxval` must be.*at least 1"),
    (initializers.get, {"class_name": "VarianceScaling", "config": {"scale": 0}}, "`scale` must be greater than 0"),
    (initializers.get, {"class_name": "VarianceScaling", "config": {"mode": "fan"}}, "`mode` must be"),
    (initializers.get, {"class_name": "VarianceScaling", "config": {"distribution": "x"}}, "`distribution` must be"),
    (initializers.get, {"class_name": "GlorotUniform", "config": {"scale": 2.0}}, "no argument 'scale'"),
    (initializers.get, {"class_name": "GlorotUniform", "config": {"seed": -1}}, "`seed` must lie"),
    (initializers.get, {"class_name": "GlorotUniform", "config": {"seed": 2**32}}, "`seed` must lie"),
    (initializers.get, {"class_name": "GlorotUniform", "config": {"input_axes": [0]}}, "go together"),
    (initializers.get, {"class_name": "Constant", "config": {"value": 10**400}}, "`value` must be a finite number"),
    (initializers.get, {"class_name": "Initializer", "config": {}}, "unknown name 'Initializer'"),
    (initializers.to_config, nn.initializers.lecun_normal(), "one of Keras's own"),
    (initializers.to_config, np.ones((2, 2)), "one of Keras's own"),
    (regularizers.get, "l3", "`regularizer` is the unknown name 'l3'"),
    (regularizers.get, 0.01, "must be a Keras name"),
    (regularizers.get, L2 | {"config": {"l2": -0.1}}, "`l2` must be a finite number of at least 0, got -0.1"),
    (regularizers.get, L2 | {"config": {"l2": float("nan")}}, "`l2` must be"),
    (regularizers.get, L2 | {"config": {"l1": 0.1}}, "'L2' has no argument 'l1'"),
    (
        regularizers.get,
        L2 | {"config": {"l2": "0.1"}},
        r"`regularizer`: 'L2' cannot be made of .*`l2` must be .*\(str\)",
    ),
    (regularizers.get, L2 | {"config": {"l2": None}}, "`l2` must be"),
    (regularizers.get, L2 | {"config": "l2"}, "dict 'config'"),
    (regularizers.get, L2 | {"classname": "L2"}, "unknown key 'classname'. Did you mean 'class_name'"),
    (regularizers.get, L2 | {"module": "my_project.losses", "registered_name": "L2"}, "custom object"),
    (regularizers.get, L2 | {"module": None, "registered_name": "L2"}, "custom object"),
    (regularizers.get, L2 | {"module": "keras.regularizers", "registered_name": "mine>L2"}, "custom object"),
    (regularizers.get, {"class_name": ["L2"], "config": {}}, "string 'class_name'"),
    (regularizers.get, {"class_name": "OrthogonalRegularizer", "config": {"mode": "row"}}, "`mode` must be"),
    (regularizers.to_config, jnp.sum, "one of Keras's own"),
    (regularizers.OrthogonalRegularizer(), np.ones(3, np.float32), "needs a matrix"),
    (constraints.get, "max_nrom", "Did you mean 'max_norm'"),
    (constraints.get, {"class_name": "MaxNorm", "config": {"max_value": -1}}, "`max_value` must be.*at least 0"),
    (constraints.get, {"class_name": "MinMaxNorm", "config": {"min_value": 2}}, "`max_value` must be.*at least 2"),
    (
        constraints.get,
        {"class_name": "MinMaxNorm", "config": {"rate": 1.5}},
        "`rate` must be.*at least 0 and at most 1",
    ),
    (constraints.get, {"class_name": "UnitNorm", "config": {"axis": [0, 0]}}, "`axis` must name"),
    (constraints.get, {"class_name": "UnitNorm", "config": {"axis": []}}, "`axis` must name"),
    (constraints.to_config, jnp.abs, "one of Keras's own"),
    (constraints.MaxNorm(axis=1), np.ones(3, np.float32), "`axis` must lie between -1 and 0"),
]


@pytest.mark.parametrize(("function", "argument", "message"), BAD)
def test_bad_identifiers(function, argument, message):
    with pytest.raises(ValueError, match=message):
        function(argument)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: regularizers.L1("0.1"), r"`l1` must be a finite number of at least 0, got '0.1' \(str\)"),
        (lambda: regularizers.L2(True), "`l2` must be"),
        (lambda: regularizers.L1L2(l1=None), "`l1` must be"),
        (lambda: regularizers.L1(l2=0.1), "l2"),
        (lambda: constraints.MaxNorm(np.ones(2)), "`max_value` must be"),
        (lambda: constraints.MaxNorm(axis=0.5), "`axis` must be an integer"),
        (lambda: constraints.UnitNorm(axis=None), "`axis` must be an integer"),
        (lambda: constraints.UnitNorm(axis=(0, True)), "`axis` must be an integer"),
        (lambda: initializers.Constant([1.0]), "`value` must be a finite number"),
        (lambda: initializers.RandomNormal(seed=1.5), "`seed` must be an integer"),
        (lambda: initializers.VarianceScaling(input_axes=0, output_axes=1), "`input_axes` must be a sequence"),
        (lambda: initializers.get(np.array(["a"])), "real numbers"),
        (lambda: initializers.get(np.ones(2, complex)), "real-valued"),
        (lambda: jax.jit(lambda a: initializers.get(a)(None, (2,)))(np.ones(2)), "must be concrete"),
        (lambda: activations.LeakyReLU("0.1"), "`negative_slope` must be"),
    ],
)
def test_bad_types(build, message):
    with pytest.raises(TypeError, match=message):
        build()


def test_initializers_refuse_shapes():
    key = jax.random.key(0)
    for initializer, shape in [("orthogonal", (3,)), ("orthogonal", ()), ("identity", (3,)), ("identity", (2, 2, 2))]:
        with pytest.raises(ValueError, match="needs"):
            initializers.get(initializer)(key, shape)
    with pytest.raises(ValueError, match="do not fit the shape"):
        initializers.GlorotUniform(input_axes=[2], output_axes=[0])(key, (2, 3))


def test_messages_call_the_argument_by_its_name():
    with pytest.raises(ValueError, match="`kernel_initializer` is the unknown name"):
        initializers.get("x", argument="kernel_initializer")
    with pytest.raises(ValueError, match="`bias_regularizer` must be"):
        regularizers.get(1, argument="bias_regularizer")


@pytest.mark.parametrize(
    "instance",
    [*REGULARIZERS, *CONSTRAINTS, initializers.get("orthogonal"), initializers.get("he_normal"), activations.ELU(2.0)],
    ids=repr,
)
def test_objects_are_frozen_hashable_and_comparable(instance):
    twin = dataclasses.replace(instance)
    assert twin == instance
    assert twin is not instance
    assert hash(twin) == hash(instance)
    with pytest.raises(dataclasses.FrozenInstanceError):
        instance.anything = 1
    for other in (None, "l2", regularizers.L2(123.0), constraints.MaxNorm(123.0), initializers.Constant(123.0)):
        assert instance != other
