"""Merging: in this process, or on Ray, where the output shards of a big model are spread over workers.

Workers need the models and the run's folder under the same paths, on a file system that all machines share; every worker reads
and writes files itself. What crosses Ray is the recipe of the merge, shard numbers and counts. The bytes are the same.
"""

from fusechat.config import RunConfig
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import run_here
from merge import stage


def run(config: RunConfig, *, progress: Progress) -> Artifact:
    """Merge the targets of a run; on a given cluster the shards of a model that has several go over Ray.

    Killed and started again, it goes on with the shards that are not whole.

    Raises:
        ClusterError: no worker could start, or shards failed; what is whole is kept.
        ClusterSetupError: no Ray at cluster.address.
        The errors of `merge.stage.prepare`.
    """
    pivot, cluster = resolve(config.pivot, config.digests_path), config.cluster
    works = stage.prepare(
        config.layout, pivot, config.merge, config.merged_names, seed=config.run.seed, progress=progress
    )
    # A local Ray has no cores and no disks but those that a merge in this process uses already.
    if not cluster.ray_address or sum(len(work.missing) for work in works) < 2:
        return run_here(works, progress)[0]
    from .pool.placement import num_workers, placement_of  # Ray: a merge in this process begins without it
    from .pool.run_on_ray import run_on_ray
    from .pool.session import ray_session

    with ray_session(cluster):
        placement, num_shards = placement_of(works[0].needs, cluster), len(works[0].missing)
        num_threads, workers = config.merge.threads or placement.place().cpus, num_workers(placement, num_shards)
        progress.say(f"merge: {num_shards} shards over {workers} workers of {num_threads} threads on Ray")
        return run_on_ray(works, cluster, progress=progress)[0]
