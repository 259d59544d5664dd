"""Disks that are full or read-only at a random byte or operation: writes that fail in the driver, and a small file system."""

import contextlib
import errno
import os
import subprocess
from pathlib import Path

from .command import FAIL_CHANGES, FAIL_WRITES, Trap, start
from .kills import OPERATIONS, draw_stage
from .trial import Disturbed, Tools
from .world import VARIANTS

BYTES = {
    "tokenize": 30_000,
    "extract": 30_000,
    "align": 40_000,
    "train": 4_000_000,
    "merge": 400_000,
    "evaluate": 300_000,
}
"""Stage -> about how many bytes it writes; only says how places are drawn."""
ERRORS = {errno.ENOSPC: "no space", errno.EDQUOT: "over quota", errno.EROFS: "read-only", errno.EACCES: "no permission"}


def failing_writes(tools: Tools) -> Disturbed:
    """From a byte on nothing can be written below the run's folder."""
    draw, variant, stage = tools.draw, tools.draw.choice(list(VARIANTS)), draw_stage(tools.draw)
    run = tools.world.begin(variant, stage, tools.folder / "run")
    error = draw.choice([errno.ENOSPC, errno.EDQUOT])
    after = draw.randrange(BYTES[stage])
    ending = start(run.arguments, trap=Trap(str(run.folder), FAIL_WRITES, after, error)).wait()
    return Disturbed(run, f"{ERRORS[error]} after {after} bytes, from {stage} on ({variant})", [ending], variant)


def failing_changes(tools: Tools) -> Disturbed:
    """From an operation on no file below the run's folder can be made, renamed, deleted or written."""
    draw, variant, stage = tools.draw, tools.draw.choice(list(VARIANTS)), draw_stage(tools.draw)
    run = tools.world.begin(variant, stage, tools.folder / "run")
    error = draw.choice([errno.EROFS, errno.EACCES])
    after = draw.randrange(OPERATIONS[stage])
    ending = start(run.arguments, trap=Trap(str(run.folder), FAIL_CHANGES, after, error)).wait()
    return Disturbed(run, f"{ERRORS[error]} after {after} changes, from {stage} on ({variant})", [ending], variant)


def small_disk(tools: Tools) -> Disturbed:
    """The run's folder is a file system that fills up; then it is made larger."""
    draw, variant, stage = tools.draw, tools.draw.choice(list(VARIANTS)), draw_stage(tools.draw)
    disk = tools.folder / "disk"
    disk.mkdir()
    mount(disk, "size=1g")
    run = tools.world.begin(variant, stage, disk / "run")
    used = int(
        subprocess.run(["du", "-s", "-B4096", str(disk)], check=True, capture_output=True, text=True).stdout.split()[0]
    )
    more = draw.randrange(1, max(2, BYTES[stage] // 4096 + 30))
    mount(disk, f"remount,nr_blocks={used + more}")
    ending = start(run.arguments).wait()
    what = f"a disk with {more} blocks of 4 KiB left, from {stage} on ({variant})"
    return Disturbed(run, what, [ending], variant, cure=lambda: mount(disk, "remount,size=1g"))


def can_mount(folder: Path) -> bool:
    """Whether a small file system can be had here: that takes root."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return False
    with contextlib.suppress(subprocess.CalledProcessError):
        mount(folder, "size=1m")
        unmount(folder)
        return True
    return False


def mount(folder: Path, options: str) -> None:
    """A tmpfs, or other options for one that is there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)


def unmount(folder: Path) -> None:
    """Take it away, whoever still looks at it."""
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
