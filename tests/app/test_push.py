"""Pushing and chatting: nothing is sent unasked, the token comes from the environment, several models answer one line."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fusechat.app.chat import short_names
from fusechat.app.push import push
from fusechat.errors import ConfigError, ModelError


class Hub(ThreadingHTTPServer):
    """A hub on loopback that takes small files; `refuse` is the status of everything."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refuse = 0
        self.seen: list[tuple[str, str | None]] = []
        self.committed: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        self.server.seen.append((self.path, self.headers.get("authorization")))
        if self.server.refuse:
            self._send(self.server.refuse, {"error": "no"})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines() if line]
            self.server.committed += [line["value"]["path"] for line in lines if line["key"] == "file"]
            self._send(
                200, {"commitUrl": "https://huggingface.co/me/fused/commit/1", "commitOid": "1", "pullRequestUrl": None}
            )
        else:
            self._send(
                200,
                {
                    "url": "https://huggingface.co/me/fused",
                    "name": "me/fused",
                    "id": "me/fused",
                    "siblings": [],
                    "sha": "0",
                },
            )

    do_GET = do_POST = do_HEAD = _answer

    def _send(self, status: int, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "fused"
    made.mkdir()
    for name in ("config.json", "README.md", "model.safetensors", "plan.json"):
        (made / name).write_text("{}")
    return made


def test_nothing_is_sent_unasked_or_without_a_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"private": True, "token_variable": "SOME_TOKEN"}
    with pytest.raises(ConfigError, match=r"nothing was sent: 3 files of .* would go to me/fused; add --yes"):
        push(folder, "me/fused", confirmed=False, **options)
    monkeypatch.delenv("SOME_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="SOME_TOKEN is not set"):
        push(folder, "me/fused", confirmed=True, **options)
    with pytest.raises(ModelError, match=r"found no config\.json"):
        push(folder.parent, "me/fused", confirmed=True, **options)


def fusechat(hub: Hub, *arguments: str) -> subprocess.CompletedProcess[str]:
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "SOME_TOKEN": "hf_sesame",
        "NO_PROXY": "*",
    }
    command = [sys.executable, "-m", "fusechat", "push", *arguments, "--token-variable", "SOME_TOKEN"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_model_is_sent_with_the_environments_token_and_without_the_stages_own_files(hub: Hub, folder: Path) -> None:
    result = fusechat(hub, str(folder), "me/fused", "--yes")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "https://huggingface.co/me/fused/commit/1"
    assert sorted(hub.committed) == ["README.md", "config.json", "model.safetensors"]
    assert {key for path, key in hub.seen if path.startswith("/api/repos")} == {"Bearer hf_sesame"}


def test_hub_that_refuses_is_one_clear_line(hub: Hub, folder: Path) -> None:
    hub.refuse = 401
    result = fusechat(hub, str(folder), "me/fused", "--yes")
    assert result.returncode == 2 and "the hub did not take it: " in result.stderr
    assert "Traceback" not in result.stderr and "sesame" not in result.stderr


def test_several_models_answer_one_line_side_by_side(tiny_models: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "fusechat", "chat", *map(str, tiny_models.values()), "--max-new-tokens", "4"]
    result = subprocess.run(command, input="Hello\n/reset\n/quit\n", capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].split() == ["llama", "mixtral"], result.stdout


def test_models_are_called_by_as_much_of_their_paths_as_tells_them_apart() -> None:
    assert short_names(["runs/a/fused", "runs/a/targets/sft"]) == ["fused", "sft"]
    assert short_names(["runs/a/fused", "runs/b/fused"]) == ["a/fused", "b/fused"]
    assert short_names(["fused", "fused"]) == ["fused", "fused"]
