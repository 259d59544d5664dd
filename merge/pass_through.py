"""One target and nothing to merge: its files become the fused model, byte for byte."""

import contextlib
import os
import shutil
from pathlib import Path

from fusechat.config import JOINT, RunConfig
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import RECIPE_FILE, RECORD_FILE, Artifact, storage_errors

_TARGETS_OWN = (RECORD_FILE, RECIPE_FILE, "metrics.jsonl")
"""Files that say how the target was made; the fused model has records of its own."""


def pass_through(config: RunConfig, *, progress: Progress | None = None) -> Artifact:
    """Make the joint target the fused model.

    Raises:
        ArtifactError: it is not trained yet, or another recipe's work is in the output folder.
        StorageError: no space.
    """
    target = artifact.load(config.target_path(JOINT), "target")
    claim = artifact.claim(
        config.fused_path, "fused", settings={"method": "pass_through"}, parents={JOINT: target},
        if_changed=config.run.if_changed,
    )  # fmt: skip
    if claim.artifact is not None:
        return claim.artifact
    if progress is not None:
        progress.say("merge: one target, nothing to merge: the joint target is the fused model, byte for byte")
    files = [path for path in sorted(Path(target.url).iterdir()) if path.is_file() and path.name not in _TARGETS_OWN]
    with storage_errors(config.fused_path):
        for path in files:
            _copy(path, config.fused_path / path.name)
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
