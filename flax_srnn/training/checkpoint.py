"""What a run needs to go on: a folder for each step, which is there whole or not at all, and is looked at before it is used.

STEP/arrays/        Orbax's, of one or of several processes
STEP/rest.json      what JSON can hold
STEP/checksums      of every file of these; Orbax itself does not notice every damage
.unfinished-STEP    what is being written, or taken away
damaged-STEP-N      a checkpoint that was found damaged: it is left to the user
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from flax_srnn import atomic
from flax_srnn.exits import Failed
from flax_srnn.training import processes

__all__ = ["Checkpoints"]

_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # in the messages of TensorStore, which writes for Orbax
_ARRAYS, _REST, _CHECKSUMS, _UNFINISHED = "arrays", "rest.json", "checksums", ".unfinished-"


class Checkpoints:
    """The newest `keep` checkpoints in a folder, which several processes share."""

    def __init__(self, folder: Path, keep: int) -> None:
        # Orbax reports every file that it writes, and with pages what it raises as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._folder, self._keep = folder.absolute(), keep
        processes.by_first(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, rising."""
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def newest(self, report: Callable[[str], None]) -> int | None:
        """The step of the newest one that is whole; damaged ones that are newer are reported and moved aside.

        Raises:
          Failed: there are checkpoints, and none is whole.
        """

        def look() -> int | None:
            damaged: dict[int, str] = {}
            for step in reversed(self.steps()):
                if (fault := _fault(self._folder / str(step))) is None:
                    break
                damaged[step] = f"the checkpoint of step {step} is damaged: {fault}"
            else:
                if damaged:
                    faults = "; ".join(damaged.values())
                    raise Failed(
                        f"{self._folder}: none of the checkpoints is whole: {faults}; all were left as they are."
                    )
                return None
            for each, fault in damaged.items():
                places = (self._folder / f"damaged-{each}-{number}" for number in itertools.count(1))
                report(f"{fault}; it is now {atomic.move_folder(self._folder / str(each), places)}")
            return step

        return processes.by_first(look)

    def save(self, step: int, arrays: Any, rest: dict[str, Any]) -> None:
        """A checkpoint of all processes; older ones than the newest `keep` go.

        Raises:
          OSError: it cannot be written; those that were there are kept.
        """
        unfinished = self._folder / f"{_UNFINISHED}{step}"
        processes.by_first(self._clean)

        def finish() -> None:
            (unfinished / _REST).write_text(json.dumps(rest), encoding="utf-8")
            (unfinished / _CHECKSUMS).write_text(json.dumps(_checksums(unfinished), indent=1), encoding="utf-8")
            unfinished.rename(self._folder / str(step))
            for old in self.steps()[: -self._keep]:
                (self._folder / str(old)).rename(self._folder / f"{_UNFINISHED}{old}")
            self._clean()

        with atomic.naming(self._folder / str(step), unfinished):
            with contextlib.redirect_stderr(io.StringIO()):  # where a disk is full its threads print pages
                try:
                    self._orbax.save(unfinished / _ARRAYS, args=ocp.args.StandardSave(arrays))
                except ValueError as error:
                    if not (found := _OS_ERROR.search(str(error))):
                        raise
                    _expect_no_more_of_its_threads()
                    raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
            processes.by_first(finish)

    def _clean(self) -> None:
        for left in self._folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left)

    def restore(self, step: int, like: Any) -> Any:
        """The arrays of a checkpoint; `like` has their shapes, dtypes and shardings."""
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._orbax.restore(self._folder / str(step) / _ARRAYS, args=ocp.args.StandardRestore(like))

    def rest(self, step: int) -> dict[str, Any]:
        """What else is in a checkpoint."""
        return dict(json.loads((self._folder / str(step) / _REST).read_text(encoding="utf-8")))

    def close(self) -> None:
        self._orbax.close()


def _expect_no_more_of_its_threads() -> None:
    """After an array could not be written: the others are still under way, and meet the same, or an ended event loop."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, if anything is."""
    try:
        written, found = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8")), _checksums(folder)
        differing = sorted(name for name in written.keys() | found.keys() if written.get(name) != found.get(name))
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, AttributeError):
        differing = [_CHECKSUMS]
    return f"{differing[0]} is not what was written" if differing else None


def _checksums(folder: Path) -> dict[str, str]:
    """Of every file of a checkpoint but the one that holds them."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / _CHECKSUMS:
            with path.open("rb") as file:
                sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
