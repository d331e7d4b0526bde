"""Files and folders that appear whole or not at all.

Both are made under a hidden name in the folder where they will stand, hence on its file system, and then renamed. What
fails on the way, or is interrupted, leaves nothing, and an OSError names what was asked for and not the hidden name.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["move_folder", "naming", "unfinished_folder", "writing_file"]


@contextlib.contextmanager
def writing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path to write to; what is there replaces `path` when the block ends well, and vanishes when it does not.

    Raises:
      OSError: it cannot be written; `path` is a folder or a device, which a file must not replace.
    """
    target = Path(path)
    if target.exists() and not (target.is_file() or target.is_dir()):  # the system itself refuses a folder
        raise FileExistsError(errno.EEXIST, "this is no file that can be replaced", str(target))
    unfinished = _hidden_beside(target)
    with naming(target, unfinished):
        try:
            yield unfinished
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """Gives a new hidden folder beside `target`, to be filled and moved by `move_folder`; if it was not moved, it vanishes."""
    unfinished = _hidden_beside(target)
    with naming(target, unfinished):
        unfinished.mkdir()
        try:
            yield unfinished
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def naming(target: Path, unfinished: Path) -> Iterator[None]:
    """Has an OSError about `unfinished`, what is in it, or no file in particular, name `target` in its place."""
    try:
        yield
    except OSError as error:
        # Writing to an open file fails without a name. An error of this library's own has a text in place of a number.
        about = unfinished if error.filename is None else Path(str(error.filename))
        if error.errno is None or not about.is_relative_to(unfinished):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(target / about.relative_to(unfinished))) from error


def _hidden_beside(target: Path) -> Path:
    """A new name; that of `target` is not in it, for which it might be too long."""
    return target.parent / f".unfinished-{secrets.token_hex(8)}"


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
