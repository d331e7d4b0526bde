"""What a run is told: frozen dataclasses, checked where they are made, and the files that define one.

A task's config extends `Training` by fields of its own; the command line has an option for each. A field's type says what it
may hold, `Annotated[int, Within(1, 1024)]` its bounds, and the docstring's `Args` what it means.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import runpy
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from flax_srnn.identifiers import did_you_mean
from flax_srnn.validation import describe

__all__ = ["WITHOUT_EFFECT", "Training", "Within", "bundled", "from_mapping", "load_file", "replaced", "unlike"]

_PACKAGE = Path(__file__).parent.parent
# A wheel carries the folder configs/ inside the package, a checkout has it beside the package.
_CONFIG_FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
WITHOUT_EFFECT = ("checkpoint_seconds", "keep_checkpoints", "model_shards")
"""Fields that no number depends on, but for its rounding: a run may go on with other values."""
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


class Within(NamedTuple):
    """The bounds of a number, both included."""

    least: float
    most: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is fitted; the config of every task begins with these fields.

    Args:
      seed: of all random numbers, those of the data's order included.
      steps: optimizer steps.
      batch_size: examples, or streams, in a step.
      optimizer: by its name in Optax.
      learning_rate: the highest one of the schedule.
      schedule: of the learning rate after its warm-up; cosine and linear end at a hundredth.
      warm_up_steps: in which the learning rate rises from 0.
      momentum: of sgd and rmsprop.
      weight_decay: of adamw.
      clip: norm of all gradients above which they are scaled down; 0: never.
      evaluate_every: steps between two scores on the validation part; 0: none.
      patience: scores in a row that are no better than the best, after which training ends; 0: never. The parameters of the
        best score are kept.
      log_every: steps that a line of metrics is the mean of.
      checkpoint_seconds: at most so long apart.
      keep_checkpoints: the newest so many.
      dtype: of the layers' computation; parameters are float32.
      model_shards: devices that share the units; the others share the batch.

    Raises:
      TypeError: a value is not of the field's type.
      ValueError: a value is out of range.

    >>> Training(steps=0)
    Traceback (most recent call last):
        ...
    ValueError: `steps` must be a whole number of at least 1 and at most 1000000000, got 0.
    """

    seed: Annotated[int, Within(0, 2**32 - 1)] = 0
    steps: Annotated[int, Within(1, 10**9)] = 1000
    batch_size: Annotated[int, Within(1, 10**6)] = 32
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    learning_rate: Annotated[float, Within(1e-12, 100)] = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warm_up_steps: Annotated[int, Within(0, 10**9)] = 0
    momentum: Annotated[float, Within(0, 1)] = 0.9
    weight_decay: Annotated[float, Within(0, 100)] = 1e-4
    clip: Annotated[float, Within(0, 1e9)] = 0.0
    evaluate_every: Annotated[int, Within(0, 10**9)] = 0
    patience: Annotated[int, Within(0, 10**6)] = 0
    log_every: Annotated[int, Within(1, 10**9)] = 50
    checkpoint_seconds: Annotated[float, Within(0, 1e6)] = 60.0
    keep_checkpoints: Annotated[int, Within(1, 1000)] = 3
    dtype: Literal["float32", "bfloat16"] = "float32"
    model_shards: Annotated[int, Within(1, 10**5)] = 1

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, _read(name, getattr(self, name), hint))
        if self.patience and not self.evaluate_every:
            raise ValueError("`patience` counts scores on the validation part: it needs `evaluate_every`, got 0.")


def _read(name: str, value: Any, hint: Any) -> Any:
    """The value as a field of this type holds it: numbers of NumPy and paths as Python's numbers and text."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    bounds = None
    if typing.get_origin(hint) is Annotated:
        hint, bounds = typing.get_args(hint)
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value not in parts:
            near = did_you_mean(str(value), parts)
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, parts))}, got {value!r}.{near}")
        return value
    if typing.get_origin(hint) is tuple:
        kinds = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        if not isinstance(value, tuple) or len(value) != len(kinds):
            raise TypeError(f"`{name}` must be a tuple of the form {hint}, got {describe(value)}.")
        return tuple(_read(name, item, kind) for item, kind in zip(value, kinds, strict=True))
    if isinstance(value, np.generic):
        value = value.item()
    if hint is str and isinstance(value, Path):
        value = str(value)
    # By its name: what a task calls `data` is its file.
    words = "text, the path of a file" if (name, hint) == ("data", str) else _WORDS[hint]
    words += f" of at least {bounds.least} and at most {bounds.most}" if bounds else ""
    if type(value) is not hint and not (hint is float and type(value) is int):
        raise TypeError(f"`{name}` must be {words}, got {describe(value)}.")
    if bounds and not bounds.least <= value <= bounds.most:  # nor is NaN within bounds
        raise ValueError(f"`{name}` must be {words}, got {value!r}.")
    return value


def replaced(config: Training, options: Mapping[str, Any]) -> Training:
    """The config with other values; an unknown name is a TypeError that proposes the nearest."""
    return dataclasses.replace(config, **_known(type(config), options))


def from_mapping(config_class: type[Training], values: Any) -> Training:
    """A config out of what `dataclasses.asdict` and JSON made of one.

    Raises:
      TypeError, ValueError: a field is unknown or does not hold what it may; the message names it.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"a config must be a mapping of names to values, got {describe(values)}.")
    return config_class(**_known(config_class, {name: _tuples(value) for name, value in values.items()}))


def unlike(config: Training, other: Mapping[str, Any]) -> str:
    """In words, the first field whose value is not that of `other`; "" if there is none, but for those of no effect."""
    for name, value in json.loads(json.dumps(dataclasses.asdict(config))).items():
        if name not in WITHOUT_EFFECT and (name not in other or other[name] != value):
            return f"`{name}` is {value!r}, and was {other.get(name)!r}"
    return ""


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _known(config_class: type[Training], values: Mapping[str, Any]) -> Mapping[str, Any]:
    names = [field.name for field in dataclasses.fields(config_class)]
    for name in values:
        if name not in names:
            raise TypeError(f"`{name}` is no field of {config_class.__name__}.{did_you_mean(name, names)}")
    return values


def bundled() -> dict[str, Path]:
    """The config files that come with the package, by name."""
    return {path.stem: path for path in sorted(_CONFIG_FOLDER.glob("*.py"))}


def load_file(path: Path) -> Training:
    """The `config` that a Python file defines.

    Raises:
      ValueError: the file cannot be run, or does not define a `config`.
    """
    try:
        config = runpy.run_path(str(path)).get("config")
    except (Exception, SystemExit) as error:  # A config is a program: anything can go wrong in it.
        raise ValueError(f"config {path}: {type(error).__name__}: {error}{_near_field(error)}") from error
    if not isinstance(config, Training):
        raise ValueError(f"config {path}: it must define `config`, a task's config, got config = {config!r}.")
    return config


def _near_field(error: BaseException) -> str:
    """What Python's own message about an unknown field lacks: the nearest one."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not found:
        return ""
    classes = {each.__name__: each for each in _extensions(Training)}
    config_class = classes.get(found[1], Training)
    return did_you_mean(found[2], [field.name for field in dataclasses.fields(config_class)])


def _extensions(config_class: type[Training]) -> list[type[Training]]:
    below = [_extensions(each) for each in config_class.__subclasses__()]
    return [config_class, *itertools.chain(*below)]
