"""A real service of a tiny model for tests: started and ended by the command line, in a state folder of its own."""

import contextlib
import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import yaml

import fusechat
from cluster.service import control
from inference.capture.rows import TopKRows
from inference.serving.client import Connection
from inference.serving.scoring_records import ScoreRequest
from inference.serving.wire import read_reply, write_request

TOKEN = "a-token-of-the-tests-0123456789"
COMMAND_SECONDS = 420
ROWS = [
    {"messages": [{"role": "user", "content": f"{n} + 4?"}, {"role": "assistant", "content": f"It is {n + 4}."}]}
    for n in range(6)
]
PROMPT = {"messages": [{"role": "user", "content": "How many apples are 3 + 4?"}]}


@dataclass
class Served:
    """A running service."""

    folder: Path
    address: str
    environment: dict[str, str]

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`fusechat serve ...` of this service's user."""
        return serve(self.environment, arguments)

    def connection(self, patience: float = 120.0) -> Connection:
        """A client that may come in."""
        return Connection(self.address, token=TOKEN, patience=patience)

    def status(self) -> dict[str, Any]:
        """What `--status --json` says of it, without a process for the question."""
        with mock.patch.dict(os.environ, self.environment):
            (values,) = control.status()
        return values


def environment(folder: Path, **more: str) -> dict[str, str]:
    """A process's environment with a state folder and a token of the test's own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "FUSECHAT_STATE": str(folder / "state"), "FUSECHAT_TOKEN": TOKEN, **more}


def serve(environment: dict[str, str], arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """`fusechat serve ...`, whatever it ends with."""
    return subprocess.run(
        [sys.executable, "-m", "fusechat", "serve", *arguments], capture_output=True, text=True, env=environment,
        timeout=COMMAND_SECONDS,
    )  # fmt: skip


def run_of(folder: Path, model: Path, **sections: Any) -> Path:
    """A run file of one tiny model twice over, whose service is small."""
    engine = {"kv_cache_gib": 0.05}
    values = {
        "run": {"output": str(folder / "out")},
        "pivot": {"name": "llama", "model": str(model), "engine": engine},
        "sources": [{"name": "twin", "model": str(model), "engine": engine}],
        "dialogues": {"train": [str(folder / "train.jsonl")], "max_tokens": 128},
        "extraction": {"k": 5, "self_check_dialogues": 2},
        "cluster": {"num_cpus": 2},
        "serve": {"port": 0, "faces": ["score", "generate"], "requests_in_flight": 4, "requests_waiting": 2},
    }  # fmt: skip
    for name, fields in sections.items():
        values[name] = {**values.get(name, {}), **fields}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@contextlib.contextmanager
def running_service(
    folder: Path, model: Path, more: Mapping[str, str] = MappingProxyType({}), **sections: Any
) -> Iterator[Served]:
    """A service of the tiny model, by default with both faces, for the time of a `with` block.

    Args:
        more: variables of its environment.
        sections: of the run file, as for `run_of`.
    """
    own = environment(folder, **more)
    done = serve(own, ["-c", str(run_of(folder, model, **sections)), "--models", "llama"])
    assert done.returncode == 0, done.stderr + done.stdout
    service = Served(folder, done.stdout.strip().splitlines()[-1], own)
    try:
        yield service
    finally:
        service.command("--stop")


def wait_until(holds: Any, seconds: float = 180.0) -> None:
    """Wait for what comes by itself."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.3)


class Asking:
    """Clients that ask for rows until the end of a `with` block; each reply is right, or a refusal for now.

    They pause between requests, for the processes that come back meanwhile need the cores.
    """

    def __init__(self, service: Served, here: list[Any], clients: int = 3, pause: float = 0.1) -> None:
        self._pause = pause
        self._service, self._here, self._stop, self._clients = service, here, threading.Event(), clients
        self._threads = ThreadPoolExecutor(clients)
        self.statuses: set[int] = set()
        """0: the connection was cut or refused."""

    def __enter__(self) -> "Asking":
        self._asking = [self._threads.submit(self._ask) for _ in range(self._clients)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads.shutdown()
        for one in self._asking:
            one.result()
        assert 200 in self.statuses and self.statuses <= {0, 200, 429, 500, 503}

    def _ask(self) -> None:
        body, kind = binary(self._here, alone=True)
        while not self._stop.is_set():
            try:
                status, _, data = raw(self._service, "POST", "/v1/score", body, seconds=30, Content_Type=kind)
            except (OSError, http.client.HTTPException):
                status, data = 0, b""
            self.statuses.add(status)
            assert status != 200 or all(map(same, read_reply(data).rows, self._here))
            time.sleep(self._pause)


def rows_here(model: Path) -> list[Any]:
    """The rows of `ROWS` by an engine in this process."""
    return fusechat.score(model, ROWS, k=5, engine={"kv_cache_gib": 0.05})


def raw(
    served: Served, method: str, path: str, body: bytes = b"", seconds: float = 120, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request as it stands, with the token unless another is given."""
    connection = http.client.HTTPConnection(served.address.removeprefix("http://"), timeout=seconds)
    names = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connection.request(method, path, body, names | {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, data


def binary(here: list[Any], **fields: Any) -> tuple[bytes, str]:
    """The rows' dialogues as token ids: a body and its content type."""
    ids, marks = tuple(one.token_ids for one in here), tuple(one.is_scored for one in here)
    return write_request(ScoreRequest("llama", token_ids=ids, is_scored=marks, **fields))


def same(rows: TopKRows, expected: Any) -> bool:
    """Whether they are the same to the bit."""
    names = ("topk_ids", "topk_logprobs", "label_logprob")
    return all(getattr(rows, name).tobytes() == getattr(expected, name).tobytes() for name in names)
