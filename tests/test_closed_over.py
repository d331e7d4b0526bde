"""Activations that hold arrays: right values, right gradients of what they hold, nothing stale, nothing compiled twice."""

import dataclasses
import functools

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from programs import assert_close

import flax_srnn.nnx
from flax_srnn import RNN, Chunked, Scan, SimpleRNN, SimpleRNNCell, cell_step, init_params, simple_rnn, truncated_rnn

EVERYTHING = functools.partial(cases.EVERYTHING, reset_state=True)
HELD = {"slope": 0.3, "gain": np.linspace(0.5, 1.5, 4)}
FLAGS, KEY = jnp.array([True, False, True, False]), jax.random.key(3)


def holding(held):
    """An activation that holds a number and a vector with gradients, and flags, a key and a NumPy array without."""

    def act(a):
        gain, flags, offset = (jnp.broadcast_to(x, a.shape) for x in (held["gain"], FLAGS, np.arange(4) / 10))
        noise = jax.random.uniform(KEY, dtype=a.dtype)
        return jnp.where(a > 0, jnp.tanh(a * gain), held["slope"] * a) + noise * jnp.where(flags, 0.2, 0.0) + offset

    return act


def by_hand(params, x, act, flags, d_x, d_h, initial_state, reset_state, order):
    """(final state, outputs) of a batch, one `cell_step` after the other: the activation is called as it is."""
    state, outputs = initial_state, {}
    for t in order:
        state = jnp.where(flags["resets"][:, t, None], reset_state, state)
        used = flags["mask"][:, t, None]
        masks = {"input_dropout_mask": d_x, "recurrent_dropout_mask": d_h}
        new, _ = cell_step(params, state, jnp.where(used, x[:, t], 0), activation=act, **masks)
        state = outputs[t] = jnp.where(used, new, state)
    return state, jnp.stack([outputs[t] for t in sorted(outputs)], 1)


def losses(case, implementation, activation=holding):
    """(loss of ours, loss by hand, arguments), functions of what has gradients, the last what the activation holds."""
    problem = case.problem()
    options = {**problem.options, "keep_order": True, "return_sequences": True}
    del options["activation"]

    def total(final, outputs):
        return jnp.sin(final + 1).sum() + jnp.cos(0.7 * outputs).sum()

    def ours(params, inputs, arrays, held):
        given = {**arrays, **problem.flags, **options, "activation": activation(held)}
        return total(*simple_rnn(params, inputs, implementation=implementation, **given))

    def hand(params, inputs, arrays, held):
        d_x, d_h = arrays["input_dropout_mask"], arrays["recurrent_dropout_mask"]
        states = arrays["initial_state"], arrays["reset_state"]
        x = jnp.swapaxes(inputs, 0, 1) if case.time_major else inputs
        order = range(case.sizes[0])[:: -1 if case.go_backwards else 1]
        final, outputs = by_hand(params, x, activation(held), problem.flags, d_x, d_h, *states, order)
        return total(final, outputs)

    return ours, hand, jax.tree.map(jnp.asarray, (*problem[:3], HELD))


of_all = functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
CASES = [
    (EVERYTHING(go_backwards=True, time_major=True), Scan(tuning=cases.SMALL_BLOCKS)),
    (EVERYTHING(), Scan(tuning=cases.COPIED_BLOCKS)),
    (EVERYTHING(), "autodiff"),
    (EVERYTHING(batch=(1,)), "scan"),
    (EVERYTHING(batch=(1,), time_major=True), "autodiff"),
    (EVERYTHING(batch=(1,)), Chunked(pieces=3)),
    (EVERYTHING(go_backwards=True), Chunked(pieces=3)),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pair", cases.thinned(CASES, 1))
def test_values_and_gradients_are_those_of_the_loop_by_hand(pair):
    ours, hand, arguments = losses(*pair)
    with jax.disable_jit():
        expected = of_all(hand)(*arguments)
    assert_close(jax.jit(of_all(ours))(*arguments), expected, 1e-10)


@pytest.mark.usefixtures("x64")
def test_gradients_are_slopes():
    ours, _, arguments = losses(EVERYTHING(), "scan")
    ours = jax.jit(ours)
    grads = jax.grad(ours, 3)(*arguments)
    for name, steps in {"slope": [1e-5], "gain": 1e-5 * np.eye(4)}.items():
        for step in steps:
            ahead, behind = (ours(*arguments[:3], {**HELD, name: HELD[name] + way * step}) for way in (1, -1))
            np.testing.assert_allclose((grads[name] * (step != 0)).sum(), (ahead - behind) / 2e-5, rtol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", cases.thinned([Scan(remat=True, tuning=cases.SMALL_BLOCKS), "chunked"], 0))
def test_second_derivatives_and_recomputed_states(implementation):
    problem = cases.Case(sizes=(6, 2, 4), mask=True, return_sequences=False).problem()

    def ours(how, params, held):
        given = {**problem.flags, "implementation": how, "return_sequences": False}
        return jnp.sin(simple_rnn(params, problem.inputs, activation=holding(held), **given)[0]).sum()

    def second(how):
        def slope(params, held):
            grads = jax.grad(lambda params, held: ours(how, params, held), (0, 1))(params, held)
            return sum(jnp.sin(x).sum() for x in jax.tree.leaves(grads))

        return jax.jit(jax.grad(slope, (0, 1)))(problem.params, HELD)

    assert_close(second(implementation), second("autodiff"), 1e-9)


@pytest.mark.usefixtures("x64")
def test_a_masked_step_gives_nothing():
    """Not even where the derivative with respect to what is held is infinite, as √(a - start) at a masked step is here."""

    def rooted(start):
        return lambda a: jnp.sqrt(a - start)

    params = {"kernel": np.ones((1, 1)), "recurrent_kernel": np.zeros((1, 1))}
    x, mask = np.array([[[3.0], [1.0], [5.0]]]), np.array([[True, False, True]])

    def total(start):
        return simple_rnn(params, x, mask=mask, activation=rooted(start))[1].sum()

    # √(3 - start) twice, as the masked step shows it again, and √(5 - start).
    np.testing.assert_allclose(jax.grad(total)(0.0), -1 / 3**0.5 - 1 / (2 * 5**0.5), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_rows_own_in_pieces():
    """Every row of the batch has a slope of its own, in all pieces of the parallel solver."""
    params, x = init_params(jax.random.key(0), 3, 4, dtype=jnp.float64), np.random.default_rng(0).normal(size=(2, 9, 3))
    slopes = jnp.array([[0.1], [0.6]])

    def total(slopes, implementation):
        def act(a):
            return jnp.where(a > 0, jnp.tanh(a), slopes * a)

        return jnp.sin(simple_rnn(params, x, activation=act, implementation=implementation)[1]).sum()

    in_pieces, expected = (jax.value_and_grad(total)(slopes, how) for how in (Chunked(pieces=3), "autodiff"))
    assert_close(in_pieces, expected, 1e-10)


# --- under transformations ---------------------------------------------------------------------------------------------

PARAMS, X = init_params(jax.random.key(0), 3, 4), jax.random.normal(jax.random.key(1), (8, 5, 3))
MASK = np.arange(5) < np.arange(8)[:, None]


def leaky(slope):
    return lambda a: jnp.where(a > 0, jnp.tanh(a), slope * a)


def loss(slope, params=PARAMS, x=X, mask=MASK, **options):
    return jnp.sin(simple_rnn(params, x, mask=mask, activation=leaky(slope), **options)[1]).sum()


@pytest.mark.slow
def test_vmap_over_what_is_held():
    slopes = jnp.array([0.1, 0.2])
    each = jnp.stack([jax.grad(loss)(slope) for slope in slopes])
    assert_close(jax.vmap(jax.grad(loss))(slopes), each, 1e-5)
    assert_close(jax.grad(lambda s: jax.vmap(loss)(s).sum())(slopes), each, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rows", cases.thinned([True, False], 1), ids=["a row's own", "replicated"])
@pytest.mark.parametrize("implementation", cases.thinned(["scan", "autodiff"], 1))
def test_shard_map(rows, implementation):
    """What is held varies over the mesh as the inputs do, or is the same everywhere."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    slope = jnp.linspace(0.1, 0.8, 8)[:, None] if rows else jnp.array(0.3)

    def function(slope, params, x, mask):
        return jax.grad(loss, argnums=(0, 1, 2))(slope, params, x, mask, implementation=implementation)

    data = P("data")
    specs = data if rows else P(), P(), data, data
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=specs[:3])
    arguments = slope, PARAMS, X, MASK
    assert_close(jax.jit(mapped)(*arguments), function(*arguments), 1e-5)


def test_the_parallel_solver_asks_for_what_varies():
    """A sum over devices inside its loop, which each device leaves at another time, would never end."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))

    def mapped(function):
        data = P("data")
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(P(), data, data), out_specs=P()))

    def replicated(slope, x, mask):
        return jax.lax.psum(loss(slope, x=x, mask=mask, implementation="chunked"), "data")

    def varying(slope, x, mask):
        slope = slope + 0 * x[0, 0, 0]
        return replicated(slope, x, mask)

    arguments = jnp.array(0.3), X, MASK
    with pytest.raises(ValueError, match=r"`implementation`: 'chunked' inside shard_map .*pcast"):
        mapped(replicated)(*arguments)
    value, grad = jax.value_and_grad(mapped(varying))(*arguments)
    assert_close((value, grad), jax.value_and_grad(loss)(0.3), 1e-5)


@pytest.mark.slow
def test_truncated_backpropagation():
    def total(function, slope):
        return jnp.sin(function(PARAMS, X, mask=MASK, activation=leaky(slope))[1]).sum()

    def pieces(params, x, mask, activation):
        state, outputs = jnp.zeros((8, 4)), []
        for start in (0, 2, 4):
            now = slice(start, start + 2)
            state, y = simple_rnn(params, x[:, now], mask=mask[:, now], initial_state=state, activation=activation)
            state = jax.lax.stop_gradient(state)
            outputs.append(y)
        return state, jnp.concatenate(outputs, 1)

    truncated = functools.partial(truncated_rnn, every=2)
    actual, expected = (jax.value_and_grad(functools.partial(total, f))(0.3) for f in (truncated, pieces))
    assert_close(actual, expected, 1e-5)


@pytest.mark.slow
def test_exported_with_a_symbolic_batch():
    (rows,) = jax.export.symbolic_shape("b")
    slope = jnp.array(0.3)  # concrete: a constant of the exported program
    gradient = jax.grad(lambda x, mask, params: loss(slope, params, x, mask), argnums=(0, 2))
    x, mask = (jax.ShapeDtypeStruct((rows, 5, *shape), dtype) for shape, dtype in (((3,), jnp.float32), ((), bool)))
    exported = jax.export.export(jax.jit(gradient))(x, mask, jax.eval_shape(lambda: PARAMS))
    assert_close(exported.call(X, MASK, PARAMS), gradient(X, MASK, PARAMS), 1e-5)


# --- layers ------------------------------------------------------------------------------------------------------------


class PReLU(nnx.Module):
    """As in the documentation: a module with a parameter."""

    def __init__(self):
        self.slope = nnx.Param(jnp.array(0.1))

    def __call__(self, a):
        return jnp.where(a > 0, a, self.slope[...] * a)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.slow
def test_an_nnx_module_is_trained_with_its_layer(dtype):
    act = PReLU()
    layer = flax_srnn.nnx.SimpleRNN(3, 4, activation=act, dtype=dtype, rngs=nnx.Rngs(0))
    grads = nnx.grad(lambda layer: layer(X).astype(jnp.float32).sum())(layer)
    params = {name: getattr(layer, name)[...] for name in ("kernel", "recurrent_kernel", "bias")}

    def by_function(slope):
        cast = jax.tree.map(lambda p: p.astype(dtype or p.dtype), params)
        return simple_rnn(cast, X.astype(dtype or X.dtype), activation=lambda a: jnp.where(a > 0, a, slope * a))[
            0
        ].sum()

    assert_close(grads["activation"]["slope"][...], jax.grad(by_function)(0.1), 1e-5 if dtype is None else 1e-2)
    assert grads["kernel"].shape == (3, 4)


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, a):
        return jnp.tanh(a * jnp.broadcast_to(self.param("scale", nn.initializers.ones, (4,)), a.shape))


def test_a_linen_module_is_refused_and_its_function_trained():
    module = Scaled()
    for make in (SimpleRNN, SimpleRNNCell):
        with pytest.raises(TypeError, match=r"`activation` .* flax.linen .*module\.apply\(variables, a\)"):
            make(4, activation=module)
    variables = {"params": {"scale": jnp.linspace(0.5, 2.0, 4)}}
    kept = {"params": PARAMS}

    def total(variables, wrap):
        return wrap(4, lambda a: module.apply(variables, a)).apply(kept, X).sum()

    grads = [
        jax.grad(total)(variables, wrap)["params"]["scale"]
        for wrap in (SimpleRNN, lambda units, act: RNN(SimpleRNNCell(units, act)))
    ]
    assert_close(grads[0], grads[1], 1e-5)
    scale = variables["params"]["scale"]
    by_function = jax.grad(lambda s: simple_rnn(PARAMS, X, activation=lambda a: jnp.tanh(a * s[None]))[0].sum())(scale)
    assert_close(grads[0], by_function, 1e-5)


# --- nothing stale, nothing compiled twice -----------------------------------------------------------------------------


def first(activation, **options):
    return simple_rnn(PARAMS, X, activation=activation, **options)[1]


@dataclasses.dataclass(eq=False)
class Attribute:
    """What it computes depends on attributes: a Python number, an array, a NumPy array, a compiled function, a rule."""

    number: float = 0.1
    array: jax.Array = dataclasses.field(default_factory=lambda: jnp.ones(4))
    numpy: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(4, np.float32))
    compiled: object = jax.jit(lambda a: a)
    surrogate: float = 1.0

    def __call__(self, a):
        array, numpy = (jnp.broadcast_to(x, a.shape) for x in (self.array, self.numpy))
        return surrogate(self.compiled(jnp.where(a > 0, a, self.number * a) * array * numpy), self.surrogate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def surrogate(a, width):
    return jnp.tanh(a)


surrogate.defvjp(lambda a, width: (jnp.tanh(a), a), lambda width, a, g: (g * jnp.exp(-jnp.square(a / width)),))
HIDDEN = jnp.full(4, 0.7)
CHANGES = {
    "number": 0.9,
    "array": jnp.full(4, 0.5),
    "numpy": np.full(4, 0.5, np.float32),
    "compiled": jax.jit(lambda a: a * jnp.broadcast_to(HIDDEN, a.shape)),
    "surrogate": 3.0,
}


@pytest.mark.parametrize("implementation", cases.thinned(["scan", "autodiff"], 1))
@pytest.mark.parametrize("name", cases.thinned(CHANGES, 3))
def test_a_changed_attribute_is_seen(name, implementation):
    def gradient(act):
        return jax.grad(lambda x: simple_rnn(PARAMS, x, activation=act, implementation=implementation)[1].sum())(X)

    act = Attribute()
    before = first(act, implementation=implementation), gradient(act)
    setattr(act, name, CHANGES[name])
    after = first(act, implementation=implementation), gradient(act)
    assert_close(after, (first(Attribute(**{name: CHANGES[name]})), gradient(Attribute(**{name: CHANGES[name]}))), 1e-6)
    assert np.abs(after[1] - before[1]).max() > 0.01


def test_two_compiled_functions_of_the_same_text_are_two():
    """What each closes over is a constant inside, which JAX does not print."""
    inner = [jax.jit(lambda a, scale=scale: a * jnp.broadcast_to(scale, a.shape)) for scale in (HIDDEN, 2 * HIDDEN)]
    one, two = (first(lambda a, inner=inner: inner(a)) for inner in inner)
    assert_close((one, two), (first(lambda a: a * 0.7), first(lambda a: a * 1.4)), 1e-5)


def test_a_changed_parameter_and_a_changed_nonlocal_are_seen():
    act, slope = PReLU(), 0.1

    def nonlocal_slope(a):
        return jnp.where(a > 0, a, slope * a)

    layer = flax_srnn.nnx.SimpleRNN(3, 4, activation=act, rngs=nnx.Rngs(0))
    params = layer._params()
    for slope in (0.1, 0.9):
        act.slope[...] = jnp.array(slope)
        expected = simple_rnn(params, X, activation=flax_srnn.activations.LeakyReLU(slope))[0]
        assert_close(layer(X), expected, 1e-6)
        assert_close(simple_rnn(params, X, activation=nonlocal_slope)[0], expected, 1e-6)


def compilations(caplog, call):
    caplog.clear()
    with jax.log_compiles():
        call()
    return sum(record.getMessage().startswith("Compiling ") for record in caplog.records)


@pytest.mark.parametrize("implementation", cases.thinned([None, "autodiff", "chunked"], 1))
def test_a_program_is_compiled_once(caplog, implementation):
    act, other = Attribute(), Attribute()
    call = functools.partial(first, implementation=implementation)
    jax.clear_caches()
    assert compilations(caplog, lambda: call(act)) > 0
    assert compilations(caplog, lambda: call(act)) == 0
    act.array = act.array / 2
    assert compilations(caplog, lambda: call(act)) == 0, "an array is an operand"
    assert compilations(caplog, lambda: call(other)) == 0, "another object, the same program"
    act.number = 0.2
    assert compilations(caplog, lambda: call(act)) > 0, "a number is part of the program"


def test_a_rule_that_holds_traced_arrays_is_refused():
    def loss(width):
        @jax.custom_jvp
        def act(a):
            return jnp.tanh(a)

        act.defjvp(lambda primals, tangents: (act(*primals), width * tangents[0]))
        return first(act).sum()

    with pytest.raises(TypeError, match=r"`activation` has a derivative rule .* arguments of the function"):
        jax.jit(loss)(0.5)
