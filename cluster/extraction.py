"""Extraction on Ray: a pool of teacher engines works off the missing shards of every model's store."""

import time
from collections import deque
from pathlib import Path
from typing import Any

import ray

from fusechat.artifact import Artifact
from fusechat.config import RunConfig
from fusechat.errors import ClusterError, TeacherError
from fusechat.logs import Progress, Task, append_json_line
from fusechat.store import RowStore
from inference import stage
from inference.teacher_actor import TeacherActor

from .placement import Placement, num_replicas, plan_placement
from .preflight import check_cluster
from .session import ray_session
from .teacher_pool import Job, TeacherPool


def run(config: RunConfig, names: list[str], *, progress: Progress) -> dict[str, Artifact]:
    """Score what is missing for the named models.

    Returns:
        name -> finished logprobs artifact.
    Raises:
        TeacherError: a teacher could not start or failed its self-check.
        ClusterError: shards were set aside. In both cases all that was finished is kept.
    """
    claims = {name: stage.claim_store(config, name) for name in names}
    artifacts = {name: claim.artifact for name, (claim, _) in claims.items() if claim.artifact is not None}
    stores = {name: store for name, (claim, store) in claims.items() if claim.artifact is None}
    missing = {name: store.missing_shards() for name, store in stores.items()}
    if any(missing.values()):
        _score(config, {name: stores[name] for name in stores if missing[name]}, missing, progress)
    return {name: artifacts.get(name) or stage.finish(*claims[name]) for name in names}


def _score(config: RunConfig, stores: dict[str, RowStore], missing: dict[str, list[int]], progress: Progress) -> None:
    total = sum(store.plan.num_rows for store in stores.values())
    rest = sum(_rows(stores[name], shard) for name in stores for shard in missing[name])
    with ray_session(config.cluster), progress.task("extract", total, "rows", done=total - rest) as task:
        check_cluster(config, list(stores))
        progress.say(f"extract: starting {len(stores)} teachers on Ray: {', '.join(stores)}")
        jobs = [_job(config, name, store, missing[name], task) for name, store in stores.items()]
        pool = TeacherPool(
            shards_in_flight=config.extraction.shards_in_flight,
            max_attempts=config.extraction.max_attempts,
            on_event=progress.say,
        )
        pool.run(jobs)
    for job in jobs:
        counts = {"retries": job.retries, "failed_starts": job.failed_starts, "set_aside": len(job.set_aside)}
        append_json_line(_log_path(config, job.name), {"model": job.name, **counts})
    _raise_failures(jobs)


def _job(config: RunConfig, name: str, store: RowStore, shards: list[int], task: Task) -> Job:
    placement = plan_placement(config.model_named(name).engine, config.cluster)
    log_path, started = _log_path(config, name), time.time()

    def on_done(result: dict[str, Any]) -> None:
        append_json_line(log_path, {"model": name, "time": round(time.time() - started, 3), **result})
        task.advance(result["rows"], note=name)

    return Job(
        name=name,
        shards=deque((shard, 0) for shard in shards),
        make_replica=lambda: _make_replica(config, name, placement),
        num_replicas=num_replicas(placement, config.extraction.replicas, len(shards), config.cluster.max_gpus),
        on_done=on_done,
    )


def _log_path(config: RunConfig, name: str) -> Path:
    return config.run.output / "logs" / f"extract.{name}.jsonl"


def _make_replica(config: RunConfig, name: str, placement: Placement) -> tuple[Any, Any]:
    group = placement.reserve()
    options = {**placement.actor_options(group), "max_concurrency": max(2, config.extraction.shards_in_flight)}
    handle = (
        ray.remote(TeacherActor)
        .options(**options)
        .remote(config.dump(), name, engine_arguments=placement.engine_arguments(), owns_process=True)
    )
    return handle, group


def _rows(store: RowStore, shard: int) -> int:
    rows = store.plan.rows(shard)
    return rows.stop - rows.start


def _raise_failures(jobs: list[Job]) -> None:
    for job in jobs:
        if job.failure is not None:
            raise TeacherError(f"{job.name}: no engine could start: {job.failure}") from job.failure
    aside = {job.name: job.set_aside for job in jobs if job.set_aside}
    if aside:
        lines = [f"  {name}, shard {shard}: {why}" for name, shards in aside.items() for shard, why in shards.items()]
        raise ClusterError("shards were set aside; all others are written:\n" + "\n".join(lines))
