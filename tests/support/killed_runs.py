"""Whole runs by the command line, and runs that are killed on the way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def fusechat(
    *arguments: str | Path, check: bool = True, program: tuple[str, ...] = ("-m", "fusechat")
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `program`: what the interpreter is given in place of the package."""
    command = [sys.executable, *program, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert not check or result.returncode == 0, result.stderr
    return result


def kill_when(reached: Callable[[], bool], *arguments: str | Path) -> None:
    """Start a command and kill it, and all of its session, as soon as `reached` says so."""
    command = [sys.executable, "-m", "fusechat", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while not reached() and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, "the command ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
