"""One target and nothing to merge: its files become the fused model, byte for byte."""

import contextlib
import os
import shutil
from pathlib import Path

from fusechat.storage.artifact import RECIPE_FILE, RECORD_FILE, Artifact, Claim
from fusechat.storage.write_errors import storage_errors

_TARGETS_OWN = (RECORD_FILE, RECIPE_FILE, "metrics.jsonl")
"""Files that say how the target was made; the fused model has records of its own."""


def pass_through(target: Path, claim: Claim) -> Artifact:
    """Make a target the fused model whose folder is claimed.

    Raises:
        StorageError: no space.
    """
    files = [path for path in sorted(target.iterdir()) if path.is_file() and path.name not in _TARGETS_OWN]
    with storage_errors(claim.url):
        for path in files:
            _copy(path, Path(claim.url) / path.name)
    return claim.finish({"files": len(files), "bytes": sum(path.stat().st_size for path in files)})


def _copy(source: Path, place: Path) -> None:
    """Weights get another name for the same bytes where the filesystem can, which costs no space.

    All else is copied: evaluation writes its figures into a model's card, and one file under two names would then say of
    both models what holds for the last.
    """
    place.unlink(missing_ok=True)
    if source.suffix == ".safetensors":
        with contextlib.suppress(OSError):  # another filesystem, or one without links
            os.link(source, place)
            return
    shutil.copyfile(source, place)
