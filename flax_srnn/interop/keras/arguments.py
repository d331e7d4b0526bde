"""The arguments in the configuration of a layer, checked as they are taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_srnn import identifiers, validation
from flax_srnn.interop.keras.config import activation, dtypes_of

__all__ = ["MAX_DIMENSION", "MAX_NUMBERS", "MAX_RANK", "Arguments"]

MAX_DIMENSION = 2**31 - 1
MAX_NUMBERS = 2**15  # in an argument, where they are Python's, and looked at one by one
MAX_RANK = 8
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
        self.common = {"name": self._given.pop("name", None), **dtypes_of(self._given.pop("dtype", None) or "float32")}
        self.uncounted = {key: value for key, value in self.common.items() if key != "param_dtype"}

    def take(self, name: str, default: Any = None) -> Any:
        return self._given.pop(name, default)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        validation.flag(name, value)
        return value

    def number(self, name: str, default: float | None = None, **bounds: float) -> float:
        return identifiers.number(name, identifiers.plain(self.take(name, default)), **bounds)

    def numbers(self, name: str, default: Any = None, *, optional: bool = False) -> Any:
        """A number, or several in nested tuples, so that modules can be compared; None for None where it is optional."""
        value = identifiers.plain(self.take(name, default))
        if value is None and optional:
            return None
        try:
            array = np.asarray(value)
        except ValueError:  # rows of different lengths
            array = np.asarray(None)
        fits = array.ndim <= MAX_RANK and array.size <= MAX_NUMBERS
        if array.dtype.kind not in "iuf" or not fits or not np.all(np.isfinite(array)):
            raise ValueError(
                f"`{name}` must be a finite number or an array of at most {MAX_NUMBERS}, got {str(value)[:80]}."
            )
        return _in_tuples(array.tolist())

    def size(self, name: str, default: int | None = None) -> int:
        return _positive(name, self.take(name, default))

    def extent(self, name: str, default: int | None = None) -> int:
        """A size along time, alone or in a list of its own; None is the default."""
        value = self.take(name)
        value = default if value is None else value
        return _positive(name, value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value)

    def integers(self, name: str, default: int | None = None) -> tuple[int, ...]:
        """An integer or a list of them; None is an empty list."""
        value = self.take(name, default)
        value = () if value is None else value
        entries = value if isinstance(value, (list, tuple)) else (value,)
        numbers = [number for each in entries if (number := validation.integer(name, each)) is not None]
        if not len(numbers) == len(entries) <= MAX_RANK or any(abs(number) > MAX_DIMENSION for number in numbers):
            raise ValueError(
                f"`{name}` must be an integer or a list of at most {MAX_RANK} integers, got {str(value)[:80]}."
            )
        return tuple(numbers)

    def axes(self) -> tuple[int, ...]:
        axes = self.integers("axis", -1)
        if not axes:
            raise ValueError("`axis` must be an integer or a list of integers, got none.")
        return axes

    def choice(self, name: str, *choices: str) -> str:
        """One of several names, the first one by default."""
        value = self.take(name, choices[0])
        if value not in choices:
            raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")
        return value

    def channels_last(self) -> None:
        """Takes the order of dimensions, of which there is one here."""
        self.choice("data_format", "channels_last")

    def activation(self, name: str = "activation") -> Any:
        return activation(self.take(name), self._keras_2, self.common["dtype"])

    def expect_nothing_left(self) -> None:
        for name, value in self._given.items():
            for_training = name.endswith(("_initializer", "_regularizer", "_constraint")) or name in _FOR_TRAINING
            if not for_training and value not in (None, False):
                raise ValueError(f"`{name}`={value!r} of a {self._kind} cannot be represented.")


def _positive(name: str, value: Any) -> int:
    number = validation.integer(name, value)
    if number is None or not 0 < number <= MAX_DIMENSION:
        raise ValueError(f"`{name}` must be a positive integer of at most {MAX_DIMENSION}, got {value!r}.")
    return number


def _in_tuples(value: Any) -> Any:
    return tuple(map(_in_tuples, value)) if isinstance(value, list) else value
