"""Activations by their Keras names, and their derivatives from the output alone.

`get(identifier)` gives the function. `from_output(function)` gives the rule that turns the cotangent of the output
y = f(a) into the cotangent of a without a: the backward pass of a recurrence then needs to keep only its outputs, which it
has anyway. tanh is the model: f'(a) = 1 - y².

Not every function has such a rule. gelu, silu, hard_silu and mish are not monotonic, so y does not determine a;
tanh_shrink and squareplus have no rule that is both short and accurate; hard_tanh and sparse_sigmoid have in JAX another
derivative on their kinks than on the flat pieces beside them, where y is the same. For these `from_output` returns None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn import identifiers
from flax_srnn.dtypes import at_least_float32
from flax_srnn.validation import describe

__all__ = [
    "ELU",
    "NAMES",
    "LeakyReLU",
    "ReLU",
    "from_output",
    "gelu",
    "get",
    "hard_shrink",
    "is_named",
    "linear",
    "name",
    "soft_shrink",
    "sparsemax",
    "tanh_shrink",
    "to_config",
]

Activation = Callable[[jax.Array], jax.Array]
OutputRule = Callable[[jax.Array, jax.Array], jax.Array]  # (y, cotangent of y) -> cotangent of a


def linear(x: jax.Array) -> jax.Array:
    """The identity."""
    return x


def gelu(x: jax.Array) -> jax.Array:
    """x · P(N(0, 1) ≤ x), exact: JAX's own default is the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def soft_shrink(x: jax.Array) -> jax.Array:
    """x moved towards 0 by ½, and 0 for |x| ≤ ½."""
    return jnp.where(x > 0.5, x - 0.5, jnp.where(x < -0.5, x + 0.5, 0.0))


def hard_shrink(x: jax.Array) -> jax.Array:
    """x, and 0 for |x| ≤ ½."""
    return jnp.where(jnp.abs(x) > 0.5, x, 0.0)


def tanh_shrink(x: jax.Array) -> jax.Array:
    """x - tanh x."""
    return x - jnp.tanh(x)


@dataclasses.dataclass(frozen=True)
class LeakyReLU:
    """x, and negative_slope · x below 0. "leaky_relu" is LeakyReLU(0.2); Keras's layer of this name has the default 0.3.

    Args:
      negative_slope: a finite number, at least 0.

    >>> LeakyReLU(0.5)(jnp.array([-1.0, 2.0])).tolist()
    [-0.5, 2.0]
    """

    negative_slope: float = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "negative_slope", identifiers.number("negative_slope", self.negative_slope, at_least=0)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.leaky_relu(x, self.negative_slope)


@dataclasses.dataclass(frozen=True)
class ELU:
    """x, and alpha · (eˣ - 1) below 0. "elu" has alpha 1.

    Args:
      alpha: a finite number.

    >>> ELU(2.0)(jnp.array([-100.0, 2.0])).tolist()
    [-2.0, 2.0]
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", identifiers.number("alpha", self.alpha))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.elu(x, self.alpha)


@dataclasses.dataclass(frozen=True)
class ReLU:
    """x from `threshold` to `max_value`, `max_value` above, and negative_slope · (x - threshold) below.

    "relu" is ReLU(), "relu6" is ReLU(6), and "leaky_relu" is ReLU(negative_slope=0.2).

    Args:
      max_value: a finite number, at least 0; None for no limit.
      negative_slope, threshold: finite numbers, at least 0.

    Source: Keras `activations.relu`, whose derivative at `threshold` and `max_value` this has too.

    >>> ReLU(max_value=3.0, negative_slope=0.5, threshold=1.0)(jnp.array([-1.0, 0.5, 2.0, 4.0])).tolist()
    [-1.0, -0.25, 2.0, 3.0]
    """

    max_value: float | None = None
    negative_slope: float = 0.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_value", "negative_slope", "threshold"):
            value = getattr(self, name)
            if value is not None or name != "max_value":
                object.__setattr__(self, name, identifiers.number(name, value, at_least=0))

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.max_value is None and self.threshold == 0:
            return jax.nn.leaky_relu(x, self.negative_slope) if self.negative_slope else jax.nn.relu(x)
        y = jnp.where(x > self.threshold, x, 0) if self.threshold else jax.nn.relu(x)
        if self.max_value == 6 and not self.threshold:  # relu6's derivative at 6 is 0, and that of `clip` ½
            y = jax.nn.relu6(x)
        elif self.max_value is not None:
            y = jnp.clip(y, 0, self.max_value)
        return y - self.negative_slope * jax.nn.relu(self.threshold - x) if self.negative_slope else y


# The rules. Elementwise ones are f'(a)·g with f'(a) written in y. They are finite also where y is no output of f: at a masked
# step y is the state that was carried there, and what the rule gives is thrown away.


def _linear_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return g


def _tanh_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return (g + g * y) * (1 - y)  # 1 - y² without cancellation near ±1


def _sigmoid_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return g * y * (1 - y)


def _exponential_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return g * y


def _softplus_and_log_sigmoid_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    # y = log(1 + eᵃ) ≥ 0 has the derivative sigmoid(a) = 1 - e⁻ʸ, and y = -log(1 + e⁻ᵃ) ≤ 0 has sigmoid(-a) = 1 - eʸ.
    return -jnp.expm1(-jnp.abs(y)) * g


def _softsign_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.square(1 - jnp.abs(y)) * g


def _sparse_plus_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    # ((a + 1) / 2)² = y between the kinks, so the derivative (a + 1) / 2 is √y. The inner `where` keeps √'s own
    # derivative finite where it is not used.
    middle = (y > 0) & (y < 1)
    root = jnp.sqrt(jnp.where(middle, y, 1))
    return jnp.where(middle, root, jnp.where(y > 0, 1, 0)) * g


def _elu_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.where(y > 0, 1, y + 1) * g


# selu(a) = scale·elu(a, alpha)
_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805


def _selu_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.where(y > 0, _SELU_SCALE, y + _SELU_SCALE * _SELU_ALPHA) * g


def _relu_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.where(y > 0, g, 0)


def _leaky_relu_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.where(y >= 0, g, 0.2 * g)


def _soft_and_hard_shrink_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.where(y != 0, g, 0)


def _relu6_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.where((y > 0) & (y < 6), g, 0)


def _hard_sigmoid_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.where((y > 0) & (y < 1), g / 6, 0)


def _softmax_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return y * (g - jnp.sum(y * g, axis=-1, keepdims=True))


def _log_softmax_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    return g - jnp.exp(-jnp.abs(y)) * jnp.sum(g, axis=-1, keepdims=True)


def _sparsemax_rule(y: jax.Array, g: jax.Array) -> jax.Array:
    # On the support {y > 0} the mean of g is taken off, elsewhere nothing passes (Martins & Astudillo 2016, eq. 11).
    support = (y > 0).astype(g.dtype)
    size = jnp.maximum(jnp.sum(support, axis=-1, keepdims=True), 1)
    mean = jnp.sum(support * g, axis=-1, keepdims=True) / size
    return support * (g - mean)


@jax.custom_jvp
def sparsemax(x: jax.Array) -> jax.Array:
    """max(x - τ, 0) with τ such that the last axis sums to 1: the point of the simplex nearest to x.

    Martins & Astudillo 2016, https://arxiv.org/abs/1602.02068, Algorithm 1.
    """
    wide = x.astype(at_least_float32(x.dtype))  # ranks and sums need more than half precision
    shifted = wide - jnp.max(wide, axis=-1, keepdims=True)  # changes τ only, and keeps the sums small
    descending = -jnp.sort(-shifted, axis=-1)
    sums = jnp.cumsum(descending, axis=-1)
    ranks = jax.lax.broadcasted_iota(wide.dtype, x.shape, x.ndim - 1) + 1
    support_size = jnp.sum(1 + ranks * descending > sums, axis=-1, keepdims=True)
    tau = (jnp.take_along_axis(sums, support_size - 1, axis=-1) - 1) / support_size.astype(wide.dtype)
    return jnp.maximum(shifted - tau, 0).astype(x.dtype)


# The Jacobian is symmetric, so the rule for cotangents is the rule for tangents as well.
sparsemax.defjvps(lambda tangent, y, x: _sparsemax_rule(y, tangent))


_TABLE: dict[str, tuple[Activation, OutputRule | None]] = {
    "celu": (jax.nn.celu, _elu_rule),
    "elu": (jax.nn.elu, _elu_rule),
    "exponential": (jnp.exp, _exponential_rule),
    "gelu": (gelu, None),
    "hard_shrink": (hard_shrink, _soft_and_hard_shrink_rule),
    "hard_sigmoid": (jax.nn.hard_sigmoid, _hard_sigmoid_rule),
    "hard_silu": (jax.nn.hard_silu, None),
    "hard_tanh": (jax.nn.hard_tanh, None),
    "leaky_relu": (LeakyReLU(0.2), _leaky_relu_rule),
    "linear": (linear, _linear_rule),
    "log_sigmoid": (jax.nn.log_sigmoid, _softplus_and_log_sigmoid_rule),
    "log_softmax": (jax.nn.log_softmax, _log_softmax_rule),
    "mish": (jax.nn.mish, None),
    "relu": (jax.nn.relu, _relu_rule),
    "relu6": (jax.nn.relu6, _relu6_rule),
    "selu": (jax.nn.selu, _selu_rule),
    "sigmoid": (jax.nn.sigmoid, _sigmoid_rule),
    "silu": (jax.nn.silu, None),
    "soft_shrink": (soft_shrink, _soft_and_hard_shrink_rule),
    "softmax": (jax.nn.softmax, _softmax_rule),
    "softplus": (jax.nn.softplus, _softplus_and_log_sigmoid_rule),
    "softsign": (jax.nn.soft_sign, _softsign_rule),
    "sparse_plus": (jax.nn.sparse_plus, _sparse_plus_rule),
    "sparse_sigmoid": (jax.nn.sparse_sigmoid, None),
    "sparsemax": (sparsemax, _sparsemax_rule),
    "squareplus": (jax.nn.squareplus, None),
    "tanh": (jnp.tanh, _tanh_rule),
    "tanh_shrink": (tanh_shrink, None),
}
NAMES = tuple(_TABLE)
"""Every activation that a recurrence can have, by its Keras name."""
_FUNCTIONS = {name: function for name, (function, _) in _TABLE.items()}
_FUNCTIONS |= {"swish": jax.nn.silu, "hard_swish": jax.nn.hard_silu}
_NAMES: dict[Activation, str] = {function: name for name, (function, _) in _TABLE.items()}
# Other callables that are one of the functions above; Flax's are JAX's own.
_NAMES |= {jax.lax.tanh: "tanh", jax.lax.logistic: "sigmoid", jax.lax.exp: "exponential", jax.nn.identity: "linear"}
_NAMES |= {ReLU(): "relu", ReLU(6): "relu6", ReLU(negative_slope=0.2): "leaky_relu", ELU(): "elu"}
_RULES = {function: _TABLE[name][1] for function, name in _NAMES.items()}

_NOT_RECURRENT = {
    "glu": "it halves the number of features",
    "threshold": "it needs two more arguments than a layer passes",
    "PReLU": "it has weights of its own",
}


def _softmax_layer(axis: Any = -1) -> Activation:
    if axis not in (-1, [-1], (-1,)):
        raise ValueError(f"the `axis` of a Softmax layer must be -1, the last one, got {axis!r}.")
    return jax.nn.softmax


def _activation_layer(activation: Any) -> Activation:
    if not isinstance(activation, str):
        raise TypeError(f"the `activation` of an Activation layer must be a name, got {describe(activation)}.")
    return get(activation)


# A layer as an activation, `SimpleRNN(4, activation=keras.layers.LeakyReLU(0.1))`, is written as the layer's configuration.
_LAYERS: dict[str, Callable[..., Activation]] = {
    "LeakyReLU": LeakyReLU,
    "ELU": ELU,
    "ReLU": ReLU,
    "Softmax": _softmax_layer,
    "Activation": _activation_layer,
}
# What any layer's configuration has too. The dtype matters where the layer's is another one, which `interop.keras` checks.
_LAYER_ARGUMENTS = ("name", "trainable", "dtype", "batch_input_shape")


def get(identifier: Any, *, argument: str = "activation") -> Activation:
    """Returns the activation that a Keras name, a Keras configuration, a callable or None (linear) stands for.

    A name always gives the same object, so that `jax.jit` caches by it. Also understood are the configurations of Keras's
    layers LeakyReLU, ELU, ReLU, Softmax and Activation, as Keras 2 and Keras 3 write them.

    Args:
      identifier: Keras name, Keras configuration dict, callable (..., U) -> (..., U), or None.
      argument: how messages call it.

    Raises:
      TypeError: a Flax Linen module.
      ValueError: unknown name, or one that cannot work in a recurrent layer (`glu`, `threshold`, `PReLU`); no identifier at
        all; a callable without a hash.

    >>> get("relu")(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    if identifier is None:
        return linear
    identifiers.check_depth(identifier, argument)
    if isinstance(identifier, (str, Mapping)):
        name, config = identifiers.parse(identifier, argument)
        if isinstance(identifier, Mapping) and name in _LAYERS:
            config = {key: value for key, value in config.items() if key not in _LAYER_ARGUMENTS}
            if name == "LeakyReLU" and "negative_slope" not in config and "alpha" in config:  # its name in Keras 2
                config["negative_slope"] = config.pop("alpha")
            return identifiers.build(_LAYERS, name, config, argument)
        if name in _NOT_RECURRENT:
            raise ValueError(f"`{argument}` cannot be {name!r} in a recurrent layer: {_NOT_RECURRENT[name]}.")
        function = identifiers.find(_FUNCTIONS, name, argument)
        if config:
            raise ValueError(f"`{argument}`: {name!r} takes no arguments, got {dict(config)!r}.")
        return function
    if callable(identifier) and not isinstance(identifier, type):
        try:
            hash(identifier)
        except TypeError as error:
            raise ValueError(f"`{argument}` must be hashable, as jax.jit caches by it, got {identifier!r}.") from error
        if isinstance(identifier, nn.Module):
            raise TypeError(
                f"`{argument}` cannot be a flax.linen module, which has its variables elsewhere, got {identifier!r}: make them "
                f"with `init`, and pass {argument}=lambda a: module.apply(variables, a), which is differentiated by them."
            )
        return identifier
    raise identifiers.not_understood(identifier, argument)


def from_output(activation: Activation) -> OutputRule | None:
    """Returns the rule (y, g) -> g · f'(a) that needs only y = f(a), or None where none is known.

    Args:
      activation: f, as `get` returns it, or a function of JAX that is the same, such as `jax.lax.tanh`.

    >>> from_output(jnp.exp)(jnp.array([2.0, 3.0]), jnp.array([1.0, 10.0])).tolist()
    [2.0, 30.0]
    """
    return _RULES.get(activation)


def is_named(activation: Activation) -> bool:
    """Returns whether an activation is one of Keras's, and so gives an array like the one it is given.

    >>> is_named(jnp.tanh), is_named(jnp.sum)
    (True, False)
    """
    return activation in _NAMES


def name(identifier: Any, *, argument: str = "activation") -> str:
    """Returns the Keras name of an activation.

    Raises:
      ValueError: a callable that has none.

    >>> name(None), name("swish"), name(jnp.tanh)
    ('linear', 'silu', 'tanh')
    """
    function = get(identifier, argument=argument)
    if function not in _NAMES:
        raise ValueError(f"`{argument}` must be one of Keras's own activations to have a name, got {identifier!r}.")
    return _NAMES[function]


def to_config(identifier: Any, *, argument: str = "activation") -> str | dict[str, Any]:
    """Returns an activation as Keras 3 serialises it, a name or the configuration of a layer: the inverse of `get`.

    Raises:
      ValueError: a callable that is not one of Keras's activations.

    >>> to_config(LeakyReLU(0.1))["config"]
    {'negative_slope': 0.1}
    """
    function = get(identifier, argument=argument)
    if type(function) in _LAYERS.values() and function not in _NAMES:
        return identifiers.to_config(function, _LAYERS, "keras.layers", argument)
    return name(function, argument=argument)
