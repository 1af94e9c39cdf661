"""The tables of a data set: rows that every patient gives to files of the root."""

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, str]
Tables = dict[str, list[Row]]
"""Rows by the path of their file below the root."""


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows; a name that ends in .gz is compressed, the same bytes every time."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
