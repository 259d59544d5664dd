"""How a command ends when the machine fails it: one clear line, never a traceback; our own bugs keep theirs."""

import errno
import os

import pytest

from fusechat.app import cli
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
