"""A range of a dialogue file: the unit in which files are read. Knows nothing about formats."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FileRange:
    """Rows that stand together in one file or dataset, and are read without those before them."""

    path: str
    """File, folder or hub id; with `::split` where the form is `dataset`."""
    form: Literal["lines", "array", "parquet", "dataset"]
    start: int
    """First byte, row group or row."""
    stop: int
    """The one after the last."""
    rows_before: int = 0
    """Rows of the file before this range."""
    lines_before: int = 0
    """Lines of the file likewise."""
    num_rows: int = 0
