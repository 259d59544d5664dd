"""Extraction on Ray: a pool of teacher engines works off the missing shards of every model's store."""

import contextlib
from collections import deque
from functools import partial
from typing import Any

import ray

from fusechat.artifact import Artifact
from fusechat.config import RunConfig
from fusechat.errors import ClusterError, TeacherError, UserError
from fusechat.lease import Lease, held
from fusechat.logs import Progress
from fusechat.patience import patiently
from fusechat.store import RowStore
from inference import stage
from inference.teacher_actor import TeacherActor

from .extraction_meter import ExtractionMeter
from .placement import Placement, num_replicas, plan_placement
from .preflight import check_cluster
from .session import ray_session
from .teacher_pool import Job, TeacherPool


def run(config: RunConfig, names: list[str], *, progress: Progress) -> dict[str, Artifact]:
    """Score what is missing for the named models.

    Returns:
        name -> finished logprobs artifact.
    Raises:
        BusyError: another driver is writing one of the stores.
        StorageError: a store cannot be written.
        TeacherError: a teacher could not start or failed its self-check.
        ClusterError: shards were set aside. In all cases what was finished is kept.
    """
    with contextlib.ExitStack() as holds:
        taken = [holds.enter_context(held(config.logprobs_url(name), config.run.if_changed)) for name in names]
        claims = {name: stage.claim_store(config, name) for name in names}
        artifacts = {name: claim.artifact for name, (claim, _) in claims.items() if claim.artifact is not None}
        stores = {name: store for name, (claim, store) in claims.items() if claim.artifact is None}
        missing = {name: store.missing_shards() for name, store in stores.items()}
        if any(missing.values()):
            leases = [lease for lease in taken if lease is not None]
            _score(config, {name: stores[name] for name in stores if missing[name]}, missing, progress, leases)
        patience = config.extraction.storage_patience_seconds
        for name in stores:
            artifacts[name] = patiently(partial(stage.finish, *claims[name]), seconds=patience)
    return {name: artifacts[name] for name in names}


def _score(
    config: RunConfig,
    stores: dict[str, RowStore],
    missing: dict[str, list[int]],
    progress: Progress,
    leases: list[Lease],
) -> None:
    with ray_session(config.cluster), contextlib.ExitStack() as bars:
        check_cluster(config, list(stores))
        progress.say(f"extract: starting {len(stores)} teachers on Ray: {', '.join(stores)}")
        meter = ExtractionMeter(progress, stores, missing, config.run.output / "logs", bars)
        jobs = [_job(config, name, missing[name], meter) for name in stores]

        def tick() -> None:
            for lease in leases:
                lease.check()
            meter.tick({job.name: pool.num_ready(job) for job in jobs})

        pool = TeacherPool(
            shards_in_flight=config.extraction.shards_in_flight,
            max_attempts=config.extraction.max_attempts,
            on_event=progress.say,
            on_tick=tick,
        )
        pool.run(jobs)
        meter.tick({job.name: 0 for job in jobs}, last=True)
    meter.say_result()
    _raise_failures(jobs)


def _job(config: RunConfig, name: str, shards: list[int], meter: ExtractionMeter) -> Job:
    placement = plan_placement(config.model_named(name).engine, config.cluster)
    return Job(
        name=name,
        shards=deque((shard, 0) for shard in shards),
        make_replica=lambda: _make_replica(config, name, placement),
        num_replicas=lambda left: num_replicas(placement, config.extraction.replicas, left, config.cluster.max_gpus),
        on_started=meter.teachers[name].begin,
        on_done=partial(meter.on_done, name),
        on_failed=partial(meter.on_failed, name),
    )


def _make_replica(config: RunConfig, name: str, placement: Placement) -> tuple[Any, Any]:
    group = placement.reserve()
    options = {**placement.actor_options(group), "max_concurrency": max(2, config.extraction.shards_in_flight)}
    handle = (
        ray.remote(TeacherActor)
        .options(**options)
        .remote(config.dump(), name, engine_arguments=placement.engine_arguments(), owns_process=True)
    )
    return handle, group


def _raise_failures(jobs: list[Job]) -> None:
    failed = [job for job in jobs if job.failure is not None]
    for job in failed:
        if isinstance(job.failure, UserError):
            raise job.failure
    lines = [f"  {job.name}: no engine could start: {job.failure}" for job in failed]
    aside = [f"  {job.name}, shard {shard}: {why}" for job in jobs for shard, why in job.set_aside.items()]
    if failed:
        raise TeacherError("teachers failed; what was finished is kept:\n" + "\n".join(lines + aside)) from failed[
            0
        ].failure
    if aside:
        raise ClusterError(
            "shards were set aside; all others are written, and the same command tries these again:\n"
            + "\n".join(aside)
        )
