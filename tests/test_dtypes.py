"""Dtypes: which one comes out, how exact it is, and that nothing is promoted in silence."""

import functools
import itertools
import re

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from flax_srnn import (
    RNN,
    Autodiff,
    Bidirectional,
    Scan,
    SimpleRNN,
    SimpleRNNCell,
    StackedRNNCells,
    cell_step,
    init_params,
    regularization_loss,
    simple_rnn,
)
from flax_srnn import nnx as fnnx
from flax_srnn.benchmark import process
from flax_srnn.core.tuning import MEASURED

pytestmark = pytest.mark.usefixtures("x64")
DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
CASE = cases.Case(mask=True, initial_state=True, resets=True)
EVERYTHING = cases.Case(
    mask=True,
    seq_lengths=True,
    initial_state=True,
    resets=True,
    reset_state=True,
    input_dropout_mask=True,
    recurrent_dropout_mask=True,
    zero_output_for_mask=True,
    go_backwards=True,
)


def name(dtype):
    return jnp.dtype(dtype).name


def cast(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def total(returned):
    return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(returned))


# --- the functional core -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.thinned(DTYPES, 1), ids=name)
@pytest.mark.parametrize("tuning", [MEASURED, cases.SMALL_BLOCKS], ids=["as a whole", "by blocks"])
def test_rounded_once(dtype, tuning):
    """Half precision is computed in float32: the result is the exact one, rounded; gradients have their array's dtype."""
    params, inputs, arrays, flags, options = CASE.problem()
    params, inputs, arrays = cast((params, inputs, arrays), dtype)
    exact = reference.simple_rnn(params, inputs, **arrays, **flags, **options)
    returned = simple_rnn(params, inputs, **arrays, **flags, **options, implementation=Scan(tuning=tuning))
    eps = float(jnp.finfo(dtype).eps)
    for value, wanted in zip(returned, exact, strict=True):
        assert value.dtype == dtype
        tolerance = 0.51 * eps if eps > 1e-6 else 8 * eps
        np.testing.assert_allclose(value.astype(jnp.float64), wanted, rtol=tolerance, atol=min(tolerance, 1e-6))

    def grads(dtype):
        arguments = cast((params, inputs, arrays), dtype)
        run = functools.partial(simple_rnn, **flags, **options, implementation=Scan(tuning=tuning))
        return jax.jit(jax.grad(lambda p, x, a: total(run(p, x, **a)), argnums=(0, 1, 2)))(*arguments)

    for grad, wanted in zip(jax.tree.leaves(grads(dtype)), jax.tree.leaves(grads(jnp.float64)), strict=True):
        assert grad.dtype == dtype
        np.testing.assert_allclose(grad.astype(jnp.float64), wanted, rtol=20 * eps, atol=20 * eps)


def test_the_common_dtype():
    """Of params, inputs and initial state, as `jnp.promote_types` has it; integers count as float32."""
    params, inputs, arrays, _, _ = CASE.problem()
    for of_params, of_inputs, of_state in itertools.product(DTYPES, (*DTYPES, jnp.int8), DTYPES):
        expected = functools.reduce(jnp.promote_types, (of_params, of_inputs, of_state))
        final, outputs = jax.eval_shape(
            lambda p, x, h: simple_rnn(p, x, initial_state=h),
            cast(params, of_params),
            cast(inputs, of_inputs),
            cast(arrays["initial_state"], of_state),
        )
        assert final.dtype == outputs.dtype == expected
    integers = {key: np.ones(value.shape, np.int32) for key, value in params.items()}
    assert simple_rnn(integers, np.ones((2, 3, 2), np.int32))[1].dtype == jnp.float32
    np.testing.assert_array_equal(
        simple_rnn({"kernel": [[1]], "recurrent_kernel": [[1]]}, [[1], [2]], activation=None)[1], [[1.0], [3.0]]
    )


@pytest.mark.parametrize("precision", [None, "highest", jax.lax.Precision.HIGH])
@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_precision_reaches_every_product(precision, activation):
    """Forward and backward, and in every implementation."""
    params, inputs, arrays, flags, options = EVERYTHING.problem()
    wanted = None if precision is None else jax.lax.Precision(precision)
    for implementation in (Scan(tuning=cases.SMALL_BLOCKS), Scan(True, cases.SMALL_BLOCKS), Autodiff()):
        settings = options | {"activation": activation, "implementation": implementation}
        settings["return_sequences"] = implementation != Scan(True, cases.SMALL_BLOCKS)

        def loss(params, settings=settings):
            return total(simple_rnn(params, inputs, **arrays, **flags, **settings, precision=precision))

        program = str(jax.make_jaxpr(jax.grad(loss))(params))
        products = re.findall(r"dot_general\[(.*?)\]\s", program, re.DOTALL)
        assert len(products) >= 4
        for product in products:
            found = re.search(r"precision=\(?(Precision\.\w+|None)", product)
            assert (found.group(1) if found else "None") == (f"Precision.{wanted.name}" if wanted else "None")


@pytest.mark.parametrize("dtype", cases.thinned(DTYPES, 1), ids=name)
@pytest.mark.parametrize("implementation", cases.thinned(["scan", "autodiff"], 1))
@pytest.mark.slow
def test_strict_promotion(dtype, implementation):
    """Equal dtypes in, and nowhere do two different ones meet: forward, backward, recomputed, second order."""
    params, inputs, arrays, flags, options = EVERYTHING.problem()
    params, inputs, arrays = cast((params, inputs, arrays), dtype)
    with jax.numpy_dtype_promotion("strict"):
        for activation in ("tanh", "silu", "softmax", "elu", "relu"):
            for settings in ({}, {"return_sequences": False, "implementation": Scan(remat=True)}, {"time_major": True}):
                x = jnp.moveaxis(inputs, 1, 0) if settings.get("time_major") else inputs
                chosen = options | {"activation": activation, "implementation": implementation} | settings
                run = functools.partial(simple_rnn, **flags, **chosen)

                def loss(params, x, arrays, run=run):
                    return total(run(params, x, **arrays))

                grads = jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), params, x, arrays)
                assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(grads))
        jax.eval_shape(jax.grad(lambda p: total(jax.grad(loss, argnums=1)(p, x, arrays))), params)
        _, output = cell_step(params, arrays["initial_state"], inputs[:, 0])
        assert output.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_init_params(dtype):
    """Half precision is drawn in float32 and rounded: orthogonal up to rounding, and bias zero."""
    params = init_params(jax.random.key(0), 3, 6, dtype=dtype)
    assert {key: value.dtype for key, value in params.items()} == dict.fromkeys(params, dtype)
    matrix = np.asarray(params["recurrent_kernel"], np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(6), atol=4 * float(jnp.finfo(dtype).eps))


def test_init_params_draws_from_keys_of_their_own():
    names = ("kernel_initializer", "recurrent_initializer", "bias_initializer")
    params = init_params(jax.random.key(0), 4, 4, **dict.fromkeys(names, "normal"))
    drawn = [np.ravel(value)[:4].tolist() for value in params.values()]
    assert len({tuple(values) for values in drawn}) == 3


# --- layers ------------------------------------------------------------------------------------------------------------


def layers(**dtypes):
    cells = [SimpleRNNCell(4, **dtypes), SimpleRNNCell(3, **dtypes)]
    options = {"return_sequences": True, "return_state": True}
    return [
        SimpleRNN(4, **options, **dtypes),
        RNN(cells, **options),
        RNN(SimpleRNNCell(4, activation="silu", **dtypes), go_backwards=True, **options),
        Bidirectional(SimpleRNN(4, **options, **dtypes), merge_mode="ave"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("param_dtype", cases.thinned(DTYPES, 2), ids=name)
@pytest.mark.parametrize("dtype", cases.thinned([None, *DTYPES], 3), ids=lambda dtype: str(dtype and name(dtype)))
def test_layers(dtype, param_dtype):
    """`param_dtype` of parameters and gradients, `dtype` of the computation; without it the common one."""
    inputs = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    expected = jnp.promote_types(param_dtype, jnp.float32) if dtype is None else dtype
    mask = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]], bool)
    for layer in layers(dtype=dtype, param_dtype=param_dtype):
        run = functools.partial(layer.apply, mask=mask)
        made = jax.eval_shape(layer.init, jax.random.key(0), inputs)
        grads = jax.eval_shape(jax.grad(lambda v, run=run: total(run(v, inputs))), made)
        returned = jax.eval_shape(run, made, inputs)
        assert {leaf.dtype for leaf in jax.tree.leaves((made, grads))} == {jnp.dtype(param_dtype)}
        assert {leaf.dtype for leaf in jax.tree.leaves(returned)} == {jnp.dtype(expected)}


@pytest.mark.parametrize("dtype", cases.thinned([jnp.bfloat16, jnp.float16], 1), ids=name)
def test_mixed_precision(dtype):
    """Float32 parameters, half precision computation: near the float32 layer, default initializers and dropout included."""
    inputs = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    half = SimpleRNN(8, dtype=dtype, dropout=0.5, recurrent_dropout=0.5, return_sequences=True)
    variables = half.init(jax.random.key(0), inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    rngs = {"dropout": jax.random.key(1)}
    outputs = half.apply(variables, inputs, training=True, rngs=rngs)
    assert outputs.dtype == dtype
    full = half.clone(dtype=None).apply(variables, inputs, training=True, rngs=rngs)
    np.testing.assert_allclose(outputs.astype(jnp.float32), full, atol=8 * float(jnp.finfo(dtype).eps))
    pure = SimpleRNN(8, dtype=dtype, param_dtype=dtype)
    assert pure.apply(pure.init(jax.random.key(0), inputs), inputs).dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.slow
def test_layers_under_strict_promotion(dtype):
    inputs = jnp.ones((2, 5, 3), dtype)
    mask = jnp.ones((2, 5), bool)
    rates = {"dropout": 0.5, "recurrent_dropout": 0.5}
    with jax.numpy_dtype_promotion("strict"):
        for layer in (
            *layers(param_dtype=dtype, **rates),
            SimpleRNN(4, param_dtype=dtype, kernel_regularizer="l1_l2", activity_regularizer="l2", **rates),
            RNN(StackedRNNCells([SimpleRNNCell(4, param_dtype=dtype)]), stateful=True),
        ):
            keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
            jax.eval_shape(functools.partial(layer.init_with_output, training=True, mask=mask), keys, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_penalties_under_strict_promotion(dtype):
    """Those of half precision are added up in float32, in both families, over several calls and layers of other dtypes."""
    asked = {"kernel_regularizer": "l1_l2", "bias_regularizer": "l1", "activity_regularizer": "l2"}
    x, y = jnp.ones((2, 5, 3), dtype), jnp.ones((2, 5, 3), jnp.float32)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, y):
            layer = SimpleRNN(4, param_dtype=dtype, **asked, name="any")
            mixed = SimpleRNN(4, dtype=dtype, **asked, recurrent_regularizer="orthogonal_regularizer", name="mixed")
            other = SimpleRNN(4, **asked, name="other")
            return layer(x), layer(2 * x), mixed(y), other(y)

    model = Model()
    with jax.numpy_dtype_promotion("strict"):
        variables = model.init(jax.random.key(0), x, y)
        _, sown = model.apply(variables, x, y, mutable=["losses"])
        loss = regularization_loss(sown)
        rngs = nnx.Rngs(0)
        layer = fnnx.SimpleRNN(3, 4, param_dtype=dtype, **asked, rngs=rngs)
        mixed = fnnx.SimpleRNN(3, 4, dtype=dtype, **asked, recurrent_regularizer="orthogonal_regularizer", rngs=rngs)
        other = fnnx.SimpleRNN(3, 4, **asked, rngs=rngs)
        for one, place in ((layer, "any"), (mixed, "mixed"), (other, "other")):
            fnnx.from_linen(one, variables["params"][place])
        layer(x), layer(2 * x), mixed(y), other(y)
        live = fnnx.regularization_loss(nnx.List([layer, mixed, other]))
    only = regularization_loss({"losses": sown["losses"]["any"]})
    assert only.dtype == loss.dtype == jnp.promote_types(dtype, jnp.float32)
    np.testing.assert_allclose(live, loss, rtol=1e-5)
    full = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), sown["losses"])
    np.testing.assert_allclose(loss, sum(jax.tree.leaves(full)), rtol=1e-6)


@pytest.mark.slow
def test_bfloat16_is_nearer_to_float64_than_keras(capsys):
    """Outputs and gradients of bfloat16 arrays; `pytest -m slow -s` prints the relative errors."""
    keras = pytest.importorskip("keras")
    given = process.problem(process.Case((8, 200, 16, 64)))
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (given.params[0], given.inputs, given.cotangent))
    layer = keras.layers.SimpleRNN(
        64, return_sequences=True, dtype="bfloat16", recurrent_initializer="glorot_uniform"
    )  # its orthogonal initializer does not know bfloat16
    layer.build((8, 200, 16))

    def theirs(params, inputs):
        weights = [params[name] for name in ("kernel", "recurrent_kernel", "bias")]
        with jax.numpy_rank_promotion("allow"):
            return layer.stateless_call(weights, layer.non_trainable_variables, inputs)[0]

    def ours(params, inputs):
        return simple_rnn(params, inputs)[1]

    def results(function, params, inputs, cotangent):
        outputs, vjp = jax.vjp(function, params, inputs)
        return jax.tree.map(lambda x: np.asarray(x, np.float64), (outputs, *vjp(cotangent.astype(outputs.dtype))))

    truth = results(ours, *jax.tree.map(lambda x: x.astype(jnp.float64), half))

    def errors(function):
        return [
            np.linalg.norm(x - y) / np.linalg.norm(y)
            for x, y in zip(*map(jax.tree.leaves, (results(function, *half), truth)), strict=True)
        ]

    named = dict(
        zip(
            ("outputs", "bias", "kernel", "recurrent kernel", "inputs"),
            zip(errors(ours), errors(theirs), strict=True),
            strict=True,
        )
    )
    with capsys.disabled():
        print("", *(f"{name}: ours {x:.1e}, Keras {y:.1e}" for name, (x, y) in named.items()), sep="\n")
    assert all(x < y for x, y in named.values())
