"""Rows of dialogue files: a path in, ranges of it out, and the (place, row) pairs of each range.

The format is found from the content: JSON lines, one JSON array, Parquet, a folder that `datasets` saved (`folder::split`
picks a split), or a dataset of the hub (`hub:OWNER/NAME::split`). A row is what the file holds; what makes a dialogue of
it is in `fusechat.text.dialogue_rows`.
"""

import difflib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DialogueError
from .file_range import FileRange
from .json_rows import BOM, array_ranges, line_ranges, rows_of_array, rows_of_lines
from .row_values import shown
from .table_rows import (
    HUB,
    UNREAD,
    IsRead,
    dataset_ranges,
    hub_files,
    parquet_ranges,
    rows_of_dataset,
    rows_of_parquet,
)

__all__ = ["UNREAD", "file_digest", "file_ranges", "locate", "read_range", "read_rows"]

FORMATS = "JSON lines, one JSON array, Parquet, or a folder written by datasets' save_to_disk"
RANGE_BYTES = 4 << 20
"""Of a file, read together by one worker: enough that a unit takes seconds, few enough to hold. Does not depend on how many
workers there are, so that what they make does not either."""


def read_rows(path: str | Path, is_read: IsRead = None) -> Iterator[tuple[str, Any]]:
    """The rows of one file or dataset, in order, each with its place for messages.

    Args:
        is_read: whether a column of a Parquet file or a dataset is loaded, by its name; the row has `UNREAD` in the
            others. Default: all are.
    Raises:
        DialogueError: no such file (with the nearest existing name), unknown format, or a file broken as a whole.
    """
    for part in file_ranges(path):
        yield from read_range(part, is_read)


def read_range(part: FileRange, is_read: IsRead = None) -> Iterator[tuple[str, Any]]:
    """The rows of one range; as `read_rows`. A broken JSON line comes out as a DialogueError in the row's stead."""
    try:
        if part.form == "lines":
            yield from rows_of_lines(part)
        elif part.form == "array":
            yield from rows_of_array(part)
        elif part.form == "parquet":
            yield from rows_of_parquet(part, is_read)
        else:
            yield from rows_of_dataset(part, is_read)
    except OSError as error:
        raise DialogueError(f"{part.path}: not readable ({shown(str(error))}); expected {FORMATS}") from None


def file_ranges(path: str | Path, size: int = RANGE_BYTES) -> Iterator[FileRange]:
    """Ranges of whole rows, which together are the file.

    Args:
        size: bytes of a range, about.
    Raises:
        DialogueError: as `read_rows`.
    """
    if str(path).startswith(HUB):
        yield from dataset_ranges(str(path))
        return
    try:
        file, split = locate(path)
        is_folder, head = file.is_dir(), _head(file)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home folder for the user behind a ~
        raise DialogueError(f"{shown(str(path))}: not readable ({shown(str(error))}); expected {FORMATS}") from None
    if is_folder:
        yield from dataset_ranges(f"{file}::{split}" if split else str(file))
        return
    if not file.is_file():
        raise DialogueError(f"{file}: no such file or folder{_nearest(file)}; expected {FORMATS}")
    if split:
        raise DialogueError(f"{path}: found a file, expected a dataset folder before '::'; drop '::{split}'")
    text_head = head.removeprefix(BOM).lstrip()
    if head.startswith(b"PAR1"):
        yield from parquet_ranges(file, size)
    elif text_head.startswith(b"["):
        yield from array_ranges(file, size)
    elif text_head.startswith(b"{") or (text_head and file.suffix in (".jsonl", ".json", ".ndjson")):
        yield from line_ranges(file, size)
    else:
        beginning = "an empty file" if not text_head else f"a file that begins with {head[:16]!r}"
        raise DialogueError(
            f"{file}: found {beginning}, expected {FORMATS}; convert it, and unpack it if it is compressed"
        )


def file_digest(path: str) -> str:
    """Digest of a dialogue file, or of all files of a dataset.

    Raises:
        DialogueError: there is no such file or folder, or it cannot be read.
    """
    if path.startswith(HUB):
        files = hub_files(path)
    else:
        base, _ = locate(path)
        if not base.is_dir() and not base.is_file():
            next(file_ranges(path))  # raises, and names the nearest
        files = sorted(base.rglob("*")) if base.is_dir() else [base]
    digest = hashlib.sha256()
    try:
        for file in files:
            if file.is_file():
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise DialogueError(f"{path}: not readable: {error.strerror}; expected a file that may be read") from None
    return digest.hexdigest()[:16]


def _head(file: Path) -> bytes:
    """How a file begins; nothing of a folder, a device or a pipe, which may never end."""
    if not file.is_file():
        return b""
    with file.open("rb") as stream:
        return stream.read(1 << 16)


def locate(path: str | Path) -> tuple[Path, str]:
    """The file or folder that a path means, and the split behind its `::`, or an empty text."""
    name, _, split = str(path).partition("::")
    return Path(name).expanduser(), split


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
