"""Processes of the pool that serve several works, one after the other, on a real local Ray."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pool_works import ONE_CPU, Results, a_work, done_shards
from ray_for_module import ray_for_module

from cluster.pool.placement import Placement
from cluster.pool.pooled_work import PooledWork
from cluster.pool.worker_pool import WorkerPool
from fusechat.storage.work import Needs


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with ray_for_module(__name__, num_cpus=4):
        yield


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
    # The first of the two, whichever Ray gave the room to, was closed before the next worker started.
    assert len(list(tmp_path.glob("*/closed.*"))) == 1


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
    works = [
        PooledWork(a_work(name, tmp_path / name, 3, start=start), ONE_CPU, lambda left: 1)
        for name, start in (("one", ""), ("two", "self-check in a used process"))
    ]
    (tmp_path / "two" / "used").symlink_to(tmp_path / "one")
    with WorkerPool(max_attempts=3, on_event=lambda line: None, keeps_idle=True) as pool:
        for work in works:  # of two at once, Ray may give the second the room first
            pool.run([work])
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
