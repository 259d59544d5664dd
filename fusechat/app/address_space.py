"""Ends a process whose address space (RLIMIT_AS) stays full: it would hang.

Python's `Thread.start` waits without bound for a thread that the system began and that had no memory left for its first frame, in
whatever library starts one. Nothing can be raised there, so a thread that stands before all others looks from time to time
whether there is room for one more. Where no limit is set nothing is done.
"""

import mmap
import os
import resource
import threading
import time

ROOM_BYTES = 16 * 2**20
"""Of address space: a thread's stack (8 MiB on Linux) and what its first steps take."""
LOOK_SECONDS = 5.0
LOOKS = 6
"""So many in a row without room end the process."""
LACKING = "no address space for one more thread (RLIMIT_AS)"
LINE = (
    f"fusechat: out of memory ({LACKING}); what is finished is kept: give the process more, then start the same command again\n"
).encode()


def watch_address_space() -> None:
    """Begin to look, if this process has a limit.

    Raises:
        MemoryError: there is no room from the start.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    if not _has_room():
        raise MemoryError(LACKING)
    threading.Thread(target=_watch, name="address-space", daemon=True).start()


def _watch() -> None:
    without = 0
    while without < LOOKS:
        time.sleep(LOOK_SECONDS)
        without = 0 if _has_room() else without + 1
    os.write(2, LINE)
    os._exit(1)  # as a SIGKILL would: whatever waits for memory can end nothing in order


def _has_room() -> bool:
    try:
        mmap.mmap(-1, ROOM_BYTES).close()
    except (OSError, MemoryError):
        return False
    return True
