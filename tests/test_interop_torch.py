"""`from_torch` and `to_torch` against the real `torch.nn.RNN` and `RNNCell`, and their refusals, which need no torch.

LSTM and GRU are in test_interop_gates.py, files in test_interop_safetensors.py.

`pytest tests/test_interop_torch.py -n0 -s` prints the worst error of outputs and states, there and back.
"""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_srnn import cell_step, simple_rnn
from flax_srnn.interop.torch import from_torch, to_torch

F, U, B, T = 3, 5, 4, 7


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: pip install 'flax-srnn[torch]'")


def _state_dict(rng, layers=2, bidirectional=False, use_bias=True, dtype=np.float32):
    """A state dict of torch.nn.RNN(F, U, layers), of NumPy arrays."""
    state = {}
    for i, ending in itertools.product(range(layers), ["", "_reverse"] if bidirectional else [""]):
        features = F if i == 0 else U * (1 + bidirectional)
        state[f"weight_ih_l{i}{ending}"] = rng.normal(size=(U, features))
        state[f"weight_hh_l{i}{ending}"] = rng.normal(size=(U, U))
        if use_bias:
            state[f"bias_ih_l{i}{ending}"] = rng.normal(size=U)
            state[f"bias_hh_l{i}{ending}"] = rng.normal(size=U)
    return {name: value.astype(dtype) for name, value in state.items()}


def _close(worst, what, actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-6, rtol=1e-6)
        worst[what] = max(worst.get(what, 0), np.abs(a - e).max())


def _run(layers, x, initial_states, activation):
    """The whole stack with this library's own recurrence: outputs and torch's h_n, (layers x directions, B, U)."""
    states = iter(initial_states)
    final_states = []
    for layer in layers:
        directions = [layer] if "kernel" in layer else [layer["forward_layer"], layer["backward_layer"]]
        outputs = []
        for params, backwards in zip(directions, [False, True], strict=False):
            state, y = simple_rnn(
                params, x, initial_state=next(states), activation=activation, go_backwards=backwards, keep_order=True
            )
            final_states.append(state)
            outputs.append(y)
        x = jnp.concatenate(outputs, axis=-1)
    return x, jnp.stack(final_states)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_same_outputs_and_states_as_torch_and_back(torch, worst, nonlinearity, layers, bidirectional, use_bias):
    options = {"num_layers": layers, "nonlinearity": nonlinearity, "bias": use_bias, "bidirectional": bidirectional}
    torch.manual_seed(layers)
    module = torch.nn.RNN(F, U, batch_first=True, **options)
    x, h0 = torch.randn(B, T, F), torch.randn(layers * (1 + bidirectional), B, U)
    expected, expected_states = (value.detach().numpy() for value in module(x, h0))

    params = from_torch(module)
    assert len(params) == layers
    outputs, states = _run(params, x.numpy(), h0.numpy(), nonlinearity)
    _close(worst, "torch's RNN, here", (outputs, states), (expected, expected_states))

    # The state dict says the same as the module, and the way back leads to a module with the same outputs.
    jax.tree.map(np.testing.assert_array_equal, params, from_torch(module.state_dict()))
    again = torch.nn.RNN(F, U, batch_first=True, **options)
    again.load_state_dict(to_torch(params))
    returned = [value.detach().numpy() for value in again(x, h0)]
    _close(worst, "torch's RNN, there and back", returned, (expected, expected_states))
    jax.tree.map(np.testing.assert_array_equal, params, from_torch(again))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn_cell(torch, worst, nonlinearity, use_bias):
    module = torch.nn.RNNCell(F, U, bias=use_bias, nonlinearity=nonlinearity)
    x, h = torch.randn(B, F), torch.randn(B, U)
    expected = module(x, h).detach().numpy()
    [params] = from_torch(module)
    state, output = cell_step(params, h.numpy(), x.numpy(), activation=nonlinearity)
    _close(worst, "torch's RNNCell, here", [output], [expected])
    np.testing.assert_array_equal(state, output)

    again = torch.nn.RNNCell(F, U, bias=use_bias, nonlinearity=nonlinearity)
    again.load_state_dict(to_torch([params], cell=True))
    _close(worst, "torch's RNNCell, there and back", [again(x, h).detach().numpy()], [expected])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_survive_the_round_trip(torch, dtype):
    module = torch.nn.RNN(F, U, num_layers=2, bias=False).to(getattr(torch, dtype))
    with jax.enable_x64(dtype == "float64"):
        params = from_torch(module)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
        state = to_torch(params)
    for name, tensor in module.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)


def test_arrays_and_tensors_are_copies(torch):
    module = torch.nn.RNN(1, 16)  # with one feature the transposed kernel is contiguous and JAX could alias it
    params = from_torch(module)
    before = jax.tree.map(np.array, params)
    state = to_torch(params)
    with torch.no_grad():
        for tensor in (*module.parameters(), *state.values()):
            tensor.add_(1.0)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_refuses_other_torch_modules(torch):
    with pytest.raises(ValueError, match=r"Projections \(proj_size\)"):
        from_torch(torch.nn.LSTM(F, U, proj_size=2))
    with pytest.raises(ValueError, match=r"unknown: \['0.bias_hh_l0'.* There is one under prefix='0'\."):
        from_torch(torch.nn.Sequential(torch.nn.RNN(F, U), torch.nn.Linear(U, 1)))
    with pytest.raises(ValueError, match=r"unknown: \['bias', 'weight'\]"):
        from_torch(torch.nn.Linear(F, U))
    with pytest.raises(ValueError, match=r"weight_ih_l0: expected a tensor of .* got complex64"):
        from_torch({name: value.to(torch.complex64) for name, value in torch.nn.RNN(F, U).state_dict().items()})
    with pytest.raises(ValueError, match=r"weight_ih_l0: expected a dense tensor with values, got .* on meta"):
        from_torch(torch.nn.RNN(F, U, device="meta"))
    with pytest.raises(TypeError, match=r"expected a torch module, .* got <class"):
        from_torch(torch.nn.RNN)


# What follows needs no torch.


@pytest.mark.parametrize("bidirectional", [False, True])
def test_reads_numpy_arrays_under_torch_names(bidirectional):
    state = _state_dict(np.random.default_rng(0), layers=2, bidirectional=bidirectional)
    reordered = dict(sorted(state.items(), reverse=True))
    layers = from_torch(reordered)
    for i, ending in itertools.product(range(2), ["", "_reverse"] if bidirectional else [""]):
        params = layers[i]["backward_layer" if ending else "forward_layer"] if bidirectional else layers[i]
        assert list(params) == ["kernel", "recurrent_kernel", "bias"]
        np.testing.assert_array_equal(params["kernel"], state[f"weight_ih_l{i}{ending}"].T)
        np.testing.assert_array_equal(params["recurrent_kernel"], state[f"weight_hh_l{i}{ending}"].T)
        np.testing.assert_array_equal(params["bias"], state[f"bias_ih_l{i}{ending}"] + state[f"bias_hh_l{i}{ending}"])


def test_layers_are_in_order_of_number():
    state = _state_dict(np.random.default_rng(0), layers=12)
    layers = from_torch(state)
    np.testing.assert_array_equal(layers[2]["kernel"], state["weight_ih_l2"].T)
    np.testing.assert_array_equal(layers[10]["kernel"], state["weight_ih_l10"].T)


def _without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


def _with(state, name, value):
    return state | {name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "missing: .*'weight_ih_l0'"),
        (lambda s: _without(s, "weight_hh_l1"), r"missing: \['weight_hh_l1'\], unknown: \[\]"),
        (lambda s: _without(s, "bias_hh_l0"), r"missing: \['bias_hh_l0'\]"),
        (lambda s: _without(s, "bias_ih_l1", "bias_hh_l1"), r"missing: \['bias_hh_l1', 'bias_ih_l1'\]"),
        (lambda s: _without(s, "weight_ih_l0"), "missing: .*, unknown: "),
        (lambda s: _with(s, "weight_ih_l0_reverse", s["weight_ih_l0"]), "missing: .*'weight_hh_l0_reverse'"),
        (lambda s: _with(s, "extra", s["bias_ih_l0"]), r"unknown: \['extra'\]"),
        (lambda s: _with(s, 3, s["bias_ih_l0"]), r"unknown: \['3'\]"),
        (lambda s: {"rnn." + name: value for name, value in s.items()}, r"There is one under prefix='rnn'\."),
        (lambda s: _with(s, "weight_hr_l0", np.ones((2, U), np.float32)), r"Projections \(proj_size\)"),
        (lambda s: {"weight_ih": s["weight_ih_l0"]}, r"missing: \['weight_hh'\]"),
        (lambda s: _with(s, "weight_ih_l1", s["weight_ih_l0"]), r"weight_ih_l1: expected shape \(5, 5\), got \(5, 3\)"),
        (
            lambda s: _with(s, "weight_hh_l0", np.ones((U, 4), np.float32)),
            r"weight_hh_l0: expected shape \(U, U\) of an RNN.* got \(5, 4\)",
        ),
        (lambda s: _with(s, "weight_hh_l1", np.ones((U, 1, U), np.float32)), r"weight_hh_l1: .* got \(5, 1, 5\)"),
        (lambda s: _with(s, "weight_hh_l0", np.float32(1.0)), r"weight_hh_l0: expected shape .* got \(\)"),
        (lambda s: _with(s, "weight_hh_l0", np.ones((2 * U, U), np.float32)), r"\(4U, U\) of an LSTM, got \(10, 5\)"),
        (
            lambda s: _with(s, "weight_hh_l0", np.ones((0, 0), np.float32)),
            r"weight_hh_l0: expected shape .* got \(0, 0\)",
        ),
        (
            lambda s: _with(s, "weight_hh_l1", np.ones((4 * U, U), np.float32)),
            "weight_hh_l1: .* this is an RNN of 5 units",
        ),
        (lambda s: _with(s, "weight_ih_l0", np.float32(1.0)), r"weight_ih_l0: expected shape \(5, 1\), got \(\)"),
        (lambda s: _with(s, "bias_hh_l1", np.ones((1,), np.float32)), r"bias_hh_l1: expected shape \(5,\), got \(1,\)"),
        (lambda s: _with(s, "bias_ih_l0", np.ones(U, np.int32)), "bias_ih_l0: expected a tensor .* got int32"),
        (lambda s: _with(s, "bias_ih_l0", [0.0] * U), "bias_ih_l0: expected a tensor .* got list"),
        (lambda s: _with(s, "bias_ih_l0", None), "bias_ih_l0: expected a tensor .* got NoneType"),
    ],
)
def test_refuses_what_is_not_the_state_of_one_rnn(change, message):
    with pytest.raises(ValueError, match=message):
        from_torch(change(_state_dict(np.random.default_rng(0))))


@pytest.mark.parametrize("value", [None, 3, [np.ones((2, 2))], dict])
def test_refuses_what_is_no_module(value):
    with pytest.raises(TypeError, match=r"x: expected a torch module, its state dict or the path of a .* got"):
        from_torch(value)


@pytest.mark.parametrize("prefix", ["decoder.rnn", "decoder.rnn."])
def test_a_prefix_picks_one_of_a_model(prefix):
    rng = np.random.default_rng(1)
    parts = {
        "encoder.rnn.": _state_dict(rng),
        "decoder.rnn.": _state_dict(rng, 1),
        "decoder.rnn2.": _state_dict(rng, 3),
    }
    model = {start + name: value for start, state in parts.items() for name, value in state.items()}
    model |= {"decoder.linear.weight": np.ones((2, U)), "steps": np.array(3)}
    jax.tree.map(np.testing.assert_array_equal, from_torch(model, prefix=prefix), from_torch(parts["decoder.rnn."]))
    names = r"There is one under prefix='decoder\.rnn', prefix='decoder\.rnn2', prefix='encoder\.rnn'\."
    for wrong in ("", "decoder", "rnn", "encoder.rnn.weight_ih_l0"):
        with pytest.raises(ValueError, match=f"under the prefix '{wrong}.*missing: .*{names}"):
            from_torch(model, prefix=wrong)


def test_a_prefix_is_a_string():
    with pytest.raises(TypeError, match="prefix: expected a string, got None"):
        from_torch(_state_dict(np.random.default_rng(0)), prefix=None)


def _layer(features=F, units=U, use_bias=True, **extra):
    bias = {"bias": jnp.zeros(units)} if use_bias else {}
    return {"kernel": jnp.ones((features, units)), "recurrent_kernel": jnp.ones((units, units))} | bias | extra


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"expected a list .* got \[\]"),
        (_layer(), "expected a list of one parameter mapping per layer"),
        ([_layer(initial_state=jnp.zeros(U))], "torch has no learned initial state"),
        ([{"kernel": jnp.ones((F, U))}], "lacks .'recurrent_kernel'"),
        ([_layer(), _layer(U, use_bias=False)], "a 'bias' in all layers and directions or in none"),
        ([{"forward_layer": _layer(), "backward_layer": _layer(use_bias=False)}], "a 'bias' in all layers"),
        ([_layer(), {"forward_layer": _layer(U), "backward_layer": _layer(U)}], "all layers bidirectional or none"),
        ([{"forward_layer": _layer()}], "lacks .'kernel'"),
        ([_layer(), _layer(U, 4)], r"weight_ih_l1: expected shape \(5, 5\), got \(4, 5\)"),
        ([_layer(), _layer(4)], r"weight_ih_l1: expected shape \(5, 5\), got \(5, 4\)"),
        ([{"forward_layer": _layer(), "backward_layer": _layer(2)}], "weight_ih_l0_reverse: expected shape"),
        ([_layer(bias=jnp.zeros(U, int))], "bias_ih_l0: expected a tensor of float16, .*, got int"),
    ],
)
def test_to_torch_refuses_what_no_torch_rnn_holds(layers, message):
    with pytest.raises(ValueError, match=message):
        to_torch(layers)


@pytest.mark.parametrize("layers", [[jnp.ones((3, 5))], [{"forward_layer": _layer(), "backward_layer": None}]])
def test_to_torch_refuses_what_are_no_parameters(layers):
    with pytest.raises(TypeError, match="`params` must be a mapping"):
        to_torch(layers)


@pytest.mark.parametrize("layers", [[_layer(), _layer(U)], [{"forward_layer": _layer(), "backward_layer": _layer()}]])
def test_a_cell_is_one_layer_in_one_direction(layers):
    with pytest.raises(ValueError, match=r"a cell of torch \(cell=True\) is one layer in one direction"):
        to_torch(layers, cell=True)


def test_biases_are_left_out_only_if_they_are_zeros(torch):
    state = to_torch([_layer(), _layer(U)], bias=False)
    torch.nn.RNN(F, U, 2, bias=False).load_state_dict(state)
    assert to_torch([_layer(use_bias=False)], bias=False).keys() == {"weight_ih_l0", "weight_hh_l0"}
    with pytest.raises(ValueError, match="bias: False leaves out biases of zeros only, and bias_ih_l1 is not zero"):
        to_torch([_layer(), _layer(U, bias=jnp.ones(U))], bias=False)


def test_reading_does_not_import_torch(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # any `import torch` now raises
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(from_torch(_state_dict(np.random.default_rng(0)))) == 2
    with pytest.raises(ImportError, match="torch"):
        to_torch([_layer()])
