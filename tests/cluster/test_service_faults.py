"""What becomes of a service whose processes are killed, that is changed, and that is stopped: requests are answered rightly or refused."""

import http.client
import json
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from served_models import PROMPT, ROWS, TOKEN, Asking, Served, binary, raw, running_service, same, wait_until

import fusechat
from inference.serving.wire import read_reply


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> Iterator[Served]:
    """A service of its own for what disturbs it."""
    with running_service(tmp_path_factory.mktemp("service"), tiny_models["llama"]) as service:
        yield service


def test_clients_that_die(killed: Served, here: list[Any]) -> None:
    body, kind = binary(here)
    host, port = killed.address.removeprefix("http://").split(":")
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    for sent in (head, head + body[: len(body) // 2], head + body):
        with socket.create_connection((host, int(port))) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # as a killed process's
            client.sendall(sent)
    talk = {"model": "llama", "messages": PROMPT["messages"], "max_tokens": 200, "stream": True}
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(talk), headers)
    assert connection.getresponse().read(40)
    connection.close()
    assert all(map(same, read_reply(raw(killed, "POST", "/v1/score", body, Content_Type=kind)[2]).rows, here))
    wait_until(lambda: b"fusechat_requests_in_flight 1.0" in raw(killed, "GET", "/metrics")[2], 30)


def is_whole(service: Served, here: list[Any]) -> None:
    """Both faces answer, rightly."""
    with fusechat.connect(service.address, token=TOKEN) as client:
        wait_until(lambda: client.status()["state"] == "ok", 200)
        assert all(map(same, client.score("llama", ROWS), here))
        assert len(client.generate("llama", [PROMPT], max_new_tokens=4)) == 1


@pytest.mark.parametrize("face", ["score", "generate"])
def test_engine_that_is_killed_comes_back(killed: Served, here: list[Any], face: str) -> None:
    def replica() -> dict[str, Any]:
        (one,) = [engine for engine in killed.connection().status()["engines"] if engine["face"] == face]
        return one["replicas"][0] if one["replicas"] else {"pid": None, "state": "none"}

    before = replica()["pid"]
    with Asking(killed, here):
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: replica()["pid"] not in (None, before) and replica()["state"] == "RUNNING")
    is_whole(killed, here)


@pytest.mark.parametrize("kind", ["controller", "proxy", "door"])
def test_process_of_serve_that_is_killed_comes_back(killed: Served, here: list[Any], kind: str) -> None:
    before = killed.status()
    engines = [one["replicas"][0]["pid"] for one in before["engines"]]
    (pid,) = before["processes"][kind]
    with Asking(killed, here) as asking:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: killed.status()["processes"].get(kind, [pid]) != [pid])
        asking.statuses.clear()
        wait_until(lambda: 200 in asking.statuses)
    is_whole(killed, here)
    assert [one["replicas"][0]["pid"] for one in killed.status()["engines"]] == engines, "the engines stay"


def test_node_that_is_killed_comes_back(killed: Served, here: list[Any]) -> None:
    """The local Ray with all that is in it: its keeper starts it anew under the same address."""
    before = killed.status()["processes"]
    os.kill(before["raylet"][0], signal.SIGKILL)
    wait_until(lambda: killed.status()["processes"].get("raylet", before["raylet"]) != before["raylet"], 400)
    with fusechat.connect(killed.address, token=TOKEN, patience=400) as service:
        assert all(map(same, service.score("llama", ROWS), here))
    is_whole(killed, here)
    assert killed.status()["processes"]["keeper"] == before["keeper"]


def test_another_recipe_is_another_engine(killed: Served, here: list[Any]) -> None:
    run = str(killed.folder / "run.yaml")
    before = killed.connection().models()[0]["faces"]["score"]["recipe"]
    changed = killed.command("-c", run, "--models", "llama", "--set", "extraction.k=3", "--set", "serve.faces=[score]")
    assert changed.returncode == 0, changed.stderr
    assert changed.stdout.strip().endswith(killed.address)
    (model,) = killed.connection().models()
    assert set(model["faces"]) == {"score"} and model["faces"]["score"]["k"] == 3
    body, kind = binary(here, recipe=before)
    assert raw(killed, "POST", "/v1/score", body, Content_Type=kind)[0] == 409
    body, kind = binary(here)
    (rows, *_) = read_reply(raw(killed, "POST", "/v1/score", body, Content_Type=kind)[2]).rows
    assert (rows.topk_ids == here[0].topk_ids[:, :3]).all()


def test_stopped_it_is_gone(killed: Served) -> None:
    processes = [pid for pids in killed.status()["processes"].values() for pid in pids]
    assert killed.command("--stop").returncode == 0
    assert json.loads(killed.command("--status", "--json").stdout) == []
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in processes), 30)
    again = killed.command("--stop")
    assert again.returncode == 2 and "found 0 services" in again.stderr
