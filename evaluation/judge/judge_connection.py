"""The connection to a judge's endpoint: its key, its patience, and what counts as no reply."""

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from fusechat.config.evaluation import JudgeSection
from fusechat.errors import ConfigError

if TYPE_CHECKING:
    from openai import AsyncOpenAI


def connect(section: JudgeSection) -> "AsyncOpenAI":
    """A client that tries again what passes."""
    from openai import DefaultAsyncHttpxClient

    from .openai_internals import PacedOpenAI

    return PacedOpenAI(
        section.backoff_seconds, base_url=section.url, api_key=judge_key(section) or "none",
        max_retries=section.max_attempts - 1, timeout=section.timeout_seconds,
        http_client=DefaultAsyncHttpxClient(
            event_hooks={"response": [partial(_require_chat_reply, section.timeout_seconds)]}),
    )  # fmt: skip


async def _require_chat_reply(seconds: float, response: Any) -> None:
    """What a proxy says in the endpoint's place, under status 200, counts as a bad gateway: it is tried again. So is a reply that
    does not end in time: the client's own limit is for each part of it.
    """
    from .openai_internals import unended

    if response.status_code == 200:
        try:
            async with asyncio.timeout(seconds):
                await response.aread()
        except TimeoutError:
            raise unended(response.request, seconds) from None
        try:
            response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            response.status_code = 502


def judge_key(section: JudgeSection) -> str | None:
    """The endpoint's key, if it has one; ConfigError where the key's environment variable is not set."""
    if section.key_variable is None:
        return None
    key = os.environ.get(section.key_variable, "")
    if not key:
        raise ConfigError(
            f"evaluation.judge.key_variable: the environment variable {section.key_variable} is not set; put the "
            "endpoint's key there"
        )
    return key
