"""Extraction on Ray: a pool of teacher engines works off the missing shards of every model's store."""

import contextlib
from functools import partial

from fusechat.config import RunConfig
from fusechat.progress import Progress, ShardLog
from fusechat.storage.artifact import Artifact
from fusechat.storage.lease import Lease, held
from fusechat.storage.retry import patiently
from fusechat.storage.row_store import RowStore
from inference import stage
from inference.teacher_actor import TeacherActor

from .pool.extraction_meter import ExtractionMeter
from .pool.placement import num_replicas, plan_placement, start_engine
from .pool.preflight import check_cluster
from .pool.session import ray_session
from .pool.shard_pool import Job, ShardPool, raise_failures


def run(config: RunConfig, names: list[str], *, progress: Progress) -> dict[str, Artifact]:
    """Score what is missing for the named models.

    Returns:
        name -> finished logprobs artifact.
    Raises:
        BusyError: another driver is writing one of the stores.
        StorageError: a store cannot be written.
        ClusterError: a teacher could not start or failed its self-check, or shards were set aside. In all cases what was
            finished is kept.
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
        check_cluster(config, list(stores), {"run.store": config.store_url})
        progress.say(f"extract: starting {len(stores)} teachers on Ray: {', '.join(stores)}")
        logs = {name: ShardLog(config.log_path(f"extract.{name}"), name) for name in stores}
        meter = ExtractionMeter(progress, stores, missing, logs, bars)
        jobs = [_job(config, name, missing[name], meter) for name in stores]

        def tick() -> None:
            for lease in leases:
                lease.check()
            meter.tick({job.name: pool.num_ready(job) for job in jobs})

        pool = ShardPool(
            shards_in_flight=config.extraction.shards_in_flight,
            max_attempts=config.extraction.max_attempts,
            on_event=progress.say,
            on_tick=tick,
        )
        pool.run(jobs)
        meter.tick({job.name: 0 for job in jobs}, last=True)
    meter.say_result()
    raise_failures(jobs)


def _job(config: RunConfig, name: str, shards: list[int], meter: ExtractionMeter) -> Job:
    placement = plan_placement(config.model_named(name).engine, config.cluster)
    return Job(
        name=name,
        shards=shards,
        make_replica=lambda: start_engine(
            TeacherActor, placement, config.dump(), name, calls_at_once=config.extraction.shards_in_flight
        ),
        num_replicas=lambda left: num_replicas(placement, config.extraction.replicas, left, config.cluster.max_gpus),
        on_started=meter.teachers[name].begin,
        on_done=partial(meter.on_done, name),
        on_failed=partial(meter.on_failed, name),
    )
