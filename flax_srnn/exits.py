"""How a program of this package ends when it does not end well."""

from __future__ import annotations

import signal
from pathlib import Path

__all__ = ["Failed", "Interrupted"]


class Failed(RuntimeError):
    """It could not do its work, though nothing that it was given is wrong: one line, exit code 1."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, in `signum`; `folder` is the run that can go on, if there is one."""

    def __init__(self, signum: int, folder: Path | None = None) -> None:
        self.signum, self.folder = signum, folder
        saved = "nothing was saved." if folder is None else f"go on with: flax-srnn train --resume {folder}"
        super().__init__(f"stopped by {signal.Signals(signum).name}; {saved}")
