"""A limit to the time that a chat template may take: a template is foreign code, and Jinja's sandbox lets loops nest.

One thread per process looks after all renderings; it raises `TimeUp` in the thread that takes too long. A single operation on
texts is not interrupted, and the memory that a template takes is bounded by the process's own limit alone.
"""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

MAX_SECONDS = 10.0
"""Of one rendering; a real one takes milliseconds."""
_PAUSE = 0.25


class TimeUp(BaseException):
    """Raised within a rendering; not an Exception, so that nothing in it takes it for an error of its own."""


_lock = threading.Lock()
_deadlines: dict[int, float] = {}
"""Thread -> when its rendering has to be over (monotonic seconds); none once it was told so."""
_watcher: threading.Thread | None = None


@contextmanager
def time_limit() -> Iterator[None]:
    """Raises TimeoutError if the block, which must be Python code, takes longer than MAX_SECONDS."""
    global _watcher
    thread = threading.get_ident()
    with _lock:
        _deadlines[thread] = time.monotonic() + MAX_SECONDS
        if _watcher is None or not _watcher.is_alive():  # a forked process has none
            _watcher = threading.Thread(target=_watch, name="render limit", daemon=True)
            _watcher.start()
    try:
        try:
            yield
        finally:
            with _lock:
                in_time = _deadlines.pop(thread, None) is not None
                if not in_time:  # what was raised may not have arrived yet
                    _raise_in(thread, None)
    except TimeUp:
        raise TimeoutError(f"it takes more than {MAX_SECONDS:g} seconds") from None
    if not in_time:
        raise TimeoutError(f"it takes more than {MAX_SECONDS:g} seconds")


def _watch() -> None:
    while True:
        time.sleep(_PAUSE)
        with _lock:
            now = time.monotonic()
            for thread in [thread for thread, deadline in _deadlines.items() if deadline < now]:
                del _deadlines[thread]
                _raise_in(thread, TimeUp)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an error in a thread at its next step; None takes one back that has not arrived."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error) if error else None)
