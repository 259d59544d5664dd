"""Who has an engine: many requests together, or one alone.

A request that is alone on a CPU's engine gets the same rows to the bit in every company, because its batches hold nothing
else. Requests are served in the order in which they came, so that neither kind waits for ever.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class Turns:
    """A lock with two ways in, for the time of a `with` block."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._sharing = 0
        self._alone = False

    @contextlib.contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        """Wait for a turn, beside others that share or with the engine for oneself."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] is ticket and self._is_free(alone))
            self._queue.popleft()
            self._alone, self._sharing = alone, self._sharing + (not alone)
            self._changed.notify_all()  # the next in the queue may share this turn
        try:
            yield
        finally:
            with self._changed:
                self._alone, self._sharing = False, self._sharing - (not alone)
                self._changed.notify_all()

    def _is_free(self, alone: bool) -> bool:
        return not self._alone and (self._sharing == 0 or not alone)
