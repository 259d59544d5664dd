"""An OpenAI-compatible chat endpoint: messages in, replies and their tokens out; concurrency, and a cache on disk.

Replies are appended to a JSON Lines file as they come, under a key made of everything that was asked, so that a killed
evaluation pays for no reply twice. Knows nothing about scores.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusechat.config.evaluation import JudgeSection
from fusechat.errors import ConfigError, JudgeError
from fusechat.progress import append_json_line, read_json_lines

from .judge_connection import connect

if TYPE_CHECKING:
    from openai import AsyncOpenAI

REFUSES_ALL = {401, 402, 404}
"""Statuses that are about no single question, but the key, the account, the address or the model."""
PASSES = {408, 409, 429}
"""Statuses, beside all from 500 on, after which the same request may succeed."""
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
    fault: str = ""
    """Why the text is no whole reply: refused, cut or empty. Empty: it is one."""


def ask_all(
    section: JudgeSection,
    requests: Sequence[Request],
    cache: Path,
    *,
    on_reply: Callable[[], None] = lambda: None,
) -> list[Reply]:
    """Ask for every verdict that is not in the cache yet.

    A question that the endpoint refuses while it answers others (a content filter) gets an empty reply with its fault.

    Raises:
        ConfigError: the key's environment variable is not set, or the endpoint refuses the key, the model, or all of the
            first requests.
        JudgeError: requests that failed at every attempt; all other replies are kept. As many in a row as are sent at once
            (at least three) end it.
    """
    known = {record.pop("key"): record for record in read_json_lines(cache)}
    keys = [_key(section, request) for request in requests]
    missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
    for _ in range(len(requests) - len(missing)):
        on_reply()
    if missing:
        answered = any(not known[key].get("fault") for key in keys if key in known)
        asyncio.run(_Asking(section, missing, known, cache, on_reply, answered).run())
    return [Reply(**known[key], cached=key not in missing) for key in keys]


@dataclass
class _Asking:
    """The requests that are missing, some at once, and what became of them."""

    section: JudgeSection
    missing: dict[str, Request]
    known: dict[str, dict[str, Any]]
    """key -> record of a reply; replies are added."""
    cache: Path
    on_reply: Callable[[], None]
    answered: bool
    """The endpoint has answered a question of this judge, so a refusal is about the question."""

    async def run(self) -> None:
        """Raises ConfigError and JudgeError as `ask_all`."""
        self.refused: dict[str, tuple[str, str]] = {}  # key -> what the endpoint said, its code
        self.failures: list[str] = []
        self.failed_in_a_row = 0
        self.waiting = list(reversed(self.missing.items()))
        workers = []
        async with connect(self.section) as client:
            try:
                for _ in range(min(self.section.concurrency, len(self.missing))):
                    workers.append(asyncio.ensure_future(self._work(client)))
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
        if len(self.refused) > len(self.failures):
            raise self._refusal(next(iter(self.refused.values()))[0])
        if self.failures:
            num, row = len(self.waiting), self.failed_in_a_row
            left = f", {num} were not asked for after {row} failures in a row" if num else ""
            raise JudgeError(
                f"{len(self.failures)} of {len(self.missing)} verdicts failed {self.section.max_attempts} times (last: "
                f"{self.failures[-1]}){left}; all that came are kept: check evaluation.judge.url, and start the same "
                "command again when the endpoint answers"
            )

    async def _work(self, client: "AsyncOpenAI") -> None:
        from openai import APIConnectionError, APIStatusError

        patience = max(self.section.concurrency, MIN_FAILURES_IN_A_ROW)
        # An endpoint that is not there, or refuses everything, must not cost every request all of its attempts.
        while self.waiting and max(self.failed_in_a_row, len(self.refused)) < patience:
            key, request = self.waiting.pop()
            try:
                record = await _ask(client, self.section, request)
            except APIConnectionError as error:
                self._note_failure(f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}")
            except APIStatusError as error:
                reason = f"status {error.status_code}: {error.response.text.strip()[:200]}"
                if error.status_code in REFUSES_ALL:
                    raise self._refusal(reason) from None
                if error.status_code >= 500 or error.status_code in PASSES:
                    self._note_failure(reason)
                else:
                    self.refused[key] = (reason, str(error.code or f"status {error.status_code}"))
            else:
                self.failed_in_a_row, self.answered = 0, True
                self._keep(key, record)
            if self.answered:
                self._keep_refused()

    def _note_failure(self, reason: str) -> None:
        self.failures.append(f"{self.section.url}: {reason}")
        self.failed_in_a_row += 1

    def _keep_refused(self) -> None:
        """Refusals were about their questions, as the endpoint answers others."""
        while self.refused:
            key, (_, code) = self.refused.popitem()
            nothing = {"text": "", "prompt_tokens": 0, "completion_tokens": 0, "attempts": 1}
            self._keep(key, {**nothing, "fault": f"refused: {code}"})

    def _keep(self, key: str, record: dict[str, Any]) -> None:
        self.known[key] = record
        append_json_line(self.cache, {"key": key, **record})
        self.on_reply()

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(
            f"evaluation.judge: {self.section.url} refuses model {self.section.model!r} ({reason}); check url, model and "
            "the key in the environment variable that key_variable names, and whether the model takes temperature and "
            f"{self.section.limit_parameter} (null leaves one out; limit_parameter names the other)"
        )


async def _ask(client: "AsyncOpenAI", section: JudgeSection, request: Request) -> dict[str, Any]:
    """One reply as a record of the cache. Accounts that the environment names (OPENAI_...) do not reach the endpoint."""
    from openai import Omit

    unsent = ["OpenAI-Organization", "OpenAI-Project"] + ([] if section.key_variable else ["Authorization"])
    limits = {"temperature": section.temperature, section.limit_parameter: section.max_tokens}
    messages: Any = [{"role": role, "content": content} for role, content in request.messages]
    response = await client.chat.completions.with_raw_response.create(
        model=section.model,
        messages=messages,
        extra_headers={name: Omit() for name in unsent},
        extra_body={name: value for name, value in limits.items() if value is not None},
    )
    body = response.http_response.json()
    return {
        **_read_choice(body["choices"][0]),
        "prompt_tokens": _count(body, "prompt_tokens"),
        "completion_tokens": _count(body, "completion_tokens"),
        "attempts": response.retries_taken + 1,
    }


def _count(body: dict[str, Any], name: str) -> int:
    """A count of a reply's usage; 0 where it says none."""
    usage = body.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 2**53 else 0


def _read_choice(choice: dict[str, Any]) -> dict[str, str]:
    """Text of a reply, whose parts are joined, and why it is no whole one. A cut `SCORE: 10` may read `SCORE: 1`."""
    content = choice["message"]["content"]
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    text = content.encode(errors="replace").decode() if isinstance(content, str) else ""  # half a pair is no text
    ends = {"length": "cut at the longest verdict", "content_filter": "refused: content_filter"}
    fault = ends.get(str(choice.get("finish_reason")), "" if text else "empty")
    return {"text": text, "fault": fault}


def _key(section: JudgeSection, request: Request) -> str:
    asked = [section.url, section.model, section.temperature, section.max_tokens, request.messages, request.repeat]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:32]
