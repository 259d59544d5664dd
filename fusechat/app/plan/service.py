"""What the run's models would take as engines that stay (`fusechat serve`): memory and GPUs of each face."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...config import RunConfig
from ...models.engine_memory import EngineMemory
from ...models.model_sizes import ModelSize


@dataclass(frozen=True)
class FacePlan:
    """The engines of one model and face."""

    model: str
    face: str
    tensor_parallel_size: int
    bytes_per_gpu: float
    fewest: int
    most: int

    @property
    def gpus(self) -> int:
        """GPUs of the fewest engines, which are always there."""
        return self.fewest * self.tensor_parallel_size


def plan_service(config: RunConfig, sizes: Mapping[str, ModelSize], widths: Mapping[str, int]) -> list[FacePlan]:
    """One entry for each engine that `fusechat serve` would start.

    Args:
        sizes: of the run's models, by name.
        widths: GPUs of one engine, by name.
    """
    serve, longest = config.serve, config.serve.max_tokens or 2 * config.dialogues.max_tokens
    planned = []
    for model in config.models:
        memory = EngineMemory(model, sizes[model.name], config.extraction.capture, longest)
        width = widths[model.name]
        for face in serve.faces_of(model.name):
            most = serve.max_replicas or serve.replicas
            planned.append(FacePlan(model.name, face, width, memory.gpu_bytes(width), serve.replicas, most))
    return planned
