"""Rows of tables, in ranges: Parquet files by row group, Hugging Face datasets (saved, or of the hub by id) by slice.

Only the columns that are asked for are loaded; a row has `UNREAD` in the others.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DialogueError
from .file_range import FileRange
from .row_values import shown

HUB = "hub:"
"""Before the id of a dataset of the Hugging Face hub."""
ROWS_AT_ONCE = 64
"""Rows in memory at a time: a value that a file holds once may stand in each of them."""
SLICE_ROWS = 8192
"""Rows of one range of a dataset."""
IsRead = Callable[[str], bool] | None


class _Unread:
    """What stands in a row of a table for a value that was not loaded."""

    def __repr__(self) -> str:
        return "a value that was not loaded"


UNREAD = _Unread()


def parquet_ranges(file: Path, size: int) -> Iterator[FileRange]:
    """Ranges of whole row groups, of about `size` bytes of values each.

    Raises:
        DialogueError: the file is not readable as Parquet.
    """
    import pyarrow  # here, because it takes a second to load and most runs read JSON
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _no_parquet(file, error) from None
    start = before = rows = width = 0
    for number, (num_rows, num_bytes) in enumerate(sizes, 1):
        rows, width = rows + num_rows, width + num_bytes
        if width >= size or number == len(sizes):
            yield FileRange(str(file), "parquet", start, number, before, 0, rows)
            start, before, rows, width = number, before + rows, 0, 0


def rows_of_parquet(part: FileRange, is_read: IsRead) -> Iterator[tuple[str, Any]]:
    """The rows of some row groups, each with its place.

    Raises:
        DialogueError: the file is not readable as Parquet, or has no column of messages.
    """
    import pyarrow
    from pyarrow import parquet

    file, number = Path(part.path), part.rows_before
    try:
        with parquet.ParquetFile(file) as table:
            columns, unread = _columns(table.schema_arrow.names, is_read, str(file))
            groups = list(range(part.start, part.stop))
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns, row_groups=groups):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", {**_without_nulls(row), **unread}
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a text that is not UTF-8
        raise _no_parquet(file, error) from None


def dataset_ranges(path: str) -> Iterator[FileRange]:
    """Slices of a saved dataset (`folder::split`) or of one of the hub (`hub:OWNER/NAME::split`).

    Raises:
        DialogueError: there is none, it cannot be read, or it has several splits and none is named.
    """
    dataset, _ = _open(path)
    for start in range(0, len(dataset), SLICE_ROWS):
        stop = min(start + SLICE_ROWS, len(dataset))
        yield FileRange(path, "dataset", start, stop, start, 0, stop - start)


def rows_of_dataset(part: FileRange, is_read: IsRead) -> Iterator[tuple[str, Any]]:
    """The rows of one slice, each with its place.

    Raises:
        DialogueError: as `dataset_ranges`, or no column of messages.
    """
    dataset, place = _open(part.path)
    columns, unread = _columns(dataset.column_names, is_read, place)
    rows = dataset.select_columns(columns).select(range(part.start, part.stop))
    for number, row in enumerate(rows, part.start + 1):
        yield f"{place}: row {number}", {**_without_nulls(row), **unread}


def hub_files(path: str) -> list[Path]:
    """The files in which a dataset of the hub lies on this machine, downloaded if need be."""
    dataset, _ = _open(path)
    return sorted(Path(file["filename"]) for file in dataset.cache_files)


def _open(path: str) -> tuple[Any, str]:
    """A dataset, and what messages call it."""
    name, _, split = path.partition("::")
    dataset = _from_hub(name.removeprefix(HUB), split) if path.startswith(HUB) else _saved(Path(name).expanduser())
    from datasets import DatasetDict

    if isinstance(dataset, DatasetDict):
        if not split and len(dataset) == 1:
            split = next(iter(dataset))
        if split not in dataset:
            choices = ", ".join(f"{name}::{one}" for one in dataset)
            raise DialogueError(f"{name}: found {split or 'no split'!r}, expected one of its splits: {choices}")
        dataset = dataset[split]
    elif split and not path.startswith(HUB):
        raise DialogueError(f"{name}::{split}: the dataset has no splits; drop '::{split}'")
    return dataset, f"{name}::{split}" if split else name


def _from_hub(name: str, split: str) -> Any:
    """A dataset of the hub: `OWNER/NAME`, `OWNER/NAME/CONFIG`, either with `@REVISION`."""
    from datasets import load_dataset

    repository, _, revision = name.partition("@")
    parts = repository.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DialogueError(
            f"{HUB}{name}: found {shown(repository)}, expected {HUB}OWNER/NAME or {HUB}OWNER/NAME/CONFIG; correct it"
        )
    try:
        return load_dataset(
            "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split=split or None, revision=revision or None
        )
    except Exception as error:  # of the hub, of the network, and of whatever builds the dataset
        raise DialogueError(
            f"{HUB}{name}: no such dataset, or out of reach ({shown(str(error))}); check its id, config, split and "
            "revision, and the token of the environment (HF_TOKEN) if it is gated"
        ) from None


def _saved(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DialogueError(
            f"{folder}: a folder without state.json or dataset_dict.json, expected one that save_to_disk of datasets "
            "wrote; to read plain files, give each by its own path"
        )
    import pyarrow
    from datasets import load_from_disk  # here, because it takes seconds to load

    try:
        _refuse_outside(folder)
        return load_from_disk(str(folder))
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, pyarrow.ArrowException
    ) as error:  # fmt: skip
        raise DialogueError(f"{folder}: not readable as a saved dataset ({error}); save it again") from None


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


def _columns(names: list[str], is_read: IsRead, place: str) -> tuple[list[str], dict[str, _Unread]]:
    """The columns to load, and what stands for the others in each row."""
    if is_read is None:
        return names, {}
    columns = [name for name in names if is_read(name)]
    if not {"messages", "conversations"} & set(columns):
        listed = ", ".join(sorted(names))
        raise DialogueError(f"{place}: found columns {listed}, expected 'messages' or 'conversations'; rename one")
    return columns, {name: UNREAD for name in names if name not in columns}


def _without_nulls(value: Any) -> Any:
    """The value without keys that hold null: Arrow gives each object of a column the keys of all the others."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _no_parquet(file: Path, error: Exception) -> DialogueError:
    return DialogueError(f"{file}: not readable as Parquet ({error}); expected a whole Parquet file")
