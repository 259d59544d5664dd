"""The one private part of openai that is overridden: how long its client waits before it tries a request again.

openai 3 begins with half a second and never waits longer than 8 s; neither can be set, and six tries are then over in 15 s,
which outlasts no busy endpoint. Its reading of `Retry-After` and all else stays.
"""

import random
from typing import Any

from openai import AsyncOpenAI

LONGEST_PAUSE_SECONDS = 120.0


class PacedOpenAI(AsyncOpenAI):
    """openai's client whose pauses begin with `first_pause_seconds` and double."""

    def __init__(self, first_pause_seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.first_pause_seconds = first_pause_seconds

    def _calculate_retry_timeout(self, remaining_retries: int, options: Any, response_headers: Any = None) -> float:
        asked = self._parse_retry_after_header(response_headers)
        if asked is not None and asked > 0:
            return min(asked, LONGEST_PAUSE_SECONDS)
        retries = options.get_max_retries(self.max_retries) - remaining_retries
        pause: float = min(self.first_pause_seconds * 2.0**retries, LONGEST_PAUSE_SECONDS)
        return pause * random.uniform(0.5, 1.0)


def unended(request: Any, seconds: float) -> Exception:
    """What openai's HTTP library raises where a part of a reply does not come in time: openai tries the request again."""
    from httpx2 import ReadTimeout

    return ReadTimeout(f"the reply did not end within {seconds:g} s", request=request)
