"""A judge on loopback: a real HTTP server that speaks the chat protocol, and fails on request."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Endpoint(ThreadingHTTPServer):
    """`reply(body, number)` gives the text of the judge; `fault(number)` a failure to show before: a status or a word.

    A reply that is no text is the whole choice; bytes are the whole body; a status (int) refuses that request as a content filter
    does. The fault `endless` is a body that never ends.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply: Any = lambda body, number: "Fine.\nSCORE: 7"
        self.fault: Any = lambda number: None
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.header_names: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A hung-up client is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Endpoint
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: the second of two would wait 40 ms for the first one's receipt

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.keys.append(self.headers.get("authorization"))
            self.server.header_names.update(name.lower() for name in self.headers)
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            self._answer(body, number)
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def _answer(self, body: dict, number: int) -> None:
        fault = self.server.fault(number)
        if fault == "hang up":
            self.close_connection = True
            self.connection.close()
            return
        if fault == "silent":
            time.sleep(1.0)
        if isinstance(fault, int):
            self._send(fault, b"no", {"Retry-After": "0.01"} if fault == 429 else {})
            return
        if fault == "no json":
            self._send(200, b"<html>busy</html>", {})
            return
        if fault == "endless":
            self._send_without_end()
            return
        text = self.server.reply(body, number)
        if isinstance(text, bytes):
            self._send(200, text, {})
            return
        if isinstance(text, int):
            self._send(text, b'{"error": {"code": "content_filter", "message": "filtered"}}', {})
            return
        choice = {"message": {"content": text}} if isinstance(text, str) else text
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        self._send(200, json.dumps({"choices": [choice], "usage": usage}).encode(), {})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _send_without_end(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client has had enough
            while True:
                self.wfile.write(b" " * 100)
                self.wfile.flush()
                time.sleep(0.02)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def serving() -> Iterator[Endpoint]:
    """The server for the time of a `with` block."""
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
