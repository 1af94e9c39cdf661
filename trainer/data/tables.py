"""Rows of CSV files that others wrote: plain or gzipped, columns by name."""

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from trainer.errors import DataError

Row = dict[str, str]


def find_table(folder: Path, *stems: str) -> Path | None:
    """Return the first of `stem.csv` and `stem.csv.gz` that is there."""
    for stem in stems:
        for suffix in (".csv", ".csv.gz"):
            if (folder / (stem + suffix)).is_file():
                return folder / (stem + suffix)
    return None


def need_table(folder: Path, *stems: str) -> Path:
    """Return the table.

    Raises:
        DataError: it is not there.
    """
    found = find_table(folder, *stems)
    if found is None:
        raise DataError(f"{folder / stems[0]}.csv: is missing (.csv or .csv.gz): give the data set's root folder")
    return found


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows, each with at least these columns, stripped.

    Raises:
        DataError: a column is missing, a row is short, or the file is no text.
    """
    try:
        with _opened(path) as stream:
            reader = csv.DictReader(stream)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: has no column {', '.join(missing)}")
            for row in reader:
                if any(row[column] is None for column in columns):
                    raise DataError(f"{path}: line {reader.line_num} is cut short: get the file again")
                yield {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}): get the file again") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    with path.open("rb") as stream:
        plain = gzip.GzipFile(fileobj=stream) if path.suffix == ".gz" else stream
        # utf-8-sig: spreadsheets put a mark in front, which would become part of the first column's name.
        yield io.TextIOWrapper(plain, encoding="utf-8-sig", newline="")
