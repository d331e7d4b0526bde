"""Sequences in NumPy's npz files, and the ones that come with scikit-learn.

    x          (N, T, F) or (N, T)   numbers; what lies behind the mask may be anything, NaN too, and is read as 0
    y          (N,)                  the class of each, 0 to C - 1
    lengths    (N,)                  or mask (N, T) bool: which steps are used; without both, all

A file is data from a stranger: nothing in it is executed, pickled objects are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flax_srnn.identifiers import did_you_mean
from flax_srnn.validation import absent

__all__ = ["Part", "Sequences", "arrays", "digits", "numbers", "parts", "read"]

_ZIP = b"PK\x03\x04"
_LEAST_OF_A_CLASS = 4
_NUMBERED = "numpy.unique(y, return_inverse=True)[1] numbers any classes so."


class Sequences(NamedTuple):
    """N sequences of T steps.

    x: (N, T, F) float64, 0 where the mask is. mask: (N, T) bool, True = the step is used; no row is without any. y: (N,)
    classes, or None. source: the file, as it was named.
    """

    x: np.ndarray
    mask: np.ndarray
    y: np.ndarray | None
    source: str


class Part(NamedTuple):
    """The rows of one fold, or of all there is, in rising order; a validation part may be empty."""

    learned: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def digits(*, by_pixel: bool) -> Sequences:
    """The 1,797 handwritten digits of scikit-learn, 8 rows of 8 pixels each, or 64 single pixels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    shape = (64, 1) if by_pixel else (8, 8)
    return Sequences(x.reshape(-1, *shape), np.ones((len(x), shape[0]), bool), y, "digits")


def read(path: Path, *, labelled: bool) -> Sequences:
    """Reads sequences, with `labelled` for training: then labels must be there, and every class among them.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no such file, or an array is missing, unknown or does not hold what it may. The message names it.
    """
    found = arrays(path, ["x", "y"] if labelled else ["x"], ["y", "lengths", "mask"])
    where = f"data {path}"
    x = found["x"]
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise ValueError(f"{where}, array x: its shape must be (N, T, F) or (N, T), none of them 0, got {x.shape}.")
    x = x.reshape(*x.shape[:2], -1)
    mask = _mask(where, found, *x.shape[:2])
    x = numbers(where, np.where(mask[..., None], x, x.dtype.type(0)))
    return Sequences(
        x, mask, _labels(where, found["y"], len(x), complete=labelled) if "y" in found else None, str(path)
    )


def parts(source: str, y: np.ndarray, folds: int, test_share: float, validation_share: float) -> list[Part]:
    """What is learned from and what is not, with every class in each: one for each fold, or with 0 folds a single one.

    Args:
      source: the data as they were named.
      y: classes (N,).
      folds: each example is in the test part of one.
      test_share: of all examples, without folds.
      validation_share: of the examples that are not in the test part; 0: there is no validation part.

    Raises:
      ValueError: a class has too few examples.
    """
    counts, least = np.bincount(y), max(folds, _LEAST_OF_A_CLASS)
    if (few := np.flatnonzero(counts < least)).size:
        raise ValueError(
            f"data {source}, array y: too few examples: every class needs at least {least}, class {few[0]} has {counts[few[0]]}."
        )
    rng, rows = np.random.default_rng(0), np.arange(len(y))
    if folds:
        from sklearn.model_selection import StratifiedKFold

        tests = [test for _, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(y, y)]
    else:
        tests = [_held_out(rng, rows, y, test_share)]
    found = []
    for test in tests:
        rest = np.setdiff1d(rows, test)
        validation = _held_out(rng, rest, y, validation_share) if validation_share else rest[:0]
        found.append(Part(np.setdiff1d(rest, validation), validation, test))
    return found


def _held_out(rng: np.random.Generator, rows: np.ndarray, y: np.ndarray, share: float) -> np.ndarray:
    """A share of the rows of every class: one at least, and not all."""
    of_classes = [rng.permutation(rows[y[rows] == label]) for label in np.unique(y)]
    return np.sort(np.concatenate([x[: min(max(1, round(share * len(x))), len(x) - 1)] for x in of_classes]))


def arrays(path: Path, needed: Collection[str], allowed: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an npz file: those that are needed, and none but these and those allowed.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no npz file, is damaged or holds objects, or its arrays are others.
    """
    where = f"data {path}"
    if not path.is_file():
        raise FileNotFoundError(f"{where}: {absent(path)}.")
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        if file.read(len(_ZIP)) != _ZIP:
            raise ValueError(f"{where}: it is no npz file; numpy.savez writes one.")
        file.seek(0)
        try:
            stored = opened.enter_context(np.load(file, allow_pickle=False))
        except Exception as error:  # zipfile and numpy know a dozen ways to fail on a damaged file.
            raise ValueError(f"{where}: it is no npz file: {_line(error)}") from error
        known, names = [*dict.fromkeys([*needed, *allowed])], list(stored)
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"{where}, array {name}: it is unknown.{hint} Known arrays: {', '.join(known)}.")
        for name in needed:
            if name not in names:
                raise ValueError(f"{where}, array {name}: it is missing. Found: {', '.join(names) or 'none'}.")
        return {name: _array(f"{where}, array {name}", stored, name) for name in names}


def _array(where: str, stored: Any, name: str) -> np.ndarray:
    try:
        array = stored[name]
    except Exception as error:
        words = f"; it must be integers. {_NUMBERED}" if name == "y" and "Object arrays" in str(error) else ""
        raise ValueError(f"{where}: it cannot be read: {_line(error)}{words}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{where}: it is no array of NumPy's.")
    return array


def numbers(where: str, x: np.ndarray) -> np.ndarray:
    """x (N, T, F) as float64, if it holds numbers that float32 can."""
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{where}, array x: it must hold real numbers, got {x.dtype}.")
    x = x.astype(np.float64)
    bad = ~(np.abs(x) <= np.finfo(np.float32).max)  # nor is NaN
    if bad.any():
        row, step = np.argwhere(bad)[0, :2]
        raise ValueError(f"{where}, array x: it must be finite in float32, got {x[bad][0]} in row {row}, step {step}.")
    return x


def _mask(where: str, found: dict[str, np.ndarray], rows: int, steps: int) -> np.ndarray:
    """(N, T): the steps that are used."""
    if "mask" in found and "lengths" in found:
        raise ValueError(f"{where}, array mask: it is not needed beside lengths; leave one of them out.")
    mask = np.ones((rows, steps), bool)
    if "mask" in found:
        mask = found["mask"]
        if mask.shape != (rows, steps) or mask.dtype != bool:
            raise ValueError(
                f"{where}, array mask: it must be bool of shape {(rows, steps)} as x has, got {mask.dtype} {mask.shape}."
            )
        if (empty := np.flatnonzero(~mask.any(axis=1))).size:
            raise ValueError(f"{where}, array mask: row {empty[0]} has no step that is used.")
    elif "lengths" in found:
        lengths = found["lengths"]
        if lengths.shape != (rows,) or lengths.dtype.kind not in "iu":
            raise ValueError(
                f"{where}, array lengths: it must be integers of shape {(rows,)}, got {lengths.dtype} {lengths.shape}."
            )
        if (bad := np.flatnonzero((lengths < 1) | (lengths > steps))).size:
            raise ValueError(
                f"{where}, array lengths: it must be from 1 to {steps}, the steps of x, got {lengths[bad[0]]} in row {bad[0]}."
            )
        mask = np.arange(steps) < lengths[:, None]
    return mask


def _labels(where: str, y: np.ndarray, rows: int, *, complete: bool) -> np.ndarray:
    where = f"{where}, array y"
    if y.shape != (rows,) or y.dtype.kind not in "iu":
        of_words = f" {_NUMBERED}" if y.shape == (rows,) else ""
        of_one_hot = " y.argmax(1) gives the classes of one-hot rows." if y.ndim == 2 and y.shape[1] > 1 else ""
        raise ValueError(
            f"{where}: it must be integers of shape {(rows,)}, a class a row, got {y.dtype} {y.shape}.{of_words}{of_one_hot}"
        )
    if (bad := np.flatnonzero(y < 0)).size:
        raise ValueError(f"{where}: classes are 0, 1, 2, ..., got {y[bad[0]]} in row {bad[0]}. {_NUMBERED}")
    if complete:
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(f"{where}: there must be two classes at least, got {classes[0]} alone.")
        if (gap := np.flatnonzero(classes != np.arange(len(classes)))).size:
            raise ValueError(f"{where}: every class from 0 to {classes[-1]} must occur, {gap[0]} does not. {_NUMBERED}")
    return y.astype(np.int64)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
