"""The converters for Flax's SimpleCell (Linen and NNX) and Haiku's VanillaRNN, against the real libraries."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flax_srnn import simple_rnn
from flax_srnn.interop import flax as interop_flax
from flax_srnn.interop import haiku as interop_haiku

F, U, B, T = 3, 5, 4, 7


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _random(rng, tree):
    """The same tree with every array random: a zero bias would hide a mistake."""
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype), tree)


def _ours(rng, use_bias=True):
    shapes = {"kernel": (F, U), "recurrent_kernel": (U, U)} | ({"bias": (U,)} if use_bias else {})
    return {name: jnp.asarray(rng.normal(size=shape) / 2, jnp.float32) for name, shape in shapes.items()}


def _assert_same(actual, expected):
    """Two pairs (final state, outputs)."""
    for value, reference in zip(actual, expected, strict=True):
        np.testing.assert_allclose(value, reference, atol=1e-6, rtol=1e-6)


def _data(rng):
    return jnp.asarray(rng.normal(size=(B, T, F)), jnp.float32), jnp.asarray(rng.normal(size=(B, U)), jnp.float32)


def test_linen_simple_cell(rng):
    x, h0 = _data(rng)
    flax_rnn = nn.RNN(nn.SimpleCell(U), return_carry=True)
    flax_params = _random(rng, flax_rnn.init(jax.random.key(0), x)["params"]["cell"])
    params = interop_flax.from_linen(flax_params)
    expected = flax_rnn.apply({"params": {"cell": flax_params}}, x, initial_carry=h0)
    _assert_same(simple_rnn(params, x, initial_state=h0), expected)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, interop_flax.to_linen(params), flax_params))


def test_linen_boxes_stay(rng):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    params = nn.SimpleCell(U, kernel_init=init).init(jax.random.key(0), jnp.zeros(U), jnp.zeros(F))["params"]
    converted = interop_flax.from_linen(params)
    assert converted["kernel"].names == (None, "model")
    assert interop_flax.to_linen(converted)["i"]["kernel"] is params["i"]["kernel"]


def test_nnx_simple_cell(rng):
    x, h0 = _data(rng)
    cell = nnx.SimpleCell(F, U, rngs=nnx.Rngs(0))
    nnx.update(cell, _random(rng, nnx.to_pure_dict(nnx.state(cell, nnx.Param))))
    params = interop_flax.from_nnx(cell)
    _assert_same(simple_rnn(params, x, initial_state=h0), nnx.RNN(cell, return_carry=True)(x, initial_carry=h0))
    for source in (nnx.state(cell), nnx.to_pure_dict(nnx.state(cell))):
        jax.tree.map(np.testing.assert_array_equal, interop_flax.from_nnx(source), params)

    again = nnx.SimpleCell(F, U, rngs=nnx.Rngs(1))
    nnx.update(again, interop_flax.to_nnx(params))
    jax.tree.map(np.testing.assert_array_equal, interop_flax.from_nnx(again), params)


@pytest.mark.parametrize("double_bias", [True, False])
def test_haiku_vanilla_rnn(rng, double_bias):
    x, h0 = _data(rng)

    @hk.without_apply_rng
    @hk.transform
    def haiku_rnn(x, h0):
        outputs, state = hk.dynamic_unroll(hk.VanillaRNN(U, double_bias, name="mine"), x, h0, time_major=False)
        return state, outputs

    haiku_params = _random(rng, haiku_rnn.init(jax.random.key(0), x, h0))
    params = interop_haiku.from_haiku(haiku_params)
    expected = haiku_rnn.apply(haiku_params, x, h0)
    _assert_same(simple_rnn(params, x, initial_state=h0, activation="relu"), expected)

    again = interop_haiku.to_haiku(params, name="mine", double_bias=double_bias)
    assert jax.tree.structure(again) == jax.tree.structure(haiku_params)
    _assert_same(haiku_rnn.apply(again, x, h0), expected)
    jax.tree.map(np.testing.assert_array_equal, interop_haiku.from_haiku(again), params)


def test_without_bias_the_other_library_gets_zeros(rng):
    params = _ours(rng, use_bias=False)
    x, h0 = _data(rng)
    expected = simple_rnn(params, x, initial_state=h0)
    flax_rnn = nn.RNN(nn.SimpleCell(U), return_carry=True)
    _assert_same(flax_rnn.apply({"params": {"cell": interop_flax.to_linen(params)}}, x, initial_carry=h0), expected)
    for bias in (
        interop_flax.to_nnx(params)["dense_i"]["bias"],
        *(leaves["b"] for leaves in interop_haiku.to_haiku(params).values()),
    ):
        np.testing.assert_array_equal(bias, np.zeros(U))


@pytest.mark.parametrize(
    ("read", "change"),
    [
        (interop_flax.from_linen, lambda ours: interop_flax.to_nnx(ours)),
        (interop_flax.from_linen, lambda ours: {"cell": interop_flax.to_linen(ours)}),
        (interop_flax.from_linen, lambda ours: {"params": interop_flax.to_linen(ours)}),
        (interop_flax.from_linen, lambda ours: ours),
        (interop_flax.from_linen, lambda ours: {}),
        (interop_flax.from_linen, lambda ours: None),
        (
            interop_flax.from_linen,
            lambda ours: {"i": {"kernel": ours["kernel"]}, "h": interop_flax.to_linen(ours)["h"]},
        ),
        (interop_flax.from_nnx, lambda ours: interop_flax.to_linen(ours)),
        (interop_flax.from_nnx, lambda ours: nnx.Linear(F, U, rngs=nnx.Rngs(0))),
        (interop_haiku.from_haiku, lambda ours: ours),
        (interop_haiku.from_haiku, lambda ours: {}),
        (interop_haiku.from_haiku, lambda ours: None),
        (
            interop_haiku.from_haiku,
            lambda ours: interop_haiku.to_haiku(ours) | interop_haiku.to_haiku(ours, name="two"),
        ),
        (
            interop_haiku.from_haiku,
            lambda ours: {"gru": {"w_i": ours["kernel"], "w_h": ours["kernel"], "b": ours["bias"]}},
        ),
    ],
)
def test_refuses_other_names(rng, read, change):
    with pytest.raises(
        ValueError, match=r"params: expected those of one (flax.linen.SimpleCell|flax.nnx.S|haiku.V).*, got"
    ):
        read(change(_ours(rng)))


@pytest.mark.parametrize(("name", "shape"), [("kernel", (F, U, 1)), ("recurrent_kernel", (U, F)), ("bias", (1,))])
def test_refuses_wrong_shapes(rng, name, shape):
    wrong = _ours(rng) | {name: jnp.zeros(shape)}
    linen = {"i": {"kernel": wrong["kernel"], "bias": wrong["bias"]}, "h": {"kernel": wrong["recurrent_kernel"]}}
    haiku = {
        "vanilla_rnn/linear": {"w": wrong["kernel"], "b": jnp.zeros(U)},
        "vanilla_rnn/linear_1": {"w": wrong["recurrent_kernel"], "b": wrong["bias"]},
    }
    for convert, value in (
        (interop_flax.from_linen, linen),
        (interop_flax.from_nnx, {"dense_i": linen["i"], "dense_h": linen["h"]}),
        (interop_flax.to_linen, wrong),
        (interop_flax.to_nnx, wrong),
        (interop_haiku.from_haiku, haiku),
        (interop_haiku.to_haiku, wrong),
    ):
        with pytest.raises(ValueError, match=rf"`params\['{name}'\]` must have the shape"):
            convert(value)


def test_refuses_what_the_other_library_cannot_hold(rng):
    learned = _ours(rng) | {"initial_state": jnp.zeros(U)}
    for convert in (interop_flax.to_linen, interop_flax.to_nnx, interop_haiku.to_haiku):
        with pytest.raises(ValueError, match="no learned initial state"):
            convert(learned)
    with pytest.raises(ValueError, match=r"must have the shape \(U, U\) = \(15, 15\)"):  # three gates
        interop_flax.from_nnx(nnx.GRUCell(F, U, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="residual=True"):
        interop_flax.from_nnx(nnx.SimpleCell(F, U, residual=True, rngs=nnx.Rngs(0)))
