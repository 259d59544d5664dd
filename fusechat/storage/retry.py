"""Waiting for what passes: a store that does not answer, a cluster that has just started."""

import logging
from collections.abc import Callable
from typing import TypeVar

from ..errors import StorageAwayError, first_line

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0

Result = TypeVar("Result")
log = logging.getLogger(__name__)


def _is_away(error: BaseException) -> bool:
    return isinstance(error, StorageAwayError)


def retried(
    call: Callable[[], Result], *, seconds: float, passes: Callable[[BaseException], bool] = _is_away
) -> Result:
    """Call again, after growing pauses, as long as what it raises may pass.

    Args:
        call: may run several times; what it writes must not differ between them.
        seconds: after so long the error is passed on.
        passes: whether an error may pass; by default that a store does not answer.
    Raises:
        StorageAwayError: the store did not answer in time. Every other error at once.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential

    def warn(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("%s; trying again in %.1f s", first_line(error) if error else "", state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception(passes), stop=stop_before_delay(seconds), before_sleep=warn, reraise=True,
        wait=wait_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
    )(call)  # fmt: skip
