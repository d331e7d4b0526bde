"""What a run needs to go on: Orbax's checkpoints, a folder for each step under the run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

__all__ = ["Checkpoints"]


class Checkpoints:
    """The newest `keep` checkpoints in a folder; each holds a tree of arrays and a mapping of what JSON can hold."""

    def __init__(self, folder: Path, keep: int) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file that it writes
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, create=True),
        )

    @property
    def newest(self) -> int | None:
        """The step of the newest one, if there is one."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Any, rest: dict[str, Any]) -> None:
        if step not in self._manager.all_steps():
            items = {"arrays": ocp.args.StandardSave(arrays), "rest": ocp.args.JsonSave(rest)}
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The checkpoint of `step`; `like` has the shapes, dtypes and shardings of its arrays."""
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = {"arrays": ocp.args.StandardRestore(like), "rest": ocp.args.JsonRestore()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return restored["arrays"], restored["rest"]

    def close(self) -> None:
        self._manager.close()
