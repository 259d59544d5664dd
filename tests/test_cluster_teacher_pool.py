"""The pool on a real local Ray, with actors that hold no model: deaths, poison shards, failing starts."""

import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.placement import Placement, num_replicas
from cluster.session import ray_session
from cluster.teacher_pool import Job, TeacherPool
from fusechat.config import ClusterSection
from fusechat.errors import TeacherError


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with ray_session(ClusterSection(num_cpus=4)):
        yield


class SimulatedTeacher:
    """The actor interface without a model; leaves one file per finished shard, and misbehaves on request."""

    def __init__(self, folder: str, behaviour: dict[int, str], start: str = "") -> None:
        self.folder, self.behaviour, self.start_behaviour = Path(folder), behaviour, start

    def start(self) -> dict[str, Any]:
        (self.folder / f"start.{os.getpid()}").touch()
        if self.start_behaviour == "self-check":
            raise TeacherError("rows differ from a plain forward by 3.2 nats")
        if self.start_behaviour == "die":
            os._exit(1)
        return {}

    def run_shard(self, shard: int) -> dict[str, Any]:
        with (self.folder / f"tried.{shard}").open("a") as file:
            file.write("x")
        tried = (self.folder / f"tried.{shard}").stat().st_size
        behaviour = self.behaviour.get(shard)
        if behaviour == "always dies" or (behaviour == "dies once" and tried == 1):
            os._exit(1)
        if behaviour == "raises" or (behaviour == "raises once" and tried == 1):
            raise ValueError(f"shard {shard} cannot be scored")
        time.sleep(0.01)
        (self.folder / f"done.{shard}").touch()
        return {"rows": 10 + shard}


def run_pool(
    folder: Path, behaviour: dict[int, str], *, shards: int = 12, replicas: int = 2, start: str = ""
) -> tuple[Job, list[dict]]:
    results: list[dict] = []

    def make_replica() -> tuple[Any, Any]:
        options = {"num_cpus": 1, "max_concurrency": 2}
        return ray.remote(SimulatedTeacher).options(**options).remote(str(folder), behaviour, start), None

    job = Job("simulated", deque((shard, 0) for shard in range(shards)), make_replica, replicas, results.append)
    TeacherPool(shards_in_flight=2, max_attempts=3, on_event=lambda line: None).run([job])
    return job, results


def done_shards(folder: Path) -> set[int]:
    return {int(path.suffix[1:]) for path in folder.glob("done.*")}


def test_pool_without_faults_does_every_shard_once(tmp_path: Path) -> None:
    job, results = run_pool(tmp_path, {})
    assert sorted(result["shard"] for result in results) == list(range(12))
    assert {result["shard"]: result["rows"] for result in results} == {shard: 10 + shard for shard in range(12)}
    assert all((tmp_path / f"tried.{shard}").stat().st_size == 1 for shard in range(12))
    assert not job.set_aside and job.failure is None and job.retries == 0


def test_pool_actor_death_loses_and_repeats_nothing_but_what_was_in_flight(tmp_path: Path) -> None:
    job, results = run_pool(tmp_path, {3: "dies once"})
    assert done_shards(tmp_path) == set(range(12)) and len(results) == 12
    repeated = [shard for shard in range(12) if (tmp_path / f"tried.{shard}").stat().st_size > 1]
    assert 3 in repeated and len(repeated) <= 2
    assert not job.set_aside


def test_pool_poison_shard_is_set_aside_and_harms_no_other(tmp_path: Path) -> None:
    job, _ = run_pool(tmp_path, {5: "always dies", 7: "raises", 8: "raises once"})
    assert set(job.set_aside) == {5, 7}
    assert "shard 7 cannot be scored" in job.set_aside[7]
    assert done_shards(tmp_path) == set(range(12)) - {5, 7}
    assert (tmp_path / "tried.7").stat().st_size == 3


def test_pool_failed_self_check_ends_the_job_at_once_and_scores_nothing(tmp_path: Path) -> None:
    job, results = run_pool(tmp_path, {}, start="self-check", replicas=1)
    assert isinstance(job.failure, TeacherError) and "3.2 nats" in str(job.failure)
    assert results == [] and len(list(tmp_path.glob("start.*"))) == 1


def test_pool_engine_that_dies_at_every_start_gives_up_after_the_cap(tmp_path: Path) -> None:
    job, results = run_pool(tmp_path, {}, start="die", replicas=1)
    assert job.failure is not None and results == []
    assert len(list(tmp_path.glob("start.*"))) == 3


def test_pool_more_replicas_than_room_does_not_wait_for_them(tmp_path: Path) -> None:
    job, results = run_pool(tmp_path, {}, replicas=9)
    assert len(results) == 12 and job.failure is None


def test_num_replicas_is_bounded_by_room_shards_and_wish() -> None:
    assert num_replicas(Placement(1, 0, "uni"), None, 100) == 4
    assert num_replicas(Placement(2, 0, "mp"), None, 100) == 2
    assert num_replicas(Placement(1, 0, "uni"), None, 3) == 3
    assert num_replicas(Placement(1, 0, "uni"), 7, 100) == 7
