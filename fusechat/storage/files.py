"""Files at paths and URLs: written so that no reader ever sees half of one, read as JSON, listed, deleted.

Knows nothing about what they hold. Paths and object stores look the same to whoever calls.
"""

import contextlib
import json
import uuid
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from .write_errors import storage_errors


def read_json(url: str) -> Any | None:
    """The JSON document at a path or URL, or None where there is none."""
    import fsspec

    try:
        if "://" not in url and Path(url).exists() and not Path(url).is_file():
            raise ValueError("found a folder, device or pipe")
        with storage_errors(url), fsspec.open(url, "r", encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # a number too long, or text that is nested too deeply
        raise ArtifactError(
            f"{url}: not a readable JSON record ({error}); delete this file and run the stage that makes it again"
        ) from None


def write_json(url: str, document: Any, *, indent: int | None = 1) -> None:
    """Write a JSON document at a path or URL so that no reader ever sees half of it; without indent, on one line."""
    write_bytes(url, (json.dumps(document, indent=indent, ensure_ascii=False) + "\n").encode())


def write_bytes(url: str, data: bytes) -> None:
    """Write a file at a path or URL so that no reader ever sees half of it."""
    import fsspec

    with storage_errors(url):
        if "://" in url:
            with fsspec.open(url, "wb") as file:  # object stores put whole objects
                file.write(data)
            return
        path = Path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def delete(url: str) -> None:
    """Delete a file or object; one that is not there is no error."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    with storage_errors(url):
        try:
            filesystem.rm_file(path)
        except FileNotFoundError:
            return
        filesystem.invalidate_cache()


def delete_folder(url: str) -> None:
    """Delete a folder and all that stands in it; one that is not there is no error."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    with storage_errors(url), contextlib.suppress(FileNotFoundError):
        filesystem.rm(path, recursive=True)
    filesystem.invalidate_cache()


def listing(url: str) -> dict[str, int]:
    """What stands in a folder, by name -> bytes (of folders any number), as it is now; nothing where there is no folder."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    try:
        with storage_errors(url):
            entries = filesystem.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {entry["name"].rstrip("/").rsplit("/", 1)[-1]: int(entry["size"] or 0) for entry in entries}


def folder_bytes(url: str, besides: str) -> int:
    """Bytes of all files below a path or URL but those that are called `besides`, and partial ones."""
    import fsspec

    with storage_errors(url):
        if "://" in url:
            filesystem, path = fsspec.core.url_to_fs(url)
            sizes: dict[str, int] = filesystem.du(path, total=False)
            return sum(size for name, size in sizes.items() if not name.endswith(f"/{besides}"))
        files = (file for file in Path(url).rglob("*") if file.suffix != ".partial" and file.name != besides)
        return sum(file.stat().st_size for file in files if file.is_file())


def has_bytes(url: str) -> bool:
    """Whether a file or object is there and not empty, as a crash of the machine may leave one; Zarr reads both as fill."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    try:
        return bool(filesystem.info(path)["size"] > 0)
    except FileNotFoundError:
        return False
