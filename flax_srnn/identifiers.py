"""Reads what a user may write for an activation, initializer, regularizer or constraint, and writes it back.

Keras accepts a name (`"glorot_uniform"`), a configuration dict (`{"class_name": "L2", "config": {"l2": 0.1}}`, or the same
with `"module"` and `"registered_name"`, as Keras 3 writes it) and a callable. Each of the four modules owns one table from
names to objects; how an identifier is read and what the errors say is here, once.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from flax_srnn.validation import describe

__all__ = [
    "MAX_CONFIG_DEPTH", "build", "check_depth", "did_you_mean", "find", "not_understood", "number", "parse", "plain",
    "resolve", "to_config",
]  # fmt: skip

T = TypeVar("T")

MAX_CONFIG_DEPTH = 100
"""How deep a configuration may be nested, counting dicts and lists: what reads it, or shows it in a message, recurses."""

# The keys of a serialised Keras object; the last two only say how it was built and shared.
_CONFIG_KEYS = ("class_name", "config", "module", "registered_name", "build_config", "shared_object_id")
_KERAS_PACKAGES = ("keras", "tf_keras", "tensorflow", "builtins")


def find(table: Mapping[str, T], name: str, argument: str) -> T:
    """Returns `table[name]`; an unknown name is a ValueError that shows the nearest and all valid ones."""
    if name in table:
        return table[name]
    raise ValueError(
        f"`{argument}` is the unknown name {name!r}.{did_you_mean(name, table)} Valid names: {', '.join(table)}."
    )


def check_depth(config: Any, argument: str) -> None:
    """Raises ValueError for a configuration that is nested deeper than `MAX_CONFIG_DEPTH`, or in itself."""
    depth, level, known = 0, [config], {id(config): config}
    while level := [each for each in level if isinstance(each, (Mapping, list, tuple))]:
        depth += 1
        if depth > len(known):  # so many levels of so few parts
            raise ValueError(f"`{argument}` contains itself: a configuration must have an end.")
        inside = [value for each in level for value in (each.values() if isinstance(each, Mapping) else each)]
        level = list({id(value): value for value in inside}.values())  # once each, as parts may be shared
        known |= {id(value): value for value in level}
    if depth > MAX_CONFIG_DEPTH:
        raise ValueError(f"`{argument}` is nested {depth} deep; at most {MAX_CONFIG_DEPTH} is read.")


def parse(identifier: str | Mapping[str, Any], argument: str) -> tuple[str, Mapping[str, Any]]:
    """Splits a name or a Keras configuration into the name and the arguments of the constructor.

    A plain function, which Keras writes as `{"class_name": "function", "config": "relu", ...}`, has no arguments.
    """
    if isinstance(identifier, str):
        return identifier, {}
    unknown = [key for key in identifier if key not in _CONFIG_KEYS]
    if unknown:
        raise ValueError(
            f"`{argument}` has the unknown key {unknown[0]!r}.{did_you_mean(unknown[0], _CONFIG_KEYS)} A Keras configuration has "
            f"the keys {', '.join(_CONFIG_KEYS[:4])}, as keras.layers.serialize and its like return it; what get_config() returns "
            f"is its 'config' only. Got {describe(dict(identifier))}."
        )
    name: Any = identifier.get("class_name")
    config: Any = identifier.get("config")
    if name == "function":
        name, config = config, None
    config = {} if config is None else config
    readable = isinstance(name, str) and isinstance(config, Mapping)
    if not readable:
        raise ValueError(
            f"`{argument}` must be a Keras configuration with a string 'class_name' and a dict 'config', got "
            f"{dict(identifier)!r}."
        )
    _refuse_custom_object(identifier, name, argument)
    return name, config


def build(table: Mapping[str, Callable[..., T]], name: str, config: Mapping[str, Any], argument: str) -> T:
    """Calls `table[name](**config)`. An unknown key is refused unless it holds None, which is Keras for "not given"."""
    factory = find(table, name, argument)
    config = {key: plain(value) for key, value in config.items()}
    parameters = inspect.signature(factory).parameters
    for key, value in config.items():
        if key not in parameters and value is not None:
            raise ValueError(
                f"`{argument}`: {name!r} has no argument {key!r} (here {value!r}).{did_you_mean(key, parameters)} "
                f"Valid arguments: {', '.join(parameters) or 'none'}."
            )
    try:
        return factory(**{key: value for key, value in config.items() if key in parameters})
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{argument}`: {name!r} cannot be made of {dict(config)!r}: {error}") from error


def resolve(identifier: Any, table: Mapping[str, Callable[..., T]], argument: str) -> T | Callable[..., Any] | None:
    """Returns what `identifier` stands for: names, configurations and classes are built, callables and None pass."""
    if identifier is None:
        return None
    check_depth(identifier, argument)
    if isinstance(identifier, (str, Mapping)):
        name, config = parse(identifier, argument)
        return build(table, name, config, argument)
    if isinstance(identifier, type) and identifier in table.values():
        return identifier()
    if callable(identifier) and not isinstance(identifier, type):
        return identifier
    raise not_understood(identifier, argument)


def to_config(instance: Any, table: Mapping[str, Callable[..., Any]], module: str, argument: str) -> dict[str, Any]:
    """Returns Keras 3's form of an instance of one of the dataclasses in `table`: the inverse of `resolve`."""
    if type(instance) not in table.values():
        raise ValueError(
            f"`{argument}` must be one of Keras's own to be written as a Keras configuration, got {describe(instance)}."
        )
    config = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance) if field.init}
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    return {"module": module, "class_name": type(instance).__name__, "config": config, "registered_name": None}


def not_understood(identifier: Any, argument: str) -> ValueError:
    """The error for an identifier of a type that means nothing here."""
    return ValueError(
        f"`{argument}` must be a Keras name, a Keras configuration dict, a callable or None, got "
        f"{describe(identifier)}."
    )


def number(name: str, value: Any, *, at_least: float = -math.inf, at_most: float = math.inf) -> float:
    """Returns a constructor's argument as a float; it must be finite and within the bounds."""
    limits = (("at least", at_least), ("at most", at_most))
    bounds = " and ".join(f"{words} {limit:g}" for words, limit in limits if math.isfinite(limit))
    expected = f"`{name}` must be a finite number" + (f" of {bounds}" if bounds else "")
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real:
        raise TypeError(f"{expected}, got {describe(value)}.")
    largest = sys.float_info.max
    if not max(at_least, -largest) <= value <= min(at_most, largest):
        raise ValueError(f"{expected}, got {value!r}.")
    return float(value)


def plain(value: Any) -> Any:
    """Keras writes a number that was an array, and a seed that was a generator, as a configuration of its own."""
    if getattr(value, "ndim", None) == 0:
        return value.item()  # a live layer's may be an array still
    if isinstance(value, Mapping) and value.get("type") == "ndarray" and "value" in value:  # before Keras 2.4
        return value["value"]
    if isinstance(value, Mapping) and isinstance(value.get("config"), Mapping):
        for class_name, key in (("__numpy__", "value"), ("__tensor__", "value"), ("SeedGenerator", "seed")):
            if value.get("class_name") == class_name and key in value["config"]:
                return value["config"][key]
    return value


def _refuse_custom_object(identifier: Mapping[str, Any], name: str, argument: str) -> None:
    """Keras names a user's own class in 'module' and 'registered_name'; what it does is not known here."""
    module, registered = identifier.get("module"), identifier.get("registered_name")
    foreign = module is not None and str(module).split(".")[0] not in _KERAS_PACKAGES
    of_main = "module" in identifier and module is None and registered is not None  # Keras writes None for __main__
    if foreign or of_main or registered not in (None, name, identifier["class_name"]):
        raise ValueError(
            f"`{argument}` is a custom object of the module {module!r}, registered as {registered!r}, and not one of "
            f"Keras's own: {describe(dict(identifier))}. In a call pass the callable itself; of a file, `load_weights` reads the "
            "arrays."
        )


def did_you_mean(name: Any, valid: Iterable[str]) -> str:
    """Returns ' Did you mean ...?', or nothing where no valid name is near.

    Near are, from the nearest on, what differs in case, then in punctuation too; what begins so; and what is at most one
    typing error in four letters away. Of equally near ones it is the first that is in lower case.
    """
    typed = str(name).lower()
    lower_first = sorted(valid, key=lambda each: each != each.lower())
    distances = {each: _distance(typed, each.lower()) for each in lower_first}
    nearest = min(distances, key=distances.__getitem__, default="")
    return f" Did you mean {nearest!r}?" if distances.get(nearest, math.inf) < math.inf else ""


def _distance(typed: str, name: str) -> float:
    a, b = (re.sub(r"[\W_]", "", text) for text in (typed, name))
    if typed == name or a == b:
        return 0 if typed == name else 1
    if (len(a) > 2 and b.startswith(a)) or name.startswith(f"{typed}_"):
        return 2
    allowed = min(len(a), len(b)) // 4
    if abs(len(a) - len(b)) > allowed:  # which spares the comparison with a name of a million letters
        return math.inf
    errors = 1 if sorted(a) == sorted(b) else _typing_errors(a, b)  # letters that changed places are one
    return 2 + errors if errors <= allowed else math.inf


def _typing_errors(a: str, b: str) -> int:
    """How many letters are missing, too many or wrong: the distance of Levenshtein (1966).

    The ratio of `difflib` does not do: it holds "uniform" to be as near to "unit_norm" as "rleu" is to "relu".
    """
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        above, row = row, [i]
        for j, other in enumerate(b):
            row.append(min(above[j + 1] + 1, row[j] + 1, above[j] + (letter != other)))
    return row[-1]
