"""Penalties and constraints against Keras: the same numbers after real optimizer steps; what is sown, collected and kept."""

import functools

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax.core import freeze
from models import KEY, LENGTHS, MASK, B, F, T, U, X, check_tree, close, drawn, same

from flax_srnn import (
    RNN,
    Bidirectional,
    SimpleRNN,
    SimpleRNNCell,
    StackedRNNCells,
    apply_constraints,
    collect_constraints,
    keep_constraints,
    regularization_loss,
)
from flax_srnn.constraints import MaxNorm, NonNeg, UnitNorm

NAMES = ("kernel", "recurrent_kernel", "bias")


def config(name, **arguments):
    return {"class_name": name, "config": arguments}


def keras_rules():
    """Keras promotes ranks, which the session forbids."""
    return jax.numpy_rank_promotion("allow")


@keras_rules()
def keras_twin(params, **options):
    """Keras's SimpleRNN with these weights."""
    layer = keras.layers.SimpleRNN(U, **options)
    layer.build((B, T, F))
    layer.set_weights([params[name] for name in NAMES])
    return layer


def weights(twin):
    return [np.asarray(variable.value) for variable in twin.trainable_variables]


# --- penalties ---------------------------------------------------------------------------------------------------------

PENALTIES = [
    {"kernel_regularizer": "l1"},
    {"recurrent_regularizer": "l2", "bias_regularizer": "l1"},
    {
        "kernel_regularizer": config("L1L2", l1=0.2, l2=0.3),
        "recurrent_regularizer": config("OrthogonalRegularizer", factor=0.7),
        "bias_regularizer": config("L2", l2=0.5),
    },
]


def losses(layer, variables, *inputs, **arguments):
    return layer.apply(variables, *inputs, **arguments, mutable=["losses"])[1]


@pytest.mark.parametrize("options", PENALTIES, ids=lambda options: "-".join(options))
def test_weight_penalties_equal_keras(options):
    variables = drawn(SimpleRNN(U, **options), X)
    twin = keras_twin(variables["params"], **options)
    with keras_rules():
        penalties = twin.losses
    for layer in (SimpleRNN(U, **options), RNN(SimpleRNNCell(U, **options)), RNN([SimpleRNNCell(U, **options)])):
        sown = losses(layer, variables, X)["losses"]
        assert list(sown) == list(options)  # kernel, recurrent, bias
        for value, expected in zip(sown.values(), penalties, strict=True):
            assert value.shape == ()
            close(value, expected)
        close(regularization_loss({"losses": sown}), sum(penalties))
    cell = SimpleRNNCell(U, **options)
    check_tree(losses(cell, variables, np.zeros((B, U)), X[:, 0])["losses"], sown)


def test_penalties_have_keras_gradients():
    options = PENALTIES[2]
    layer = SimpleRNN(U, **options)
    variables = drawn(layer, X)
    gradient = jax.grad(lambda v: regularization_loss(losses(layer, v, X)))(variables)["params"]
    penalties = {
        "kernel": keras.regularizers.L1L2(0.2, 0.3),
        "recurrent_kernel": keras.regularizers.OrthogonalRegularizer(0.7),
        "bias": keras.regularizers.L2(0.5),
    }
    for name, penalty in penalties.items():
        close(gradient[name], jax.grad(penalty)(jnp.asarray(variables["params"][name])))


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_activity_penalty_equals_keras(sequences, with_state):
    """On every returned array, divided by the batch size. Keras honours it in `RNN` and forgets it in `SimpleRNN`."""
    flags = {"return_sequences": sequences, "return_state": with_state}
    twin = keras.layers.RNN(
        keras.layers.SimpleRNNCell(U), activity_regularizer=keras.regularizers.L1L2(0.2, 0.3), **flags
    )
    with keras_rules():
        twin(X)
        expected = sum(twin.losses)
    assert expected > 0
    params = dict(zip(NAMES, weights(twin), strict=True))
    activity = config("L1L2", l1=0.2, l2=0.3)
    for layer in (
        SimpleRNN(U, activity_regularizer=activity, **flags),
        RNN(SimpleRNNCell(U), activity_regularizer=activity, **flags),
        SimpleRNN(U, activity_regularizer=keras.regularizers.L1L2(0.2, 0.3), **flags),
    ):
        sown = losses(layer, {"params": params}, X)["losses"]
        assert list(sown) == ["activity_regularizer"]
        assert sown["activity_regularizer"].shape == ()
        close(sown["activity_regularizer"], expected)


def test_penalties_of_half_precision_are_added_up_in_float32():
    """A user's own may return them: 2049 is no float16."""
    layer = SimpleRNN(U, kernel_regularizer=lambda w: jnp.float16(2048), recurrent_regularizer=lambda w: jnp.float16(1))
    _, sown = layer.apply(drawn(layer, X), X, mutable=["losses"])
    loss = regularization_loss(sown)
    assert (loss, loss.dtype) == (2049, jnp.float32)


def test_activity_penalty_of_a_state_of_several_arrays():
    layer = RNN([SimpleRNNCell(U), nn.LSTMCell(2)], activity_regularizer="l1", return_state=True)
    variables = drawn(layer, X)
    returned, sown = layer.apply(variables, X, mask=MASK, seq_lengths=LENGTHS, mutable=["losses"])
    leaves = jax.tree.leaves(returned)
    assert len(leaves) == 1 + 1 + 2
    close(sown["losses"]["activity_regularizer"], sum(0.01 * np.abs(leaf).sum() for leaf in leaves) / B)


@pytest.mark.parametrize("batch", [(), (0,), (3, 2)])
def test_activity_penalty_for_other_batches(batch):
    layer = SimpleRNN(U, activity_regularizer="l2", return_sequences=True)
    x = np.ones((*batch, T, F), np.float32)
    y, sown = layer.apply(drawn(layer, x), x, mutable=["losses"])
    close(sown["losses"]["activity_regularizer"], 0.01 * np.square(y).sum() / max(1, np.prod(batch)))


class TwiceModel(nn.Module):
    """One layer called twice, beside another one."""

    @nn.compact
    def __call__(self, x):
        layer = SimpleRNN(U, kernel_regularizer="l2", activity_regularizer="l1", return_sequences=True, name="shared")
        y, z = layer(x), layer(2 * x)
        return y, z, Bidirectional(RNN([SimpleRNNCell(2, bias_regularizer="l1"), SimpleRNNCell(2)]), name="both")(x)


def test_layer_called_twice_and_variables_passed_on():
    """The activity of both calls is penalised, the weights once; what an earlier pass left behind is replaced."""
    variables = drawn(TwiceModel(), X)
    assert list(variables) == ["params"]  # init sows nothing
    (y, z, _), mutated = TwiceModel().apply(variables, X, mutable=["losses"])
    activity = 0.01 * (np.abs(y).sum() + np.abs(z).sum()) / B
    kernel = 0.01 * np.square(variables["params"]["shared"]["kernel"]).sum()
    params = variables["params"]["both"]
    bias = {name: 0.01 * np.abs(params[name]["cells_0"]["bias"]).sum() for name in params}
    expected = {
        "shared": {"kernel_regularizer": kernel, "activity_regularizer": activity},
        "both": {name: {"cells_0": {"bias_regularizer": value}} for name, value in bias.items()},
    }
    check_tree(mutated, {"losses": expected})
    close(regularization_loss(mutated), kernel + activity + sum(bias.values()))
    for _ in range(3):
        variables = {**variables, **mutated}
        mutated = TwiceModel().apply(variables, X, mutable=["losses"])[1]
        check_tree(mutated, {"losses": expected})


def test_nothing_is_sown_unless_asked_for():
    layer = SimpleRNN(U, kernel_regularizer="l2")
    variables = drawn(layer, X)
    assert isinstance(layer.apply(variables, X), jax.Array)
    assert losses(SimpleRNN(U), variables, X) == {}
    assert regularization_loss({}) == regularization_loss({"params": {}}) == 0
    assert regularization_loss(losses(SimpleRNN(U), variables, X)).shape == ()


def test_penalties_under_jit_and_on_boxed_parameters():
    layer = SimpleRNN(
        U, kernel_regularizer="l2", kernel_initializer=nn.with_partitioning(nn.initializers.ones, ("a", "b"))
    )
    boxed = jax.jit(layer.init)(KEY, X)
    loss = jax.jit(lambda v: regularization_loss(losses(layer, v, X)))
    close(loss(boxed), 0.01 * F * U)
    gradient = jax.grad(loss)(boxed)["params"]["kernel"]
    assert isinstance(gradient, nn.Partitioned)
    close(gradient.unbox(), np.full((F, U), 0.02))


COPIES = nn.vmap(
    SimpleRNN,
    variable_axes={"params": 0, "losses": 0},
    split_rngs={"params": True},
    in_axes=None,
    axis_size=3,
)


def test_penalties_of_all_copies_of_a_layer_are_summed():
    layer = COPIES(U, kernel_regularizer="l2")
    variables = drawn(layer, X)
    sown = losses(layer, variables, X)
    assert sown["losses"]["kernel_regularizer"].shape == (3,)
    close(regularization_loss(sown), 0.01 * np.square(variables["params"]["kernel"]).sum())


# --- constraints after optimizer steps ---------------------------------------------------------------------------------

CONSTRAINTS = [
    {"kernel_constraint": "max_norm", "recurrent_constraint": "unit_norm", "bias_constraint": "non_neg"},
    {"kernel_constraint": "non_neg", "recurrent_constraint": config("MaxNorm", max_value=0.5, axis=1)},
    {
        "kernel_constraint": config("MinMaxNorm", min_value=0.4, max_value=0.6, rate=0.3, axis=0),
        "recurrent_constraint": config("MinMaxNorm", min_value=0.5, max_value=1.0, rate=1.0, axis=[0, 1]),
        "bias_constraint": config("MaxNorm", max_value=0.3, axis=0),
    },
    {"kernel_constraint": config("UnitNorm", axis=1), "bias_constraint": "unit_norm"},
    {"bias_constraint": "min_max_norm"},
]
# Where Keras and Optax add Adam's epsilon differs; here it is too small to matter.
OPTIMIZERS = {
    "SGD": (lambda: keras.optimizers.SGD(0.2), lambda: optax.sgd(0.2)),
    "momentum": (lambda: keras.optimizers.SGD(0.1, momentum=0.9), lambda: optax.sgd(0.1, momentum=0.9)),
    "Adam": (lambda: keras.optimizers.Adam(0.1, epsilon=1e-12), lambda: optax.adam(0.1, eps=1e-12)),
}


@pytest.mark.parametrize("optimizer", cases.thinned(OPTIMIZERS, 1))
@pytest.mark.parametrize("options", cases.thinned(CONSTRAINTS, 3), ids=lambda options: "-".join(options))
def test_constraints_equal_keras_after_several_steps(options, optimizer):
    """The same random gradients for Keras's optimizer and for Optax."""
    layer = SimpleRNN(U, **options)
    params = drawn(layer, X)["params"]
    twin = keras_twin(params, **options)
    make_keras, make_optax = OPTIMIZERS[optimizer]
    theirs, ours = make_keras(), optax.chain(make_optax(), keep_constraints(collect_constraints(layer, KEY, X)))
    state = ours.init(params)
    rng = np.random.default_rng(2)

    @jax.jit
    def step(params, state, gradients):
        updates, state = ours.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(4):
        gradients = {name: rng.normal(size=params[name].shape).astype(np.float32) for name in NAMES}
        with keras_rules():
            theirs.apply([gradients[name] for name in NAMES], twin.trainable_variables)
        params, state = step(params, state, gradients)
        for name, expected in zip(NAMES, weights(twin), strict=True):
            np.testing.assert_allclose(params[name], expected, rtol=2e-5, atol=2e-6)
    free = [name for name in NAMES if name not in collect_constraints(layer, KEY, X)]
    assert len(free) == len(NAMES) - len(options)


@pytest.mark.slow
def test_training_with_penalties_and_constraints_equals_keras():
    """A loss on data plus penalties: our gradients through Optax, Keras's own through its optimizer."""
    options = {
        "kernel_regularizer": "l2",
        "recurrent_regularizer": "l1",
        "kernel_constraint": config("MaxNorm", max_value=0.8, axis=0),
        "bias_constraint": "non_neg",
    }
    layer = SimpleRNN(U, **options)
    params = drawn(layer, X)["params"]
    twin = keras_twin(params, **options)
    target = np.random.default_rng(4).normal(size=(B, U)).astype(np.float32)

    def our_loss(params):
        y, mutated = layer.apply({"params": params}, X, mutable=["losses"])
        return jnp.square(y - target).sum() + regularization_loss(mutated)

    def their_loss(weights):
        y, _, penalties = twin.stateless_call(weights, twin.non_trainable_variables, X, return_losses=True)
        return jnp.square(y - target).sum() + sum(penalties)

    ours = optax.chain(optax.adam(0.05, eps=1e-12), keep_constraints(collect_constraints(layer, KEY, X)))
    theirs = keras.optimizers.Adam(0.05, epsilon=1e-12)
    state = ours.init(params)
    our_gradient, their_gradient = jax.jit(jax.grad(our_loss)), jax.jit(jax.grad(their_loss))
    for _ in range(5):
        with keras_rules():
            theirs.apply(their_gradient(weights(twin)), twin.trainable_variables)
        updates, state = ours.update(our_gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    for name, expected in zip(NAMES, weights(twin), strict=True):
        np.testing.assert_allclose(params[name], expected, rtol=1e-4, atol=1e-5)
    assert (params["bias"] >= 0).all()
    assert (np.linalg.norm(params["kernel"], axis=0) <= 0.8 + 1e-6).all()


def test_parameters_are_projected_only_after_an_update():
    layer = SimpleRNN(U, kernel_constraint="non_neg")
    variables = drawn(layer, X)
    assert (variables["params"]["kernel"] < 0).any()
    same(layer.apply(variables, X), SimpleRNN(U).apply(variables, X))
    transform = keep_constraints(collect_constraints(layer, KEY, X))
    state = transform.init(variables["params"])
    nothing = jax.tree.map(jnp.zeros_like, variables["params"])
    updates, _ = transform.update(nothing, state, variables["params"])
    new = optax.apply_updates(variables["params"], updates)
    same(new["kernel"], np.maximum(variables["params"]["kernel"], 0))
    same(new["recurrent_kernel"], variables["params"]["recurrent_kernel"])


# --- collecting and applying -------------------------------------------------------------------------------------------

CONSTRAINED = SimpleRNNCell(U, kernel_constraint="non_neg", bias_constraint=MaxNorm(1.0))
FOUND = {"kernel": NonNeg(), "bias": MaxNorm(1.0)}


class Model(nn.Module):
    @nn.compact
    def __call__(self, x, *, training=False):
        x = nn.Dense(F)(x)
        x = SimpleRNN(U, recurrent_constraint="unit_norm", return_sequences=True, dropout=0.5, name="rnn")(
            x, training=training
        )
        x = RNN([SimpleRNNCell(U), CONSTRAINED.copy()], return_sequences=True, name="stack")(x)
        return Bidirectional(RNN(CONSTRAINED.copy()), name="both")(x)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (SimpleRNN(U), {}),
        (
            SimpleRNN(U, use_bias=False, bias_constraint="non_neg", kernel_constraint=UnitNorm(axis=1)),
            {"kernel": UnitNorm(1)},
        ),
        (RNN(CONSTRAINED), FOUND),
        (RNN([CONSTRAINED, nn.GRUCell(2), CONSTRAINED.copy()]), {"cells_0": FOUND, "cells_2": FOUND}),
        (RNN(StackedRNNCells([CONSTRAINED, SimpleRNNCell(2)])), {"cells_0": FOUND}),
        (Bidirectional(RNN(CONSTRAINED)), {"forward_layer": FOUND, "backward_layer": FOUND}),
        (nn.RNN(CONSTRAINED), {"cell": FOUND}),
        (nn.Dense(2), {}),
        (
            Model(),
            {
                "rnn": {"recurrent_kernel": UnitNorm()},
                "stack": {"cells_1": FOUND},
                "both": {"forward_layer": FOUND, "backward_layer": FOUND},
            },
        ),
    ],
)
def test_collected_constraints(model, expected):
    assert collect_constraints(model, KEY, X) == expected


def test_collecting_takes_what_init_takes_and_computes_nothing():
    def abstract(key, shape, dtype):
        assert isinstance(key, jax.core.Tracer)
        return jax.random.normal(key, shape, dtype)

    layer = SimpleRNN(U, kernel_initializer=abstract, kernel_constraint="non_neg", dropout=0.5)
    tree = {"kernel": NonNeg()}
    assert collect_constraints(layer, KEY, X, mask=MASK, training=True) == tree
    assert collect_constraints(layer, {"params": KEY, "dropout": KEY}, inputs=X) == tree
    assert collect_constraints(Model(), {"params": KEY, "dropout": KEY}, X, training=True).keys() == {
        "rnn",
        "stack",
        "both",
    }


@pytest.mark.parametrize("container", [dict, freeze])
def test_constraints_on_boxed_and_frozen_parameters(container):
    box = nn.with_partitioning(nn.initializers.normal(), (None, "units"))
    layer = RNN([SimpleRNNCell(U, kernel_initializer=box, kernel_constraint="non_neg"), CONSTRAINED])
    params = container(jax.jit(layer.init)(KEY, X)["params"])
    tree = collect_constraints(layer, KEY, X)
    projected = apply_constraints(params, tree)
    assert jax.tree.structure(projected) == jax.tree.structure(params)
    assert isinstance(projected["cells_0"]["kernel"], nn.Partitioned)
    same(projected["cells_0"]["kernel"].unbox(), np.maximum(params["cells_0"]["kernel"].unbox(), 0))
    same(projected["cells_1"]["kernel"], np.maximum(params["cells_1"]["kernel"], 0))
    same(projected["cells_1"]["recurrent_kernel"], params["cells_1"]["recurrent_kernel"])

    optimizer = optax.chain(optax.sgd(0.5), keep_constraints(tree))
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    expected = apply_constraints(jax.tree.map(lambda p: p - 0.5, params), tree)
    check_tree(new, expected, functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7))
    assert (new["cells_0"]["kernel"].unbox() == 0).all()


def test_apply_constraints_is_pure_and_idempotent():
    params = drawn(RNN(CONSTRAINED), X)["params"]
    before = jax.tree.map(np.copy, params)
    once = jax.jit(lambda p: apply_constraints(p, FOUND))(params)
    check_tree(params, before, same)
    close(np.linalg.norm(once["bias"]), min(1.0, np.linalg.norm(params["bias"])))
    check_tree(apply_constraints(once, FOUND), once)
    own = apply_constraints(params, {"bias": lambda w: w * 0})
    assert not own["bias"].any()
    check_tree(apply_constraints(params, {}), params, same)


def test_constraints_keep_half_precision():
    params = {"kernel": jnp.full((F, U), 3, jnp.bfloat16), "bias": jnp.full(U, 2, jnp.float16)}
    optimizer = keep_constraints({"kernel": UnitNorm(), "bias": MaxNorm(1.0)})
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    assert new["kernel"].dtype == jnp.bfloat16
    assert new["bias"].dtype == jnp.float16
    np.testing.assert_allclose(np.linalg.norm(new["kernel"].astype(np.float32), axis=0), 1, rtol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(new["bias"].astype(np.float32)), 1, rtol=1e-2)
