"""Yearly counts: the sunspot numbers that the package brings, and CSV files of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["SUNSPOTS", "Series", "read_series"]

SUNSPOTS = Path(__file__).with_name("sunspots.csv")


class Series(NamedTuple):
    """A count for each of T consecutive years: years (T,) integers, counts (T,) float64, neither negative nor missing."""

    years: np.ndarray
    counts: np.ndarray

    def until(self, year: int) -> Series:
        """The part up to `year`, which is included."""
        known = self.years <= year
        return Series(self.years[known], self.counts[known])


def read_series(path: Path = SUNSPOTS) -> Series:
    """Reads a CSV file with the columns `year,value`, one line a year; lines that begin with `#` are comments.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not such a table. The message names the line.

    >>> series = read_series()
    >>> series.years[[0, -1]].tolist(), series.counts[[0, -1]].tolist()
    ([1700, 2008], [5.0, 2.9])
    """
    if not path.is_file():
        raise FileNotFoundError(f"series {path}: there is no such file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"series {path}: it must be a text file in UTF-8, got other bytes.") from error
    rows = [
        (f"series {path}, line {number}", [cell.strip() for cell in line.split(",")])
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]
    if not rows or [cell.lower() for cell in rows[0][1]] != ["year", "value"]:
        got = repr(",".join(rows[0][1])) if rows else "an empty file"
        raise ValueError(f"series {path}: its first line must be 'year,value', got {got}.")
    values = [_year_and_count(place, row) for place, row in rows[1:]]
    for (place, _), (before, _), (year, _) in zip(rows[2:], values, values[1:], strict=False):
        if year != before + 1:
            raise ValueError(f"{place}: years must follow one another without a gap, got {year} after {before}.")
    return Series(
        np.array([year for year, _ in values], dtype=int), np.array([count for _, count in values], dtype=float)
    )


def _year_and_count(place: str, row: list[str]) -> tuple[int, float]:
    if len(row) != 2:
        raise ValueError(f"{place}: expected two columns, a year and a value, got {','.join(row)!r}.")
    try:
        year, count = int(row[0]), float(row[1])
    except ValueError as error:
        raise ValueError(f"{place}: expected a whole year and a number, got {','.join(row)!r}.") from error
    if not 0 <= year <= 9999:
        raise ValueError(f"{place}: a year must lie between 0 and 9999, got {year}.")
    if not 0 <= count <= 1e6:  # False for NaN
        raise ValueError(f"{place}: a count must be a number between 0 and a million, got {row[1]!r}.")
    return year, count
