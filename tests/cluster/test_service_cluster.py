"""A service on a cluster of somebody else: it outlives a node, grows and shrinks with what is asked, and leaves the cluster."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_head
from ray_head import Head, Node, free_port, start_head
from served_models import Asking, Served, raw, running_service, wait_until


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head that has no room for an engine."""
    started = start_head(num_cpus=0)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def node(head: Head) -> Iterator[Node]:
    """One that has room for an engine."""
    with head.node() as node:
        yield node


@pytest.fixture(scope="module")
def second_node(head: Head) -> Iterator[Node]:
    """One that has room for two."""
    with head.node(num_cpus=2) as node:
        yield node


@pytest.fixture(scope="module")
def served_there(
    head: Head, node: Node, tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]
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


def test_engine_of_a_node_that_is_lost_comes_back_on_another(
    node: Node, served_there: Served, second_node: Node, here: list[Any]
) -> None:
    with Asking(served_there, here) as asking:
        node.kill()
        wait_until(lambda: replicas(served_there) != ["RUNNING"])
        asking.statuses.clear()
        wait_until(lambda: 200 in asking.statuses)
    wait_until(lambda: replicas(served_there) == ["RUNNING"])


def test_engines_are_added_while_requests_queue_and_removed_when_nobody_asks(
    served_there: Served, here: list[Any]
) -> None:
    assert replicas(served_there) == ["RUNNING"]
    with Asking(served_there, here, clients=6, pause=0) as asking:
        wait_until(lambda: replicas(served_there) == ["RUNNING", "RUNNING"])
    assert asking.statuses == {200}
    wait_until(lambda: replicas(served_there) == ["RUNNING"])


def test_stopped_it_is_gone_and_the_cluster_stays(head: Head, served_there: Served) -> None:
    assert served_there.command("--status").stdout.startswith("fusechat  ok")
    stopped = served_there.command("--stop")
    assert stopped.returncode == 0, stopped.stderr
    assert "no service was started" in served_there.command("--status").stdout
    with pytest.raises(OSError):
        raw(served_there, "GET", "/health", seconds=5)
    assert head.process.poll() is None
