"""What passes is waited for, for so long; what does not is passed on at once."""

import time

import pytest

from fusechat.errors import StorageAwayError, StorageError
from fusechat.storage import retry


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)


def calls_of(errors: list[Exception]) -> tuple[list[int], object]:
    """A call that raises these errors, one after the other, and then gives 7; and how often it was called."""
    made: list[int] = []

    def call() -> int:
        made.append(1)
        if len(made) <= len(errors):
            raise errors[len(made) - 1]
        return 7

    return made, call


def test_a_store_that_is_away_is_asked_again_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    made, call = calls_of([StorageAwayError("s3: away")] * 3)
    assert retry.retried(call, seconds=10) == 7 and len(made) == 4  # type: ignore[arg-type]
    assert caplog.messages[0] == "s3: away; trying again in 0.0 s" and len(caplog.messages) == 3


def test_after_its_time_the_error_itself_is_raised() -> None:
    made, call = calls_of([StorageAwayError("away")] * 99)
    started = time.monotonic()
    with pytest.raises(StorageAwayError, match="away"):
        retry.retried(call, seconds=0.2)  # type: ignore[arg-type]
    assert 3 <= len(made) <= 6 and time.monotonic() - started < 0.3


def test_another_error_is_raised_at_once_and_who_calls_says_what_passes() -> None:
    made, call = calls_of([StorageError("full")])
    with pytest.raises(StorageError, match="full"):
        retry.retried(call, seconds=10)  # type: ignore[arg-type]
    assert len(made) == 1
    made, call = calls_of([RuntimeError("not yet")])
    assert retry.retried(call, seconds=10, passes=lambda error: "not yet" in str(error)) == 7  # type: ignore[arg-type]
