"""Merging on Ray: the output shards of a big model are spread over workers; every worker reads and writes files itself.

Workers need the models and the run's folder under the same paths, on a file system that all machines share. What
crosses Ray is the recipe of the merge, shard numbers and counts. The bytes written are those of a merge in one process.
"""

from fusechat.config import RunConfig
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import run_here
from merge import stage

from .pool.placement import num_workers, placement_of
from .pool.run_on_ray import run_on_ray
from .pool.session import ray_session


def run(config: RunConfig, *, progress: Progress) -> Artifact:
    """Merge the targets of a run as `merge.stage.run` does; the shards of a model that has several go over Ray.

    Killed and started again, it goes on with the shards that are not whole.

    Raises:
        ClusterError: no worker could start, or shards failed; what is whole is kept.
        ClusterSetupError: no Ray at cluster.address.
        The errors of `merge.stage.run`.
    """
    pivot = resolve(config.pivot, config.layout.digests_path)
    works = stage.prepare(
        config.layout, pivot, config.merge, config.merged_names, seed=config.run.seed, progress=progress
    )
    if sum(len(work.missing) for work in works) < 2:
        return run_here(works, progress)[0]
    with ray_session(config.cluster):
        attempts, placement = config.cluster.max_attempts, placement_of(works[0].needs, config.cluster)
        num_shards, num_threads = len(works[0].missing), config.merge.threads or placement.place().cpus
        workers = num_workers(placement, num_shards)
        progress.say(f"merge: {num_shards} shards over {workers} workers of {num_threads} threads on Ray")
        return run_on_ray(works, config.cluster, max_attempts=attempts, progress=progress)[0]
