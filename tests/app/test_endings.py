"""How a command ends when the machine fails it: one clear line, never a traceback; our own bugs keep theirs."""

import errno
import os
import resource
import subprocess
import sys
import threading
import time

import pytest

from fusechat.app import address_space, cli
from fusechat.errors import ModelError

RAISED = {
    "no memory": (MemoryError(), 1, "out of memory (MemoryError); what is finished is kept"),
    "no memory in torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
    "no thread": (RuntimeError("can't start new thread"), 1, "out of memory (can't start new thread)"),
    "full": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/x"), 2, "/run/x: cannot be written: No space left"),
    "taken away": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/run/x"),
        1,
        "/run/x: No such file or directory",
    ),
}


def ended(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize("name", RAISED)
def test_machine_that_gives_nothing_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, status, line = RAISED[name]
    assert ended(error, monkeypatch) == status
    shown = capsys.readouterr().err
    assert shown.startswith(f"fusechat: {line}") and shown.count("\n") == 1 and "start the same command again" in shown


def test_error_that_came_of_too_little_memory_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ModelError("m: transformers cannot load it: unable to mmap 9 bytes: Cannot allocate memory (12)")
    assert ended(error, monkeypatch) == 1
    assert capsys.readouterr().err.startswith("fusechat: out of memory (m: transformers")


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError("odd"), ValueError("bug")])
def test_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(type(error), match=str(error)):
        cli.main()


FULL = """
import mmap, resource, time
from pathlib import Path
from fusechat.app import address_space
address_space.LOOK_SECONDS = 0.05
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room} * 2**20, resource.RLIM_INFINITY))
address_space.watch_address_space()
taken = []
try:
    while {fills}:
        taken.append(mmap.mmap(-1, 2**20))
except OSError:
    pass
time.sleep({seconds})
print("went on")
"""


@pytest.mark.parametrize(
    ("room", "fills", "seconds", "status"), [(200, True, 60, 1), (200, False, 1, 0), (2, False, 0, 1)]
)
def test_process_whose_address_space_stays_full_ends_with_one_line(
    room: int, fills: bool, seconds: int, status: int
) -> None:
    code, started = FULL.format(room=room, fills=fills, seconds=seconds), time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == status and time.monotonic() - started < 30, done.stderr
    assert ("went on" in done.stdout) == (status == 0)
    if fills:
        assert done.stderr.startswith(f"fusechat: out of memory ({address_space.LACKING}); what is finished is kept")
        assert done.stderr.count("\n") == 1
    elif status:
        assert f"MemoryError: {address_space.LACKING}" in done.stderr  # `cli.main` makes one line of it


def test_process_without_a_limit_is_not_watched() -> None:
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    address_space.watch_address_space()
    assert all(thread.name != "address-space" for thread in threading.enumerate())
