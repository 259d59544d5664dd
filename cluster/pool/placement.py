"""How many engines fit, and where one engine's processes stand."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fusechat.config import ClusterSection, EngineSection
from fusechat.errors import ClusterError


@dataclass(frozen=True)
class Placement:
    """What one engine reserves.

    On one node vLLM starts its own processes (`mp`), and one actor holds all the resources. Over nodes Ray starts them
    (`ray`), one per bundle of a placement group.
    """

    num_cpus: float
    num_gpus: int
    backend: str
    """`uni` (one process), `mp` or `ray`."""

    def reserve(self) -> PlacementGroup | None:
        """A placement group for an engine that spans nodes, else None. Not waited for: nodes may join later."""
        if self.backend != "ray":
            return None
        return placement_group([{"GPU": 1, "CPU": 1}] * self.num_gpus, strategy="PACK")

    def engine_arguments(self) -> dict:
        """What vLLM must know of it."""
        return {} if self.backend == "uni" else {"distributed_executor_backend": self.backend}

    def actor_options(self, group: PlacementGroup | None) -> dict:
        """Options of the engine's actor."""
        if group is None:
            return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        return {"num_cpus": 1, "num_gpus": 0, "scheduling_strategy": strategy}


def plan_placement(engine: EngineSection, cluster: ClusterSection) -> Placement:
    """What an engine of this size reserves on the connected Ray.

    Raises:
        ClusterError: the cluster as it stands could never hold it.
    """
    size = engine.tensor_parallel_size
    resources = ray.cluster_resources()
    if not resources.get("GPU") and not cluster.max_gpus:
        cpus = cluster.teacher_cpus * size
        if cpus > resources.get("CPU", 0):
            raise ClusterError(
                f"an engine asks for {cpus:g} CPUs (teacher_cpus {cluster.teacher_cpus:g} x tensor_parallel_size {size}), "
                f"the cluster has {resources.get('CPU', 0):g}; lower cluster.teacher_cpus"
            )
        return Placement(cpus, 0, "uni" if size == 1 else "mp")
    if size <= cluster.gpus_per_node:
        return Placement(cluster.teacher_cpus, size, "uni" if size == 1 else "mp")
    return Placement(cluster.teacher_cpus, size, "ray")


def start_engine(actor: type, placement: Placement, *arguments: Any, calls_at_once: int = 1) -> tuple[Any, Any]:
    """Start an engine's actor on what the placement reserves.

    Args:
        actor: a class that takes these arguments, and `engine_arguments` and `owns_process` by name.
        calls_at_once: `run_shard` calls that it works on.
    Returns:
        (actor handle, its placement group or None).
    """
    group = placement.reserve()
    options = {**placement.actor_options(group), "max_concurrency": calls_at_once}
    handle: Any = (
        ray.remote(actor)
        .options(**options)
        .remote(*arguments, engine_arguments=placement.engine_arguments(), owns_process=True)
    )
    return handle, group


def num_replicas(placement: Placement, wanted: int | None, num_shards: int, max_gpus: int | None = None) -> int:
    """Engines to start: as many as the cluster holds now or may grow to, at least one, at most one per shard."""
    if wanted is None and max_gpus and placement.num_gpus:
        wanted = max_gpus // placement.num_gpus  # those that find no room yet are what the autoscaler goes by
    if wanted is None:
        return num_workers(num_shards, placement.num_cpus, placement.num_gpus)
    return max(1, min(wanted, num_shards))


def num_workers(num_shards: int, num_cpus: float, num_gpus: int = 0) -> int:
    """Workers of this size that the cluster has room for now, at least one, at most one per shard."""
    resources = ray.cluster_resources()
    fits = [resources.get("CPU", 0) / num_cpus]
    if num_gpus:
        fits.append(resources.get("GPU", 0) / num_gpus)
    return max(1, min(int(min(fits)), num_shards))


def release(group: PlacementGroup | None) -> None:
    """Give an engine's placement group back."""
    if group is not None:
        remove_placement_group(group)
