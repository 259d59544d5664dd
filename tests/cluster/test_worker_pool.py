"""The pool on a real local Ray, with actors that hold no model: deaths, poison shards, failing starts."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError

from cluster.pool import worker_pool
from cluster.pool.failures import raise_failures
from cluster.pool.placement import Placement, num_workers
from cluster.pool.pooled_work import PooledWork, Process
from cluster.pool.session import ray_session
from cluster.pool.worker_pool import WorkerPool
from fusechat.config import ClusterSection
from fusechat.errors import ArtifactError, ContractError, EngineError, ModelError, StorageError
from fusechat.storage.work import HERE, Listener, Needs, Place, Work


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with ray_session(ClusterSection(num_cpus=4)):
        # Workers do not find the tests' modules.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


ONE_CPU = Placement(1, 0, "uni")
USER_ERRORS = {
    "no space left": StorageError,
    "tokens are damaged": ArtifactError,
    "another model": ModelError,
    "NaN": ContractError,
}


class SimulatedTeacher:
    """A worker without a model; leaves one file per finished shard, and misbehaves on request."""

    def __init__(self, folder: str, behaviour: dict[int, str], start: str = "", place: Place = HERE) -> None:
        self.folder, self.behaviour, self.start_behaviour = Path(folder), behaviour, start

    def start(self) -> dict[str, Any]:
        (self.folder / f"start.{os.getpid()}").touch()
        if self.start_behaviour == "self-check":
            raise EngineError("rows differ from a plain forward by 3.2 nats")
        if self.start_behaviour == "die":
            os._exit(1)
        served_before = (self.folder / "used" / f"start.{os.getpid()}").exists()
        if self.start_behaviour == "self-check in a used process" and served_before:
            raise EngineError("something was left")
        return {}

    def run_unit(self, shard: int) -> dict[str, Any]:
        with (self.folder / f"tried.{shard}").open("a") as file:
            file.write("x")
        tried = (self.folder / f"tried.{shard}").stat().st_size
        (self.folder / f"process.{shard}").write_text(str(os.getpid()))
        behaviour = self.behaviour.get(shard)
        while behaviour == "waits" and (self.folder / f"hold.{shard}").exists():
            time.sleep(0.01)
        while behaviour == "waits for both" and not all(
            list(self.folder.parent.glob(f"{name}/start.*")) for name in ("one", "two")
        ):
            time.sleep(0.01)
        if behaviour in USER_ERRORS:
            raise USER_ERRORS[behaviour](behaviour)
        if behaviour == "always dies" or (behaviour == "dies once" and tried == 1):
            os._exit(1)
        if behaviour == "raises" or (behaviour == "raises once" and tried == 1):
            raise ValueError(f"shard {shard} cannot be scored")
        time.sleep(0.01)
        (self.folder / f"done.{shard}").touch()
        return {"rows": 10 + shard}

    def close(self) -> None:
        (self.folder / f"closed.{os.getpid()}").touch()


class Results(Listener):
    """Keeps what units gave."""

    def __init__(self, on_result: Callable[[list[dict]], None] = lambda results: None) -> None:
        self.results: list[dict] = []
        self._on_result = on_result

    def on_done(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        self._on_result(self.results)


def a_work(name: str, folder: Path, units: int, behaviour: dict[int, str] | None = None, start: str = "") -> Work:
    make_worker = partial(SimulatedTeacher, str(folder), behaviour or {}, start)
    return Work(
        name=name, missing=range(units), num_units=units, total=units, done=0, measure="rows",
        make_worker=lambda place: make_worker(place=place), finish=list, needs=Needs(units_in_flight=2),
        unit_name="part {}".format,
    )  # fmt: skip


def run_pool(
    folder: Path,
    behaviour: dict[int, str],
    *,
    shards: int = 12,
    workers: int = 2,
    wanted: Callable[[int], int] | None = None,
    start: str = "",
    on_result: Callable[[list[dict]], None] = lambda results: None,
) -> tuple[PooledWork, list[dict]]:
    listener = Results(on_result)
    pooled = PooledWork(
        a_work("simulated", folder, shards, behaviour, start),
        ONE_CPU,
        wanted or (lambda left: min(workers, left)),
        listener,
    )
    with WorkerPool(max_attempts=3, on_event=lambda line: None) as pool:
        pool.run([pooled])
    return pooled, listener.results


def done_shards(folder: Path) -> set[int]:
    return {int(path.suffix[1:]) for path in folder.glob("done.*")}


def test_pool_without_faults_does_every_shard_once(tmp_path: Path) -> None:
    pooled, results = run_pool(tmp_path, {})
    assert sorted(result["shard"] for result in results) == list(range(12))
    assert {result["shard"]: result["rows"] for result in results} == {shard: 10 + shard for shard in range(12)}
    assert all((tmp_path / f"tried.{shard}").stat().st_size == 1 for shard in range(12))
    assert not pooled.set_aside and pooled.failure is None


def test_pool_actor_death_loses_and_repeats_nothing_but_what_was_in_flight(tmp_path: Path) -> None:
    pooled, results = run_pool(tmp_path, {3: "dies once"})
    assert done_shards(tmp_path) == set(range(12)) and len(results) == 12
    repeated = [shard for shard in range(12) if (tmp_path / f"tried.{shard}").stat().st_size > 1]
    assert 3 in repeated and len(repeated) <= 2
    assert not pooled.set_aside


def test_pool_poison_shard_is_set_aside_and_harms_no_other(tmp_path: Path) -> None:
    pooled, _ = run_pool(tmp_path, {5: "always dies", 7: "raises", 8: "raises once"})
    assert set(pooled.set_aside) == {5, 7}
    assert "shard 7 cannot be scored" in pooled.set_aside[7]
    assert done_shards(tmp_path) == set(range(12)) - {5, 7}
    assert (tmp_path / "tried.7").stat().st_size == 3


def test_pool_failed_self_check_ends_the_job_at_once_and_scores_nothing(tmp_path: Path) -> None:
    pooled, results = run_pool(tmp_path, {}, start="self-check", workers=1)
    assert isinstance(pooled.failure, EngineError) and "3.2 nats" in str(pooled.failure)
    assert results == [] and len(list(tmp_path.glob("start.*"))) == 1


def test_pool_engine_that_dies_at_every_start_gives_up_after_the_cap(tmp_path: Path) -> None:
    pooled, results = run_pool(tmp_path, {}, start="die", workers=1)
    assert pooled.failure is not None and results == []
    assert len(list(tmp_path.glob("start.*"))) == 3


def test_pool_more_workers_than_room_does_not_wait_for_them(tmp_path: Path) -> None:
    pooled, results = run_pool(tmp_path, {}, workers=9)
    assert len(results) == 12 and pooled.failure is None


def test_num_workers_is_bounded_by_room_shards_and_wish() -> None:
    assert num_workers(Placement(1, 0, "uni"), 100) == 4
    assert num_workers(Placement(2, 0, "mp"), 100) == 2
    assert num_workers(Placement(1, 0, "uni"), 3) == 3
    assert num_workers(Placement(1, 0, "uni"), 100, wanted=7) == 7


def test_pool_busy_actor_takes_no_shard_ahead_of_one_that_will_be_idle(tmp_path: Path) -> None:
    (tmp_path / "hold.0").touch()
    held: list[int] = []

    def release(lines: list[dict]) -> None:
        if {line["shard"] for line in lines} == {1, 2}:
            held.append(0)
            (tmp_path / "hold.0").unlink()

    pooled, results = run_pool(tmp_path, {0: "waits"}, shards=3, workers=2, on_result=release)
    assert held == [0], "the actor that held shard 0 had taken another one"
    assert [result["shard"] for result in results][-1] == 0 and not pooled.set_aside
    others = {(tmp_path / f"process.{shard}").read_text() for shard in (1, 2)}
    assert (tmp_path / "process.0").read_text() not in others


def test_pool_asks_again_how_many_actors_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "SCALE_SECONDS", 0.05)
    for shard in range(6):
        (tmp_path / f"hold.{shard}").touch()
    calls: list[int] = []

    def wanted(left: int) -> int:
        calls.append(left)
        if len(list(tmp_path.glob("start.*"))) == 3:
            for path in tmp_path.glob("hold.*"):
                path.unlink()
        return 1 if len(calls) < 3 else 3

    run_pool(tmp_path, dict.fromkeys(range(6), "waits"), shards=6, wanted=wanted)
    assert len(list(tmp_path.glob("start.*"))) == 3 and done_shards(tmp_path) == set(range(6))
    assert calls[:3] == [6, 6, 6]


@pytest.mark.parametrize("wrong", ["no space left", "tokens are damaged", "another model"])
def test_pool_what_no_further_try_can_cure_ends_the_job_at_once(tmp_path: Path, wrong: str) -> None:
    pooled, _ = run_pool(tmp_path, {0: wrong}, workers=1)
    assert (tmp_path / "tried.0").stat().st_size == 1
    assert len(done_shards(tmp_path)) < 4 and not pooled.set_aside
    with pytest.raises(USER_ERRORS[wrong], match=wrong):
        raise_failures([pooled])


def test_pool_shard_that_breaks_its_contract_is_tried_again_and_set_aside(tmp_path: Path) -> None:
    pooled, _ = run_pool(tmp_path, {0: "NaN"}, shards=3)
    assert (tmp_path / "tried.0").stat().st_size == 3
    assert done_shards(tmp_path) == {1, 2} and set(pooled.set_aside) == {0}


def test_worker_that_was_put_on_a_dead_node_is_no_failed_start() -> None:
    """Ray needs seconds to see that a node died, and places workers there meanwhile."""
    pool = WorkerPool(max_attempts=2, on_event=lambda _: None)
    pooled = PooledWork(a_work("job", Path(), 0), ONE_CPU, lambda left: 0)
    node_died = ActorDiedErrorContext(actor_id=bytes(16), error_message="The actor died because its node has died.")
    for _ in range(3):
        pool._start_failed(Process(pooled, None, None), ActorDiedError(node_died), final=False)
    assert pooled.failed_starts == 0 and pooled.failure is None
    for _ in range(2):
        pool._start_failed(Process(pooled, None, None), ActorDiedError(), final=False)
    assert isinstance(pooled.failure, ActorDiedError)


def works_side_by_side(
    folder: Path, *, wanted: int, needs: tuple[Needs, Needs], behaviour: dict[int, str] | None = None
) -> list[PooledWork]:
    """Two works of three units each, done on the four CPUs; the units of each leave their files in a folder of its own."""
    works = []
    for name, need in zip(("one", "two"), needs, strict=True):
        (folder / name).mkdir()
        work = replace(a_work(name, folder / name, 3, behaviour), needs=need)
        works.append(PooledWork(work, Placement(need.cpus, 0, "uni"), lambda left: min(wanted, left), Results()))
    with WorkerPool(max_attempts=3, on_event=lambda line: None) as pool:
        pool.run(works)
    assert all(
        not pooled.set_aside and pooled.failure is None and done_shards(folder / pooled.name) == {0, 1, 2}
        for pooled in works
    )
    return works


def processes(folder: Path) -> set[str]:
    return {path.suffix for path in folder.glob("start.*")}


def test_pool_process_whose_work_is_done_serves_the_next_one_of_the_same_needs(tmp_path: Path) -> None:
    whole = Needs(cpus=4)  # there is room for one process, so that the second work waits
    works_side_by_side(tmp_path, wanted=1, needs=(whole, whole))
    assert processes(tmp_path / "one") == processes(tmp_path / "two") and len(processes(tmp_path / "one")) == 1
    assert len(list((tmp_path / "one").glob("closed.*"))) == 1  # before the next worker starts


def test_pool_process_does_not_serve_a_work_of_other_needs(tmp_path: Path) -> None:
    works_side_by_side(tmp_path, wanted=1, needs=(Needs(cpus=4), Needs(cpus=3)))
    assert not processes(tmp_path / "one") & processes(tmp_path / "two")
    assert not list((tmp_path / "one").glob("closed.*"))


def test_pool_works_that_have_room_go_side_by_side(tmp_path: Path) -> None:
    # The units of each end only when the other one has a worker, whichever of them starts first and however late the other.
    works_side_by_side(
        tmp_path, wanted=1, needs=(Needs(), Needs()), behaviour=dict.fromkeys(range(3), "waits for both")
    )
    assert len(processes(tmp_path / "one") | processes(tmp_path / "two")) == 2


def test_pool_failed_start_in_a_process_that_served_before_is_tried_in_a_new_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    need = Needs(cpus=4)
    works = [
        PooledWork(
            replace(a_work(name, tmp_path / name, 3, start=start), needs=need), Placement(4, 0, "uni"), lambda left: 1
        )
        for name, start in (("one", ""), ("two", "self-check in a used process"))
    ]
    (tmp_path / "two" / "used").symlink_to(tmp_path / "one")
    with WorkerPool(max_attempts=3, on_event=lambda line: None) as pool:
        pool.run(works)
    assert works[1].failure is None and done_shards(tmp_path / "two") == {0, 1, 2}
    assert len(processes(tmp_path / "two")) == 2


def test_pool_keeps_idle_processes_for_the_next_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with WorkerPool(max_attempts=3, on_event=lambda line: None, keeps_idle=True) as pool:
        for name in ("one", "two"):
            pool.run([PooledWork(a_work(name, tmp_path / name, 2), ONE_CPU, lambda left: 1)])
    assert processes(tmp_path / "one") == processes(tmp_path / "two") and len(processes(tmp_path / "one")) == 1


def test_idle_process_gives_its_room_to_a_work_that_it_cannot_serve(tmp_path: Path) -> None:
    """Each takes the whole Ray: one that stayed would be waited for without end."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    other = replace(a_work("two", tmp_path / "two", 2), needs=Needs(engine_ranks=2))
    with WorkerPool(max_attempts=3, on_event=lambda line: None, keeps_idle=True) as pool:
        pool.run([PooledWork(a_work("one", tmp_path / "one", 2), Placement(4, 0, "uni"), lambda left: 1)])
        pool.run([PooledWork(other, Placement(4, 0, "mp"), lambda left: 1)])
    assert done_shards(tmp_path / "two") == {0, 1} and not processes(tmp_path / "one") & processes(tmp_path / "two")
