"""How a recurrence can be run: one table of implementations, which a kernel joins with one line and one file.

An implementation is a frozen, hashable value that carries its own options and two functions (`Implementation`). Another
package joins by an entry point of the group "flax_srnn.implementations", whose name is the short form and which loads the
class; it is looked up when somebody names it. Objects of any such class can be passed as they are.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import jax

from flax_srnn import identifiers
from flax_srnn.core.parallel_in_time import Chunked
from flax_srnn.core.problem import Problem
from flax_srnn.core.recurrence import Autodiff, Scan
from flax_srnn.validation import describe

__all__ = ["Choice", "Implementation", "get", "short_form"]


@runtime_checkable
class Implementation(Protocol):
    """Two functions of a `Problem`; a named implementation runs or raises, it never falls back to another."""

    def check(self, problem: Problem) -> None:
        """Raises ValueError, in the user's words, for a problem that this implementation cannot solve."""

    def run(self, problem: Problem) -> tuple[jax.Array, jax.Array | None]:
        """(final state (B, U), states in the layout and dtype of the inputs); the states may be None if not wanted."""


TABLE: dict[str, type[Implementation]] = {"scan": Scan, "autodiff": Autodiff, "chunked": Chunked}
DEFAULT = Scan()
"""What None chooses for a simple RNN."""
GROUP = "flax_srnn.implementations"
OPTIONAL = {
    "native": "a package of its own that is not installed: `pip install ./native` in a checkout of the repository adds it"
}
"""Names that optional packages of this repository bring, and what to say of them where they are not installed."""

Choice: TypeAlias = Implementation | Literal["scan", "autodiff", "chunked", "native"] | None
"""What the argument `implementation` takes; "native" is there when the package of that kernel is installed."""


def short_form(implementation: Implementation) -> str:
    """The name of an implementation, for messages."""
    names = {kind: name for name, kind in TABLE.items()}
    return names.get(type(implementation), type(implementation).__name__)


def get(choice: Choice) -> Implementation | None:
    """The implementation that an object or its short form stands for; None for None, which leaves the choice to who runs.

    Raises:
      ValueError: an unknown name, one whose package is not installed, or something else.
    """
    if choice is None:
        return None
    if isinstance(choice, str):
        if choice in TABLE:
            return TABLE[choice]()
        installed = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
        if choice not in installed and choice in OPTIONAL:
            raise ValueError(f"`implementation`: {choice!r} is {OPTIONAL[choice]}.")
        known: dict[str, Any] = {**dict.fromkeys(TABLE), **installed}
        return _of_package(identifiers.find(known, choice, "implementation"))
    if isinstance(choice, type) or not isinstance(choice, Implementation):
        raise ValueError(
            f"`implementation` must be None, one of the names {', '.join(TABLE)}, or an object such as Scan(), got "
            f"{describe(choice)}."
        )
    return choice


def _of_package(point: importlib.metadata.EntryPoint) -> Implementation:
    """What an installed package brings under a name."""
    try:
        made: Implementation = point.load()()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"`implementation`: the entry point {point.name!r} = {point.value!r} cannot be made: {error}"
        ) from error
    if not isinstance(made, Implementation):
        raise ValueError(
            f"`implementation`: the entry point {point.name!r} = {point.value!r} has no `check` and `run`: {describe(made)}."
        )
    return made
