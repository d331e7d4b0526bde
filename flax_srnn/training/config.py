"""What an experiment is: a frozen, checked dataclass, and where its file lies."""

from __future__ import annotations

import dataclasses
import operator
import re
import runpy
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax_srnn.identifiers import did_you_mean

__all__ = ["SunspotsConfig", "bundled", "load_config", "settings"]

_PACKAGE = Path(__file__).parent.parent
# A wheel carries the folder configs/ inside the package, a checkout has it beside the package.
_CONFIG_FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"

_KINDS = {int: "a whole", float: "a"}
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "more than": operator.gt,
    "at most": operator.le,
}


def _setting(text: str, bounds: dict[str, float]) -> Any:
    """A field without a default (the config file names every value), with its help text and its bounds."""
    return dataclasses.field(metadata={"help": text, "bounds": bounds})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SunspotsConfig:
    """How the sunspot forecaster is built and fitted.

    Args:
      units: units of the SimpleRNN.
      l2: weight of the sum of squared weights (biases left out) in the loss.
      learning_rate: of Adam.
      steps: optimizer steps, each over the whole fitting period.
      seeds: networks in the ensemble, which differ in their initial weights only.
      seed: of the random numbers from which all of them start.

    Raises:
      TypeError: a value is not of the field's type.
      ValueError: a value is out of range.

    >>> SunspotsConfig(units=4, l2=0.01, learning_rate=0.01, steps=0, seeds=8, seed=0)
    Traceback (most recent call last):
        ...
    ValueError: `steps` must be a whole number of at least 1 and at most 1000000, got 0.
    """

    units: int = _setting("units of the SimpleRNN", {"at least": 1, "at most": 1024})
    l2: float = _setting("weight of the squared weights in the loss", {"at least": 0, "at most": 1000})
    learning_rate: float = _setting("step size of Adam", {"more than": 0, "at most": 10})
    steps: int = _setting("optimizer steps", {"at least": 1, "at most": 1_000_000})
    seeds: int = _setting("networks in the ensemble", {"at least": 1, "at most": 4096})
    seed: int = _setting("of the random numbers", {"at least": 0, "at most": 2**32 - 1})

    def __post_init__(self) -> None:
        for field, kind in settings(type(self)):
            value, bounds = getattr(self, field.name), field.metadata["bounds"]
            words = " and ".join(f"{word} {bound}" for word, bound in bounds.items())
            message = f"`{field.name}` must be {_KINDS[kind]} number of {words}, got {value!r}."
            if type(value) not in (int, kind):
                raise TypeError(message)
            if not all(_HOLDS[word](value, bound) for word, bound in bounds.items()):  # nor is NaN within bounds
                raise ValueError(message)


def settings(config_class: type[SunspotsConfig]) -> list[tuple[dataclasses.Field[Any], type]]:
    """The fields of a config with their types, int or float."""
    kinds = typing.get_type_hints(config_class)
    return [(field, kinds[field.name]) for field in dataclasses.fields(config_class)]


def bundled() -> dict[str, Path]:
    """The config files that come with the package, by name."""
    return {path.stem: path for path in sorted(_CONFIG_FOLDER.glob("*.py"))}


def load_config(name: str) -> SunspotsConfig:
    """The `config` that a Python file defines; `name` is a path or the name of a bundled config.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file cannot be run, or does not define a `config`.
    """
    path = bundled().get(name, Path(name))
    if not path.is_file():
        hint = did_you_mean(Path(name).stem, bundled())
        raise FileNotFoundError(f"config {name!r} is neither a file nor one of: {', '.join(bundled())}.{hint}")
    try:
        config = runpy.run_path(str(path)).get("config")
    except (Exception, SystemExit) as error:  # A config is a program: anything can go wrong in it.
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        hint = did_you_mean(unknown[1], [field.name for field, _ in settings(SunspotsConfig)]) if unknown else ""
        raise ValueError(f"config {path}: {type(error).__name__}: {error}{hint}") from error
    if type(config) is not SunspotsConfig:
        raise ValueError(f"config {path}: it must define `config = SunspotsConfig(...)`, got config = {config!r}.")
    return config
