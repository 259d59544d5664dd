"""Peak memory of this process alone."""

import resource
from pathlib import Path


def peak_bytes() -> int:
    """Largest resident set so far, bytes.

    The system's own `ru_maxrss` starts with the peak of the process that this one was forked from; Linux's high-water mark
    begins anew with the program.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
