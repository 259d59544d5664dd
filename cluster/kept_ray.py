"""One Ray for all stages of a run: the first that needs one starts it, and it ends with the run. Imports no Ray itself."""

import contextlib
from collections.abc import Iterator

_blocks: list[contextlib.ExitStack] = []


@contextlib.contextmanager
def keep_ray() -> Iterator[None]:
    """The session of Ray that first begins in a `with` block stays until the block ends: each start takes seconds."""
    with contextlib.ExitStack() as block:
        _blocks.append(block)
        try:
            yield
        finally:
            _blocks.remove(block)


def keeper() -> contextlib.ExitStack | None:
    """What a session begun now ends with; None: with its own block."""
    return _blocks[-1] if _blocks else None
