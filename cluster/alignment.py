"""Alignment on Ray: counters, then aligners, one CPU each, work off the shards of one source.

Where there is nothing to share out the works are done in this process: one shard at most is missing, or there is one CPU.
The bytes are the same.
"""

from alignment import stage
from fusechat.config import RunConfig
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.lease import hold_store
from fusechat.storage.work import run_here

from .jobs.working_dir import require_absolute
from .pool.cpus import has_several_cpus
from .pool.run_on_ray import run_on_ray
from .pool.session import ray_session


def run(config: RunConfig, source_name: str, *, progress: Progress | None = None) -> Artifact:
    """Align every missing shard of one source on all CPUs of the cluster.

    Raises:
        ArtifactError, AlignmentError: as `alignment.stage.prepare`.
        BusyError: another driver is writing the store.
        ClusterError: no worker could start, or shards were set aside. All that was finished is kept.
        ClusterSetupError: no Ray at the given address, or results in a relative path there.
    """
    progress = progress or Progress(quiet=True)
    with hold_store(config.aligned_url(source_name), config.run.if_changed) as lease:
        source = config.model_named(source_name)
        works = stage.prepare(
            config.layout, config.pivot, source, config.alignment, config.extraction, progress=progress
        )
        if lease is None or len(works[-1].missing) < 2 or not has_several_cpus(config.cluster):
            return run_here(works, progress)[-1]
        require_absolute(config.cluster, config.layout)
        with ray_session(config.cluster):
            check = lease.check
            return run_on_ray(works, config.cluster, progress=progress, in_turn=True, on_tick=lambda ready: check())[-1]
