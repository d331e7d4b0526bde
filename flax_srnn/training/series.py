"""Series of numbers in CSV files as people have them.

separator   comma, semicolon or tab: whichever the first line has most of; numbers may then have a decimal comma
header      there is one unless the first line holds numbers like the others; without one, columns are called 1, 2, ...
index       the first of several columns, if it holds dates, which must rise from row to row, or numbers that do; else rows are
            counted
column      the one named, or the only one left, or of several that of a run that was fitted to one
"""

from __future__ import annotations

import csv
import datetime
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flax_srnn.identifiers import did_you_mean
from flax_srnn.validation import absent

__all__ = ["Series", "after", "entry", "read", "text"]

_DATES = ("%Y-%m-%d", "%Y-%m", "%Y/%m/%d", "%Y/%m", "%Y%m%d", "%d.%m.%Y", "%m/%d/%Y", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M",
          "%Y-%m-%dT%H:%M:%S", "%d.%m.%Y %H:%M", "%b %Y", "%Y-%b")  # fmt: skip
_QUARTER = re.compile(r"(\d{4})[-: ]?Q([1-4])", re.IGNORECASE)


class Series(NamedTuple):
    """T numbers, one after the other.

    times: (T,) float64 or datetime64[s], rising. values: (T,) float64, finite. name: of the column. source: the file, as it
    was named. lines: (T,) their lines in it. axis: the name of the times.
    """

    times: np.ndarray
    values: np.ndarray
    name: str
    source: str
    lines: np.ndarray
    axis: str


def read(path: Path, column: str | None = None, fitted: str | None = None) -> Series:
    """Reads one column of a CSV file; lines that begin with # are comments.

    Args:
      path: of the file.
      column: the one that is meant; None: the only one with numbers.
      fitted: the column that a run was fitted to, which is meant where several hold numbers.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no such table, its dates do not rise, the column is not in it, or a value is missing or no number. The
        message names the file and the line or column.
    """
    where = f"series {path}"
    if not path.is_file():
        raise FileNotFoundError(f"{where}: {absent(path)}.")
    rows = _rows(path, where)
    if not rows:
        raise ValueError(f"{where}: it is empty.")
    width = len(rows[0][1])
    for line, cells in rows:
        if len(cells) != width:
            raise ValueError(f"{where}, line {line}: expected {width} columns as in the first line, got {len(cells)}.")
    headed = any(cell and _number(cell) is None and _date(cell) is None for cell in rows[0][1])
    names = [cell or str(i) for i, cell in enumerate(rows[0][1], 1)] if headed else [str(i + 1) for i in range(width)]
    body = rows[1:] if headed else rows
    if not body:
        raise ValueError(f"{where}: it has a header and no rows.")
    index = _index(where, names[0], body) if width > 1 and names[0] != column else None
    place = _column(where, names, body, column, fitted, skip=index is not None)
    values = [_value(f"{where}, line {line}", names[place], cells[place]) for line, cells in body]
    axis = (rows[0][1][0] if headed else "") or "index"
    if index is None:
        index, axis = np.arange(1.0, len(body) + 1), "row"
    lines = np.array([line for line, _ in body])
    return Series(index, np.array(values), names[place], str(path), lines, axis)


def _rows(path: Path, where: str) -> list[tuple[int, list[str]]]:
    """(line, cells) of every line that is neither empty nor a comment."""
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        content = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{where}, line {line}: it must be text in UTF-8, got other bytes there.") from error
    if "\0" in content:
        line = content[: content.index("\0")].count("\n") + 1
        raise ValueError(f"{where}, line {line}: it must be a text file, got zero bytes.")
    lines = [(n, line) for n, line in enumerate(content.splitlines(), 1) if line.strip() and not line.startswith("#")]
    if not lines:
        return []
    separator = max(",;\t", key=lines[0][1].count)
    try:
        cells = [next(csv.reader([line], delimiter=separator)) for _, line in lines]
    except csv.Error as error:
        raise ValueError(f"{where}: it is no CSV file: {error}.") from error
    return [(n, [cell.strip() for cell in row]) for (n, _), row in zip(lines, cells, strict=True)]


def _column(
    where: str,
    names: list[str],
    body: Sequence[tuple[int, list[str]]],
    column: str | None,
    fitted: str | None,
    *,
    skip: bool,
) -> int:
    """Which column is meant."""
    left = [i for i in range(int(skip), len(names)) if any(_number(cells[i]) is not None for _, cells in body)]
    if column is None and len(left) > 1:
        column = fitted  # no one names a column for `predict`
    if column is not None:
        if column not in names:
            hint = did_you_mean(column, names)
            of_run = ", which the run was fitted to" if fitted else ""
            raise ValueError(f"{where}: it has no column {column!r}{of_run}.{hint} Columns: {', '.join(names)}.")
        return names.index(column)
    if not left:
        raise ValueError(f"{where}: no column holds numbers. Columns: {', '.join(names)}.")
    if len(left) > 1:
        words = ", ".join(names[i] for i in left)
        raise ValueError(f"{where}: several columns hold numbers; name one of them with --column: {words}.")
    return left[0]


def _value(where: str, name: str, cell: str) -> float:
    number = _number(cell)
    if number is None or not math.isfinite(number):
        what = "nothing" if cell == "" else repr(cell)
        raise ValueError(
            f"{where}: column {name!r} must hold a finite number in every row, got {what}; fill or drop such rows."
        )
    return number


def _number(cell: str) -> float | None:
    """A number; a single comma in it is a decimal comma."""
    try:
        return float(cell.replace(",", ".", 1) if cell.count(",") == 1 else cell)
    except ValueError:
        return None


def _index(where: str, name: str, body: Sequence[tuple[int, list[str]]]) -> np.ndarray | None:
    """Dates or numbers that rise, or None. Numbers that do not are data, dates are not."""
    for read_cell in (_date, _number):
        values = [read_cell(cells[0]) for _, cells in body]
        if all(value is not None for value in values):
            index = np.array(values)
            falls = np.flatnonzero(~(index[1:] > index[:-1]))
            if not falls.size:
                return index
            if read_cell is _date:
                (_, before), (line, now) = body[falls[0] : falls[0] + 2]
                raise ValueError(
                    f"{where}, line {line}: the dates in column {name!r} must rise from row to row, got {now[0]!r} after "
                    f"{before[0]!r}; sort the file, oldest first, without repeats."
                )
            return None
    return None


def _date(cell: str) -> np.datetime64 | None:
    """A date, or None; a bare year is a number."""
    if not re.search(r"\D", cell) and len(cell) != 8:
        return None
    if quarter := _QUARTER.fullmatch(cell):
        return np.datetime64(f"{quarter[1]}-{3 * int(quarter[2]) - 2:02d}-01", "s")
    for form in _DATES:
        try:
            return np.datetime64(datetime.datetime.strptime(cell, form), "s")
        except ValueError:
            continue
    return None


def entry(text: str) -> Any:
    """A date or a number as it stands in a file, or None."""
    date = _date(text)
    return _number(text) if date is None else date


def after(index: np.ndarray, count: int) -> np.ndarray:
    """The next `count` entries of an index: whole months after dates that are whole months apart, else equal steps."""
    steps = np.arange(1, count + 1)
    if not np.issubdtype(index.dtype, np.datetime64):
        return index[-1] + steps * (np.median(np.diff(index)) if len(index) > 1 else 1.0)
    if len(index) < 2:
        return index[-1] + steps * np.timedelta64(86400, "s")
    months = index.astype("datetime64[M]")
    rest = index - months.astype(index.dtype)
    apart = np.diff(months.astype(int))
    if (rest == rest[0]).all() and apart[0] > 0 and (apart == apart[0]).all():
        return (months[-1] + steps * int(apart[0])).astype(index.dtype) + rest[0]
    return index[-1] + steps * np.median(np.diff(index).astype(np.int64)).astype("timedelta64[s]")


def text(entry: np.generic) -> str:
    """An entry of an index as people write it."""
    if isinstance(entry, np.datetime64):
        return str(entry).removesuffix("T00:00:00").replace("T", " ")
    return f"{float(entry):.10g}"
