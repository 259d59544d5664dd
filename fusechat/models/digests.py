"""Digests of what decides a model's output: a folder in; digests of its weights, config and tokenizer files out."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ..errors import ArtifactError, ModelError
from ..storage.files import read_json, write_json
from ..storage.seals import is_whole, sealed
from .model_files import TOKENIZER_FILES, weight_files


def digests_of(folder: Path, cache: Path | None = None) -> dict[str, str]:
    """SHA-256 digests of a model folder's weights, config and tokenizer files.

    Args:
        cache: JSON file that keeps the digests of files whose path, size and time did not change: 145 GB take minutes.
    """
    known = _kept_digests(cache) if cache else {}
    digest_of: dict[str, str] = {}
    weights = {path.name for path in weight_files(folder)}
    for path in sorted(folder.iterdir()):
        if path.name in weights or path.name == "config.json" or path.name in TOKENIZER_FILES:
            if not path.is_file():
                raise ModelError(
                    f"{path}: found a folder, device, pipe or dead link, expected a file; fetch the folder again"
                )
            status = path.stat()
            key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
            digest_of[key] = known.get(key) or _sha256(path)
    if cache and not digest_of.keys() <= known.keys():
        write_json(str(cache), sealed({**known, **digest_of}))
    by_name = {Path(key.rsplit("|", 2)[0]).name: digest for key, digest in digest_of.items()}
    paths = {
        path.name: by_name[path.resolve().name] for path in sorted(folder.iterdir()) if path.resolve().name in by_name
    }
    return {
        "weights": _combined(item for item in paths.items() if item[0] in weights),
        "config": _combined(item for item in paths.items() if item[0] == "config.json"),
        "tokenizer": _combined(item for item in paths.items() if item[0] in TOKENIZER_FILES),
    }


def _kept_digests(cache: Path) -> dict[str, str]:
    """What the file of digests holds; nothing where it is not as it was written: then the models are read again."""
    try:
        known = read_json(str(cache))
    except ArtifactError:
        return {}
    return dict(known) if known is not None and is_whole(known) else {}


def text_digest(text: str) -> str:
    """First 16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _combined(items: Iterable[tuple[str, str]]) -> str:
    return text_digest("\n".join(f"{name} {digest}" for name, digest in sorted(items)))
