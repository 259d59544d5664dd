"""Waiting for a store that does not answer: what is in memory was costly, and an outage passes."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from ..errors import StorageAwayError

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0

Result = TypeVar("Result")
log = logging.getLogger(__name__)


def patiently(call: Callable[[], Result], *, seconds: float) -> Result:
    """Call again, after growing pauses, as long as the store does not answer.

    Args:
        call: may run several times; what it writes must not differ between them.
        seconds: after so long the error is passed on.
    Raises:
        StorageAwayError: the store did not answer in time. Every other error at once.
    """
    deadline, pause = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except StorageAwayError as error:
            if time.monotonic() + pause > deadline:
                raise
            log.warning("%s; trying again in %.1f s", error, pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
