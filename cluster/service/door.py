"""The door of a service: HTTP in, the engines' replies out.

Knows which model has which engines and who may come in; what a request means is the engine's own business. One replica of Ray
Serve, so that its counts are those of the whole service.
"""

import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fusechat.errors import ContractError
from inference.serving.faces import Face
from inference.serving.generate_face import PATHS, Head
from inference.serving.score_face import Reply, refusal
from inference.serving.wire import BINARY, JSON, RECIPE_HEADER, model_of

from .engines import Engines
from .metrics import Metrics
from .refusals import Refusal, for_now, kind_of
from .spec import ServiceSpec

ATTEMPTS = 3
"""Engines that a scoring request is given to, where one dies over it: rows are the same whoever gives them."""


class Door:
    """Takes every request of the service."""

    def __init__(self, spec: ServiceSpec, engines: dict[str, Any]) -> None:
        """
        Args:
            engines: id of a face -> handle of its deployment.
        """
        self.spec, self.started = spec, int(time.time())
        self._faces: dict[tuple[str, str], Face] = {(face.name, face.kind): face for face in spec.faces}
        self._engines = Engines(spec, engines)
        self._limit = int(spec.serve.max_request_mib * 2**20)
        self._metrics = Metrics()

    async def __call__(self, request: Request) -> Response:
        """Answer one request; nothing is raised to Serve but a client that left."""
        began, path, model = time.monotonic(), request.url.path, ""
        with self._metrics.in_flight():
            try:
                self._let_in(request)
                model, response = await self._route(request, path)
            except Refusal as refused:
                response = _response(refusal(refused.status, refused.message, kind_of(refused.status)), refused.headers)
        self._metrics.count(path, model, response.status_code, time.monotonic() - began)
        return response

    def _let_in(self, request: Request) -> None:
        """Raises Refusal for who may not come in."""
        if request.url.path == "/health":
            return
        if self.spec.token_digest is None:
            # A page in a browser of this machine can send requests here under a name of its own.
            host = request.headers.get("host", "").rsplit(":", 1)[0].strip("[]")
            if host != self.spec.serve.host and not _is_here(host):
                raise Refusal(403, f"this service answers on this machine alone; found Host {host[:80]!r}")
            return
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).hexdigest()
        if kind.lower() != "bearer" or not hmac.compare_digest(given, self.spec.token_digest):
            message = (
                f"expected the header Authorization: Bearer with the token that {self.spec.serve.token_variable} holds"
            )
            raise Refusal(401, message, **{"WWW-Authenticate": "Bearer"})

    async def _route(self, request: Request, path: str) -> tuple[str, Response]:
        """The model that was asked, and the response."""
        reads = {
            "/health": self._health,
            "/metrics": self._show_metrics,
            "/v1/models": self._models,
            "/v1/status": self._status,
        }
        if path not in (*reads, "/v1/score", *PATHS):
            raise Refusal(404, f"found {path[:80]}, expected one of {', '.join(reads)}, /v1/score, {', '.join(PATHS)}")
        method = "GET" if path in reads else "POST"
        if request.method != method:
            raise Refusal(405, f"{path}: found {request.method}, expected {method}", Allow=method)
        if path in reads:
            return "", await reads[path]()
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        expected = (JSON, BINARY) if path == "/v1/score" else (JSON,)
        if content_type not in expected:  # also keeps out what a page in a browser may send without asking
            raise Refusal(415, f"found content type {content_type[:80]!r}, expected {' or '.join(expected)}")
        body = await self._body(request)
        try:
            model = model_of(body, content_type)
        except ContractError as error:
            raise Refusal(400, str(error)) from None
        face = self._face(model, "score" if path == "/v1/score" else "generate")
        wanted = request.headers.get(RECIPE_HEADER)
        if wanted and wanted != face.recipe:
            raise Refusal(409, f"{model}: its engine has the recipe {face.recipe}, the request wants {wanted[:40]!r}")
        if face.kind == "generate":
            return model, await self._generate(face, path, body)
        return model, await self._score(face, body, content_type, request.headers.get("accept", ""))

    async def _body(self, request: Request) -> bytes:
        """The whole body; Refusal where it is larger than the service takes."""
        too_large = Refusal(
            413, f"a body may have {self.spec.serve.max_request_mib:g} MiB; send fewer dialogues at once"
        )
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            raise too_large
        parts, size = [], 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > self._limit:
                raise too_large
        return b"".join(parts)

    def _face(self, model: str, kind: str) -> Face:
        face = self._faces.get((model, kind))
        if face is not None:
            return face
        names = sorted({name for name, _ in self._faces})
        if model not in names:
            raise Refusal(404, f"no model is called {model[:80]!r}; this service has {', '.join(names)}")
        raise Refusal(404, f"{model} has no engine with the face {kind!r} here; add it to serve.faces")

    async def _score(self, face: Face, body: bytes, content_type: str, accept: str) -> Response:
        engine = self._engines.of(face)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply: Reply = await engine.answer.remote(body, content_type, accept)
                self._metrics.add_rows(face.name, reply.rows, reply.tokens)
                return _response(reply)
            except BackPressureError:
                raise for_now(429, f"{face.name}: {self.spec.serve.requests_waiting} requests wait already") from None
            except (RayError, RayServeException):
                if attempt == ATTEMPTS:
                    raise for_now(503, f"{face.name}: its engine is away and is being replaced") from None
        raise AssertionError("the loop returns or raises")

    async def _generate(self, face: Face, path: str, body: bytes) -> Response:
        parts = self._engines.of(face).options(stream=True).answer.remote(path, body)
        try:
            head: Head = await anext(parts)
        except BackPressureError:
            raise for_now(429, f"{face.name}: {self.spec.serve.requests_waiting} requests wait already") from None
        except (RayError, RayServeException, StopAsyncIteration):
            raise for_now(503, f"{face.name}: its engine is away and is being replaced") from None
        return StreamingResponse(_rest(parts), status_code=head.status, headers={"content-type": head.content_type})

    async def _models(self) -> Response:
        """OpenAI's list, with what each model's engines do."""
        models: dict[str, dict[str, Any]] = {}
        for face, engine in zip(self.spec.faces, await self._engines.about(), strict=True):
            entry = models.setdefault(face.name, {
                "id": face.name, "object": "model", "created": self.started, "owned_by": "fusechat",
                "max_model_len": face.max_tokens, "faces": {},
            })  # fmt: skip
            entry["faces"][face.kind] = {
                "recipe": face.recipe, "max_tokens": face.max_tokens,
                **({"k": face.k, "capture": face.capture} if face.kind == "score" else {}),
                "engine": engine,
            }  # fmt: skip
        return _json({"object": "list", "data": list(models.values())})

    async def _health(self) -> Response:
        """200 while every face has an engine that runs."""
        replicas = await self._engines.replicas()
        away = sorted(
            face.id for face in self.spec.faces if "RUNNING" not in [one["state"] for one in replicas[face.id]]
        )
        return _json({"status": "starting" if away else "ok", "away": away}, 503 if away else 200)

    async def _status(self) -> Response:
        """Every engine with its processes."""
        replicas = await self._engines.replicas()
        engines = [
            {"model": face.name, "face": face.kind, "recipe": face.recipe, "replicas": replicas[face.id]}
            for face in self.spec.faces
        ]
        return _json({"name": self.spec.serve.name, "engines": engines, "started": self.started})

    async def _show_metrics(self) -> Response:
        self._metrics.set_replicas(self.spec.faces, await self._engines.replicas())
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")


def _is_here(host: str) -> bool:
    """Whether a host is a name or address of this machine's own; `127.evil.example` is not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _rest(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body as it is written; where the engine dies, the connection ends without an end of the body."""
    async for part in parts:
        yield part


def _response(reply: Reply, headers: dict[str, str] | None = None) -> Response:
    return Response(reply.body, reply.status, headers={"content-type": reply.content_type, **(headers or {})})


def _json(values: Any, status: int = 200) -> Response:
    return Response(json.dumps(values), status, media_type=JSON)
