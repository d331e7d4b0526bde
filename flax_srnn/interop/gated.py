"""LSTM and GRU cells with all that Keras's have: any activations, the GRU of both kinds, dropout.

Their parameters are those of `flax.linen.LSTMCell` and `flax.linen.GRUCell`, which compute the same where they can: with the
activations σ and tanh, and `reset_after=True`. The layers of this library drive both alike: `RNN(LSTMCell(8))`.

    LSTM  i, f, o = rec(x W_i* + h U_* + b_*),  g = act(x W_ig + h U_g + b_g),  c' = f c + i g,  h' = o act(c')
    GRU   r, z = rec(x W_i* + b_* + h U_*),     h' = (1 - z) n + z h,
          n = act(x W_in + b_in + r (h U_n + b_hn)), or without `reset_after` n = act(x W_in + b_in + (r h) U_n)

All input products of a step are one, and all products of the state, but where every gate drops inputs by a mask of its own.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn import activations
from flax_srnn.core.parameters import draw_masks

__all__ = ["GRUCell", "LSTMCell"]


class _Weights(nn.Module):
    """The arrays of one gate's product."""

    units: int
    use_bias: bool
    kernel_init: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, features: int) -> tuple[jax.Array, jax.Array | None]:
        kernel = self.param("kernel", self.kernel_init, (features, self.units), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.units,), self.param_dtype) if self.use_bias else None
        return kernel, bias


Gates = dict[str, tuple[Any, Any]]  # (kernel, bias or None) by gate


class _GatedCell(nn.RNNCellBase):
    """What both cells share."""

    features: int
    activation: Any = "tanh"
    recurrent_activation: Any = "sigmoid"
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    mask_per_gate: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @property
    def num_feature_axes(self) -> int:
        return 1

    def _weights(self, side: str, biases: dict[str, bool], features: int) -> Gates:
        """Of one side, "i" or "h"; `biases` says which gates have one."""
        make = nn.initializers.orthogonal() if side == "h" else nn.initializers.lecun_normal()
        return {
            gate: _Weights(self.features, biased, make, self.param_dtype, name=side + gate)(features)
            for gate, biased in biases.items()
        }

    def _promoted(self, *trees: Any) -> Any:
        leaves, structure = jax.tree.flatten(trees)
        return jax.tree.unflatten(structure, nn.dtypes.promote_dtype(*leaves, dtype=self.dtype))

    def _masks(self, x: jax.Array, h: jax.Array, gates: int, training: Any) -> tuple[list[Any], list[Any]]:
        """Of inputs and of states: one for all gates or one for each, None where nothing is dropped."""
        if training is False or not (self.dropout or self.recurrent_dropout):
            return [None], [None]
        rates, widths = (self.dropout, self.recurrent_dropout), (x.shape[-1], h.shape[-1])
        keys = jax.random.split(self.make_rng("dropout"), gates if self.mask_per_gate else 1)
        masks = [draw_masks(key, x.shape[:-1], widths, rates, x.dtype) for key in keys]
        masks = jax.tree.map(lambda mask: jnp.where(training, mask, jnp.ones_like(mask)), masks)
        of_inputs, of_states = zip(*masks, strict=True)
        return list(of_inputs), list(of_states)


def _sums(x: jax.Array, gates: Gates, masks: list[Any]) -> dict[str, jax.Array]:
    """(x ∘ mask) W + b for each gate."""
    kernels = [kernel for kernel, _ in gates.values()]
    dropped = [x if mask is None else x * mask for mask in masks]
    if len(dropped) > 1:
        products = [x @ kernel for x, kernel in zip(dropped, kernels, strict=True)]
    else:
        products = jnp.split(dropped[0] @ jnp.concatenate(kernels, -1), len(gates), -1)
    return {
        gate: product if bias is None else product + jnp.broadcast_to(bias, product.shape)
        for (gate, (_, bias)), product in zip(gates.items(), products, strict=True)
    }


class LSTMCell(_GatedCell):
    """A step of an LSTM: ((c, h), x) -> ((c', h'), h').

    Parameters: "ii", "if", "ig", "io" with "kernel" (F, U); "hi", "hf", "hg", "ho" with "kernel" (U, U) and "bias" (U,).

    Args:
      features: U.
      activation, recurrent_activation: a Keras name, a Keras config, a callable (…, U) -> (…, U), or None (linear).
      dropout, recurrent_dropout: the fraction of inputs and of states dropped in training, by the same masks in all steps.
      mask_per_gate: whether each gate has masks of its own, as in Keras with `implementation=1` or a recurrent dropout.
      dtype: of the computation, None for the common one of parameters, state and inputs.
      param_dtype: of the parameters.

    Source: Keras `LSTMCell`; S. Hochreiter and J. Schmidhuber, "Long short-term memory" (1997).

    >>> cell = LSTMCell(4, recurrent_activation="hard_sigmoid")
    >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
    >>> ((c, h), y), variables = cell.init_with_output(jax.random.key(0), carry, jnp.ones((2, 3)))
    >>> c.shape, y.shape, sorted(variables["params"])
    ((2, 4), (2, 4), ['hf', 'hg', 'hi', 'ho', 'if', 'ig', 'ii', 'io'])
    """

    @nn.compact
    def __call__(self, carry: Any, inputs: jax.Array, training: Any = False) -> tuple[Any, jax.Array]:
        c, h = carry
        w = self._weights("i", dict.fromkeys("ifgo", False), inputs.shape[-1])
        u = self._weights("h", dict.fromkeys("ifgo", True), self.features)
        c, h, x, w, u = self._promoted(c, h, inputs, w, u)
        d_x, d_h = self._masks(x, h, len(w), training)
        a, b = _sums(x, w, d_x), _sums(h, u, d_h)
        act, rec = activations.get(self.activation), activations.get(self.recurrent_activation)
        c = rec(a["f"] + b["f"]) * c + rec(a["i"] + b["i"]) * act(a["g"] + b["g"])
        h = rec(a["o"] + b["o"]) * act(c)
        return (c, h), h

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Zeros (c, h), each (*batch, U), for inputs of `input_shape` (*batch, F)."""
        zeros = jnp.zeros((*input_shape[:-1], self.features), self.param_dtype if self.dtype is None else self.dtype)
        return zeros, zeros

    @nn.nowrap
    def output_of(self, carry: Any) -> jax.Array:
        """What is put out at masked steps."""
        return carry[1]


class GRUCell(_GatedCell):
    """A step of a GRU: (h, x) -> (h', h').

    Parameters: "ir", "iz", "in" with "kernel" (F, U) and "bias" (U,); "hr", "hz", "hn" with "kernel" (U, U); with
    `reset_after` "hn" also has a "bias" (U,).

    Args:
      reset_after: whether r multiplies the product of the state, as in Flax and cuDNN, or the state itself, as Keras 2 did.
      features, activation, recurrent_activation, dropout, recurrent_dropout, mask_per_gate, dtype, param_dtype: as in
        `LSTMCell`.

    Source: Keras `GRUCell`; K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation" (2014).

    >>> cell = GRUCell(4, reset_after=False)
    >>> (h, y), variables = cell.init_with_output(jax.random.key(0), jnp.zeros((2, 4)), jnp.ones((2, 3)))
    >>> y.shape, sorted(variables["params"])
    ((2, 4), ['hn', 'hr', 'hz', 'in', 'ir', 'iz'])
    """

    reset_after: bool = True

    @nn.compact
    def __call__(self, carry: Any, inputs: jax.Array, training: Any = False) -> tuple[Any, jax.Array]:
        w = self._weights("i", dict.fromkeys("rzn", True), inputs.shape[-1])
        u = self._weights("h", {"r": False, "z": False, "n": self.reset_after}, self.features)
        h, x, w, u = self._promoted(carry, inputs, w, u)
        d_x, d_h = self._masks(x, h, len(w), training)
        a = _sums(x, w, d_x)
        act, rec = activations.get(self.activation), activations.get(self.recurrent_activation)
        if self.reset_after:
            b = _sums(h, u, d_h)
            r, z = rec(a["r"] + b["r"]), rec(a["z"] + b["z"])
            n = act(a["n"] + r * b["n"])
        else:
            b = _sums(h, {gate: u[gate] for gate in "rz"}, d_h[:2])
            r, z = rec(a["r"] + b["r"]), rec(a["z"] + b["z"])
            n = act(a["n"] + _sums(r * h, {"n": u["n"]}, d_h[-1:])["n"])
        h = (1 - z) * n + z * h
        return h, h

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> jax.Array:
        """Zeros (*batch, U) for inputs of `input_shape` (*batch, F)."""
        return jnp.zeros((*input_shape[:-1], self.features), self.param_dtype if self.dtype is None else self.dtype)

    @nn.nowrap
    def output_of(self, carry: jax.Array) -> jax.Array:
        """What is put out at masked steps."""
        return carry
