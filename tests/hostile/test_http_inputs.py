"""Requests to a service that mean harm are answered with a status and one short message: no engine is reached, nothing is raised.

The door stands here without Ray; its engines fail the test if they are asked.
"""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hostile import LONGEST_MESSAGE, documents, limits, nested
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from cluster.service.door import Door
from cluster.service.spec import ServiceSpec
from fusechat.config import ClusterSection, ModelSection
from fusechat.config.serve import ServeSection
from inference.serving import wire
from inference.serving.faces import Face

TOKEN_DIGEST = "0" * 64


class Engine:
    """Stands for a deployment that no request here may reach."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("an engine was asked")


def door(token_digest: str | None = None) -> Door:
    faces = tuple(
        Face(kind=kind, model=ModelSection(name="m", model="/nowhere"), template="", k=5, capture="topk_pooler", max_tokens=64,
             max_dialogues=4, at_once=1, self_check_dialogues=0, recipe="0123456789abcdef")
        for kind in ("score", "generate")
    )  # fmt: skip
    spec = ServiceSpec(ServeSection(max_request_mib=0.25), ClusterSection(), faces, 1, token_digest)
    return Door(spec, {face.id: Engine() for face in faces})


def ask(
    at: Door, path: str, body: bytes = b"", *, method: str = "POST", headers: Iterable[tuple[bytes, bytes]] = (), parts: int = 1
) -> tuple[int, bytes]:  # fmt: skip
    """Status and body of the answer to one request."""
    size = max(1, -(-len(body) // parts))
    pieces = [body[place : place + size] for place in range(0, len(body), size)] or [b""]

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0) if pieces else b""
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode("utf-8", "surrogatepass"), "query_string": b"",
             "headers": [(b"host", b"localhost:1"), *headers], "scheme": "http", "server": ("localhost", 1)}  # fmt: skip
    with limits():
        response = asyncio.run(at(Request(scope, receive)))
    return response.status_code, bytes(response.body)


JSON, BINARY = ((b"content-type", kind.encode()) for kind in (wire.JSON, wire.BINARY))
BODIES = [
    b"", b"{", b"[]", b"5", b"null", nested(5000).encode(), b"9" * 5000, b'{"model": 5}', b'{"model": {}}', b'{"model": "\\ud800"}',
    b'{"model": null}', b'{"model": "x' + b"y" * 100_000 + b'"}', b'{"model": "m", "model": "n"}', b'\xff\xfe{"model": "m"}', b"\0" * 100,
    b'{"model": "../../etc/passwd"}', b'{"model": "<script>"}', b"x" * 400_000, b'{"model": 1e999}', b"\xff" * 64,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BODIES)))
@pytest.mark.parametrize("path", ["/v1/score", "/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("kind", [JSON, BINARY])
def test_body_that_means_harm_is_refused(number: int, path: str, kind: tuple[bytes, bytes]) -> None:
    for parts in (1, 7):
        status, said = ask(door(), path, BODIES[number], headers=[kind], parts=parts)
        assert 400 <= status < 500 and len(said) < LONGEST_MESSAGE, (status, said[:300])
        assert b"Traceback" not in said and b"root:" not in said


PATHS = [
    "", "/", "/v1/../../etc/passwd", "/v1/score/", "//v1/score", "/v1/%2e%2e", "/\ud800", "/" + "x" * 100_000, "/v1/score\0",
    "/metrics/x", "/v1/models?x", "/<script>alert(1)</script>", "/v1/status;x",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(PATHS)))
def test_path_that_is_none_is_not_found(number: int) -> None:
    status, said = ask(door(), PATHS[number], method="GET")
    assert status == 404 and len(said) < 600


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "x" * 5000, ""])
def test_method_that_is_not_for_the_path_is_refused(method: str) -> None:
    assert ask(door(), "/v1/score", b"{}", method=method, headers=[JSON])[0] == 405


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-type", b"text/html")], [(b"content-type", b"x" * 100_000)], [], [(b"content-type", b"\xff")],
        [JSON, (b"content-length", b"99999999999999999999")], [JSON, (b"content-length", b"-1")],
        [JSON, (b"x-fusechat-recipe", b"\xff" * 100)],
    ],
)  # fmt: skip
def test_headers_that_mean_harm_are_refused(headers: list[tuple[bytes, bytes]]) -> None:
    status, said = ask(door(), "/v1/score", b'{"model": 5}', headers=headers)
    assert 400 <= status < 500 and len(said) < 1000


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer " + "0" * 64, "Basic Og==", "bearer \xff", "Bearer " + "x" * 100_000]
)
def test_wrong_token_is_refused_before_anything_is_read(given: str) -> None:
    headers = [JSON, (b"authorization", given.encode("latin-1"))]
    for path in ("/v1/score", "/v1/models", "/nowhere", "/metrics"):
        assert ask(door(TOKEN_DIGEST), path, b"{}", headers=headers)[0] == 401


@pytest.mark.parametrize(
    "host", [b"evil.example", b"evil.example:1", b"127.evil.example", b"", b"\xff", b"localhost.evil.example"]
)
def test_page_of_another_host_in_a_browser_here_is_refused(host: bytes) -> None:
    at = door()
    scope_host = [(b"host", host)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/v1/score", "raw_path": b"/v1/score", "query_string": b"",
             "headers": scope_host, "scheme": "http", "server": ("localhost", 1)}  # fmt: skip
    assert asyncio.run(at(Request(scope, receive))).status_code == 403


@settings(max_examples=150, deadline=None)
@given(body=st.binary(max_size=80) | documents.map(lambda value: json.dumps(value).encode()), is_json=st.booleans())
def test_any_body_is_refused_without_an_engine(body: bytes, is_json: bool) -> None:
    status, _ = ask(door(), "/v1/score", body, headers=[JSON if is_json else BINARY])
    assert 400 <= status < 500
