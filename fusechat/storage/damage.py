"""Damage in an artifact: found, named, and taken away so that the stage makes what is damaged again, and only that.

In a row store, a damaged object is one that is missing or empty though its shard's commit mark is there, or that fails a checksum. The
cure is to delete the mark: the shard then counts as not written.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from .artifact import RECORD_FILE, is_finished
from .files import delete
from .row_arrays import COMMIT_ARRAY
from .row_store import RowStore
from .seals import broken_of


@dataclass(frozen=True)
class Damage:
    """One object that cannot be read."""

    shard: int
    array: str
    reason: str

    def __str__(self) -> str:
        return f"shard {self.shard}: {self.array}: {self.reason}"


def find_damage(store: RowStore) -> list[Damage]:
    """Read every object of the shards that are written, checksums and all, one in memory at a time.

    Where a record says that the store is finished, these are all: a commit mark that is gone is damage too.
    """
    finished = is_finished(store.url)
    return [
        Damage(shard, name, reason)
        for shard in (range(store.layout.num_shards) if finished else sorted(store.present_shards()))
        for name in store.contract.names
        if (reason := _why_unreadable(store, shard, name))
    ]


def check_finished(store: RowStore) -> None:
    """Look at a local store whose record says that it is finished: every object is there, and those that were changed after
    the record hold.

    Raises:
        ArtifactError: one is not there or does not hold; the message says how to repair it.
    """
    if "://" in store.url:
        return
    finished = (Path(store.url) / RECORD_FILE).stat().st_mtime_ns
    damages = [
        Damage(shard, name, reason)
        for shard in range(store.layout.num_shards)
        for name in store.contract.names
        if _is_suspect(Path(store.object_url(name, shard)), finished)
        and (reason := _why_unreadable(store, shard, name))
    ]
    if damages:
        raise ArtifactError(
            f"{store.url}: damaged since it was finished: {'; '.join(map(str, damages[:5]))}; run `fusechat inspect {store.url} "
            "--repair`, then start the same command again: the stage makes these shards anew"
        )


def _is_suspect(path: Path, finished_ns: int) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return True
    return status.st_size == 0 or status.st_mtime_ns > finished_ns


def repair_files(url: str, record: dict[str, Any]) -> dict[str, str]:
    """Delete what of a finished artifact's files is damaged, and before it the record that calls the artifact finished.

    Returns:
        the deleted files -> what was wrong with them.
    """
    broken = broken_of(url, record, thorough=True)
    if broken:
        delete(f"{url}/{RECORD_FILE}")
        for name in broken:
            delete(f"{url}/{name}")
    return broken


def repair(store: RowStore, damages: list[Damage]) -> list[int]:
    """Delete the commit marks of the damaged shards, and before them the record that calls the store finished.

    Returns:
        the shards that the next run of the stage makes again.
    Raises:
        StorageError: the store cannot be written.
    """
    shards = sorted({damage.shard for damage in damages})
    if shards:
        delete(f"{store.url}/{RECORD_FILE}")
        for shard in shards:
            delete(store.object_url(COMMIT_ARRAY, shard))
    return shards


def _why_unreadable(store: RowStore, shard: int, name: str) -> str:
    try:
        store.read_array(name, shard)
    except ArtifactError as error:
        cause = error.__cause__
        return "missing or empty" if cause is None else " ".join(str(cause).split())
    return ""
