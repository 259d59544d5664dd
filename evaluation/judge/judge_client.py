"""An OpenAI-compatible chat endpoint: messages in, replies and their tokens out; retries, concurrency, a cache on disk.

Replies are appended to a JSON Lines file as they come, under a key made of everything that was asked, so that a killed
evaluation pays for no reply twice. Knows nothing about scores.
"""

import asyncio
import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fusechat.config.evaluation import JudgeSection
from fusechat.errors import ConfigError, JudgeError
from fusechat.progress import append_json_line, read_json_lines

RETRIED = {408, 409, 425, 429}
"""Statuses, beside all from 500 on, after which the same request may succeed."""
MAX_WAIT_SECONDS = 120.0
MIN_FAILURES_IN_A_ROW = 3
"""A request that fails by itself must not stop the others where they are sent one by one."""


@dataclass(frozen=True)
class Request:
    """One verdict to ask for; `repeat` tells apart repetitions of the same messages."""

    messages: tuple[tuple[str, str], ...]
    """(role, content) pairs."""
    repeat: int


@dataclass(frozen=True)
class Reply:
    """What came back: text, tokens read and written by the judge, and whether it was in the cache."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    attempts: int
    cached: bool


def ask_all(
    section: JudgeSection,
    requests: Sequence[Request],
    cache: Path,
    *,
    on_reply: Callable[[], None] = lambda: None,
) -> list[Reply]:
    """Ask for every verdict that is not in the cache yet.

    Raises:
        ConfigError: the key's environment variable is not set, or the endpoint refuses the request (wrong key or model).
        JudgeError: requests that failed at every attempt; all other replies are kept. As many in a row as are sent at once
            (at least three) end it.
    """
    known = {record.pop("key"): record for record in read_json_lines(cache)}
    keys = [_key(section, request) for request in requests]
    missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
    for _ in range(len(requests) - len(missing)):
        on_reply()
    if missing:
        asyncio.run(_ask_missing(section, missing, known, cache, on_reply))
    return [Reply(**known[key], cached=key not in missing) for key in keys]


async def _ask_missing(
    section: JudgeSection,
    missing: dict[str, Request],
    known: dict[str, dict[str, Any]],
    cache: Path,
    on_reply: Callable[[], None],
) -> None:
    failures: list[str] = []
    in_a_row, patience = 0, max(section.concurrency, MIN_FAILURES_IN_A_ROW)
    waiting = asyncio.Queue[tuple[str, Request]]()
    for item in missing.items():
        waiting.put_nowait(item)

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal in_a_row
        # An endpoint that is not there must not cost every request all of its attempts.
        while not waiting.empty() and in_a_row < patience:
            key, request = waiting.get_nowait()
            try:
                found = await _ask(client, section, request)
            except JudgeError as error:
                failures.append(str(error))
                in_a_row += 1
                continue
            in_a_row = 0
            known[key] = found
            append_json_line(cache, {"key": key, **found})
            on_reply()

    async with httpx.AsyncClient(timeout=section.timeout_seconds, headers=headers(section)) as client:
        workers = [asyncio.ensure_future(work(client)) for _ in range(min(section.concurrency, len(missing)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
    if failures:
        left = f", {waiting.qsize()} were not asked for after {in_a_row} failures in a row" if waiting.qsize() else ""
        raise JudgeError(
            f"{len(failures)} of {len(missing)} verdicts failed {section.max_attempts} times (last: {failures[-1]}){left}; "
            "all that came are kept: check evaluation.judge.url, and start the same command again when the endpoint answers"
        )


async def _ask(client: httpx.AsyncClient, section: JudgeSection, request: Request) -> dict[str, Any]:
    """One reply as a record of the cache."""
    body = {
        "model": section.model,
        "messages": [{"role": role, "content": content} for role, content in request.messages],
        "temperature": section.temperature,
        "max_tokens": section.max_tokens,
    }
    reason = ""
    for attempt in range(1, section.max_attempts + 1):
        wait = min(section.backoff_seconds * 2 ** (attempt - 1), MAX_WAIT_SECONDS) * random.uniform(0.5, 1.0)
        try:
            response = await client.post(f"{section.url.rstrip('/')}/chat/completions", json=body)
            if response.status_code == 200:
                return {**_read_reply(response), "attempts": attempt}
            reason = f"status {response.status_code}: {response.text.strip()[:200]}"
            if response.status_code < 500 and response.status_code not in RETRIED:
                raise ConfigError(
                    f"evaluation.judge: {section.url} refuses model {section.model!r} ({reason}); check url, model and "
                    "the key in the environment variable that key_variable names"
                )
            wait = _asked_wait(response) or wait
        except (httpx.TransportError, ValueError, KeyError, TypeError, IndexError) as error:
            if isinstance(error, ConfigError):
                raise
            reason = f"{type(error).__name__}: {error}"
        if attempt < section.max_attempts:
            await asyncio.sleep(wait)
    raise JudgeError(f"{section.url}: {reason}")


def _read_reply(response: httpx.Response) -> dict[str, Any]:
    """Text and tokens of a reply; raises KeyError and its like for a body of another form."""
    body = response.json()
    text, usage = body["choices"][0]["message"]["content"], body.get("usage") or {}
    if not isinstance(text, str):
        raise TypeError(f"the reply's content is {type(text).__name__}")
    return {
        "text": text,
        "prompt_tokens": int(usage.get("prompt_tokens", 0)),
        "completion_tokens": int(usage.get("completion_tokens", 0)),
    }


def _asked_wait(response: httpx.Response) -> float | None:
    """Seconds that the endpoint asks to wait for."""
    try:
        return min(float(response.headers["retry-after"]), MAX_WAIT_SECONDS)
    except (KeyError, ValueError):
        return None


def headers(section: JudgeSection) -> dict[str, str]:
    """The request's authorization; ConfigError where the key's environment variable is not set."""
    if section.key_variable is None:
        return {}
    key = os.environ.get(section.key_variable, "")
    if not key:
        raise ConfigError(
            f"evaluation.judge.key_variable: the environment variable {section.key_variable} is not set; put the "
            "endpoint's key there"
        )
    return {"Authorization": f"Bearer {key}"}


def _key(section: JudgeSection, request: Request) -> str:
    asked = [section.url, section.model, section.temperature, section.max_tokens, request.messages, request.repeat]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:32]
