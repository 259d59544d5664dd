"""Extraction in a thread with shards held in flight, what its store then holds, and an S3 that fails on request."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gated_teachers import contents, gate_of
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from cluster import extraction
from fusechat.config import RunConfig
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact


class FailingS3:
    """moto's S3 server behind a door that answers 500 for a while, on loopback."""

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.failing, self.failed = False, 0
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, environ: dict, start_response: Callable) -> Any:
        if not self.failing:
            return self.app(environ, start_response)
        self.failed += 1
        start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
        return [b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"]


def extract(config: RunConfig) -> Artifact:
    return extraction.run(config, ["llama"], progress=Progress(quiet=True))["llama"]


@contextlib.contextmanager
def extracting(config: RunConfig, hold: list[int], *, seconds: float = 120) -> Iterator[Callable[[], None]]:
    """Extract in a thread; the shards in `hold` stay in flight, scored and not yet written, until the yielded function is called.

    What the extraction raised is raised at the end of the block.
    """
    for shard in hold:
        (gate_of(config) / f"hold.{shard}").touch()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            extract(config)
        except BaseException as error:
            errors.append(error)

    def release() -> None:
        for path in gate_of(config).glob("hold.*"):
            path.unlink()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield release
    finally:
        release()
        thread.join(seconds)
        assert not thread.is_alive()
        if errors:
            raise errors[0]


def held(config: RunConfig) -> set[int]:
    """The shards that are in flight now."""
    return {int(path.suffix[1:]) for path in gate_of(config).glob("held.*")}


def store_of(config: RunConfig) -> dict[str, bytes]:
    return contents(Path(config.logprobs_url("llama")))
