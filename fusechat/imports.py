"""Importing large libraries in less time."""

import atexit
import contextlib
import gc
from collections.abc import Iterator

atexit.register(gc.unfreeze)  # or libraries that count their objects at the end report them as leaked


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import within this; what the libraries made is not searched for garbage afterwards either.

    Nothing that an import makes is garbage, yet Python looks through all of it again and again: a quarter of the time that
    vLLM or TRL takes to be imported. And vLLM collects several times while an engine starts, a third of a second each.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
