"""Digests that tell whether files are as they were written: of JSON documents within themselves, of an artifact's files in its
record.

Row stores are left out: their objects carry checksums of their own (`row_store.py`). So is what stands on an object store,
which checks its own. A file is looked through again only if it was changed after the record: rot that leaves a file's time
alone takes `fusechat inspect --verify`.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ArtifactError
from .contracts import CONTRACTS

RECORD_FILE = "artifact.json"
RECIPE_FILE = "plan.json"
LEASE_FILE = "driver.json"
"""Who is writing a store (`lease.py`)."""
SEAL = "seal"
"""Key of a document's digest within it."""
CHECKPOINTS = "checkpoints"
"""Folder of a target that is deleted when it is finished; they have digests of their own."""
CARD = "README.md"
"""The one file that a later stage writes into a finished artifact: a model's card."""


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON document with its own digest in it."""
    content = {key: value for key, value in document.items() if key != SEAL}
    return {**content, SEAL: _digest(content)}


def is_whole(document: Any) -> bool:
    """Whether a document is as `sealed` made it; one without a digest is taken as it is (earlier versions made none)."""
    if not isinstance(document, dict) or SEAL not in document:
        return isinstance(document, dict)
    return bool(document[SEAL] == _digest({key: value for key, value in document.items() if key != SEAL}))


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def file_seals(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """File of an artifact (relative to its folder) -> `bytes` and `sha256`."""
    return {
        name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for name, path in _files(folder)
        if not _is_sealed_otherwise(kind, name)
    }


def _is_sealed_otherwise(kind: str, name: str) -> bool:
    """Whether a file is none of the record's: the records themselves, a card, rows with their own checksums."""
    if name in (RECORD_FILE, RECIPE_FILE, LEASE_FILE, CARD) or name.split("/")[0] == CHECKPOINTS:
        return True
    return kind in ("logprobs", "aligned") and "/c/" in name and name.split("/")[0] in CONTRACTS[kind].names


def sweep(folder: Path) -> None:
    """Delete what killed writers left in a folder: files that never got their name. A lease's next beat may be on its way."""
    for name, path in _files(folder):
        if name.endswith(".partial") and not path.name.startswith(LEASE_FILE):
            path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def broken_files(folder: Path, seals: dict[str, dict[str, Any]], since_ns: int = -1) -> dict[str, str]:
    """Which files are not as they were sealed.

    Args:
        since_ns: only files that were changed after this time (nanoseconds, as `stat` gives it) are read; -1: all.
    Returns:
        file -> what is wrong with it, in words.
    """
    broken = {}
    for name, expected in seals.items():
        path = folder / name
        if not path.is_file():
            broken[name] = "missing"
            continue
        status = path.stat()
        if status.st_size != expected["bytes"]:
            broken[name] = f"has {status.st_size:,} bytes, {expected['bytes']:,} were written"
        elif status.st_mtime_ns > since_ns and file_digest(path) != expected["sha256"]:
            broken[name] = "holds other bytes than were written"
    return broken


def broken_of(url: str, record: dict[str, Any], *, thorough: bool = False) -> dict[str, str]:
    """Files of a finished artifact that are not as its stage left them -> what is wrong with them; none on an object store.

    Args:
        thorough: read every file, not only those that were changed after the record.
    Raises:
        ArtifactError: the record names what is no file of the artifact. Who wrote it would have others read, and deleted.
    """
    seals = record.get("files")
    if not seals or "://" in url:
        return {}
    if strange := [name for name, seal in seals.items() if not _may_be_sealed(name, seal)]:
        raise ArtifactError(
            f"{url}/{RECORD_FILE}: names {strange[0][:100]!r}, expected files of this folder with their bytes and digests: FuseChat "
            "did not write this record; delete this file and run the stage that makes it again"
        )
    return broken_files(Path(url), seals, -1 if thorough else (Path(url) / RECORD_FILE).stat().st_mtime_ns)


def _may_be_sealed(name: str, seal: Any) -> bool:
    """Whether a name lies below the folder, and its seal has the form that `file_seals` gives."""
    place = PurePosixPath(name)
    is_below = bool(place.parts) and not place.is_absolute() and ".." not in place.parts and "\0" not in name
    return (
        is_below and isinstance(seal, dict) and type(seal.get("bytes")) is int and isinstance(seal.get("sha256"), str)
    )


def check_files(url: str, record: dict[str, Any]) -> None:
    """
    Raises:
        ArtifactError: a finished artifact is not as its stage left it.
    """
    if broken := broken_of(url, record):
        lines = "; ".join(f"{name} {reason}" for name, reason in list(broken.items())[:5])
        raise ArtifactError(
            f"{url}: damaged since it was finished: {lines}; run `fusechat inspect {url} --repair`, then start the same command "
            "again: the stage makes it anew"
        )
