"""The gates of LSTM and GRU cells: fused arrays, as Keras and torch store them, and Flax's parameters.

Keras and torch lay the gates of a cell side by side in one array, Flax's cells have a Dense layer for each:

    LSTM  i, f, o = σ(x W_i* + h W_h* + b_h*),  g = tanh(x W_ig + h W_hg + b_hg),  c' = f c + i g,  h' = o tanh(c')
    GRU   r, z = σ(x W_i* + b_i* + h W_h*),  n = tanh(x W_in + b_in + r (h W_hn + b_hn)),  h' = (1 - z) n + z h

`order` says how the gates lie in the fused array, by Flax's letters. An LSTM is "ifgo" in both (Keras calls g c); a GRU is
"zrn" in Keras (z, r, h) and "rzn" in torch. Flax has one bias per sum where the others may have two: what is added is one.

All arrays are NumPy's, of float kinds; anything that `numpy.asarray` reads will do. Nothing is copied where nothing is added.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.core import meta

from flax_srnn import validation

__all__ = ["joined_gru", "joined_lstm", "split_gru", "split_lstm"]

GateParams = dict[str, dict[str, np.ndarray]]

_LSTM, _GRU = "ifgo", "rzn"


def split_lstm(kernel: Any, recurrent: Any, bias: Any, order: str = "ifgo") -> GateParams:
    """The parameters of a `flax.linen.LSTMCell` (or `OptimizedLSTMCell`) out of fused arrays.

    Args:
      kernel: (F, 4U), the gates side by side.
      recurrent: (U, 4U).
      bias: (4U,), the sum if there are two; None for none, which is zeros.
      order: of the gates, the letters of "ifgo".

    Returns:
      `{"ii": {"kernel": (F, U)}, ..., "hi": {"kernel": (U, U), "bias": (U,)}, ...}` for each of i, f, g, o.

    Raises:
      ValueError: shapes that do not fit each other, arrays that are not of floats, another order.

    Source: `flax.linen.LSTMCell`.

    >>> params = split_lstm(np.ones((3, 8)), np.ones((2, 8)), np.arange(8.0))
    >>> print(params["hf"]["bias"], params["ig"]["kernel"].shape)
    [2. 3.] (3, 2)
    """
    letters = _letters(order, _LSTM)
    kernel, recurrent = _kernels(kernel, recurrent, len(letters))
    kernels, recurrents = _split(kernel, letters), _split(recurrent, letters)
    biases = _split(_bias("bias", bias, recurrent), letters)
    inputs: GateParams = {f"i{gate}": {"kernel": kernels[gate]} for gate in letters}
    return inputs | {f"h{gate}": {"kernel": recurrents[gate], "bias": biases[gate]} for gate in letters}


def split_gru(kernel: Any, recurrent: Any, input_bias: Any, recurrent_bias: Any, order: str) -> GateParams:
    """The parameters of a `flax.linen.GRUCell` out of fused arrays.

    Args:
      kernel: (F, 3U), the gates side by side.
      recurrent: (U, 3U).
      input_bias: (3U,), added to the product of the inputs; None for none, which is zeros.
      recurrent_bias: (3U,), added to the product of the state. None where the cell has no place for one, as Keras's GRU with
        `reset_after=False`: "hn" has then no "bias". For a cell that was made without biases, pass zeros.
      order: of the gates, the letters of "rzn"; "rzn" in torch, "zrn" in Keras.

    Returns:
      `{"ir": {"kernel": (F, U), "bias": (U,)}, "hr": {"kernel": (U, U)}, ...}` for each of r, z, n, and "hn" with a "bias".
      The biases of r and z are the sums of both.

    Raises:
      ValueError: shapes that do not fit each other, arrays that are not of floats, another order.

    Source: `flax.linen.GRUCell`.

    >>> params = split_gru(np.ones((3, 6)), np.ones((2, 6)), np.arange(6.0), np.arange(6.0), "rzn")
    >>> print(params["iz"]["bias"], params["in"]["bias"], params["hn"]["bias"])
    [4. 6.] [4. 5.] [4. 5.]
    """
    letters = _letters(order, _GRU)
    kernel, recurrent = _kernels(kernel, recurrent, len(letters))
    kernels, recurrents = _split(kernel, letters), _split(recurrent, letters)
    biases = _split(_bias("input_bias", input_bias, recurrent), letters)
    params: GateParams = {f"i{gate}": {"kernel": kernels[gate], "bias": biases[gate]} for gate in letters}
    params |= {f"h{gate}": {"kernel": recurrents[gate]} for gate in letters}
    if recurrent_bias is not None:
        added = _split(_bias("recurrent_bias", recurrent_bias, recurrent), letters)
        for gate in "rz":
            with np.errstate(
                all="ignore"
            ):  # numbers from a file may be any, infinities and NaN too, which pass as in JAX
                params[f"i{gate}"]["bias"] = biases[gate] + added[gate]
        params["hn"]["bias"] = added["n"]  # inside the product with r, so it stays by itself
    return params


def joined_lstm(params: Mapping[str, Any], order: str = "ifgo") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fused arrays of a `flax.linen.LSTMCell`: the way back of `split_lstm`.

    Args:
      params: the cell's, boxed or not.
      order: of the gates, the letters of "ifgo".

    Returns:
      kernel (F, 4U), recurrent (U, 4U), bias (4U,).

    Raises:
      ValueError: other names, shapes that do not fit each other, arrays that are not of floats, another order.

    Source: `flax.linen.LSTMCell`.

    >>> params = split_lstm(np.ones((3, 8)), np.ones((2, 8)), np.arange(8.0))
    >>> print(joined_lstm(params, "gifo")[2])
    [4. 5. 0. 1. 2. 3. 6. 7.]
    """
    letters = _letters(order, _LSTM)
    expected = {f"i{gate}": ["kernel"] for gate in letters} | {f"h{gate}": ["bias", "kernel"] for gate in letters}
    arrays = _arrays(params, expected, "LSTMCell")
    return (
        _join(arrays, "i", "kernel", letters),
        _join(arrays, "h", "kernel", letters),
        _join(arrays, "h", "bias", letters),
    )


def joined_gru(params: Mapping[str, Any], order: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """The fused arrays of a `flax.linen.GRUCell`: the way back of `split_gru`.

    Args:
      params: the cell's, boxed or not; "hn" with or without "bias".
      order: of the gates, the letters of "rzn"; "rzn" in torch, "zrn" in Keras.

    Returns:
      kernel (F, 3U), recurrent (U, 3U), input_bias (3U,), recurrent_bias (3U,) or None without one. What r and z add is all in
      the input's, and zeros in the other.

    Raises:
      ValueError: other names, shapes that do not fit each other, arrays that are not of floats, another order.

    Source: `flax.linen.GRUCell`.

    >>> params = split_gru(np.ones((3, 6)), np.ones((2, 6)), np.arange(6.0), np.arange(6.0), "rzn")
    >>> print(*joined_gru(params, "zrn")[2:])
    [4. 6. 0. 2. 4. 5.] [0. 0. 0. 0. 4. 5.]
    """
    letters = _letters(order, _GRU)
    expected = {f"i{gate}": ["bias", "kernel"] for gate in letters} | {f"h{gate}": ["kernel"] for gate in letters}
    has_bias = isinstance(params, Mapping) and isinstance(params.get("hn"), Mapping) and "bias" in params["hn"]
    if has_bias:
        expected["hn"] = ["bias", "kernel"]
    arrays = _arrays(params, expected, "GRUCell")
    recurrent_bias = None
    if has_bias:
        zeros = np.zeros_like(arrays["hn"]["bias"])
        recurrent_bias = np.concatenate([arrays["hn"]["bias"] if gate == "n" else zeros for gate in letters])
    return (
        _join(arrays, "i", "kernel", letters),
        _join(arrays, "h", "kernel", letters),
        _join(arrays, "i", "bias", letters),
        recurrent_bias,
    )


def _letters(order: str, gates: str) -> str:
    if not isinstance(order, str) or sorted(order) != sorted(gates):
        raise ValueError(f"order: expected the letters of {gates!r} in some order, got {order!r}.")
    return order


def _kernels(kernel: Any, recurrent: Any, gates: int) -> tuple[np.ndarray, np.ndarray]:
    """Both kernels as arrays whose shapes fit each other."""
    recurrent, kernel = _floats("recurrent", recurrent), _floats("kernel", kernel)
    units = recurrent.shape[0] if recurrent.ndim else 0
    if units == 0 or recurrent.shape != (units, gates * units):
        raise ValueError(f"recurrent: expected shape (U, {gates}U), got {recurrent.shape}.")
    if kernel.ndim != 2 or kernel.shape[1] != gates * units:
        raise ValueError(
            f"kernel: expected shape (F, {gates}U) with U = {units} as in `recurrent`, got {kernel.shape}."
        )
    return kernel, recurrent


def _bias(name: str, bias: Any, recurrent: np.ndarray) -> np.ndarray:
    """The bias as an array, or zeros; `recurrent` has the width that it must have."""
    if bias is None:
        return np.zeros_like(recurrent[0])
    bias, shape = _floats(name, bias), recurrent.shape[1:]
    if bias.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {bias.shape}.")
    return bias


def _split(fused: np.ndarray, letters: str) -> dict[str, np.ndarray]:
    return dict(zip(letters, np.split(fused, len(letters), axis=-1), strict=True))


def _join(arrays: GateParams, side: str, part: str, letters: str) -> np.ndarray:
    return np.concatenate([arrays[side + gate][part] for gate in letters], axis=-1)


def _arrays(params: Any, expected: dict[str, list[str]], cell: str) -> GateParams:
    """The parameters as NumPy arrays, if their names are the expected ones and their shapes fit each other."""

    def names(tree: Any) -> Any:
        return sorted(map(str, tree)) if isinstance(tree, Mapping) else validation.describe(tree)

    given = {name: names(tree) for name, tree in params.items()} if isinstance(params, Mapping) else names(params)
    if given != expected:
        raise ValueError(f"params: expected those of one flax.linen.{cell}, {expected}, got {given}.")
    arrays = {
        name: {part: _floats(f"{name}/{part}", meta.unbox(tree[part])) for part in expected[name]}
        for name, tree in params.items()
    }
    side = next(iter(expected))  # any gate's input kernel gives F and U
    if arrays[side]["kernel"].ndim != 2 or 0 in arrays[side]["kernel"].shape[1:]:
        raise ValueError(f"{side}/kernel: expected shape (F, U), got {arrays[side]['kernel'].shape}.")
    features, units = arrays[side]["kernel"].shape
    for name, parts in arrays.items():
        shapes = {"kernel": (features if name.startswith("i") else units, units), "bias": (units,)}
        for part, array in parts.items():
            if array.shape != shapes[part]:
                raise ValueError(f"{name}/{part}: expected shape {shapes[part]}, got {array.shape}.")
    return arrays


def _floats(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name}: expected an array of floats, got {validation.describe(value)}.")
    return array
