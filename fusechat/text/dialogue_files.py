"""Rows of dialogue files: a path in, (place, row) pairs out.

The format is found from the content: JSON lines, one JSON array, Parquet, or a folder that `datasets` saved
(`folder::split` picks a split). A row is what the file holds; what makes a dialogue of it is in `fusechat.text.dialogues`.
A broken JSON line comes out as a DialogueError in the row's stead, so that the caller can skip it; a file that cannot
be read on raises one.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DialogueError
from .row_values import shown, unique_keys

FORMATS = "JSON lines, one JSON array, Parquet, or a folder written by datasets' save_to_disk"


class _Unread:
    """What stands in a row of a table for a value that was not loaded."""

    def __repr__(self) -> str:
        return "a value that was not loaded"


UNREAD = _Unread()

_BOM = b"\xef\xbb\xbf"
_JSON_SPACE = re.compile(r"[ \t\r\n]*")


def read_rows(path: str | Path, is_read: Callable[[str], bool] | None = None) -> Iterator[tuple[str, Any]]:
    """The rows of one file or dataset folder, in order, each with its place for messages.

    Args:
        is_read: whether a column of a Parquet file or a dataset is loaded, by its name; the row has `UNREAD` in the
            others. Default: all are.
    Raises:
        DialogueError: no such file (with the nearest existing name), unknown format, or a file broken as a whole.
    """
    try:
        file, split = locate(path)
        is_folder, head = file.is_dir(), _head(file)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home folder for the user behind a ~
        raise DialogueError(f"{shown(str(path))}: not readable ({shown(str(error))}); expected {FORMATS}") from None
    if is_folder:
        yield from _dataset_rows(file, split, is_read)
        return
    if not file.is_file():
        raise DialogueError(f"{file}: no such file or folder{_nearest(file)}; expected {FORMATS}")
    if split:
        raise DialogueError(f"{path}: found a file, expected a dataset folder before '::'; drop '::{split}'")
    if head.startswith(b"PAR1"):
        yield from _parquet_rows(file, is_read)
        return
    text_head = head.removeprefix(_BOM).lstrip()
    if text_head.startswith(b"["):
        yield from _array_rows(file)
    elif text_head.startswith(b"{") or (text_head and file.suffix in (".jsonl", ".json", ".ndjson")):
        yield from _json_lines(file)
    else:
        found = "an empty file" if not text_head else f"a file that begins with {head[:16]!r}"
        raise DialogueError(f"{file}: found {found}, expected {FORMATS}; convert it, and unpack it if it is compressed")


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


def file_digest(path: str) -> str:
    """Digest of a dialogue file or of all files of a dataset folder.

    Raises:
        DialogueError: there is no such file or folder, or it cannot be read.
    """
    base, _ = locate(path)
    if not base.is_dir() and not base.is_file():
        next(read_rows(path))  # raises, and names the nearest
    digest = hashlib.sha256()
    try:
        for file in sorted(base.rglob("*")) if base.is_dir() else [base]:
            if file.is_file():
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise DialogueError(f"{path}: not readable: {error.strerror}; expected a file that may be read") from None
    return digest.hexdigest()[:16]


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    position = 0
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            place = f"{file}:{number}"
            line = raw.removeprefix(_BOM) if number == 1 else raw
            if line.strip():
                yield place, _parsed_line(line, position + len(raw) - len(line))
            position += len(raw)


def _parsed_line(line: bytes, position: int) -> Any:
    """The row, or the DialogueError that says why there is none. `position`: byte offset of the line in its file."""
    try:
        # Without its line end, so that the column counts on this line.
        return json.loads(line.decode("utf-8").rstrip("\r\n"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        return DialogueError(_not_utf8(error, position))
    except (ValueError, RecursionError) as error:  # ValueError also stands for numbers of absurd length
        return DialogueError(
            f"broken JSON ({_json_fault(error)}), expected one whole JSON object per line; repair or remove the line"
        )


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"column {error.colno}: {error.msg}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _not_utf8(error: UnicodeDecodeError, position: int) -> str:
    return (
        f"byte {error.object[error.start]:#04x} at byte offset {position + error.start} is not UTF-8 ({error.reason}), "
        "expected UTF-8 text; convert the file, e.g. with iconv"
    )


def _array_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Elements of one JSON array, one at a time: all of a large file as objects would take several times its size."""
    raw = file.read_bytes()
    skipped = len(_BOM) if raw.startswith(_BOM) else 0
    try:
        text = raw[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise DialogueError(f"{file}: {_not_utf8(error, skipped)}") from None
    del raw
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
    position, line, counted, number = text.index("[") + 1, 1, 0, 0
    while True:
        position = _after_space(text, position)
        if text.startswith("]", position):
            break
        if number and text.startswith(",", position):
            position = _after_space(text, position + 1)
        elif number:
            raise DialogueError(_broken_array(file, text, position, "expected ',' or ']'"))
        line, counted = line + text.count("\n", counted, position), position
        number += 1
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            where = error.pos if isinstance(error, json.JSONDecodeError) else position
            raise DialogueError(_broken_array(file, text, where, _json_fault(error))) from None
        yield f"{file}:{line} (row {number})", row
    if text[position + 1 :].strip():
        raise DialogueError(_broken_array(file, text, position + 1, "text after the array's end"))


def _after_space(text: str, position: int) -> int:
    match = _JSON_SPACE.match(text, position)
    assert match is not None  # the pattern matches the empty string
    return match.end()


def _broken_array(file: Path, text: str, position: int, found: str) -> str:
    line = text.count("\n", 0, position) + 1
    return f"{file}:{line}: broken JSON ({found}), expected one JSON array of dialogues; repair the file"


def _parquet_rows(file: Path, is_read: Callable[[str], bool] | None) -> Iterator[tuple[str, Any]]:
    import pyarrow  # here, because it takes a second to load and most runs read JSON
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            columns, unread = _columns(table.schema_arrow.names, is_read, str(file))
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", {**_without_nulls(row), **unread}
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a text that is not UTF-8
        raise DialogueError(f"{file}: not readable as Parquet ({error}); expected a whole Parquet file") from None


def _refuse_outside(folder: Path) -> None:
    """Raises ValueError for a saved dataset that names splits or files outside its own folder."""
    splits, state = folder / "dataset_dict.json", folder / "state.json"
    if splits.is_file():
        names = json.loads(splits.read_text(encoding="utf-8"))["splits"]
    else:
        names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"it names {shown(name)}, which is outside its folder")
        if splits.is_file():
            _refuse_outside(folder / name)


def _columns(
    names: list[str], is_read: Callable[[str], bool] | None, place: str
) -> tuple[list[str], dict[str, _Unread]]:
    """The columns to load, and what stands for the others in each row."""
    if is_read is None:
        return names, {}
    columns = [name for name in names if is_read(name)]
    if not {"messages", "conversations"} & set(columns):
        found = ", ".join(sorted(names))
        raise DialogueError(f"{place}: found columns {found}, expected 'messages' or 'conversations'; rename one")
    return columns, {name: UNREAD for name in names if name not in columns}


def _without_nulls(value: Any) -> Any:
    """The value without keys that hold null: Arrow gives each object of a column the keys of all the others."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _dataset_rows(folder: Path, split: str, is_read: Callable[[str], bool] | None) -> Iterator[tuple[str, Any]]:
    if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DialogueError(
            f"{folder}: a folder without state.json or dataset_dict.json, expected one that save_to_disk of datasets "
            "wrote; to read plain files, give each by its own path"
        )
    import pyarrow
    from datasets import DatasetDict, load_from_disk  # here, because it takes seconds to load

    try:
        _refuse_outside(folder)
        dataset = load_from_disk(str(folder))
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, pyarrow.ArrowException
    ) as error:  # fmt: skip
        raise DialogueError(f"{folder}: not readable as a saved dataset ({error}); save it again") from None
    if isinstance(dataset, DatasetDict):
        if not split and len(dataset) == 1:
            split = next(iter(dataset))
        if split not in dataset:
            choices = ", ".join(f"{folder}::{name}" for name in dataset)
            raise DialogueError(f"{folder}: found {split or 'no split'!r}, expected one of its splits: {choices}")
        dataset = dataset[split]
    elif split:
        raise DialogueError(f"{folder}::{split}: the dataset has no splits; drop '::{split}'")
    place = f"{folder}::{split}" if split else str(folder)
    columns, unread = _columns(dataset.column_names, is_read, place)
    for number, row in enumerate(dataset.select_columns(columns), 1):
        yield f"{place}: row {number}", {**_without_nulls(row), **unread}
