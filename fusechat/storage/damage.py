"""Damage in a row store: found, named, and taken away so that the stage makes the damaged shards again, and only those.

A damaged object is one that is missing or empty though its shard's commit mark is there, or that fails a checksum. The
cure is to delete the mark: the shard then counts as not written.
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import ArtifactError
from .artifact import RECORD_FILE, delete, storage_errors
from .row_arrays import COMMIT_ARRAY
from .row_store import RowStore


@dataclass(frozen=True)
class Damage:
    """One object that cannot be read."""

    shard: int
    array: str
    reason: str

    def __str__(self) -> str:
        return f"shard {self.shard}: {self.array}: {self.reason}"


def find_damage(store: RowStore) -> list[Damage]:
    """Read every object of the shards that are written, checksums and all, one in memory at a time."""
    return [
        Damage(shard, name, reason)
        for shard in sorted(store.present_shards())
        for name in store.contract.names
        if (reason := _why_unreadable(store, shard, name))
    ]


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


def sweep(store: RowStore) -> None:
    """Delete what killed writers left in a local store: objects that never got their name.

    Beside the arrays' objects nothing is touched: the lease's next beat may be on its way there.
    """
    if "://" not in store.url:
        with storage_errors(store.url):
            for path in Path(store.url).glob("*/c/**/*.partial"):
                path.unlink(missing_ok=True)


def _why_unreadable(store: RowStore, shard: int, name: str) -> str:
    try:
        store.read_array(name, shard)
    except ArtifactError as error:
        cause = error.__cause__
        return "missing or empty" if cause is None else " ".join(str(cause).split())
    return ""
