"""What the tests of hostile inputs share: limits to time and memory, and JSON documents of any kind."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fusechat.errors import FuseChatError

LONGEST_MESSAGE = 6000
SECONDS = 5
"""Of this process's own work: tests run beside others."""
LONGEST_WAIT = 60
"""Seconds by the clock, for what waits and does not work."""
MEMORY = 2 * 2**30
"""Bytes that reading may take beyond what is taken already: without a bound, a device that never ends would end the machine."""


class Hang(BaseException):
    """Not an Exception, so that nothing takes it for an error of the input."""


def _hang(*_: object) -> None:
    raise Hang


@contextmanager
def limits() -> Iterator[None]:
    """Ends what takes too long with Hang, and what takes too much memory with MemoryError."""
    before = {number: signal.signal(number, _hang) for number in (signal.SIGALRM, signal.SIGPROF)}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    left, _ = signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, left)  # of the whole test
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before.items():
            signal.signal(number, handler)


def survives(read: Callable[[], Any]) -> str:
    """What our error says, or an empty text where there is a result; any other ending fails the test."""
    with limits():
        try:
            read()
        except FuseChatError as error:
            message = str(error)
            message.encode()
            assert len(message) < LONGEST_MESSAGE, f"{message[:300]}... has {len(message):,} characters"
            return message
    return ""


def nested(depth: int, begin: str = "[", end: str = "]") -> str:
    return begin * depth + end * depth


texts = st.text(st.characters(), max_size=6)
keys = st.sampled_from(
    ["id", "messages", "conversations", "role", "from", "content", "value", "tool_calls", "function", "name", "arguments", "tools",
     "weight", "train", "type", "text", "reasoning", "system", "prompt", "turns", "instruction", "reference", "question_id", "\ud800"]
) | texts  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "function_call", "text", "image"])
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=12
)
