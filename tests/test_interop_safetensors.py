"""`from_torch` of `.safetensors` files: genuine ones, and those that a stranger damaged or made up. None needs torch but one.

Some hundred damaged files are tried in every run; for more, and a summary: FLAX_SRNN_FUZZ=20000 pytest
tests/test_interop_safetensors.py -k damaged -n0 -s
"""

import collections
import json
import os
import random
import signal
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strangers import SECONDS, damaged_at, refused

from flax_srnn.__main__ import main
from flax_srnn.interop.torch import from_torch

safetensors = pytest.importorskip(
    "safetensors", reason="safetensors is not installed: pip install 'flax-srnn[interop]'"
)
pytestmark = pytest.mark.usefixtures("nothing_is_written_and_nothing_hangs")

FUZZ = int(os.environ.get("FLAX_SRNN_FUZZ", "400"))
F, U = 3, 5


def _state(start="", rows=4, dtype=np.float32):
    """A state dict of torch.nn.LSTM(F, U), or of another kind by its number of gates."""
    rng = np.random.default_rng(rows)
    shapes = {"weight_ih": (rows * U, F), "weight_hh": (rows * U, U), "bias_ih": (rows * U,), "bias_hh": (rows * U,)}
    return {f"{start}{part}_l0": rng.normal(size=shape).astype(dtype) for part, shape in shapes.items()}


def _written(path, header, data=b""):
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _saved(path, state, dtype="F32"):
    """A genuine file, as the format's description says; `state` holds the bytes of that dtype."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in state.items():
        offsets = [len(data), len(data) + value.nbytes]
        header[name] = {"dtype": dtype, "shape": value.shape, "data_offsets": offsets}
        data += value.tobytes()
    return _written(path, header, data)


@pytest.mark.parametrize("as_path", [str, lambda path: path])
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_a_file_is_read_as_the_arrays_are_without_torch(inside, rows, as_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # any `import torch` now raises
    path = _saved(inside / "a.safetensors", _state(rows=rows))
    jax.tree.map(np.testing.assert_array_equal, from_torch(as_path(path)), from_torch(_state(rows=rows)))


@pytest.mark.parametrize("code", ["F16", "BF16", "F64"])
def test_dtypes(inside, x64, code):
    dtype = {"F16": jnp.float16, "BF16": jnp.bfloat16, "F64": np.float64}[code]
    path = _saved(inside / "a.safetensors", _state(rows=3, dtype=dtype), code)
    layers, expected = from_torch(path), from_torch(_state(rows=3, dtype=dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(layers)} == {jnp.dtype(dtype)}
    jax.tree.map(np.testing.assert_array_equal, layers, expected)


def test_files_of_the_package_and_of_torch(inside):
    from safetensors.flax import save_file

    path = inside / "flax.safetensors"
    save_file({name: jnp.asarray(value, jnp.bfloat16) for name, value in _state().items()}, path)
    expected = from_torch(_state(dtype=jnp.bfloat16))
    jax.tree.map(np.testing.assert_array_equal, from_torch(path), expected)

    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'flax-srnn[torch]'")
    from safetensors.torch import save_model

    model = torch.nn.Sequential(torch.nn.GRU(F, U, 2, bidirectional=True), torch.nn.Linear(2 * U, 1)).bfloat16()
    save_model(model, str(inside / "torch.safetensors"))
    read = from_torch(inside / "torch.safetensors", prefix="0")
    jax.tree.map(np.testing.assert_array_equal, read, from_torch(model[0]))


def test_a_prefix_reads_nothing_else(inside):
    """A model's other tensors may be of kinds that nothing here knows, and large."""
    size = 2**26
    state = {"rnn." + name: value for name, value in _state(rows=1).items()}
    path = _saved(inside / "a.safetensors", state)
    header_size = int.from_bytes(path.read_bytes()[:8], "little")
    header, data = json.loads(path.read_bytes()[8 : 8 + header_size]), path.read_bytes()[8 + header_size :]
    header["embedding"] = {"dtype": "F8_E4M3", "shape": [size], "data_offsets": [len(data), len(data) + size]}
    _written(path, header, data)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)  # a hole, which takes no room on the disk
    tracemalloc.start()
    try:
        [layer] = from_torch(path, prefix="rnn")
        assert tracemalloc.get_traced_memory()[1] < size / 8
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(layer["kernel"], _state(rows=1)["weight_ih_l0"].T)
    refused(path, "There is one under prefix='rnn'", from_torch)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_any_number_is_read(inside, rows):
    """NumPy would warn of some sums."""
    state = _state(rows=rows)
    for i, pair in enumerate([(np.inf, -np.inf), (3e38, 3e38), (np.nan, 1)]):
        state["bias_ih_l0"][i], state["bias_hh_l0"][i] = pair
    [layer] = from_torch(_saved(inside / "a.safetensors", state))
    bias = {1: layer.get("bias"), 3: layer.get("ir", {}).get("bias"), 4: layer.get("hi", {}).get("bias")}[rows]
    np.testing.assert_array_equal(bias[:3], [np.nan, np.inf, np.nan])


def _entry(dtype="F32", shape=(1,), start=0, end=4):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({}, b"", "missing: .*'weight_ih_l0'"),
        (b"[" * 100_000, b"", "header"),
        ({"weight_ih_l0": _entry(shape=[2**40], end=2**42)}, bytes(4), "header"),
        ({"weight_ih_l0": _entry(shape=[-1])}, bytes(4), "header"),
        ({"weight_ih_l0": _entry()}, bytes(8), "header"),
        ({"weight_ih": _entry("F8_E4M3", [1, 4]), "weight_hh": _entry("F8_E4M3", [1, 4], 4, 8)}, bytes(8), "F8_E4M3"),
        ({"weight_ih": _entry("I32", [1, 1]), "weight_hh": _entry("I32", [1, 1], 4, 8)}, bytes(8), "got I32"),
        ({"weight_ih": _entry(shape=[0, 2**62], end=0), "weight_hh": _entry(shape=[1, 1])}, bytes(4), "big|dimension"),
        (
            {"weight_ih": _entry(shape=[1] * 70), "weight_hh": _entry(shape=[1, 1], start=4, end=8)},
            bytes(8),
            "dimension",
        ),
    ],
)
def test_made_up_files_are_refused(inside, header, data, message):
    refused(_written(inside / "a.safetensors", header, data), message, from_torch)


@pytest.mark.parametrize("content", [b"", b"1234567", (2**63).to_bytes(8, "little"), b"PK\x03\x04" + bytes(100)])
def test_other_files_are_refused(inside, content):
    path = inside / "a.safetensors"
    path.write_bytes(content)
    refused(path, "header", from_torch)


def test_what_is_no_such_file_is_refused(inside):
    with pytest.raises(FileNotFoundError) as caught:
        from_torch(inside / "a.safetensors")
    assert caught.value.filename == str(inside / "a.safetensors")
    with pytest.raises(ValueError, match=r"model\.pt: expected the path of a \.safetensors file; .* weights_only=True"):
        from_torch("model.pt")
    (inside / "folder.safetensors").mkdir()
    refused(inside / "folder.safetensors", "is not a regular file", from_torch)
    os.mkfifo(inside / "pipe.safetensors")
    refused(inside / "pipe.safetensors", "is not a regular file", from_torch)
    with pytest.raises(ValueError, match="null"):
        from_torch("a\0.safetensors")


def test_without_the_package(inside, monkeypatch, capsys):
    path = _saved(inside / "a.safetensors", _state())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs safetensors: pip install 'flax-srnn\[interop\]'"):
        from_torch(path)
    monkeypatch.setattr("flax_srnn.__main__._runs", lambda parsed: from_torch(path))
    assert main(["runs"]) == 2
    assert "safetensors is not installed: pip install 'flax-srnn[interop]'" in capsys.readouterr().err


def _damaged(rng, data):
    """One kind of damage, in the header more often than not."""
    data = bytearray(data)
    header = 8 + int.from_bytes(data[:8], "little")
    at = rng.randrange(8 if rng.random() < 0.2 else header if rng.random() < 0.7 else len(data))
    length = rng.choice([1, 2, 4, 8, 32])
    values = [bytes(length), b"\xff" * length, b"9" * length, rng.randbytes(length)]
    return damaged_at(rng, data, at, length, values)


def test_damaged_files(inside):
    """A result or a ValueError with the path, soon, and never anything else."""
    path = inside / "a.safetensors"
    genuine = _saved(path, _state("rnn.")).read_bytes()
    expected = from_torch(path, prefix="rnn")
    outcomes = collections.Counter()
    for number in range(FUZZ):
        path.write_bytes(_damaged(random.Random(number), genuine))
        signal.alarm(SECONDS)
        try:
            layers = from_torch(path, prefix="rnn")
        except ValueError as error:
            outcomes["refused" if str(error).startswith(f"{path}: ") else "refused without the path"] += 1
        except BaseException as error:
            raise AssertionError(f"number {number}: {error!r}") from error
        else:
            outcomes["read"] += 1
            assert jax.tree.map(jnp.shape, layers) == jax.tree.map(jnp.shape, expected), number
    print(f"\n{FUZZ} files: {dict(outcomes)}")
    assert outcomes["refused"] + outcomes["read"] == FUZZ
    assert min(outcomes.values()) > FUZZ / 20
