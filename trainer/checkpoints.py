"""When a training run writes a checkpoint, and which one a killed run goes on from.

A checkpoint is written in a folder of its own and then renamed, so one that bears its name was written whole. Digests of its
files tell whether it still is. Knows nothing about what is in it.
"""

import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from fusechat.errors import ArtifactError
from fusechat.storage.files import read_json, write_json
from fusechat.storage.seals import broken_files, file_seals, is_whole, sealed

STAGING = "partial"
"""Folder in which a checkpoint is written before it gets its name."""
PREFIX = "checkpoint-"
SUMS_FILE = "sums.json"
"""Within a checkpoint: its files' sizes and digests."""
WRITING_SHARE = 0.05
"""Share of the time that may go into writing, where the run file does not say how often to write."""


class CheckpointPace:
    """Writes as often as `WRITING_SHARE` allows: after the first step, then whenever 1/share times the last writing has passed."""

    def __init__(self) -> None:
        self._due = time.monotonic()

    def due(self, accelerator: Accelerator) -> bool:
        """Whether it is time to write; the first process's clock decides for all."""
        late = torch.tensor(
            float(accelerator.is_main_process and time.monotonic() >= self._due), device=accelerator.device
        )
        return bool(accelerator.reduce(late, "sum"))

    def wrote(self, seconds: float) -> None:
        """Take note of how long the last writing took, seconds."""
        self._due = time.monotonic() + seconds / WRITING_SHARE


def publish(output: Path, step: int) -> None:
    """Give a checkpoint that is written whole its name.

    Not forced to the disk: a process may be killed at any moment, but waiting for 12 bytes a weight would cost more than
    the step that a loss of power can cost.
    """
    folder = output / STAGING / f"{PREFIX}{step}"
    final = output / folder.name
    write_json(str(folder / SUMS_FILE), sealed({"files": file_seals(folder, "checkpoint")}))
    shutil.rmtree(final, ignore_errors=True)
    folder.rename(final)
    remove_partial(output)


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint."""
    folders = [path for path in output.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return max(folders, key=lambda path: int(path.name.removeprefix(PREFIX)), default=None)


def remove_damaged(output: Path) -> list[str]:
    """Delete checkpoints whose files are not as they were written; one process does this before any goes on from the last.

    Returns:
        names of the deleted ones.
    """
    damaged = []
    for folder in sorted(output.glob(f"{PREFIX}*")):
        try:
            sums = read_json(str(folder / SUMS_FILE))
            holds = sums is None or (is_whole(sums) and not broken_files(folder, sums["files"]))
        except ArtifactError:
            holds = False
        if not holds:
            shutil.rmtree(folder)
            damaged.append(folder.name)
    return damaged


def remove_partial(output: Path) -> None:
    """Delete what a killed run left half written."""
    shutil.rmtree(output / STAGING, ignore_errors=True)
