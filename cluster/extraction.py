"""Extraction on Ray: a pool of teacher engines works off the missing shards of every model's store."""

import contextlib
from collections.abc import Callable

from fusechat.config import RunConfig
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.lease import hold_store
from fusechat.storage.work import Work, run_here
from inference import stage

from .pool.extraction_meter import ExtractionMeter
from .pool.preflight import check_cluster
from .pool.run_on_ray import run_on_ray
from .pool.session import ray_session


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
    with contextlib.ExitStack() as stack:
        leases = [stack.enter_context(hold_store(config.logprobs_url(name), config.run.if_changed)) for name in names]
        models = [resolve(config.model_named(name), config.digests_path) for name in names]
        works = [
            work for model in models for work in stage.prepare(config.layout, model, config.extraction, config.cluster)
        ]

        def check_leases() -> None:
            for lease in leases:
                if lease is not None:
                    lease.check()

        if not any(work.missing for work in works):
            artifacts = run_here(works, progress)
        else:
            artifacts = _score(config, works, progress, check_leases)
    return dict(zip(names, artifacts, strict=True))


def _score(
    config: RunConfig, works: list[Work], progress: Progress, check_leases: Callable[[], None]
) -> list[Artifact]:
    teachers = [work.name for work in works if work.missing]
    with ray_session(config.cluster), contextlib.ExitStack() as bars:
        check_cluster(config, teachers, {"run.store": config.store_url})
        progress.say(f"extract: starting {len(teachers)} teachers on Ray: {', '.join(teachers)}")
        meter = ExtractionMeter(progress, works, bars)

        def tick(ready: dict[str, int]) -> None:
            check_leases()
            meter.tick(ready)

        try:
            return run_on_ray(
                works, config.cluster, max_attempts=config.cluster.max_attempts, progress=progress,
                workers_per_work=config.cluster.engines, listen=meter.listen, on_tick=tick,
            )  # fmt: skip
        finally:
            meter.tick(dict.fromkeys(teachers, 0), last=True)
            meter.say_result()
