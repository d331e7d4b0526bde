"""Keras's initializers as Flax calls them: (key, shape, dtype) -> array.

All are frozen dataclasses: hashable, and equal when their arguments are. With an integer `seed` an initializer ignores its
key and draws from Keras's own, so that it gives what Keras on JAX gives for that seed, to the last bit. Half precision is drawn
as Keras draws it, except that `Orthogonal` factorises in float32. Source: `keras.initializers`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flax_srnn import identifiers, validation
from flax_srnn.dtypes import at_least_float32

__all__ = [
    "Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "Identity", "LecunNormal", "LecunUniform",
    "Ones", "Orthogonal", "RandomNormal", "RandomUniform", "TruncatedNormal", "Values", "VarianceScaling", "Zeros",
    "get", "to_config",
]  # fmt: skip

Initializer = Callable[..., jax.Array]  # (key, shape, dtype) -> array

# The standard deviation of N(0, 1) cut off at ±2.
_TRUNCATED_STDDEV = 0.87962566103423978


@dataclasses.dataclass(frozen=True)
class Zeros:
    """All 0.

    >>> Zeros()(jax.random.key(0), (2,)).tolist()
    [0.0, 0.0]
    """

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jnp.zeros(shape, dtype)


@dataclasses.dataclass(frozen=True)
class Ones:
    """All 1.

    >>> Ones()(jax.random.key(0), (2,)).tolist()
    [1.0, 1.0]
    """

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jnp.ones(shape, dtype)


@dataclasses.dataclass(frozen=True)
class Constant:
    """All `value`, one finite number.

    >>> Constant(2.5)(jax.random.key(0), (2,)).tolist()
    [2.5, 2.5]
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", identifiers.number("value", self.value))

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jnp.full(shape, self.value, dtype)


@dataclasses.dataclass(frozen=True)
class Identity:
    """gain · I, for matrices, square or not.

    >>> Identity()(jax.random.key(0), (2, 3)).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gain", identifiers.number("gain", self.gain))

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        if len(shape) != 2:
            raise ValueError(f"Identity needs the shape of a matrix, got {tuple(shape)}.")
        rows, columns = shape
        return self.gain * jnp.eye(rows, columns, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class RandomNormal:
    """N(mean, stddev²).

    Args:
      mean: a finite number.
      stddev: 0 or more.
      seed: an integer, or None to draw from the key.

    >>> RandomNormal()(jax.random.key(0), (2, 3)).shape
    (2, 3)
    """

    mean: float = 0.0
    stddev: float = 0.05
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", identifiers.number("mean", self.mean))
        object.__setattr__(self, "stddev", identifiers.number("stddev", self.stddev, at_least=0))
        object.__setattr__(self, "seed", validation.seed(self.seed))

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.normal(_key(key, self.seed), shape, dtype) * self.stddev + self.mean


@dataclasses.dataclass(frozen=True)
class TruncatedNormal:
    """mean + stddev · N(0, 1) cut off at ±2, so that the resulting spread is 0.88 · stddev.

    Args:
      mean: a finite number.
      stddev: 0 or more.
      seed: an integer, or None to draw from the key.

    >>> bool(abs(TruncatedNormal(stddev=0.5)(jax.random.key(0), (2, 3))).max() <= 1)
    True
    """

    mean: float = 0.0
    stddev: float = 0.05
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", identifiers.number("mean", self.mean))
        object.__setattr__(self, "stddev", identifiers.number("stddev", self.stddev, at_least=0))
        object.__setattr__(self, "seed", validation.seed(self.seed))

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.truncated_normal(_key(key, self.seed), -2.0, 2.0, shape, dtype) * self.stddev + self.mean


@dataclasses.dataclass(frozen=True)
class RandomUniform:
    """Uniform on [minval, maxval).

    Args:
      minval, maxval: finite numbers, minval ≤ maxval.
      seed: an integer, or None to draw from the key.

    >>> bool(abs(RandomUniform()(jax.random.key(0), (2, 3))).max() <= 0.05)
    True
    """

    minval: float = -0.05
    maxval: float = 0.05
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "minval", identifiers.number("minval", self.minval))
        object.__setattr__(self, "maxval", identifiers.number("maxval", self.maxval, at_least=self.minval))
        object.__setattr__(self, "seed", validation.seed(self.seed))

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(_key(key, self.seed), shape, dtype, self.minval, self.maxval)


@dataclasses.dataclass(frozen=True)
class VarianceScaling:
    """Random with variance scale / n, where n is the number of inputs, of outputs, or their mean.

    A weight (..., F, U) has F inputs and U outputs, times the leading dimensions; a vector (U,) has U of both.

    Args:
      scale: greater than 0.
      mode: "fan_in", "fan_out" or "fan_avg".
      distribution: "truncated_normal" (or "normal"), "untruncated_normal" or "uniform".
      seed: an integer, or None to draw from the key.
      input_axes, output_axes: the axes that count as inputs and outputs, given both or not at all.

    Raises:
      TypeError, ValueError: an argument is not as above.

    >>> bool(abs(VarianceScaling(3.0, "fan_in", "uniform")(jax.random.key(0), (9, 4))).max() <= 1)
    True
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"
    seed: int | None = None
    input_axes: Sequence[int] | None = None
    output_axes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", identifiers.number("scale", self.scale, at_least=0))
        if self.scale == 0:
            raise ValueError("`scale` must be greater than 0, got 0.")
        if self.mode not in ("fan_in", "fan_out", "fan_avg"):
            raise ValueError(f"`mode` must be 'fan_in', 'fan_out' or 'fan_avg', got {self.mode!r}.")
        if self.distribution == "normal":
            object.__setattr__(self, "distribution", "truncated_normal")
        if self.distribution not in ("truncated_normal", "untruncated_normal", "uniform"):
            raise ValueError(
                "`distribution` must be 'truncated_normal', 'untruncated_normal' or 'uniform', got "
                f"{self.distribution!r}."
            )
        object.__setattr__(self, "seed", validation.seed(self.seed))
        if (self.input_axes is None) != (self.output_axes is None):
            raise ValueError(
                f"`input_axes` and `output_axes` go together, got {self.input_axes!r} and {self.output_axes!r}."
            )
        for name in ("input_axes", "output_axes"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _axes(name, getattr(self, name)))

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        fan_in, fan_out = self._fans(shape)
        n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, n)
        key = _key(key, self.seed)
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            return jax.random.uniform(key, shape, dtype, -limit, limit)
        if self.distribution == "untruncated_normal":
            return jax.random.normal(key, shape, dtype) * math.sqrt(variance)
        return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) * (math.sqrt(variance) / _TRUNCATED_STDDEV)

    def _fans(self, shape: Sequence[int]) -> tuple[int, int]:
        """The number of inputs and of outputs of a weight of this shape."""
        if self.input_axes is not None and self.output_axes is not None:
            if any(not -len(shape) <= axis < len(shape) for axis in (*self.input_axes, *self.output_axes)):
                raise ValueError(
                    f"`input_axes` {self.input_axes} and `output_axes` {self.output_axes} do not fit the shape {tuple(shape)}."
                )
            return math.prod(shape[a] for a in self.input_axes), math.prod(shape[a] for a in self.output_axes)
        if len(shape) < 2:
            return (math.prod(shape),) * 2
        field = math.prod(shape[:-2])
        return field * shape[-2], field * shape[-1]


def _fixed(value: Any) -> Any:
    """A field that the class decides and the constructor does not take."""
    return dataclasses.field(default=value, init=False, repr=False)


@dataclasses.dataclass(frozen=True)
class GlorotUniform(VarianceScaling):
    """Uniform on ±√(6 / (F + U)) for a kernel (F, U). Glorot & Bengio 2010.

    Args:
      seed, input_axes, output_axes: an integer, or None to draw from the key; the axes of inputs and outputs, or None.

    >>> bool(abs(GlorotUniform()(jax.random.key(0), (2, 4))).max() <= 1)
    True
    """

    scale: float = _fixed(1.0)
    mode: str = _fixed("fan_avg")
    distribution: str = _fixed("uniform")


@dataclasses.dataclass(frozen=True)
class GlorotNormal(VarianceScaling):
    """Truncated normal with variance 2 / (F + U) for a kernel (F, U). Glorot & Bengio 2010.

    Args:
      seed, input_axes, output_axes: an integer, or None to draw from the key; the axes of inputs and outputs, or None.

    >>> GlorotNormal()(jax.random.key(0), (2, 4)).shape
    (2, 4)
    """

    scale: float = _fixed(1.0)
    mode: str = _fixed("fan_avg")
    distribution: str = _fixed("truncated_normal")


@dataclasses.dataclass(frozen=True)
class HeUniform(VarianceScaling):
    """Uniform on ±√(6 / F) for a kernel (F, U). He et al. 2015.

    Args:
      seed, input_axes, output_axes: an integer, or None to draw from the key; the axes of inputs and outputs, or None.

    >>> bool(abs(HeUniform()(jax.random.key(0), (6, 4))).max() <= 1)
    True
    """

    scale: float = _fixed(2.0)
    mode: str = _fixed("fan_in")
    distribution: str = _fixed("uniform")


@dataclasses.dataclass(frozen=True)
class HeNormal(VarianceScaling):
    """Truncated normal with variance 2 / F for a kernel (F, U). He et al. 2015.

    Args:
      seed, input_axes, output_axes: an integer, or None to draw from the key; the axes of inputs and outputs, or None.

    >>> HeNormal()(jax.random.key(0), (2, 4)).shape
    (2, 4)
    """

    scale: float = _fixed(2.0)
    mode: str = _fixed("fan_in")
    distribution: str = _fixed("truncated_normal")


@dataclasses.dataclass(frozen=True)
class LecunUniform(VarianceScaling):
    """Uniform on ±√(3 / F) for a kernel (F, U). LeCun et al. 1998.

    Args:
      seed, input_axes, output_axes: an integer, or None to draw from the key; the axes of inputs and outputs, or None.

    >>> bool(abs(LecunUniform()(jax.random.key(0), (3, 4))).max() <= 1)
    True
    """

    scale: float = _fixed(1.0)
    mode: str = _fixed("fan_in")
    distribution: str = _fixed("uniform")


@dataclasses.dataclass(frozen=True)
class LecunNormal(VarianceScaling):
    """Truncated normal with variance 1 / F for a kernel (F, U). Klambauer et al. 2017.

    Args:
      seed, input_axes, output_axes: an integer, or None to draw from the key; the axes of inputs and outputs, or None.

    >>> LecunNormal()(jax.random.key(0), (2, 4)).shape
    (2, 4)
    """

    scale: float = _fixed(1.0)
    mode: str = _fixed("fan_in")
    distribution: str = _fixed("truncated_normal")


@dataclasses.dataclass(frozen=True)
class Orthogonal:
    """gain · Q with orthonormal columns, or rows where there are fewer of them. Saxe et al. 2014.

    Q is uniform over the orthogonal matrices: the QR factor of a normal matrix with the signs of R's diagonal. It is
    computed in float32 at least and then cast.

    Args:
      gain: a finite number.
      seed: an integer, or None to draw from the key.

    Raises:
      TypeError, ValueError: an argument is not as above; the shape has rank 0 or 1.

    >>> q = Orthogonal()(jax.random.key(0), (3, 3), jnp.float32)
    >>> bool(jnp.allclose(q @ q.T, jnp.eye(3), atol=1e-5))
    True
    """

    gain: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "gain", identifiers.number("gain", self.gain))
        object.__setattr__(self, "seed", validation.seed(self.seed))

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        if len(shape) < 2:
            raise ValueError(f"Orthogonal needs a shape of rank 2 or more, got {tuple(shape)}.")
        wide = at_least_float32(dtype)
        return jax.nn.initializers.orthogonal(self.gain)(_key(key, self.seed), shape, wide).astype(dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """The values themselves, for exactly the shape that they have; equal when shape, dtype and values are.

    >>> Values(np.eye(2))(jax.random.key(0), (2, 2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    values: Any

    def __post_init__(self) -> None:
        if isinstance(self.values, jax.core.Tracer):
            raise TypeError(f"An array given as an initializer must be concrete, not traced by JAX: {self.values!r}.")
        values = np.array(validation.array("values", self.values))  # a copy
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        if tuple(shape) != self.values.shape:
            raise ValueError(
                f"The array given as an initializer has the shape {self.values.shape}, but the parameter {tuple(shape)}; "
                "nothing is broadcast."
            )
        return jnp.asarray(self.values, dtype)

    def _contents(self) -> tuple[Any, ...]:
        return self.values.shape, self.values.dtype, self.values.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values) and self._contents() == other._contents()

    def __hash__(self) -> int:
        return hash(self._contents())


_TABLE: dict[str, Callable[..., Initializer]] = {
    "constant": Constant,
    "glorot_uniform": GlorotUniform,  # before the other, to be proposed for "glorot": it is what Keras's layers have
    "glorot_normal": GlorotNormal,
    "he_normal": HeNormal,
    "he_uniform": HeUniform,
    "identity": Identity,
    "lecun_normal": LecunNormal,
    "lecun_uniform": LecunUniform,
    "ones": Ones,
    "orthogonal": Orthogonal,
    "random_normal": RandomNormal,
    "random_uniform": RandomUniform,
    "truncated_normal": TruncatedNormal,
    "variance_scaling": VarianceScaling,
    "zeros": Zeros,
}
_TABLE |= {factory.__name__: factory for factory in _TABLE.values()}
_TABLE |= {
    "normal": RandomNormal,
    "uniform": RandomUniform,
    "zero": Zeros,
    "one": Ones,
    "IdentityInitializer": Identity,
    "OrthogonalInitializer": Orthogonal,
}


def get(identifier: Any, *, argument: str = "initializer") -> Initializer:
    """Returns the initializer that a Keras name, a Keras configuration, a callable, an array or None stands for.

    None is `GlorotUniform`, which Keras's layers take when they are given None.

    Args:
      identifier: Keras name, Keras configuration dict or object, callable (key, shape, dtype) -> array (every Flax
        initializer, also inside `nn.with_partitioning`), an array of exactly the parameter's shape, or None.
      argument: how messages call it.

    Raises:
      ValueError: unknown name or argument, or no identifier at all.

    >>> get("he_normal"), get({"class_name": "RandomNormal", "config": {"stddev": 0.1, "seed": None}})
    (HeNormal(seed=None, input_axes=None, output_axes=None), RandomNormal(mean=0.0, stddev=0.1, seed=None))
    """
    if isinstance(identifier, (jax.Array, np.ndarray, np.number)):
        return Values(identifier)
    if hasattr(identifier, "get_config"):  # a live object of Keras's, whose call takes no key
        identifier = {"class_name": type(identifier).__name__, "config": identifier.get_config()}
    initializer = identifiers.resolve(identifier, _TABLE, argument)
    return GlorotUniform() if initializer is None else initializer


def to_config(identifier: Any, *, argument: str = "initializer") -> dict[str, Any] | None:
    """Returns an initializer as Keras 3 serialises it: the inverse of `get`. None stays None.

    Raises:
      ValueError: an array, or a callable that is not one of Keras's initializers.

    >>> to_config("orthogonal")["config"]
    {'gain': 1.0, 'seed': None}
    """
    if identifier is None:
        return None
    serialised = identifiers.to_config(get(identifier, argument=argument), _TABLE, "keras.initializers", argument)
    if serialised["config"] == {"gain": 1.0}:  # Keras's Identity writes no gain, though it reads one
        return serialised | {"config": {}}
    return serialised


def _key(key: jax.Array, seed: int | None) -> jax.Array:
    """The key itself, or the one that Keras on JAX makes of an integer seed."""
    if seed is None:
        return key
    return jax.random.wrap_key_data(jnp.array([seed, 0], jnp.uint32), impl="threefry2x32")


def _axes(name: str, axes: Any) -> tuple[int, ...]:
    """A tuple of integers."""
    if not isinstance(axes, (list, tuple)) or any(validation.integer(name, axis) is None for axis in axes):
        raise TypeError(f"`{name}` must be a sequence of integers or None, got {validation.describe(axes)}.")
    return tuple(int(axis) for axis in axes)
