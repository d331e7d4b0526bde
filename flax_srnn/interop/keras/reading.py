"""Reads files from strangers within stated limits.

Everything is read into memory and nothing is ever unpacked to disk. Sizes are checked before the bytes are read.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from flax_srnn.identifiers import MAX_CONFIG_DEPTH

__all__ = [
    "MAX_COMPRESSION_RATIO", "MAX_FILE_BYTES", "MAX_JSON_BYTES", "MAX_MEMBERS",
    "blaming", "read_archive", "read_file", "read_json", "read_member",
]  # fmt: skip

MAX_FILE_BYTES = 4 * 2**30
MAX_MEMBERS = 1000  # of an archive; Keras writes three, and a few assets
MAX_COMPRESSION_RATIO = 100  # above the first MiB; Keras does not compress at all
MAX_JSON_BYTES = 16 * 2**20

_CENTRAL_DIRECTORY_ENTRY = b"PK\x01\x02"
_ENCRYPTED = 0x1
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}  # into the depth of JSON


@contextlib.contextmanager
def blaming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Puts the path in front of what a ValueError says."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def read_file(path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a directory, a device or a pipe; too large.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ValueError(f"is {kind}; expected a file.")
    _check_size("the file", status.st_size, max_bytes)
    with open(path, "rb") as file:
        return file.read(status.st_size)


def read_archive(data: bytes) -> zipfile.ZipFile:
    """Opens a zip archive in memory after checking every member's name and declared size.

    Raises:
      ValueError: damaged; too many members or too large; a name that leaves the folder or appears twice; compressed beyond
        belief, encrypted, or by a method other than deflate.
    """
    # Each entry of the directory starts so: counted before zipfile makes an object of each.
    if data.count(_CENTRAL_DIRECTORY_ENTRY) > MAX_MEMBERS:
        raise ValueError(f"the archive has more than {MAX_MEMBERS} members.")
    with _as_value_error("the archive"):
        archive = zipfile.ZipFile(io.BytesIO(data))
    names = set()
    for member in archive.infolist():
        name = member.filename
        parts = re.split(r"[/\\]", name)
        if not name or parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in name:
            raise ValueError(f"the archive has a member {name!r}, which leaves its folder.")
        if name in names:
            raise ValueError(f"the archive has two members {name!r}.")
        names.add(name)
        if member.flag_bits & _ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"the member {name!r} is encrypted or compressed by a method other than deflate.")
        if member.file_size > MAX_COMPRESSION_RATIO * member.compress_size + 2**20:
            raise ValueError(
                f"the member {name!r} declares {member.file_size} bytes but stores {member.compress_size}: compressed more "
                f"than {MAX_COMPRESSION_RATIO} times."
            )
    _check_size("the archive's content", sum(member.file_size for member in archive.infolist()), MAX_FILE_BYTES)
    return archive


def read_member(archive: zipfile.ZipFile, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of one member, never more than it declares."""
    with _as_value_error(f"the member {name!r}"):
        try:
            member = archive.getinfo(name)
        except KeyError as error:
            raise ValueError(f"the archive has no {name!r}.") from error
        _check_size(f"{name!r}", member.file_size, max_bytes)
        with archive.open(member) as file:
            data = file.read(member.file_size)
        if len(data) != member.file_size:
            raise ValueError(f"{name!r} is truncated: {len(data)} of {member.file_size} bytes.")
    return data


def read_json(text: bytes | str) -> dict[str, Any]:
    """A JSON object, of bounded size and depth.

    Raises:
      ValueError: not JSON, not an object, too large or nested too deeply.
    """
    _check_size("the JSON", len(text), MAX_JSON_BYTES)
    try:
        text = text if isinstance(text, str) else text.decode()
        brackets = re.sub(r"[^\[\]{}]++", "", re.sub(r'"(?:[^"\\]++|\\.)*+"', "", text, flags=re.DOTALL))
        deepest = max(itertools.accumulate(map(_STEPS.__getitem__, brackets)), default=0)
        if deepest > MAX_CONFIG_DEPTH:
            raise ValueError(f"nested {deepest} deep; at most {MAX_CONFIG_DEPTH} is read.")
        value = json.loads(text)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError too
        raise ValueError(f"the JSON is damaged: {error}") from error
    if type(value) is not dict:
        raise ValueError(f"the JSON holds a {type(value).__name__}, not an object.")
    return value


def _check_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"{what} has {size} bytes; at most {limit} are read.")


@contextlib.contextmanager
def _as_value_error(what: str) -> Iterator[None]:
    """zipfile reports damage in many ways."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{what} is damaged: {error or type(error).__name__}.") from error
