"""Renders chat templates in a process of its own, bounded in time and memory: a template is foreign code, and Jinja's sandbox
lets loops nest, texts grow and numbers explode.

One process serves all templates of this one. It is ended and begun anew where a rendering takes too long. Knows nothing about
dialogues; `template_worker` is the other end.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_SECONDS = 10.0
"""Of one rendering; a real one takes milliseconds."""
START_SECONDS = 120.0
"""Until the process stands; that takes a tenth of a second where the machine is not busy."""
_WORKER = Path(__file__).with_name("template_worker.py")
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "TZ", "SYSTEMROOT")
"""Of the environment; the rest may hold secrets."""


class TemplateSyntax(Exception):
    """A template that is not Jinja."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class TemplateFault(Exception):
    """A template that does not write a text, by its own words or because it meets what it does not expect or may not have."""


def render(template: str, variables: Mapping[str, Any], date: str = "") -> str:
    """What a template writes.

    Args:
        variables: JSON values that it is told.
        date: the day that it writes as today's, YYYY-MM-DD; "": the clock's.
    Raises:
        TemplateSyntax: it is not Jinja.
        TemplateFault: it refuses, or takes more than MAX_SECONDS or the memory that it may have.
    """
    try:
        line = json.dumps({"template": template, "variables": variables, "date": date}).encode() + b"\n"
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, values nested too deeply
        raise TemplateFault(str(error)) from None
    with _lock:
        reply = json.loads(_ask(line))
    if "line" in reply:
        raise TemplateSyntax(reply["line"], reply["error"])
    if "error" in reply:
        raise TemplateFault(reply["error"])
    text: str = reply["text"]
    return text


_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None
_owner = 0
"""Process that began it: a forked one begins its own."""


def _ask(line: bytes) -> bytes:
    process = _running()
    try:
        return _exchange(process, line, time.monotonic() + MAX_SECONDS)
    except TimeoutError:
        end()
        raise TemplateFault(f"it takes more than {MAX_SECONDS:g} seconds") from None
    except (OSError, EOFError):
        end()
        raise TemplateFault("it ended the process that rendered it") from None


def _running() -> subprocess.Popen[bytes]:
    global _process, _owner
    if _process is None or _owner != os.getpid() or _process.poll() is not None:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        _process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=kept, cwd="/", start_new_session=True,
        )  # fmt: skip
        for pipe in (_process.stdin, _process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        _owner = os.getpid()
        _exchange(_process, b"", time.monotonic() + START_SECONDS)
    return _process


def _exchange(process: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes:
    """Send a request and read its answer; neither pipe may keep this process waiting beyond the deadline."""
    assert process.stdin is not None and process.stdout is not None
    to_worker, from_worker = process.stdin.fileno(), process.stdout.fileno()
    sent, parts = 0, []
    while True:
        left = deadline - time.monotonic()
        writing = [to_worker] if sent < len(line) else []
        readable, writable, _ = select.select([from_worker], writing, [], max(left, 0))
        if left <= 0:
            raise TimeoutError
        if writable:
            sent += os.write(to_worker, line[sent : sent + 2**16])
        if readable:
            part = os.read(from_worker, 2**20)
            if not part:
                raise EOFError
            parts.append(part)
            if part.endswith(b"\n"):
                return b"".join(parts)


@atexit.register
def end() -> None:
    """End the process, if this one began it."""
    global _process
    if _process is not None and _owner == os.getpid():
        _process.kill()
        _process.wait()
        for pipe in (_process.stdin, _process.stdout):
            assert pipe is not None
            pipe.close()
    _process = None
