"""In the place of a service: the same paths on loopback, answered by plain engines in this process. No vLLM, no Ray."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from plain_engine import PlainEngine

from inference.serving.faces import Face
from inference.serving.score_face import cut
from inference.serving.scoring_records import ScoreReply
from inference.serving.wire import JSON, read_request, write_reply

SCORE, COMPLETE = "/v1/score", "/v1/completions"


class FakeEngines:
    """A plain engine for each face."""

    def __init__(self, faces: Sequence[Face]) -> None:
        self._faces = {(face.name, face.kind): face for face in faces}
        self._engines = {
            key: PlainEngine(str(face.model.model), k=face.k, max_tokens=face.max_tokens, face=face.kind)
            for key, face in self._faces.items()
        }
        self._lock = threading.Lock()
        self.asked: list[str] = []
        """Paths, in order."""

    def models(self) -> dict[str, Any]:
        """As `GET /v1/models`."""
        models: dict[str, dict[str, Any]] = {}
        for (name, kind), face in self._faces.items():
            entry = {"recipe": face.recipe, "max_tokens": face.max_tokens, "k": face.k}
            engine = self._engines[name, kind].info
            models.setdefault(name, {"id": name, "faces": {}})["faces"][kind] = {**entry, "engine": engine}
        return {"data": list(models.values())}

    def answer(self, path: str, body: bytes, content_type: str) -> tuple[bytes, str]:
        """Body and content type of a reply."""
        with self._lock:
            self.asked.append(path)
            if path == COMPLETE:
                return json.dumps(self._complete(json.loads(body))).encode(), JSON
            asked = read_request(body, content_type)
            face, engine = self._faces[asked.model, "score"], self._engines[asked.model, "score"]
            rows = engine.score(asked.token_ids, asked.is_scored, asked.chosen_ids)
            parts = tuple(cut(part, asked.k or face.k) for part in rows)
            reply = ScoreReply(face.name, face.recipe, asked.token_ids, asked.is_scored, parts)
            return write_reply(reply, in_json=False)

    def _complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        (ids,) = self._engines[asked["model"], "generate"].generate(
            [np.array(asked["prompt"], np.int32)], max_new_tokens=asked["max_tokens"], temperature=asked["temperature"],
            stop_token_ids=asked["stop_token_ids"], seed=asked["seed"],
        )  # fmt: skip
        return {"choices": [{"token_ids": ids.tolist()}]}


@contextmanager
def fake_service(faces: Sequence[Face]) -> Iterator[tuple[str, FakeEngines]]:
    """A service of some faces, for the time of a `with` block; gives its address and its engines."""
    engines = FakeEngines(faces)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing."""

        def do_GET(self) -> None:
            self._send(json.dumps(engines.models()).encode(), JSON)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self._send(*engines.answer(self.path, body, self.headers["content-type"]))

        def _send(self, body: bytes, content_type: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", engines
    finally:
        server.shutdown()
        server.server_close()
