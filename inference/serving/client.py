"""Asks a service: token ids or messages in, rows or answers out. Imports neither Ray nor vLLM.

What a service refuses for now (it is full, an engine is being replaced, nobody listens) is asked again for as long as the
connection has patience; scoring and greedy answers are the same however often they are asked.
"""

import contextlib
import http.client
import json
import queue
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from fusechat.errors import ConfigError, ContractError, ServiceError, UserError

from .scoring_records import ScoreReply, ScoreRequest
from .wire import BINARY, JSON, RECIPE_HEADER, read_reply, write_request

SCORE_PATH = "/v1/score"
REPLY_SECONDS = 3600.0
"""For a reply: an engine may have many tokens before it."""
LOOK_SECONDS = 10.0
"""For a reply to a GET: no engine works for it."""
REST_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Between two tries; the last one again and again."""
AWAY = {429, 500, 502, 503, 504}
"""Statuses of what may be answered later."""


class Connection:
    """A service at an address; calls may come from several threads."""

    def __init__(
        self, address: str, *, token: str | None = None, patience: float = 120.0, seconds: float = REPLY_SECONDS
    ) -> None:
        """Connects to nothing yet.

        Args:
            address: http or https URL, such as `http://127.0.0.1:8000`.
            patience: how long a service is asked again that does not answer, seconds.
            seconds: how long it may take for one reply; what no engine works for, 10 at most.
        Raises:
            ConfigError: no such URL.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"found {address!r}, expected the address of a service, such as http://127.0.0.1:8000")
        self.address, self._patience, self._seconds = address.rstrip("/"), patience, seconds
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, request: ScoreRequest) -> ScoreReply:
        """Rows of the request's dialogues.

        Raises:
            UserError: the service refuses the request: what it says.
            ServiceError: it did not answer in time, or answered something else.
        """
        body, content_type = write_request(request)
        reply = read_reply(self._ask("POST", SCORE_PATH, body, content_type, BINARY))
        marks = request.is_scored or reply.is_scored
        rows = [len(part) for part in reply.rows]
        if reply.model != request.model or rows != [int(of_one.sum()) for of_one in marks]:
            raise ServiceError(f"{self.address}: the reply is not of this request: {reply.model}, {rows[:8]} rows")
        # What was sent is what the rows are of; it stands here already.
        return replace(reply, token_ids=request.token_ids, is_scored=request.is_scored) if request.token_ids else reply

    def complete(self, path: str, fields: dict[str, Any], *, recipe: str | None = None) -> dict[str, Any]:
        """A request in OpenAI's form and its whole reply.

        Args:
            path: `/v1/completions` or `/v1/chat/completions`.
            recipe: fingerprint that the engine must have; None: whatever it has.
        Raises:
            UserError, ServiceError: as `score`.
        """
        return self._json("POST", path, json.dumps(fields).encode(), recipe=recipe)

    def models(self) -> list[dict[str, Any]]:
        """What `GET /v1/models` lists: `id` and, of each of its `faces`, recipe and limits."""
        models: list[dict[str, Any]] = self._json("GET", "/v1/models")["data"]
        return models

    def status(self) -> dict[str, Any]:
        """State of the service, and its engines with their processes."""
        health = self._json("GET", "/health", also=(503,))
        return {"state": health["status"], **self._json("GET", "/v1/status")}

    def close(self) -> None:
        """Let go of the open connections."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _json(
        self, method: str, path: str, body: bytes | None = None, also: Sequence[int] = (), recipe: str | None = None
    ) -> dict[str, Any]:
        data = self._ask(method, path, body, JSON, JSON, also, {} if recipe is None else {RECIPE_HEADER: recipe})
        try:
            values: dict[str, Any] = json.loads(data)
            return values
        except ValueError:
            raise ServiceError(
                f"{self.address}{path}: found a reply that is no JSON; is it a service of FuseChat?"
            ) from None

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None,
        content_type: str,
        accept: str,
        also: Sequence[int] = (),
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> bytes:
        """Send a request until it is answered; gives the body of the reply."""
        headers = {**self._headers, **more, "Content-Type": content_type, "Accept": accept}
        started, problem = time.monotonic(), ""
        for rest in _rests():
            try:
                status, wait, data = self._send(method, path, body, headers)
            except (OSError, http.client.HTTPException) as error:
                problem, wait = f"{type(error).__name__}: {error}", 0.0
            else:
                if status == 200 or status in also:
                    return data
                problem = _message(status, data)
                if status not in AWAY:
                    raise UserError(f"{self.address}: {problem}") if status != 400 else ContractError(problem)
            if time.monotonic() - started + max(rest, wait) > self._patience:
                break
            time.sleep(max(rest, wait))
        raise ServiceError(
            f"{self.address}{path}: no answer ({problem}); is the service up? `fusechat serve --status` says"
        )

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, float, bytes]:
        """Status, seconds that the service wants to be left alone, and body."""
        seconds = self._seconds if method != "GET" else min(self._seconds, LOOK_SECONDS)
        with self._connection(seconds) as connection:
            connection.request(method, self._path + path, body, headers)
            response = connection.getresponse()
            data = response.read()
            wait = response.getheader("Retry-After", "0")
            return response.status, float(wait) if wait.isdigit() else 0.0, data

    @contextlib.contextmanager
    def _connection(self, seconds: float) -> Iterator[http.client.HTTPConnection]:
        """One that nobody else uses and that waits so long; put back only if all went well."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._kind(self._host, self._port)
        connection.timeout = seconds
        try:
            if connection.sock is None:
                connection.connect()
            assert connection.sock is not None, "it is connected"
            _set_limits(connection.sock, seconds)
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)


def _set_limits(connection: socket.socket, seconds: float) -> None:
    """How long a reply is waited for; meanwhile the system looks whether the other machine is still there."""
    connection.settimeout(seconds)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):  # not of every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _rests() -> Iterator[float]:
    yield from REST_SECONDS
    while True:
        yield REST_SECONDS[-1]


def _message(status: int, data: bytes) -> str:
    """What the service says of an error, in any of the forms of this protocol."""
    try:
        values = json.loads(data)
        return f"{status}: {values['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {data[:200].decode(errors='replace')}"
