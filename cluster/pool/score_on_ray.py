"""Extraction by a pool of teacher engines on Ray. Importing this imports Ray."""

import contextlib
from collections.abc import Callable

from fusechat.config import RunConfig
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import Work

from .extraction_meter import ExtractionMeter
from .preflight import check_cluster
from .run_on_ray import run_on_ray
from .session import ray_session


def score_on_ray(
    config: RunConfig, works: list[Work], progress: Progress, check_leases: Callable[[], None]
) -> list[Artifact]:
    """Do the works of several models side by side.

    Args:
        check_leases: called at least every second; what it raises ends the works.
    Returns:
        the artifacts of all works.
    Raises:
        ClusterSetupError: as `ray_session` and `check_cluster`.
        ClusterError: as `run_on_ray`.
    """
    teachers = [work.name for work in works if work.missing]
    with ray_session(config.cluster), contextlib.ExitStack() as bars:
        check_cluster(config, [config.model_named(name) for name in teachers], {"run.store": config.store_url})
        progress.say(f"extract: starting {len(teachers)} teachers on Ray: {', '.join(teachers)}")
        meter = ExtractionMeter(progress, works, bars)

        def tick(ready: dict[str, int]) -> None:
            check_leases()
            meter.tick(ready)

        try:
            return run_on_ray(
                works, config.cluster, progress=progress, workers_per_work=config.cluster.engines, listen=meter.listen,
                on_tick=tick,
            )  # fmt: skip
        finally:
            meter.tick(dict.fromkeys(teachers, 0), last=True)
            meter.say_result()
