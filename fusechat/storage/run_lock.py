"""Who is working in a run folder: one process at a time, however it ends."""

import contextlib
import getpass
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from ..errors import BusyError
from .write_errors import storage_errors

LOCK_PATIENCE_SECONDS = 2.0
"""How long a second process waits for a run folder before it gives up."""


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; freed by the system when the process ends, however it ends.

    Raises:
        BusyError: another process holds it.
    """
    from filelock import FileLock, Timeout

    path = folder / ".lock"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A process that was just killed holds its lock until its memory is freed.
        lock = FileLock(path, timeout=LOCK_PATIENCE_SECONDS, poll_interval=0.1)
        try:
            lock.acquire()
        except Timeout:
            holder = path.read_text(encoding="utf-8").strip() or "another process"
            raise BusyError(f"{folder}: {holder} is working here; wait for it or choose another run.output") from None
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        for partial in folder.glob("*.partial"):  # left by a killed run: nobody else writes here
            partial.unlink(missing_ok=True)
        path.write_text(this_process(), encoding="utf-8")
        yield


def this_process() -> str:
    """Who holds something, for people: user, machine and process."""
    return f"{getpass.getuser()}@{platform.node()}, process {os.getpid()}"
