"""A service on a cluster of somebody else: it grows and shrinks with what is asked, is stopped, and leaves the cluster."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray_head
from ray_head import Head, free_port, start_head
from served_models import Served, binary, raw, running_service, same, wait_until

from inference.serving.wire import read_reply


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    started = start_head(num_cpus=3)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def served_there(
    head: Head, tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]
) -> Iterator[Served]:
    """A face that gives rows, of one engine or two."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray_head.TOKEN}
    with running_service(
        tmp_path_factory.mktemp("service"), tiny_models["llama"], token, cluster={"address": head.address, "num_cpus": None},
        serve={
            "port": free_port(), "faces": ["score"], "max_replicas": 2, "idle_seconds": 2, "requests_in_flight": 2,
            "requests_waiting": 100,
        },
    ) as service:  # fmt: skip
        yield service


def replicas(service: Served) -> list[str]:
    (engine,) = service.connection().status()["engines"]
    return [one["state"] for one in engine["replicas"]]


def test_engines_are_added_while_requests_queue_and_removed_when_nobody_asks(
    served_there: Served, here: list[Any]
) -> None:
    body, kind = binary(here, alone=True)
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            status, _, data = raw(served_there, "POST", "/v1/score", body, Content_Type=kind)
            assert status == 200 and all(map(same, read_reply(data).rows, here))

    assert replicas(served_there) == ["RUNNING"]
    with ThreadPoolExecutor(6) as threads:
        asking = [threads.submit(ask) for _ in range(6)]
        try:
            wait_until(lambda: replicas(served_there) == ["RUNNING", "RUNNING"])
        finally:
            stop.set()
        for one in asking:
            one.result()
    wait_until(lambda: replicas(served_there) == ["RUNNING"])


def test_stopped_it_is_gone_and_the_cluster_stays(head: Head, served_there: Served) -> None:
    assert served_there.command("--status").stdout.startswith("fusechat  ok")
    stopped = served_there.command("--stop")
    assert stopped.returncode == 0, stopped.stderr
    assert "no service was started" in served_there.command("--status").stdout
    with pytest.raises(OSError):
        raw(served_there, "GET", "/health", seconds=5)
    assert head.process.poll() is None
