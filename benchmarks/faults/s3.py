"""An object store that does not do as it should: 500, 503, connections that end or stay silent, uploads that are torn."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from .command import start
from .equal import LEFT_OUT, contents, normal
from .kills import draw_stage
from .trial import Disturbed, Tools
from .world import VARIANTS, Run

STORES = ("tokens", "logprobs", "aligned", "choice")
"""What of a run lies in `run.store`."""
SILENT_SECONDS = 3.0
WAYS = ("500", "503", "gone", "silent", "torn")
PATIENCE = "cluster.storage_patience_seconds=2"


class Door:
    """moto's S3 server; from a request on some are answered otherwise."""

    def __init__(self) -> None:
        import moto.server
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:
                """Nothing."""

        moto_server: Any = moto.server  # it exports nothing by name
        self._app = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
        self._lock = threading.Lock()
        self._faults: dict[str, tuple[str, int, int]] = {}
        """Bucket -> (way, requests that succeed before, requests that fail then)."""
        self._asked: dict[str, int] = {}
        server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def disturb(self, bucket: str, way: str, after: int, count: int) -> None:
        """Let `count` requests to a bucket fail after `after` good ones."""
        with self._lock:
            self._faults[bucket], self._asked[bucket] = (way, after, count), 0

    def _answer(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        bucket = environ["PATH_INFO"].strip("/").split("/")[0]
        with self._lock:
            way, after, count = self._faults.get(bucket, ("", 0, 0))
            asked = self._asked.get(bucket, 0)
            self._asked[bucket] = asked + 1
        if not after <= asked < after + count:
            answer: Iterable[bytes] = self._app(environ, respond)
            return answer
        if way == "silent":
            time.sleep(SILENT_SECONDS)
        if way == "torn":  # half of what is sent is read, then the connection ends
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
        if way in ("gone", "silent", "torn"):
            raise ConnectionAbortedError
        reasons = {"500": "Internal Server Error", "503": "Slow Down"}
        respond(f"{way} {reasons[way]}", [("Content-Type", "application/xml")])
        code = {"500": "InternalError", "503": "SlowDown"}[way]
        return [f"<Error><Code>{code}</Code><Message>an error that was asked for</Message></Error>".encode()]


@lru_cache(maxsize=1)
def door() -> Door:
    """The one server of this process."""
    return Door()


def environment() -> dict[str, str]:
    """What a driver is told of the server."""
    return {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": door().url, "AWS_MAX_ATTEMPTS": "1",
    }  # fmt: skip


def failing_store(tools: Tools) -> Disturbed:
    """The stores lie on S3, which fails for a while; then the same command finds it well."""
    draw, variant = tools.draw, tools.draw.choice(list(VARIANTS))
    stage = draw_stage(draw, ("extract", "align", "train", "evaluate"))
    bucket = f"trial-{tools.folder.name}"
    run = begin_on_s3(tools, variant, stage, bucket)
    way, after, count = draw.choice(WAYS), draw.randrange(120), draw.choice([1, 3, 20, 10_000])
    door().disturb(bucket, way, after, count)
    ending = start(run.arguments, environment=environment()).wait()
    what = f"S3 {way} for {count} requests after {after}, from {stage} on ({variant})"
    return Disturbed(
        run, what, [ending], variant, cure=lambda: door().disturb(bucket, "", 0, 0), options={"environment": environment()},
        left=lambda: {**contents(run.folder), **stored(bucket)},
    )  # fmt: skip


def begin_on_s3(tools: Tools, variant: str, stage: str, bucket: str) -> Run:
    """A run whose stores before `stage` stand in a bucket."""
    run = tools.world.begin(variant, stage, tools.folder / "run")
    filesystem = _filesystem()
    filesystem.mkdir(bucket)
    for name in STORES:
        if (run.folder / name).is_dir():
            filesystem.put(str(run.folder / name), f"{bucket}/run/{name}", recursive=True)
            shutil.rmtree(run.folder / name)
    return Run(run.file, run.folder, (f"run.store=s3://{bucket}/run", PATIENCE))


def stored(bucket: str) -> dict[str, bytes]:
    """What stands in a bucket, as `equal.contents` gives it."""
    filesystem = _filesystem()
    filesystem.invalidate_cache()
    names = [path.removeprefix(f"{bucket}/run/") for path in filesystem.find(f"{bucket}/run")]
    return {name: normal(name, filesystem.cat(f"{bucket}/run/{name}")) for name in names if not LEFT_OUT.search(name)}


def _filesystem() -> Any:
    """As the product opens it, but patient: what fails here is the benchmark's own."""
    import fsspec

    os.environ.update(environment())
    return fsspec.filesystem("s3", config_kwargs={"retries": {"max_attempts": 8}, "read_timeout": 120})
