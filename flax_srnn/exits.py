"""How a program of this package ends, well or not."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Failed", "Interrupted", "wrote"]


class Failed(RuntimeError):
    """It could not do its work, though nothing that it was given is wrong: one line, exit code 1."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, in `signum`; `folder` is the run that can go on, if there is one."""

    def __init__(self, signum: int, folder: Path | None = None) -> None:
        self.signum, self.folder = signum, folder
        saved = "nothing was saved." if folder is None else f"go on with: flax-srnn train --resume {folder}"
        super().__init__(f"stopped by {signal.Signals(signum).name}; {saved}")


def wrote(place: Path, about: str = "", files: Mapping[str, str] | None = None, then: str = "") -> str:
    """The last words of a program that wrote something.

    Args:
      place: the file or the folder, as the user named it.
      about: what is in it, in short.
      files: those of a folder, each with a phrase; of these only what is there is named.
      then: what one would type next.
    """
    found = {name: phrase for name, phrase in (files or {}).items() if (place / name).exists()}
    lines = [f"wrote {place}{': ' if about else ''}{about}"]
    lines += [f"  {name:<{max(map(len, found))}}  {phrase}" for name, phrase in found.items()]
    return "\n".join([*lines, f"next: {then}"] if then else lines)
