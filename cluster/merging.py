"""Merging on Ray: the output shards of a big model are spread over workers; every worker reads and writes files itself.

Workers need the models and the run's folder under the same paths, on a file system that all machines share. What
crosses Ray is the plan, shard numbers and counts. The bytes written are those of a merge in one process.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from fusechat.config import RunConfig
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from merge import stage
from merge.plan import MergePlan
from merge.shard_actor import ShardActor

from .pool.placement import num_workers
from .pool.session import ray_session
from .pool.shard_pool import Job, ShardPool, raise_failures

THREADS = 4
"""Of a worker by default, and the CPUs it reserves: enough for a network disk, few enough to fit between other work."""


def run(config: RunConfig, *, progress: Progress) -> Artifact:
    """Merge the targets of a run as `merge.stage.run` does; the shards of a model that has several go over Ray.

    Killed and started again, it goes on with the shards that are not whole.

    Raises:
        ClusterError: no worker could start, or shards failed; what is whole is kept.
        ClusterSetupError: no Ray at cluster.address.
        The errors of `merge.stage.run`.
    """

    def merge_shards(plan: MergePlan, shards: list[int], on_done: Callable[[int], None]) -> None:
        with ray_session(config.cluster):
            spread(
                plan, shards, on_done, threads=config.merge.threads, max_attempts=config.extraction.max_attempts,
                say=progress.say,
            )  # fmt: skip

    return stage.run(config, progress=progress, merge_shards=merge_shards)


def spread(
    plan: MergePlan,
    shards: list[int],
    on_done: Callable[[int], None],
    *,
    threads: int | None = None,
    max_attempts: int,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Merge shards of a begun plan on the connected Ray.

    Args:
        shards: numbers of the shards to merge.
        on_done: told the bytes of each shard when it is whole.
        threads: of each worker, and the CPUs it reserves; default: THREADS, or what the largest machine has.
        max_attempts: of one shard; then it is set aside.
    Raises:
        StorageError, ModelError: a worker does not see the output folder, or the plan's models.
        ClusterError: no worker could start, or shards were set aside.
    """
    cpus = threads or min(THREADS, _largest_machine())
    # Workers start in folders of their own, so that relative paths would mean others there.
    plan = replace(plan, base=_absolute(plan.base), out=_absolute(plan.out),
                   targets={name: _absolute(folder) for name, folder in plan.targets.items()},
                   file_sizes={_absolute(path): size for path, size in plan.file_sizes.items()})  # fmt: skip
    worker = ray.remote(ShardActor).options(num_cpus=cpus, num_gpus=0)
    reference = ray.put(plan)
    job = Job(
        name="merge",
        shards=shards,
        make_replica=lambda: (worker.remote(reference, cpus), None),
        num_replicas=partial(num_workers, num_cpus=cpus),
        on_done=lambda result: on_done(result["bytes"]),
        shard_name=plan.shard_name,
    )
    say(f"merge: {len(shards)} shards over {job.num_replicas(len(shards))} workers of {cpus} threads on Ray")
    ShardPool(shards_in_flight=1, max_attempts=max_attempts, on_event=say).run([job])
    raise_failures([job])


def _largest_machine() -> int:
    sizes: list[Any] = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return max(1, int(max(sizes, default=1)))


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
