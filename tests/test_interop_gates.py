"""LSTM and GRU: the gates of fused arrays against the formulas, and `from_torch` and `to_torch` against torch itself.

`pytest tests/test_interop_gates.py -n0 -s` prints the worst error of outputs and states, there and back.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_srnn import RNN, Bidirectional
from flax_srnn.interop import gates
from flax_srnn.interop.torch import from_torch, to_torch

F, U, B, T = 3, 5, 4, 7
CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}
KINDS = pytest.mark.parametrize("kind", CELLS)


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def close(worst, what, actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-6, rtol=1e-6)
        worst[what] = max(worst.get(what, 0), np.abs(a - e).max())


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# --- the gates, by the formulas; no torch ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["ifgo", "oigf"])
def test_an_lstm_computes_what_its_fused_arrays_say(worst, order):
    kernel, recurrent, bias = drawn(F, 4 * U), drawn(U, 4 * U), drawn(4 * U)
    x, h, c = drawn(B, F), drawn(B, U), drawn(B, U, seed=1)
    params = gates.split_lstm(kernel, recurrent, bias, order)
    (new_c, new_h), _ = nn.LSTMCell(U).apply({"params": params}, (c, h), x)

    a = dict(zip(order, np.split(x @ kernel + h @ recurrent + bias, 4, axis=1), strict=True))
    expected_c = sigmoid(a["f"]) * c + sigmoid(a["i"]) * np.tanh(a["g"])
    close(worst, "an LSTM's step", (new_c, new_h), (expected_c, sigmoid(a["o"]) * np.tanh(expected_c)))

    for joined, given in zip(gates.joined_lstm(params, order), (kernel, recurrent, bias), strict=True):
        np.testing.assert_array_equal(joined, given)


@pytest.mark.parametrize("order", ["rzn", "zrn"])
def test_a_gru_computes_what_its_fused_arrays_say(worst, order):
    kernel, recurrent = drawn(F, 3 * U), drawn(U, 3 * U)
    input_bias, recurrent_bias = drawn(3 * U), drawn(3 * U, seed=1)
    x, h = drawn(B, F), drawn(B, U)
    params = gates.split_gru(kernel, recurrent, input_bias, recurrent_bias, order)
    new_h, _ = nn.GRUCell(U).apply({"params": params}, h, x)

    of_x = dict(zip(order, np.split(x @ kernel + input_bias, 3, axis=1), strict=True))
    of_h = dict(zip(order, np.split(h @ recurrent + recurrent_bias, 3, axis=1), strict=True))
    r, z = sigmoid(of_x["r"] + of_h["r"]), sigmoid(of_x["z"] + of_h["z"])
    close(worst, "a GRU's step", [new_h], [(1 - z) * np.tanh(of_x["n"] + r * of_h["n"]) + z * h])

    back = gates.joined_gru(params, order)
    np.testing.assert_array_equal(back[0], kernel)
    np.testing.assert_array_equal(back[1], recurrent)
    of_n = np.repeat([gate == "n" for gate in order], U)
    np.testing.assert_array_equal(back[2], np.where(of_n, input_bias, input_bias + recurrent_bias))
    np.testing.assert_array_equal(back[3], np.where(of_n, recurrent_bias, 0))
    again = gates.split_gru(*back, order)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_gru_without_recurrent_bias_has_none_in_hn():
    """Keras's with `reset_after=False`."""
    params = gates.split_gru(drawn(F, 3 * U), drawn(U, 3 * U), drawn(3 * U), None, "zrn")
    assert list(params["hn"]) == ["kernel"]
    kernel, recurrent, bias, none = gates.joined_gru(params, "zrn")
    np.testing.assert_array_equal(kernel, drawn(F, 3 * U))
    np.testing.assert_array_equal(recurrent, drawn(U, 3 * U))
    np.testing.assert_array_equal(bias, drawn(3 * U))
    assert none is None


def test_no_bias_is_zeros():
    lstm = gates.split_lstm(drawn(F, 4 * U), drawn(U, 4 * U), None)
    gru = gates.split_gru(drawn(F, 3 * U), drawn(U, 3 * U), None, np.zeros(3 * U, np.float32), "zrn")
    for params, cell in ((lstm, nn.LSTMCell(U)), (gru, nn.GRUCell(U))):
        carry = cell.initialize_carry(jax.random.key(0), (B, F))
        made = jax.eval_shape(cell.init, jax.random.key(0), carry, drawn(B, F))["params"]
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), made
        )
        assert not any(parts["bias"].any() for parts in params.values() if "bias" in parts)


def test_joining_reads_boxed_and_jax_arrays():
    params = gates.split_lstm(drawn(F, 4 * U), drawn(U, 4 * U), drawn(4 * U))
    boxed = jax.tree.map(lambda leaf: nn.Partitioned(jnp.asarray(leaf), names=(None,) * leaf.ndim), params)
    for joined, expected in zip(gates.joined_lstm(boxed), gates.joined_lstm(params), strict=True):
        np.testing.assert_array_equal(joined, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": drawn(F, 4 * U + 1)}, r"kernel: expected shape \(F, 4U\) with U = 5 .* got \(3, 21\)"),
        ({"kernel": drawn(4 * U)}, r"kernel: expected shape \(F, 4U\) .* got \(20,\)"),
        ({"recurrent": drawn(4 * U, U)}, r"recurrent: expected shape \(U, 4U\), got \(20, 5\)"),
        ({"recurrent": drawn(0, 0)}, r"recurrent: expected shape \(U, 4U\), got \(0, 0\)"),
        ({"recurrent": np.float32(1)}, r"recurrent: expected shape \(U, 4U\), got \(\)"),
        ({"bias": drawn(U)}, r"bias: expected shape \(20,\), got \(5,\)"),
        ({"bias": drawn(2, 4 * U)}, r"bias: expected shape \(20,\), got \(2, 20\)"),
        ({"bias": np.zeros(4 * U, int)}, "bias: expected an array of floats, got an array of shape .* int"),
        ({"kernel": "x"}, "kernel: expected an array of floats, got 'x'"),
        ({"order": "ifco"}, "order: expected the letters of 'ifgo' in some order, got 'ifco'"),
        ({"order": None}, "order: expected the letters of 'ifgo' in some order, got None"),
    ],
)
def test_what_is_not_an_lstm_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gates.split_lstm(**{"kernel": drawn(F, 4 * U), "recurrent": drawn(U, 4 * U), "bias": drawn(4 * U)} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": drawn(F, 4 * U)}, r"kernel: expected shape \(F, 3U\) with U = 5"),
        ({"recurrent": drawn(U, 4 * U)}, r"recurrent: expected shape \(U, 3U\), got \(5, 20\)"),
        ({"input_bias": drawn(2, 3 * U)}, r"input_bias: expected shape \(15,\), got \(2, 15\)"),
        ({"recurrent_bias": drawn(U)}, r"recurrent_bias: expected shape \(15,\), got \(5,\)"),
        ({"order": "zrh"}, "order: expected the letters of 'rzn' in some order, got 'zrh'"),
    ],
)
def test_what_is_not_a_gru_is_refused(change, message):
    arrays = {"kernel": drawn(F, 3 * U), "recurrent": drawn(U, 3 * U)}
    biases = {"input_bias": drawn(3 * U), "recurrent_bias": drawn(3 * U), "order": "zrn"}
    with pytest.raises(ValueError, match=message):
        gates.split_gru(**arrays | biases | change)


def _replaced(params, gate, **parts):
    return params | {gate: params[gate] | parts}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {}, r"expected those of one flax.linen.GRUCell, .* got \{\}"),
        (lambda p: [p], "expected those of one flax.linen.GRUCell, .* got "),
        (lambda p: p | {"x": p["ir"]}, "expected those of one flax.linen.GRUCell"),
        (lambda p: p | {"hn": None}, "expected those of one flax.linen.GRUCell, .*'hn': 'None"),
        (lambda p: _replaced(p, "hr", bias=drawn(U)), "expected those of one flax.linen.GRUCell"),
        (lambda p: _replaced(p, "iz", kernel=drawn(2, U)), r"iz/kernel: expected shape \(3, 5\), got \(2, 5\)"),
        (lambda p: _replaced(p, "hz", kernel=drawn(U, 2)), r"hz/kernel: expected shape \(5, 5\), got \(5, 2\)"),
        (lambda p: _replaced(p, "hn", bias=drawn(1)), r"hn/bias: expected shape \(5,\), got \(1,\)"),
        (lambda p: _replaced(p, "ir", kernel=drawn(U)), r"ir/kernel: expected shape \(F, U\), got \(5,\)"),
        (lambda p: _replaced(p, "in", bias=np.zeros(U, int)), "in/bias: expected an array of floats, got .* int"),
    ],
)
def test_what_are_not_a_grus_parameters_is_refused(change, message):
    params = gates.split_gru(drawn(F, 3 * U), drawn(U, 3 * U), drawn(3 * U), drawn(3 * U), "rzn")
    with pytest.raises(ValueError, match=message):
        gates.joined_gru(change(params), "rzn")
    with pytest.raises(ValueError, match=r"expected those of one flax\.linen\.LSTMCell"):
        gates.joined_lstm(params)


def test_to_torch_refuses_a_gru_that_resets_before_its_product():
    params = gates.split_gru(drawn(F, 3 * U), drawn(U, 3 * U), drawn(3 * U), None, "rzn")
    with pytest.raises(ValueError, match="a GRU without a 'bias' in 'hn' resets before its product"):
        to_torch([params])


def test_to_torch_refuses_layers_of_several_kinds():
    gru = gates.split_gru(drawn(F, 3 * U), drawn(U, 3 * U), drawn(3 * U), drawn(3 * U), "rzn")
    lstm = gates.split_lstm(drawn(U, 4 * U), drawn(U, 4 * U), drawn(4 * U))
    with pytest.raises(ValueError, match=r"weight_ih_l1: expected shape \(15, 5\), got \(20, 5\); .* is a GRU of 5"):
        to_torch([gru, lstm])


@KINDS
def test_numpy_arrays_under_torch_names(kind):
    """Which rows of torch's arrays go where; without torch."""
    letters = {"LSTM": "ifgo", "GRU": "rzn"}[kind]
    rows = len(letters) * U
    state = {"weight_ih_l0": drawn(rows, F), "weight_hh_l0": drawn(rows, U)}
    state |= {"bias_ih_l0": drawn(rows), "bias_hh_l0": drawn(rows, seed=1)}
    [params] = from_torch(state)
    for i, gate in enumerate(letters):
        own = {name: value[i * U : (i + 1) * U] for name, value in state.items()}
        np.testing.assert_array_equal(params[f"i{gate}"]["kernel"], own["weight_ih_l0"].T)
        np.testing.assert_array_equal(params[f"h{gate}"]["kernel"], own["weight_hh_l0"].T)
        if gate == "n":
            np.testing.assert_array_equal(params["in"]["bias"], own["bias_ih_l0"])
            np.testing.assert_array_equal(params["hn"]["bias"], own["bias_hh_l0"])
        else:
            bias = params[("h" if kind == "LSTM" else "i") + gate]["bias"]
            np.testing.assert_array_equal(bias, own["bias_ih_l0"] + own["bias_hh_l0"])


# --- against torch -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: pip install 'flax-srnn[torch]'")


def torchs(state):
    """torch's states, each as a tuple of arrays: (h,) or (h, c)."""
    return tuple(part.detach().numpy() for part in (state if isinstance(state, tuple) else (state,)))


def carry(state):
    """Flax's carry of such a tuple: h, or (c, h)."""
    return state[::-1] if len(state) == 2 else state[0]


def stack(cell, layers, x, states):
    """The whole stack with this library's `RNN` and `Bidirectional`: outputs and torch's states, (layers x directions, B, U)."""
    carries = [carry(tuple(part[i] for part in states)) for i in range(len(states[0]))]
    layer, finals = RNN(cell, return_sequences=True, return_state=True), []
    for params in layers:
        if "forward_layer" in params:
            x, *new = Bidirectional(layer).apply({"params": params}, x, [carries.pop(0), carries.pop(0)])
        else:
            x, *new = layer.apply({"params": params}, x, carries.pop(0))
        finals += new
    by_part = [final[::-1] if isinstance(final, tuple) else [final] for final in finals]
    return x, *(np.stack(part) for part in zip(*by_part, strict=True))


@KINDS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_same_outputs_and_states_as_torch_and_back(torch, worst, kind, layers, bidirectional, bias):
    options = {"num_layers": layers, "bias": bias, "bidirectional": bidirectional, "batch_first": True}
    torch.manual_seed(layers)
    module = getattr(torch.nn, kind)(F, U, **options)
    x = torch.randn(B, T, F)
    states = torch.randn(2 if kind == "LSTM" else 1, layers * (1 + bidirectional), B, U)
    given = tuple(states) if kind == "LSTM" else states[0]
    y, final = module(x, given)
    expected = y.detach().numpy(), *torchs(final)

    params = from_torch(module)
    assert len(params) == layers
    close(worst, f"torch's {kind}, here", stack(CELLS[kind](U), params, x.numpy(), states.numpy()), expected)

    # The state dict says the same as the module, and the way back leads to a module with the same outputs.
    jax.tree.map(np.testing.assert_array_equal, params, from_torch(module.state_dict()))
    again = getattr(torch.nn, kind)(F, U, **options)
    again.load_state_dict(to_torch(params, bias=bias), strict=True)
    y, final = again(x, given)
    close(worst, f"torch's {kind}, there and back", (y.detach().numpy(), *torchs(final)), expected)
    jax.tree.map(np.testing.assert_array_equal, params, from_torch(again))


@KINDS
@pytest.mark.parametrize("bias", [True, False])
def test_cells(torch, worst, kind, bias):
    torch.manual_seed(0)
    module = getattr(torch.nn, kind + "Cell")(F, U, bias=bias)
    x, states = torch.randn(B, F), torch.randn(2 if kind == "LSTM" else 1, B, U)
    given = tuple(states) if kind == "LSTM" else states[0]
    expected = torchs(module(x, given))

    [params] = from_torch(module)
    new, y = CELLS[kind](U).apply({"params": params}, carry(states.numpy()), x.numpy())
    close(worst, f"torch's {kind}Cell, here", new[::-1] if kind == "LSTM" else [new], expected)
    np.testing.assert_allclose(y, expected[0], atol=1e-6)

    again = getattr(torch.nn, kind + "Cell")(F, U, bias=bias)
    again.load_state_dict(to_torch([params], cell=True, bias=bias), strict=True)
    close(worst, f"torch's {kind}Cell, there and back", torchs(again(x, given)), expected)


@KINDS
def test_flaxs_own_rnn_and_time_major_inputs(torch, worst, kind):
    torch.manual_seed(0)
    module = getattr(torch.nn, kind)(F, U)  # batch_first=False
    x = torch.randn(T, B, F)
    y, final = module(x)
    [params] = from_torch(module)
    layer = nn.RNN(CELLS[kind](U), time_major=True, return_carry=True)
    new, outputs = layer.apply({"params": {"cell": params}}, x.numpy())
    states = new[::-1] if kind == "LSTM" else [new]
    expected = y.detach().numpy(), *(part[0] for part in torchs(final))
    close(worst, f"torch's {kind}, in flax.linen.RNN", (outputs, *states), expected)


def test_parts_of_a_model(torch):
    """A whole model of three kinds, one after the other by their prefixes."""
    torch.manual_seed(0)
    inner = torch.nn.ModuleDict({"rnn": torch.nn.GRU(F, U, num_layers=2), "out": torch.nn.Linear(U, 1)})
    model = torch.nn.Sequential(torch.nn.LSTM(F, U), inner, torch.nn.LSTMCell(F, U), torch.nn.RNN(U, 2))
    for prefix, part in {"0": model[0], "1.rnn": inner["rnn"], "2.": model[2], "3": model[3]}.items():
        jax.tree.map(np.testing.assert_array_equal, from_torch(model, prefix=prefix), from_torch(part))
    names = r"prefix='0', prefix='1\.rnn', prefix='2', prefix='3'\."
    for prefix in ("", "1"):
        with pytest.raises(ValueError, match=f"There is one under {names}"):
            from_torch(model.state_dict(), prefix=prefix)


@KINDS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_survive_the_round_trip(torch, kind, dtype):
    module = getattr(torch.nn, kind)(F, U, bias=False).to(getattr(torch, dtype))
    with jax.enable_x64(dtype == "float64"):
        params = from_torch(module)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
        state = to_torch(params, bias=False)
    for name, tensor in module.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)


@KINDS
def test_biases_are_left_out_only_if_they_are_zeros(torch, kind):
    module = getattr(torch.nn, kind)(F, U)
    with pytest.raises(ValueError, match=r"bias: False leaves out biases of zeros only, and bias_ih_l0 is not zero"):
        to_torch(from_torch(module), bias=False)


def test_a_bias_of_hn_alone_is_not_left_out(torch):
    params = gates.split_gru(drawn(F, 3 * U), drawn(U, 3 * U), None, np.repeat(np.float32([0, 0, 1]), U), "rzn")
    with pytest.raises(ValueError, match="and bias_hh_l0 is not zero"):
        to_torch([params], bias=False)
