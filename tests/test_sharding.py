"""Eight virtual CPU devices: what is sharded gives the outputs and gradients of what is not."""

import dataclasses
import functools

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import meta
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from programs import assert_close

import flax_srnn.nnx
from flax_srnn import RNN, Bidirectional, Scan, SimpleRNN, SimpleRNNCell, simple_rnn

pytestmark = pytest.mark.usefixtures("x64")
close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
both = pytest.mark.parametrize("implementation", cases.thinned(["scan", "autodiff"], 1))


@pytest.fixture
def mesh():
    assert jax.device_count() >= 8, "tests/conftest.py asks for eight devices before JAX starts"
    return Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "units"))


def same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(close, actual, expected)


def total(returned):
    return sum(jnp.sin(x + 1).sum() for x in jax.tree.leaves(returned))


# --- jit: the compiler divides the work --------------------------------------------------------------------------------

PARTITIONED = {
    "kernel_initializer": nn.with_partitioning(nn.initializers.glorot_uniform(), (None, "units")),
    "recurrent_initializer": nn.with_partitioning(nn.initializers.orthogonal(), (None, "units")),
    "bias_initializer": nn.with_partitioning(nn.initializers.normal(), ("units",)),
    "dtype": jnp.float64,
    "param_dtype": jnp.float64,
}
LAYERS = {
    "SimpleRNN": SimpleRNN(6, return_sequences=True, **PARTITIONED),
    "RNN": RNN(
        [SimpleRNNCell(6, activation="silu", **PARTITIONED), SimpleRNNCell(4, **PARTITIONED)], return_state=True
    ),
    "Bidirectional": Bidirectional(SimpleRNN(6, implementation="autodiff", **PARTITIONED)),
}


@pytest.mark.parametrize("name", cases.thinned(LAYERS, 1))
@pytest.mark.slow
def test_partitioned_layers(name, mesh):
    """Data-sharded inputs, unit-sharded parameters made in place by a sharded `init`."""
    layer = LAYERS[name]
    rng = np.random.default_rng(0)
    inputs, mask = rng.normal(size=(8, 5, 3)), rng.random((8, 5)) < 0.7
    init = functools.partial(layer.init, jax.random.key(0))
    specs = nn.get_partition_spec(jax.eval_shape(init, inputs))
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))
    variables = jax.jit(init, out_shardings=places)(inputs)
    kernels = list(jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, meta.AxisMetadata)))
    assert all(isinstance(box, nn.Partitioned) and not box.value.is_fully_replicated for box in kernels)

    @jax.jit
    def run(variables, inputs, mask):
        def loss(variables, inputs):
            returned = layer.apply(variables, inputs, mask=mask)
            return total(returned), returned

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, inputs)

    plain = jax.tree.map(np.asarray, variables)
    expected = run(plain, inputs, mask)
    same(meta.unbox(run(meta.unbox(plain), inputs, mask)), meta.unbox(expected))
    rows = NamedSharding(mesh, P("data"))
    actual = run(variables, jax.device_put(inputs, rows), jax.device_put(mask, rows))
    same(actual, expected)
    for box in jax.tree.leaves(actual[0][0], is_leaf=lambda x: isinstance(x, meta.AxisMetadata)):
        assert isinstance(box, nn.Partitioned)


@pytest.mark.slow
@both
def test_sharded_arrays(implementation, mesh):
    """Rows over one axis, units over the other, all options, no layer."""
    case = cases.Case(
        batch=(4,), mask=True, resets=True, initial_state=True, input_dropout_mask=True, recurrent_dropout_mask=True
    )
    params, inputs, arrays, flags, options = case.problem()

    @jax.jit
    def run(params, inputs, arrays, flags):
        def loss(params, inputs, arrays):
            return total(simple_rnn(params, inputs, **arrays, **flags, **options, implementation=implementation))

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(params, inputs, arrays)

    def put(tree, *spec):
        return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P(*spec[: x.ndim]))), tree)

    sharded = {name: put(p, *([None] * (p.ndim - 1)), "units") for name, p in params.items()}
    actual = run(sharded, *(put(tree, "data") for tree in (inputs, arrays, flags)))
    same(actual, run(params, inputs, arrays, flags))


# --- shard_map: the user divides the work ------------------------------------------------------------------------------

SHARDED = cases.Case(
    batch=(8,),
    mask=True,
    resets=True,
    initial_state=True,
    input_dropout_mask=True,
    recurrent_dropout_mask=True,
    go_backwards=True,
)
CASES = {
    "everything": SHARDED,
    "inputs only": cases.Case(batch=(8,)),
    "learned state": cases.Case(batch=(8,), learned_state=True, resets=True, seq_lengths=True, activation="silu"),
    "last output": dataclasses.replace(SHARDED, return_sequences=False, go_backwards=False),
}


def data_parallel(case, mesh, **options):
    """(gradients under shard_map, gradients without), of the loss summed over all devices."""
    params, inputs, arrays, flags, fixed = case.problem()

    def loss(params, inputs, arrays, flags):
        return total(simple_rnn(params, inputs, **arrays, **flags, **fixed, **options))

    grads = jax.value_and_grad(loss, argnums=(0, 1, 2))

    def inside(*arguments):
        value, of_all = grads(*arguments)
        return jax.lax.psum(value, "data"), of_all

    arguments = jax.tree.map(jnp.asarray, (params, inputs, arrays, flags))
    specs = (P(), P("data"), P("data"), P("data"))
    # Parameters are replicated: what comes out for them is summed over the devices already, and P() says so.
    mapped = jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=(P(), specs[:3]))
    return jax.jit(mapped)(*arguments), jax.jit(grads)(*arguments)


@both
@pytest.mark.parametrize("name", cases.thinned(CASES, 2))
def test_shard_map(name, implementation, mesh):
    same(*data_parallel(CASES[name], mesh, implementation=implementation))


@pytest.mark.parametrize("remat", cases.thinned([True, False], 1))
@pytest.mark.parametrize("tuning", [cases.SMALL_BLOCKS, cases.COPIED_BLOCKS], ids=["in place", "copied"])
@pytest.mark.slow
def test_shard_map_of_several_blocks(remat, tuning, mesh):
    small = Scan(remat, tuning)
    same(*data_parallel(SHARDED, mesh, implementation=small))
    same(*data_parallel(CASES["last output"], mesh, implementation=small))


def test_shard_map_with_gradients_summed_by_hand(mesh):
    """check_vma=False: every device has its own gradients, and the user's psum adds them up."""
    params, inputs, *_ = CASES["inputs only"].problem()
    grads = jax.grad(lambda params, inputs: total(simple_rnn(params, inputs)))

    def inside(params, inputs):
        return jax.lax.psum(grads(params, inputs), "data")

    mapped = jax.shard_map(inside, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)
    same(jax.jit(mapped)(params, inputs), jax.jit(grads)(params, inputs))


@pytest.mark.slow
def test_gradient_of_shard_map(mesh):
    """Differentiated from outside, with a layer, masks and lengths inside."""
    layer = Bidirectional(SimpleRNN(4, return_sequences=True, dtype=jnp.float64, param_dtype=jnp.float64))
    rng = np.random.default_rng(0)
    inputs, lengths = rng.normal(size=(8, 5, 3)), rng.integers(0, 6, 8)
    variables = jax.tree.map(lambda p: p + 0.1, layer.init(jax.random.key(0), inputs))

    def apply(variables, inputs, lengths):
        return layer.apply(variables, inputs, seq_lengths=lengths)

    rows = P("data")
    mapped = jax.shard_map(apply, mesh=mesh, in_specs=(P(), rows, rows), out_specs=rows)

    def grads(function):
        return jax.jit(jax.value_and_grad(lambda v, x: total(function(v, x, lengths)), argnums=(0, 1)))(
            variables, inputs
        )

    same(grads(mapped), grads(apply))


ANY_CELL = {
    "GRU": (RNN(nn.GRUCell(4)), flax_srnn.nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))),
    "LSTM": (
        RNN(nn.LSTMCell(4), return_sequences=True, zero_output_for_mask=True, return_state=True),
        flax_srnn.nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)), return_sequences=True, go_backwards=True),
    ),
    "two": (
        Bidirectional(RNN([nn.LSTMCell(4), SimpleRNNCell(4)], return_sequences=True)),
        flax_srnn.nnx.RNN([nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)), nnx.GRUCell(4, 4, rngs=nnx.Rngs(1))]),
    ),
}


FAMILIES = [("linen", P("data")), ("linen", P()), ("nnx", P("data")), ("nnx", P())]


@pytest.mark.parametrize("kind", cases.thinned(FAMILIES, 2), ids=str)
@pytest.mark.parametrize("name", cases.thinned(ANY_CELL, 1))
def test_shard_map_of_any_cell(name, kind, mesh):
    """Masks, resets and gradients; and a batch that is the same everywhere, with parameters that are not."""
    family, rows = kind
    layer = ANY_CELL[name][family == "nnx"]
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(8, 5, 3)).astype(np.float32)
    flags = {"mask": rng.random((8, 5)) < 0.7, "resets": rng.random((8, 5)) < 0.3}
    if family == "linen":
        params, apply = layer.init(jax.random.key(0), inputs), layer.apply
    else:
        graph, params = nnx.split(layer)

        def apply(params, *arguments, **flags):
            return nnx.merge(graph, params)(*arguments, **flags)

    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)

    def loss(params, inputs, flags):
        return total(apply(params, inputs, **flags))

    grads = jax.value_and_grad(loss, argnums=(0, 1))

    of_params = jax.value_and_grad(loss)

    if rows == P():  # every device has parameters of its own
        scales = jnp.linspace(0.5, 2.0, 4, dtype=jnp.float32)

        def each(scale, params):
            returned = of_params(jax.tree.map(lambda p: p * scale[0], params), inputs, flags)
            return jax.tree.map(lambda x: x[None], returned)

        mapped = jax.shard_map(each, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
        actual = jax.jit(mapped)(scales, params)
        expected = [of_params(jax.tree.map(lambda p, s=s: p * s, params), inputs, flags) for s in scales]
        assert_close(actual, jax.tree.map(lambda *x: jnp.stack(x), *expected), 1e-5)
        return

    def inside(params, inputs, flags):
        value, of_all = grads(params, inputs, flags)
        return jax.lax.psum(value, "data"), of_all

    mapped = jax.shard_map(inside, mesh=mesh, in_specs=(P(), rows, rows), out_specs=(P(), (P(), rows)))
    assert_close(jax.jit(mapped)(params, inputs, flags), jax.jit(grads)(params, inputs, flags), 1e-5)
