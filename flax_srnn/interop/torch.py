"""PyTorch's `torch.nn.RNN` and `torch.nn.RNNCell`: parameters in and out.

Both libraries compute the same step; torch transposes the kernels and keeps the bias in two halves:

    torch:  h_t = act(x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh)      kernel           = W_ihᵀ         (F, U)
    here:   h_t = act(x_t K + b + h_{t-1} R)                        recurrent_kernel = W_hhᵀ         (U, U)
                                                                    bias             = b_ih + b_hh   (U,)

Options are not in a state dict: `nonlinearity="relu"` is `activation="relu"` here, `batch_first=False` is `time_major=True`.
Reading needs no torch: NumPy arrays under torch's names (from a safetensors file, say) are read as tensors are.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_srnn import validation

if TYPE_CHECKING:
    import torch

__all__ = ["from_torch", "to_torch"]

Params = dict[str, jax.Array]

# Our name of each direction of a bidirectional layer, and the ending of torch's names for it.
_DIRECTIONS = {"forward_layer": "", "backward_layer": "_reverse"}
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_GATES = {3: "a GRU", 4: "an LSTM"}


def from_torch(module_or_state_dict: Any) -> list[Params | dict[str, Params]]:
    """The parameters of a torch RNN or RNNCell: one entry per layer, first to last.

    Args:
      module_or_state_dict: a `torch.nn.RNN`, a `torch.nn.RNNCell`, or the state dict of one.

    Returns:
      Per layer `{"kernel": (F, U), "recurrent_kernel": (U, U), "bias": (U,)}`, without `"bias"` where torch has none; for
      a bidirectional RNN `{"forward_layer": params, "backward_layer": params}`; for an RNNCell a list of one.
      The arrays are copies in torch's dtype (float64 needs `jax_enable_x64`, as everywhere in JAX).

    Raises:
      TypeError: the argument is neither a module nor a mapping.
      ValueError: it is not the whole state of one RNN or RNNCell: an LSTM or a GRU, projections (`proj_size`), names with
        a prefix, missing or unknown names, wrong shapes, values that are not floating-point tensors.

    >>> import numpy as np
    >>> [layer] = from_torch({"weight_ih_l0": np.ones((2, 3)), "weight_hh_l0": np.eye(2),
    ...                       "bias_ih_l0": np.ones(2), "bias_hh_l0": np.ones(2)})
    >>> {name: value.shape for name, value in layer.items()}
    {'kernel': (3, 2), 'recurrent_kernel': (2, 2), 'bias': (2,)}
    >>> print(layer["bias"])
    [2. 2.]
    """
    state = module_or_state_dict
    if not isinstance(state, Mapping):
        if not hasattr(state, "state_dict"):
            raise TypeError(f"module_or_state_dict: expected a torch module or its state dict, got {state!r}.")
        state = state.state_dict()
    suffixes = _check_names(state)
    arrays = {name: _array(name, value) for name, value in state.items()}
    _check_shapes(arrays, suffixes)

    def params(suffix: str) -> Params:
        # jnp.array copies, so that torch may go on training its tensors.
        kernels = {
            "kernel": jnp.array(arrays["weight_ih" + suffix].T),
            "recurrent_kernel": jnp.array(arrays["weight_hh" + suffix].T),
        }
        if "bias_ih" + suffix not in arrays:
            return kernels
        return kernels | {"bias": jnp.array(arrays["bias_ih" + suffix] + arrays["bias_hh" + suffix])}

    return [
        params(layer[0]) if len(layer) == 1 else dict(zip(_DIRECTIONS, map(params, layer), strict=True))
        for layer in suffixes
    ]


def to_torch(layers: Sequence[Mapping[str, Any]], *, cell: bool = False) -> "dict[str, torch.Tensor]":
    """The state dict of the torch RNN that computes what these layers compute. Needs torch.

    torch adds two biases: `bias_ih` gets ours and `bias_hh` zeros.

    Args:
      layers: a list as `from_torch` returns it: all layers of one width, all with or all without bias, all or none
        bidirectional.
      cell: name the tensors as `torch.nn.RNNCell` does; for a list of one layer.

    Returns:
      New tensors on the CPU, in the dtypes given, for `load_state_dict` of
      `torch.nn.RNN(F, U, num_layers=len(layers), bias=..., bidirectional=...)`.

    Raises:
      TypeError: an entry is no mapping of arrays.
      ValueError: the list is empty, or one torch RNN cannot hold these layers.

    >>> layer = {"kernel": jnp.ones((3, 2)), "recurrent_kernel": jnp.eye(2)}
    >>> {name: tuple(tensor.shape) for name, tensor in to_torch([layer]).items()}  # doctest: +SKIP
    {'weight_ih_l0': (2, 3), 'weight_hh_l0': (2, 2)}
    """
    if not isinstance(layers, (list, tuple)) or not layers:
        raise ValueError(f"layers: expected a list of one parameter mapping per layer, got {layers!r}.")
    bidirectional = _keys(layers[0]) == set(_DIRECTIONS)
    if any((_keys(layer) == set(_DIRECTIONS)) != bidirectional for layer in layers):
        raise ValueError("layers: torch needs all layers bidirectional or none.")
    if cell and (bidirectional or len(layers) > 1):
        raise ValueError("layers: an RNNCell (cell=True) is one layer in one direction; use cell=False.")
    flat = [layer[direction] for layer in layers for direction in _DIRECTIONS] if bidirectional else layers
    weights = [validation.weights(params) for params in flat]
    if any(w.initial_state is not None for w in weights):
        raise ValueError("layers: torch has no learned initial state; take 'initial_state' out and pass it as `hx`.")
    if len({w.bias is None for w in weights}) > 1:
        raise ValueError("layers: torch needs a 'bias' in all layers and directions or in none.")
    suffixes = [[""]] if cell else _suffixes(len(layers), bidirectional)
    arrays = {}
    for w, suffix in zip(weights, [suffix for layer in suffixes for suffix in layer], strict=True):
        arrays["weight_ih" + suffix] = _array("kernel", w.kernel).T
        arrays["weight_hh" + suffix] = _array("recurrent_kernel", w.recurrent_kernel).T
        if w.bias is not None:
            arrays["bias_ih" + suffix] = _array("bias", w.bias)
            arrays["bias_hh" + suffix] = np.zeros_like(arrays["bias_ih" + suffix])
    _check_shapes(arrays, suffixes)

    import torch

    # torch cannot read NumPy's bfloat16, whose values float32 holds exactly.
    return {
        name: torch.tensor(
            array.astype(np.float32) if array.dtype.name == "bfloat16" else array,
            dtype=getattr(torch, array.dtype.name),
        )
        for name, array in arrays.items()
    }


def _suffixes(count: int, bidirectional: bool) -> list[list[str]]:
    """torch's endings of the names of an RNN's tensors: per layer, per direction."""
    endings = _DIRECTIONS.values() if bidirectional else [""]
    return [[f"_l{i}{ending}" for ending in endings] for i in range(count)]


def _check_names(names: Iterable[Any]) -> list[list[str]]:
    """The endings that these names of a state dict should have, as `_suffixes`; refuses any name too few or too many."""
    given = {str(name) for name in names}
    count = sum(re.fullmatch(r"weight_ih_l\d+", name) is not None for name in given)
    suffixes = _suffixes(max(count, 1), any(name.endswith("_reverse") for name in given))
    if {"weight_ih", "weight_hh"} & given:
        suffixes = [[""]]
    parts = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if any("bias" in name for name in given) else [])]
    expected = {part + suffix for layer in suffixes for suffix in layer for part in parts}
    if given != expected:
        missing, unknown = sorted(expected - given), sorted(given - expected)
        hint = "Pass the RNN itself, or take the prefix off the names."
        if any(name.startswith("weight_hr") for name in unknown):
            hint = "Projections (proj_size) have no counterpart here."
        raise ValueError(
            "module_or_state_dict: expected exactly the tensors of one torch.nn.RNN or RNNCell; "
            f"missing: {missing[:8]}, unknown: {unknown[:8]}. {hint}"
        )
    return suffixes


def _check_shapes(arrays: Mapping[str, np.ndarray], suffixes: list[list[str]]) -> None:
    """Refuses shapes that do not make one RNN: the first layer gives F and U, and every layer reads the one below."""
    first = suffixes[0][0]
    features, units = ((1, *arrays[part + first].shape)[-1] for part in ("weight_ih", "weight_hh"))
    gates = (
        _GATES.get(arrays["weight_hh" + first].shape[0] // max(units, 1)) if arrays["weight_hh" + first].ndim else None
    )
    for layer in suffixes:
        for suffix in layer:
            shapes = {
                "weight_ih": (units, features),
                "weight_hh": (units, units),
                "bias_ih": (units,),
                "bias_hh": (units,),
            }
            for part, shape in shapes.items():
                got = arrays[part + suffix].shape if part + suffix in arrays else shape
                if got != shape:
                    hint = f" These are the gates of {gates}, not an RNN." if gates else ""
                    raise ValueError(f"{part}{suffix}: expected shape {shape}, got {got}.{hint}")
        features = units * len(layer)


def _keys(layer: Any) -> set[Any]:
    return set(layer) if isinstance(layer, Mapping) else set()


def _array(name: str, value: Any) -> np.ndarray:
    """A torch tensor, JAX or NumPy array as a NumPy array of the same dtype."""
    dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"{name}: expected a tensor of {', '.join(_DTYPES)}, got {dtype}.")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # torch cannot write NumPy's bfloat16, whose values float32 holds exactly.
        value = value.float().numpy() if dtype == "bfloat16" else value.numpy()
    return np.asarray(value, jnp.dtype(dtype))
