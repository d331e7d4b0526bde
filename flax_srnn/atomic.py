"""Files and folders that appear whole or not at all.

Both are made under a hidden name in the folder where they will stand, hence on its file system, and then renamed. What
fails on the way, or is interrupted, leaves nothing.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["move_folder", "unfinished_folder", "writing_file"]


@contextlib.contextmanager
def writing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path to write to; what is there replaces `path` when the block ends well, and vanishes when it does not."""
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        yield unfinished
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """Gives a new hidden folder in `parent`, to be filled and moved by `move_folder`; if it was not moved, it vanishes."""
    unfinished = parent / f".unfinished-{secrets.token_hex(8)}"
    unfinished.mkdir()
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def move_folder(folder: Path, places: Iterable[Path]) -> Path:
    """Renames `folder` to the first of `places` that is free, and returns that.

    The operating system decides what is free, so two programs never get the same place. An empty folder may be.

    Raises:
      FileExistsError: something is at every place.
      OSError: nothing can be put there.
    """
    for place in places:
        try:
            return folder.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
    raise FileExistsError(f"{place}: it holds something by now.")
