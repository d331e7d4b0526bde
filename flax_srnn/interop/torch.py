"""PyTorch's `torch.nn.RNN`, `LSTM`, `GRU` and their cells: parameters in and out, from modules, state dicts and safetensors files.

Both libraries compute the same steps; torch transposes the kernels, lays the gates side by side and has two biases:

    torch:  a = x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh      W_ih (G·U, F),  W_hh (G·U, U),  b_ih and b_hh (G·U,)

    G = 1, RNN     h_t = act(a)               this library's names:  kernel = W_ihᵀ, recurrent_kernel = W_hhᵀ, bias = b_ih + b_hh
    G = 3, GRU     the gates r, z, n          Flax's names:          the parameters of `flax.linen.GRUCell`
    G = 4, LSTM    the gates i, f, g, o       Flax's names:          the parameters of `flax.linen.LSTMCell`

torch's LSTM has the state (h, c), Flax's the carry (c, h). Options are not in a state dict: `nonlinearity="relu"` is
`activation="relu"` here, `batch_first=False` is `time_major=True`.
Reading needs no torch: NumPy arrays under torch's names are read as tensors are, and `.safetensors` files by their own package.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_srnn import validation
from flax_srnn.interop import gates

if TYPE_CHECKING:
    import torch

__all__ = ["from_torch", "to_torch"]

# Our name of each direction of a bidirectional layer, and the ending of torch's names for it.
_DIRECTIONS = {"forward_layer": "", "backward_layer": "_reverse"}
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # by their names in safetensors
_KINDS = {1: "an RNN", 3: "a GRU", 4: "an LSTM"}  # by how many gates lie side by side
_GRU_ORDER = "rzn"


def from_torch(x: Any, *, prefix: str = "") -> list[dict[str, Any]]:
    """The parameters of a torch RNN, LSTM, GRU or one of their cells: one entry per layer, first to last.

    Args:
      x: a torch module, its state dict (of tensors, NumPy or JAX arrays), or the path of a `.safetensors` file.
      prefix: of the names to read, where `x` is a whole model: "encoder.rnn" reads "encoder.rnn.weight_ih_l0" and so on.

    Returns:
      Per layer, of an RNN: `{"kernel": (F, U), "recurrent_kernel": (U, U), "bias": (U,)}`, without `"bias"` where torch has
      none. Of an LSTM: the parameters of `flax.linen.LSTMCell(U)`, `{"ii": {"kernel": (F, U)}, "hi": {"kernel": (U, U),
      "bias": (U,)}, ...}`; of a GRU: those of `flax.linen.GRUCell(U)`; with biases of zeros where torch has none. They are
      the variables `{"params": {"cell": entry}}` of `flax.linen.RNN(cell)` and `{"params": entry}` of this library's
      `RNN(cell)`, whose LSTM state is (c, h) where torch's is (h, c).
      A bidirectional layer's entry is `{"forward_layer": params, "backward_layer": params}`; a cell's list has one entry.
      The arrays are copies in torch's dtype (float64 needs `jax_enable_x64`, as everywhere in JAX).

    Raises:
      TypeError: `x` is neither a module nor a mapping nor a path; `prefix` is no string.
      ValueError: under the prefix is not the whole state of one RNN, LSTM, GRU or cell (the message names the prefixes under
        which there is one): missing or unknown names, projections (`proj_size`), wrong shapes, values that are not
        floating-point tensors; the path is of another kind of file, or the file is damaged.
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: a file is to be read and safetensors is not installed.

    Source: the parameters of `torch.nn.RNN`, `torch.nn.LSTM` and `torch.nn.GRU`.

    >>> import numpy as np
    >>> [layer] = from_torch({"weight_ih_l0": np.ones((2, 3)), "weight_hh_l0": np.eye(2),
    ...                       "bias_ih_l0": np.ones(2), "bias_hh_l0": np.ones(2)})
    >>> {name: value.shape for name, value in layer.items()}
    {'kernel': (3, 2), 'recurrent_kernel': (2, 2), 'bias': (2,)}
    >>> print(layer["bias"])
    [2. 2.]
    >>> [cell] = from_torch({"rnn.weight_ih": np.ones((8, 3)), "rnn.weight_hh": np.ones((8, 2))}, prefix="rnn")
    >>> sorted(cell), cell["hf"]["kernel"].shape
    (['hf', 'hg', 'hi', 'ho', 'if', 'ig', 'ii', 'io'], (2, 2))
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a string, got {prefix!r}.")
    if isinstance(x, (str, os.PathLike)):
        return _read_file(os.fspath(x), prefix)
    if not isinstance(x, Mapping):
        if isinstance(x, type) or not hasattr(x, "state_dict"):
            raise TypeError(
                f"x: expected a torch module, its state dict or the path of a .safetensors file, got "
                f"{validation.describe(x)}."
            )
        x = x.state_dict()
    return _read(x, x.__getitem__, prefix)


def to_torch(
    layers: Sequence[Mapping[str, Any]], *, cell: bool = False, bias: bool = True
) -> "dict[str, torch.Tensor]":
    """The state dict of the torch RNN, LSTM or GRU that computes what these layers compute. Needs torch.

    torch adds two biases: `bias_ih` gets ours and `bias_hh` zeros, but for the bias of a GRU's "hn", which is in `bias_hh`.

    Args:
      layers: a list as `from_torch` returns it: all layers of one kind and width, all with or all without bias, all or none
        bidirectional.
      cell: name the tensors as `torch.nn.RNNCell`, `LSTMCell` and `GRUCell` do; for a list of one layer.
      bias: False for a torch module made with `bias=False`: leaves out the biases, which must be zeros. (Flax's LSTM and GRU
        cells always have them. The entry of an RNN may have none, and then there is none to leave out.)

    Returns:
      New tensors on the CPU, in the dtypes given, for `load_state_dict` of
      `torch.nn.RNN(F, U, num_layers=len(layers), bias=..., bidirectional=...)`, or `LSTM` or `GRU`.

    Raises:
      TypeError: an entry is no mapping of arrays.
      ValueError: the list is empty, or one torch module cannot hold these layers; `bias=False` and a bias is not zero.

    Source: the parameters of `torch.nn.RNN`, `torch.nn.LSTM` and `torch.nn.GRU`.

    >>> layer = {"kernel": jnp.ones((3, 2)), "recurrent_kernel": jnp.eye(2)}
    >>> {name: tuple(tensor.shape) for name, tensor in to_torch([layer]).items()}  # doctest: +SKIP
    {'weight_ih_l0': (2, 3), 'weight_hh_l0': (2, 2)}
    """
    if not isinstance(layers, (list, tuple)) or not layers:
        raise ValueError(
            f"layers: expected a list of one parameter mapping per layer, got {validation.describe(layers)}."
        )
    bidirectional = _keys(layers[0]) == set(_DIRECTIONS)
    if any((_keys(layer) == set(_DIRECTIONS)) != bidirectional for layer in layers):
        raise ValueError("layers: torch needs all layers bidirectional or none.")
    if cell and (bidirectional or len(layers) > 1):
        raise ValueError("layers: a cell of torch (cell=True) is one layer in one direction; use cell=False.")
    flat = [layer[direction] for layer in layers for direction in _DIRECTIONS] if bidirectional else layers
    suffixes = [[""]] if cell else _suffixes(len(layers), bidirectional)
    arrays: dict[str, np.ndarray] = {}
    for params, suffix in zip(flat, [suffix for layer in suffixes for suffix in layer], strict=True):
        arrays |= {part + suffix: _array(part + suffix, array) for part, array in _fused(params).items()}
    biases = [name for name in arrays if name.startswith("bias")]
    if biases and 2 * len(biases) != len(arrays):
        raise ValueError("layers: torch needs a 'bias' in all layers and directions or in none.")
    _gates(arrays, suffixes)
    if not bias:
        for name in biases:
            if arrays.pop(name).any():
                raise ValueError(f"bias: False leaves out biases of zeros only, and {name} is not zero; use bias=True.")

    import torch

    # torch cannot read NumPy's bfloat16, whose values float32 holds exactly.
    return {
        name: torch.tensor(
            array.astype(np.float32) if array.dtype.name == "bfloat16" else array,
            dtype=getattr(torch, array.dtype.name),
        )
        for name, array in arrays.items()
    }


def _read_file(path: str, prefix: str) -> list[dict[str, Any]]:
    """`from_torch` of a safetensors file. A stranger's, perhaps: the package checks all sizes against that of the file."""
    if not path.endswith(".safetensors"):
        raise ValueError(
            f"{path}: expected the path of a .safetensors file; of another file, pass what "
            "`torch.load(path, weights_only=True)` returns."
        )
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading a .safetensors file needs safetensors: pip install 'flax-srnn[interop]'", name="safetensors"
        ) from error
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("is not a regular file; expected a .safetensors file.")
        with safetensors.safe_open(path, framework="numpy") as file:

            def value(name: str) -> np.ndarray:
                dtype = file.get_slice(name).get_dtype()
                _check_dtype(name, _DTYPES.get(dtype, dtype))  # NumPy does not have all of them
                return file.get_tensor(name)

            return _read(file.keys(), value, prefix)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read(names: Iterable[Any], value: Callable[[str], Any], prefix: str) -> list[dict[str, Any]]:
    """`from_torch` of a state dict: its names and how to get the value of one."""
    start = prefix if not prefix or prefix.endswith(".") else prefix + "."
    suffixes, parts = _check_names([str(name) for name in names], start)
    arrays = {name: _array(name, value(start + name)) for name in _names(suffixes, parts)}
    count = _gates(arrays, suffixes)

    def params(suffix: str) -> dict[str, Any]:
        kernel, recurrent = arrays["weight_ih" + suffix].T, arrays["weight_hh" + suffix].T
        zeros = np.zeros_like(recurrent[0])
        input_bias, recurrent_bias = (arrays.get(part + suffix, zeros) for part in ("bias_ih", "bias_hh"))
        with np.errstate(all="ignore"):  # numbers from a file may be any, infinities and NaN too, which pass as in JAX
            bias = input_bias + recurrent_bias
        if count == 3:
            made: dict[str, Any] = gates.split_gru(kernel, recurrent, input_bias, recurrent_bias, _GRU_ORDER)
        elif count == 4:
            made = gates.split_lstm(kernel, recurrent, bias)
        else:
            made = {"kernel": kernel, "recurrent_kernel": recurrent}
            if "bias_ih" in parts:
                made["bias"] = bias
        # jnp.array copies, so that torch may go on training its tensors.
        return {name: jax.tree.map(jnp.array, value) for name, value in made.items()}

    return [
        params(layer[0]) if len(layer) == 1 else dict(zip(_DIRECTIONS, map(params, layer), strict=True))
        for layer in suffixes
    ]


def _fused(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """One layer and direction as torch lays it out, by the parts of torch's names; an RNN without bias has none here."""
    input_bias, recurrent_bias = None, None
    if "ii" in _keys(params):
        kernel, recurrent, input_bias = gates.joined_lstm(params)
    elif "ir" in _keys(params):
        kernel, recurrent, input_bias, recurrent_bias = gates.joined_gru(params, _GRU_ORDER)
        if recurrent_bias is None:
            raise ValueError(
                "layers: a GRU without a 'bias' in 'hn' resets before its product; torch's GRU resets after it."
            )
    else:
        weights = validation.weights(params)
        if weights.initial_state is not None:
            raise ValueError(
                "layers: torch has no learned initial state; take 'initial_state' out and pass it as `hx`."
            )
        kernel, recurrent = np.asarray(weights.kernel), np.asarray(weights.recurrent_kernel)
        if weights.bias is not None:
            input_bias = np.asarray(weights.bias)
    tensors = {"weight_ih": kernel.T, "weight_hh": recurrent.T}
    if input_bias is None:
        return tensors
    return tensors | {
        "bias_ih": input_bias,
        "bias_hh": np.zeros_like(input_bias) if recurrent_bias is None else recurrent_bias,
    }


def _suffixes(count: int, bidirectional: bool) -> list[list[str]]:
    """torch's endings of the names of an RNN's tensors: per layer, per direction."""
    endings = _DIRECTIONS.values() if bidirectional else [""]
    return [[f"_l{i}{ending}" for ending in endings] for i in range(count)]


def _names(suffixes: list[list[str]], parts: list[str]) -> list[str]:
    return [part + suffix for layer in suffixes for suffix in layer for part in parts]


def _layout(names: set[str]) -> tuple[list[list[str]], list[str]]:
    """The endings (as `_suffixes`) and the parts that these names should be made of, if they are of one torch module."""
    count = sum(re.fullmatch(r"weight_ih_l\d+", name) is not None for name in names)
    suffixes = _suffixes(max(count, 1), any(name.endswith("_reverse") for name in names))
    if {"weight_ih", "weight_hh"} & names:
        suffixes = [[""]]
    biases = ["bias_ih", "bias_hh"] if any("bias" in name for name in names) else []
    return suffixes, ["weight_ih", "weight_hh", *biases]


def _check_names(names: list[str], start: str) -> tuple[list[list[str]], list[str]]:
    """`_layout` of the names that begin with `start`; refuses any too few or too many and says where there is an RNN."""
    given = {name.removeprefix(start) for name in names if name.startswith(start)}
    suffixes, parts = _layout(given)
    expected = set(_names(suffixes, parts))
    if given != expected:
        missing, unknown = sorted(expected - given), sorted(given - expected)
        modules: dict[str, set[str]] = {}
        for name in names:
            module, _, tensor = name.rpartition(".")
            modules.setdefault(module, set()).add(tensor)
        prefixes = [
            module for module, tensors in modules.items() if module and tensors == set(_names(*_layout(tensors)))
        ]
        hint = "Pass the RNN itself, its state dict or the prefix of its names."
        if any(name.startswith("weight_hr") for name in unknown):
            hint = "Projections (proj_size) have no counterpart here."
        elif prefixes:
            hint = "There is one under " + ", ".join(f"prefix={prefix!r}" for prefix in sorted(prefixes)[:8]) + "."
        raise ValueError(
            f"x: expected exactly the tensors of one torch RNN, LSTM, GRU or cell under the prefix {start!r}; "
            f"missing: {missing[:8]}, unknown: {unknown[:8]}. {hint}"
        )
    return suffixes, parts


def _gates(arrays: Mapping[str, np.ndarray], suffixes: list[list[str]]) -> int:
    """How many gates lie side by side. Refuses shapes that do not make one module.

    The first layer gives F and U and the gates, and every layer reads the one below.
    """
    first = suffixes[0][0]
    recurrent, features = arrays["weight_hh" + first].shape, (1, *arrays["weight_ih" + first].shape)[-1]
    rows, units = recurrent if len(recurrent) == 2 else (0, 0)
    count = rows // max(units, 1)
    if count not in _KINDS or rows != count * units:
        raise ValueError(
            f"weight_hh{first}: expected shape (U, U) of an RNN, (3U, U) of a GRU or (4U, U) of an LSTM, got {recurrent}."
        )
    for layer in suffixes:
        for suffix in layer:
            shapes = {"weight_ih": (rows, features), "weight_hh": (rows, units), "bias_ih": (rows,), "bias_hh": (rows,)}
            for part, shape in shapes.items():
                got = arrays[part + suffix].shape if part + suffix in arrays else shape
                if got != shape:
                    raise ValueError(
                        f"{part}{suffix}: expected shape {shape}, got {got}; by the shape of weight_hh{first} this is "
                        f"{_KINDS[count]} of {units} units."
                    )
        features = units * len(layer)
    return count


def _keys(layer: Any) -> set[Any]:
    return set(layer) if isinstance(layer, Mapping) else set()


def _check_dtype(name: str, dtype: str) -> None:
    if dtype not in _DTYPES.values():
        raise ValueError(f"{name}: expected a tensor of {', '.join(_DTYPES.values())}, got {dtype}.")


def _array(name: str, value: Any) -> np.ndarray:
    """A torch tensor, JAX or NumPy array as a NumPy array of the same dtype."""
    dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    _check_dtype(name, dtype)
    if hasattr(value, "detach"):
        try:
            value = value.detach().cpu()
            # torch cannot write NumPy's bfloat16, whose values float32 holds exactly.
            value = value.float().numpy() if dtype == "bfloat16" else value.numpy()
        except (TypeError, RuntimeError) as error:  # a sparse tensor, or one on torch's device "meta", without values
            raise ValueError(
                f"{name}: expected a dense tensor with values, got {value.layout} on {value.device}."
            ) from error
    return np.asarray(value, jnp.dtype(dtype))
