"""How many workers fit, and where a worker's processes stand."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fusechat.config import ClusterSection
from fusechat.errors import ClusterError
from fusechat.storage.work import Needs, Place

from .worker_actor import WorkerActor


@dataclass(frozen=True)
class Placement:
    """What one worker reserves.

    On one node vLLM starts its own processes (`mp`), and one actor holds all the resources. Over nodes Ray starts them
    (`ray`), one per bundle of a placement group.
    """

    num_cpus: float
    num_gpus: int
    backend: str
    """`uni` (one process), `mp` or `ray`."""

    @property
    def is_on_one_node(self) -> bool:
        return self.backend != "ray"

    def reserve(self) -> PlacementGroup | None:
        """A placement group for an engine that spans nodes, else None. Not waited for: nodes may join later."""
        if self.is_on_one_node:
            return None
        group: PlacementGroup = placement_group([{"GPU": 1, "CPU": 1}] * self.num_gpus, strategy="PACK")
        return group

    def place(self) -> Place:
        """What the worker must know of it."""
        backend = None if self.backend == "uni" else self.backend
        return Place(owns_process=True, executor_backend=backend, cpus=max(1, int(self.num_cpus)))

    def actor_options(self, group: PlacementGroup | None) -> dict[str, Any]:
        """Options of the worker's actor."""
        if group is None:
            return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        return {"num_cpus": 1, "num_gpus": 0, "scheduling_strategy": strategy}


def placement_of(needs: Needs, cluster: ClusterSection) -> Placement:
    """What a worker of these needs reserves on the connected Ray.

    Raises:
        ClusterError: the cluster as it stands could never hold its engine.
    """
    size = needs.engine_ranks
    if not size:
        return Placement(min(needs.cpus, _cpus_of_largest_machine()), 0, "uni")
    resources = ray.cluster_resources()
    if not resources.get("GPU") and not cluster.max_gpus:
        cpus = cluster.engine_cpus * size
        if cpus > resources.get("CPU", 0):
            raise ClusterError(
                f"an engine asks for {cpus:g} CPUs (engine_cpus {cluster.engine_cpus:g} x tensor_parallel_size {size}), "
                f"the cluster has {resources.get('CPU', 0):g}; lower cluster.engine_cpus"
            )
        return Placement(cpus, 0, "uni" if size == 1 else "mp")
    if size <= cluster.gpus_per_node:
        return Placement(cluster.engine_cpus, size, "uni" if size == 1 else "mp")
    return Placement(cluster.engine_cpus, size, "ray")


def _cpus_of_largest_machine() -> float:
    sizes: list[float] = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return max(1.0, *sizes)


def start_actor(placement: Placement, *, calls_at_once: int) -> tuple[Any, PlacementGroup | None]:
    """Start a process on what the placement reserves.

    Args:
        calls_at_once: units that it works on.
    Returns:
        (actor handle, its placement group or None).
    """
    group = placement.reserve()
    options = {**placement.actor_options(group), "max_concurrency": calls_at_once}
    return ray.remote(WorkerActor).options(**options).remote(placement.place()), group


def num_workers(placement: Placement, num_units: int, *, wanted: int | None = None, max_gpus: int | None = None) -> int:
    """Workers to start: as many as the cluster holds now or may grow to, at least one, at most one per unit."""
    if wanted is None and max_gpus and placement.num_gpus:
        wanted = max_gpus // placement.num_gpus  # those that have no room yet are what the autoscaler goes by
    if wanted is None:
        resources = ray.cluster_resources()
        fits = [resources.get("CPU", 0) / placement.num_cpus]
        if placement.num_gpus:
            fits.append(resources.get("GPU", 0) / placement.num_gpus)
        wanted = int(min(fits))
    return max(1, min(wanted, num_units))


def release(group: PlacementGroup | None) -> None:
    """Give an engine's placement group back."""
    if group is not None:
        remove_placement_group(group)
