"""The arguments in the configuration of a layer, checked as they are taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax_srnn import identifiers, validation
from flax_srnn.interop.keras.config import activation, dtypes_of

__all__ = ["MAX_DIMENSION", "Arguments"]

MAX_DIMENSION = 2**31 - 1
# Arguments that do not matter to a prediction, whatever they are.
_FOR_TRAINING = (
    "trainable",
    "seed",
    "batch_input_shape",
    "input_length",
    "synchronized",
    "renorm_momentum",
    "autocast",
)


class Arguments:
    """The arguments in a layer's configuration, each taken once; what is left must not matter to a prediction.

    Attributes:
      common: for the constructor of any layer, its name and dtypes.
      uncounted: the same for a layer without parameters, which has no `param_dtype`.
    """

    def __init__(self, kind: str, given: Mapping[str, Any], keras_2: bool) -> None:
        self._kind, self._given, self._keras_2 = kind, dict(given), keras_2
        self.common = {"name": self._given.pop("name", None), **dtypes_of(self._given.pop("dtype", "float32"))}
        self.uncounted = {key: value for key, value in self.common.items() if key != "param_dtype"}

    def inside(self, kind: str, given: Mapping[str, Any]) -> Arguments:
        """Those of a layer inside this one."""
        return Arguments(kind, given, self._keras_2)

    def take(self, name: str, default: Any = None) -> Any:
        return self._given.pop(name, default)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        validation.flag(name, value)
        return value

    def number(self, name: str, default: float | None = None, **bounds: float) -> float:
        return identifiers.number(name, self.take(name, default), **bounds)

    def size(self, name: str) -> int:
        value = self.take(name)
        number = validation.integer(name, value)
        if number is None or not 0 < number <= MAX_DIMENSION:
            raise ValueError(f"`{name}` must be a positive integer of at most {MAX_DIMENSION}, got {value!r}.")
        return number

    def axes(self) -> tuple[int, ...]:
        value = self.take("axis", -1)
        axes = [validation.integer("axis", axis) for axis in (value if isinstance(value, list) else [value])]
        if not axes or None in axes:
            raise ValueError(f"`axis` must be an integer or a list of integers, got {value!r}.")
        return tuple(axis for axis in axes if axis is not None)

    def activation(self) -> Any:
        return activation(self.take("activation"), self._keras_2, self.common["dtype"])

    def expect_nothing_left(self) -> None:
        for name, value in self._given.items():
            for_training = name.endswith(("_initializer", "_regularizer", "_constraint")) or name in _FOR_TRAINING
            if not for_training and value not in (None, False):
                raise ValueError(f"`{name}`={value!r} of a {self._kind} cannot be represented.")
