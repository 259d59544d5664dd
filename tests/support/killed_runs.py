"""Whole runs by the command line, and runs that are killed on the way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def fusechat(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "fusechat", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert not check or result.returncode == 0, result.stderr
    return result


def kill_when(path: Path, reached: Callable[[], bool]) -> None:
    """Start the run of a run file and kill it, and all it started, as soon as something is there."""
    command = [sys.executable, "-m", "fusechat", "run", "-c", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while not reached() and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
