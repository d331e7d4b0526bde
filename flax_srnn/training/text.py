"""Text as a character model reads it: files, what is held out of them, and characters as small numbers.

    files       a file by its name; of a folder all whose names end in SUFFIXES, sorted; python_source: the running Python's
                own standard library
    held out    whole files, those with the lowest hashes of their relative paths: which they are depends on names only. Of a
                single file its last part is test and the part before that is validation.
    numbers     of the V characters that the training part has often enough, in the order of their code points, 0 to V - 1; V
                is unknown, all others; V + 1 is what a model reads before the first character of a file

Files that are empty hold nothing to be predicted and are passed over, in a folder also those that are not UTF-8, which are
counted. Characters are those of the file: no newline or byte order mark is translated.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import lzma
import math
import os
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flax_srnn.validation import absent

__all__ = ["SUFFIXES", "Corpus", "Parts", "Text", "begin", "characters", "compressed", "encode", "read", "split"]

SUFFIXES = {
    ".c", ".cc", ".cfg", ".cpp", ".css", ".csv", ".go", ".h", ".hpp", ".html", ".java", ".js", ".json", ".md", ".py", ".pyi",
    ".r", ".rb", ".rs", ".rst", ".sh", ".sql", ".tex", ".toml", ".ts", ".txt", ".xml", ".yaml", ".yml",
}  # fmt: skip
PYTHON_SOURCE = "python_source"
_CODE_POINTS = 0x110000
_LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
_TOPICS = Path("pydoc_data", "topics.py")


class Text(NamedTuple):
    """A file: its path relative to the folder, and its characters."""

    name: str
    characters: str


class Corpus(NamedTuple):
    """All texts of `data`, sorted by name; how many files were no UTF-8; whether it is a single file."""

    source: str
    texts: list[Text]
    not_utf8: int
    single: bool


class Parts(NamedTuple):
    """Texts by what they are for."""

    training: list[Text]
    validation: list[Text]
    test: list[Text]


def read(source: str) -> Corpus:
    """Reads a file, or the text files of a folder.

    Raises:
      FileNotFoundError: there is no such file or folder, or no text file in the folder.
      OSError: a file cannot be read.
      ValueError: no character is left, or a single file is not UTF-8.
    """
    where = f"data {source}"
    path = Path(sysconfig.get_paths()["stdlib"]) if source == PYTHON_SOURCE else Path(source)
    if path.is_file():
        try:
            corpus = Corpus(source, [Text(path.name, _contents(where, path).decode("utf-8"))], 0, single=True)
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise ValueError(f"{where}, line {line}: it must be text in UTF-8, got other bytes there.") from error
    elif path.is_dir():
        corpus = _folder(where, source, path)
    else:
        raise FileNotFoundError(f"{where}: {absent(path, 'file or folder')}.")
    texts = [text for text in corpus.texts if text.characters]
    if not texts:
        raise ValueError(f"{where}: it is empty.")
    return corpus._replace(texts=texts)


def _folder(where: str, source: str, folder: Path) -> Corpus:
    texts, not_utf8 = [], 0
    for path in _text_files(folder, python=source == PYTHON_SOURCE):
        try:
            texts.append(Text(path.relative_to(folder).as_posix(), _contents(where, path).decode("utf-8")))
        except UnicodeDecodeError:
            not_utf8 += 1
    if not texts:
        found = f", but {not_utf8} that are not UTF-8" if not_utf8 else ": none ends in .txt, .md, .py or the like"
        raise FileNotFoundError(f"{where}: this folder has no text files{found}.")
    return Corpus(source, sorted(texts), not_utf8, single=False)


def _text_files(folder: Path, *, python: bool) -> Iterable[Path]:
    """Nothing hidden; of Python's own library what people wrote as programs: no tests, no tables, nothing installed."""
    for place, inside, names in os.walk(folder):
        inside[:] = [each for each in inside if not (each in _LEFT_OUT if python else each.startswith("."))]
        for path in (Path(place, name) for name in names):
            if python:
                wanted = path.suffix == ".py" and path.relative_to(folder) != _TOPICS
            else:
                wanted = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            if wanted and path.is_file():
                yield path


def _contents(where: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(f"{where}: {path} cannot be read: {error.strerror}.") from error


def split(corpus: Corpus, validation_share: float, test_share: float) -> Parts:
    """At least one file, or one character of a single file, is in each part.

    Raises:
      ValueError: there are too few.
    """
    where, texts = f"data {corpus.source}", corpus.texts
    counts = len(texts[0].characters) if corpus.single else len(texts)
    test, validation = (math.ceil(share * counts) for share in (test_share, validation_share))
    learned = counts - test - validation
    if learned < 1:
        what = "characters" if corpus.single else "files with text in UTF-8"
        raise ValueError(
            f"{where}: it is too short: {counts} {what}, of which {test} are for test and {validation} for validation; none is "
            "left to learn from (test_share, validation_share)."
        )
    if corpus.single:
        name, whole = texts[0]
        borders = (0, learned, learned + validation, counts)
        cut = [whole[a:b] for a, b in itertools.pairwise(borders)]
        return Parts(*([Text(f"{name} ({part})", each)] for part, each in zip(Parts._fields, cut, strict=True)))
    ranked = sorted(texts, key=lambda text: hashlib.sha256(text.name.encode()).digest())
    return Parts(sorted(ranked[test + validation :]), sorted(ranked[test : test + validation]), sorted(ranked[:test]))


def characters(texts: Iterable[Text], least: int) -> np.ndarray:
    """The code points (V,) that occur at least so often, rising."""
    counts = np.zeros(_CODE_POINTS, np.int64)
    for text in texts:
        of_one = np.bincount(_code_points(text.characters))
        counts[: len(of_one)] += of_one
    return np.flatnonzero(counts >= least).astype(np.uint32)


def begin(vocabulary: np.ndarray) -> int:
    """What is read before the first character; the number before it is that of unknown characters."""
    return len(vocabulary) + 1


def encode(vocabulary: np.ndarray, texts: Sequence[Text]) -> list[np.ndarray]:
    """Each text as numbers, of the smallest unsigned dtype that holds them all."""
    table = np.full(_CODE_POINTS, len(vocabulary), np.min_scalar_type(begin(vocabulary)))
    table[vocabulary] = np.arange(len(vocabulary))
    return [table[_code_points(text.characters)] for text in texts]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def compressed(texts: Iterable[Text]) -> dict[str, int]:
    """Bytes by gzip -9 and by xz -9, each text alone."""
    sizes = {"gzip": 0, "xz": 0}
    for text in texts:
        data = text.characters.encode()
        sizes["gzip"] += len(gzip.compress(data, 9, mtime=0))
        sizes["xz"] += len(lzma.compress(data, preset=9))
    return sizes
