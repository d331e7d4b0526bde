"""One time step of the simple RNN (Elman 1990): the only place where it is written.

    s_t = r where reset_t, else h_tm1                the state that the step starts from
    z_t = (x_t ∘ d_x) W                              the projection of the input
    h_t = act(z_t + b + (s_t ∘ d_h) U) where used_t, else s_t

`project` is the second line and `advance` the other two, with `under_flags` for what masks and resets do to a step of any
cell. They are pure and check nothing. `cell_step` checks what a user gives it and runs them; every loop over time runs them
too, and one that projects many steps in one product hands `advance` its z_t.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flax_srnn import activations, validation
from flax_srnn.core.products import Product, library

__all__ = [
    "HARMLESS",
    "Cell",
    "activate",
    "advance",
    "blanked",
    "cell_step",
    "project",
    "select",
    "sheltered",
    "under_flags",
]

HARMLESS = 0.5
"""What a masked step computes with in place of what may be out of any domain: hardly a function or its derivative is infinite
here, as those of sqrt, log, 1/x and norms are at 0."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernel", "recurrent_kernel", "bias", "input_dropout_mask", "recurrent_dropout_mask", "held"],
    meta_fields=["activation", "precision", "product"],
)
@dataclasses.dataclass(frozen=True)
class Cell:
    """What a step needs beside the state and the input.

    Attributes:
      kernel, recurrent_kernel, bias: W (F, U), U (U, U), b (U,) or None.
      input_dropout_mask, recurrent_dropout_mask: d_x (*batch, F), d_h (*batch, U), or None.
      activation: act, the function itself, of (a, *held).
      precision: of the matrix products.
      held: the arrays that the activation closes over (`closed_over.trace`); Keras's own have none.
      product: how a step's products are written (`products`).
    """

    kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array | None = None
    input_dropout_mask: jax.Array | None = None
    recurrent_dropout_mask: jax.Array | None = None
    activation: Callable[..., jax.Array] = jnp.tanh
    precision: Any = None
    held: tuple[Any, ...] = ()
    product: Product = library


def project(cell: Cell, x: jax.Array) -> jax.Array:
    """z_t = (x_t ∘ d_x) W: of one step (*batch, F), or of many at once where d_x has the rank of x."""
    if cell.input_dropout_mask is not None:
        x = x * cell.input_dropout_mask
    return cell.product(x, cell.kernel, cell.precision)


def advance(
    cell: Cell, state: jax.Array, z: jax.Array, used: Any = None, reset: Any = None, reset_state: Any = None
) -> jax.Array:
    """h_t (*batch, U), which is state and output, from h_tm1, z_t and the flags (*batch,) of the step, if there are any."""

    def step(s: jax.Array) -> tuple[jax.Array, None]:
        a = z if cell.bias is None else z + jnp.broadcast_to(cell.bias, z.shape)
        recurrent = s if cell.recurrent_dropout_mask is None else s * cell.recurrent_dropout_mask
        return activate(cell, a + cell.product(recurrent, cell.recurrent_kernel, cell.precision)), None

    return under_flags(step, state, used, reset, reset_state)[0]


def activate(cell: Cell, a: jax.Array) -> jax.Array:
    """act(a)."""
    return cell.activation(a, *cell.held)


def under_flags(
    step: Callable[[Any], tuple[Any, Any]], state: Any, used: Any, reset: Any, reset_state: Any
) -> tuple[Any, Any]:
    """One step of any cell, `step(state) -> (new state, output)`: it starts from `reset_state` where `reset`, and where not
    `used` it leaves the state that it started from. Flags are (*batch,) or None; states are trees of (*batch, …)."""
    start = state if reset is None else select(reset, reset_state, state)
    new, output = step(start)
    return (new if used is None else select(used, new, start)), output


def blanked(x: Any, used: jax.Array | None, fill: float = 0.0) -> Any:
    """x, an array or a tree, `fill` where not `used`: what stands in a masked step may be NaN, and must reach no product."""
    return x if used is None else select(used, x, jax.tree.map(lambda leaf: jnp.full_like(leaf, fill, shape=()), x))


def sheltered(cell: Cell, used: jax.Array | None) -> Cell:
    """The cell for a step that JAX differentiates: where not `used`, its activation is of a constant.

    What a masked step computes is thrown away, but 0 times an infinite derivative of it would be NaN.
    """
    function = cell.activation
    if used is None:
        return cell
    return dataclasses.replace(cell, activation=lambda a, *held: function(blanked(a, used, HARMLESS), *held))


def select(flag: jax.Array, x: Any, y: Any) -> Any:
    """The leaves of x where the flag of their row is set, else those of y."""

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(flag, range(flag.ndim, x.ndim)), x, y)

    return jax.tree.map(leaf, x, y)


def cell_step(
    params: Mapping[str, Any],
    state: ArrayLike,
    x: ArrayLike,
    *,
    activation: Any = "tanh",
    input_dropout_mask: ArrayLike | None = None,
    recurrent_dropout_mask: ArrayLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[jax.Array, jax.Array]:
    """One step: h_t = act((x_t ∘ d_x) W + b + (h_{t-1} ∘ d_h) U); the output is the new state.

    It has the signature that `jax.lax.scan` asks for, so a whole sequence (`xs` time-major) is
    ``jax.lax.scan(functools.partial(cell_step, params), h0, xs)``.

    Args:
      params: mapping with "kernel" W (F, U), "recurrent_kernel" U (U, U) and, if there is a bias, "bias" b (U,).
      state: h_{t-1}, (*batch, U).
      x: x_t, (*batch, F).
      activation: a Keras name, a Keras config, a callable, or None (linear).
      input_dropout_mask: d_x, exactly (*batch, F), scaled by 1/(1 - rate) already (`dropout_masks` makes it).
      recurrent_dropout_mask: d_h, exactly (*batch, U).
      precision: of the two matrix products, as in `jax.numpy.dot`.

    Returns:
      (new_state, output), both h_t (*batch, U).

    Raises:
      TypeError: an argument is no array of real numbers, or `params` no mapping.
      ValueError: a shape does not fit, `params` has a missing or an unknown key, or `activation` is unknown.

    Source: Keras `SimpleRNNCell`; J. Elman, "Finding structure in time", Cognitive Science 14 (1990).

    >>> params = {"kernel": jnp.ones((1, 2)), "recurrent_kernel": jnp.eye(2)}
    >>> new_state, output = cell_step(params, jnp.array([1.0, 2.0]), jnp.array([3.0]), activation=None)
    >>> output.tolist()
    [4.0, 5.0]
    """
    # Integers are computed as floats: in their own dtype products would wrap round.
    w = jax.tree.map(_floating, validation.weights(params))
    function = activations.get(activation)
    validation.precision(precision)
    x = _floating(validation.step_inputs("x", x), w.kernel.dtype)
    validation.features(x, w.kernel.shape[0], "x")
    hidden = (*x.shape[:-1], w.kernel.shape[1])
    masks = (
        validation.optional("input_dropout_mask", input_dropout_mask, x.shape, "(*batch, F)"),
        validation.optional("recurrent_dropout_mask", recurrent_dropout_mask, hidden, "(*batch, U)"),
    )
    d_x, d_h = jax.tree.map(lambda mask: _floating(mask, w.kernel.dtype), masks)
    cell = Cell(w.kernel, w.recurrent_kernel, w.bias, d_x, d_h, function, precision)
    output = advance(cell, validation.shaped("state", state, hidden, "(*batch, U)"), project(cell, x))
    validation.activation(output, hidden)
    return output, output


def _floating(x: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """x, in `dtype` if it holds integers or flags."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(dtype)
