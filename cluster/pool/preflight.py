"""What is checked on the connected Ray before any engine loads: room for each engine, and the folders within reach."""

import contextlib
import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fusechat.config import ModelSection, RunConfig
from fusechat.errors import ClusterSetupError, first_line
from fusechat.models.engine_memory import GIB, EngineMemory
from fusechat.models.model_sizes import model_size
from fusechat.storage.files import delete_folder, read_json, write_json

from ..jobs.working_dir import require_absolute

PROBED_NODES = 32
"""Of a larger cluster the first ones answer for all."""
PROBE_SECONDS = 120.0


def check_cluster(config: RunConfig, models: Sequence[ModelSection], places: dict[str, str]) -> None:
    """Refuse what could only fail later, after the weights were loaded.

    Args:
        models: whose engines will start.
        places: setting -> the URL or folder below it that the engines read and write.
    Raises:
        ClusterSetupError: results in a relative path on a given cluster, an engine for which there are too few GPUs (what
            is missing, what would fit), or a place that a node cannot reach.
    """
    require_absolute(config.cluster, config.layout)
    for model in models:
        check_gpus(config, model)
    if config.cluster.ray_address:
        for setting, url in places.items():
            check_reach(setting, url)


def check_gpus(config: RunConfig, model: ModelSection) -> None:
    """One engine's GPUs against what the cluster has, or may grow to."""
    on_nodes = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
    total = max(sum(on_nodes), config.cluster.max_gpus or 0)
    wanted = model.engine.tensor_parallel_size
    if not total:
        return  # a cluster of CPUs: the placement counts those
    growing = bool(config.cluster.max_gpus)
    largest = max([config.cluster.gpus_per_node if growing else 0, *on_nodes])
    # An engine that is meant for one node waits for ever where no node is so large.
    if wanted <= total and (wanted <= largest or wanted > config.cluster.gpus_per_node):
        return
    present = int(min(total, largest) if wanted <= total else total)
    width = 2 ** (max(1, present).bit_length() - 1)
    memory = EngineMemory(model, model_size(model), config.extraction.capture, config.dialogues.max_tokens)
    card = memory.gpu_bytes(width) / model.engine.gpu_memory_utilization / GIB
    place = f"{largest:g} on its largest node, {total:g} in all"
    raise ClusterSetupError(
        f"{model.name}: one engine needs {wanted} GPUs (engine.tensor_parallel_size), the cluster has {place}; what would "
        f"fit: {wanted - present} more, or tensor_parallel_size {width} on cards of at least {card:,.0f} GiB, or quantized weights"
    )


def check_reach(setting: str, url: str) -> None:
    """Every node reads what the driver wrote below a URL or folder, and writes beside it.

    Args:
        setting: where the run file says it.
    Raises:
        ClusterSetupError: one does not; it is named.
    """
    base = f"{url}/.reach-{uuid.uuid4().hex}"
    nodes = [node for node in ray.nodes() if node["Alive"]][:PROBED_NODES]
    with contextlib.ExitStack() as removed:
        removed.callback(delete_folder, base)
        write_json(f"{base}/driver", {"from": "driver"})
        answers = [(node["NodeManagerAddress"], _probe_on(node["NodeID"], base)) for node in nodes]
        for place, answer in answers:
            try:
                problem = ray.get(answer, timeout=PROBE_SECONDS)
            except ray.exceptions.RayError as error:
                problem = f"the check did not run: {type(error).__name__}"
            if problem is None and read_json(f"{base}/{_name(answer)}") is None:
                problem = "what it wrote is not seen by the driver"
            if problem:
                expected = "a folder that all nodes share"
                if setting == "run.store":
                    expected += ", or a URL with credentials in the nodes' environment"
                raise ClusterSetupError(
                    f"{url}: out of reach for node {place} ({problem}); expected {expected}: set {setting}"
                )


def _probe_on(node_id: str, base: str) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(_probe).options(num_cpus=0, scheduling_strategy=strategy).remote(base)


def _probe(base: str) -> str | None:
    """Runs on a node: None, or what went wrong."""
    try:
        if read_json(f"{base}/driver") is None:
            return "what the driver wrote is not there"
        write_json(f"{base}/{ray.get_runtime_context().get_task_id()}", {"from": "node"})
    except Exception as error:  # of whatever file system and credentials
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _name(answer: Any) -> str:
    return str(answer.task_id().hex())
