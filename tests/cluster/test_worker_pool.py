"""The pool on a real local Ray, with actors that hold no model: deaths, poison shards, failing starts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pool_works import ONE_CPU, USER_ERRORS, Results, a_work, done_shards
from ray_for_module import ray_for_module

from cluster.pool import worker_pool
from cluster.pool.failures import raise_failures
from cluster.pool.placement import Placement, num_workers
from cluster.pool.pooled_work import PooledWork
from cluster.pool.worker_pool import WorkerPool
from fusechat.errors import EngineError


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with ray_for_module(__name__, num_cpus=4):
        yield


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
