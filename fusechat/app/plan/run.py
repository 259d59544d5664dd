"""What a run will take before anything is spent: sizes, GPUs, hours, bytes. Reads configs and counts, starts nothing.

Forward FLOPs: two per active parameter that multiplies, attention over half a dialogue, the head for target tokens
only. Hours assume that the pool keeps all GPUs busy, so they are a lower bound on the clock and right for GPU-hours.
"""

from dataclasses import dataclass, field

from ...config import ModelSection, PlanSection, RunConfig
from ...models.engine_memory import GIB, EngineMemory
from ...models.model_sizes import ModelSize, model_size
from .dialogue_volume import Volume, estimated_volume, known_volume
from .service import FacePlan, plan_service
from .stages import StagePlan, plan_stages, row_bytes


@dataclass(frozen=True)
class TeacherPlan:
    """One model as a teacher."""

    name: str
    size: ModelSize
    volume: Volume
    tensor_parallel_size: int
    """GPUs of one engine: the run file's, or the smallest that fits if that does not."""
    kv_bytes: float
    """KV cache that one engine needs at least, over all of its GPUs: one step and the longest dialogue."""
    logits_bytes: float
    """Of one GPU: a block of logits, log-sum-exp, and the head in float32."""
    bytes_per_gpu: float
    engines: int
    """Engines that the fleet holds, at most one per shard; 0: none fits."""
    shards: int
    gpu_hours: float
    basis: str
    store_bytes: float
    note: str = ""


@dataclass(frozen=True)
class RunPlan:
    """The whole plan."""

    section: PlanSection
    teachers: list[TeacherPlan]
    stages: list[StagePlan]
    service: list[FacePlan]
    """What `fusechat serve` would start; no part of the run's hours."""
    problems: list[str] = field(default_factory=list)
    """Models that the fleet cannot hold: what is missing and what would fit."""

    @property
    def hours(self) -> float:
        return sum(stage.hours for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def bytes(self) -> float:
        return sum(stage.bytes for stage in self.stages)


def make_plan(config: RunConfig) -> RunPlan:
    """Plan a run.

    Raises:
        ModelError: a model's config.json is not at hand; the message says how to get it.
        DialogueError: dialogues that are neither tokenized nor readable, or questions that cannot be read.
    """
    sizes = {model.name: model_size(model) for model in config.models}
    known = {name: known_volume(config, name) for name in sizes}
    volumes = {name: volume for name, volume in known.items() if volume is not None}
    if len(volumes) < len(known):
        volumes = dict.fromkeys(known, estimated_volume(config)) | volumes
    teachers = [plan_teacher(config, model, sizes[model.name], volumes[model.name]) for model in config.models]
    problems = [teacher.note for teacher in teachers if not teacher.engines]
    stages = plan_stages(
        config, sizes, volumes, scoring_gpu_hours=sum(teacher.gpu_hours for teacher in teachers),
        store_bytes=sum(teacher.store_bytes for teacher in teachers),
    )  # fmt: skip
    service = plan_service(config, sizes, {teacher.name: teacher.tensor_parallel_size for teacher in teachers})
    return RunPlan(config.plan, teachers, stages, service, problems)


def plan_teacher(config: RunConfig, model: ModelSection, size: ModelSize, volume: Volume) -> TeacherPlan:
    """One model as a teacher on the plan's card."""
    section, wanted = config.plan, model.engine.tensor_parallel_size
    memory = EngineMemory(model, size, config.extraction.capture, config.dialogues.max_tokens)
    fitting = smallest_parallel_size(memory, section)
    width = max(wanted, fitting) if fitting else _widest(size, section.gpus)
    shards = max(1, round(volume.tokens / config.extraction.shard_tokens))
    engines = min(section.gpus // width, shards, config.cluster.engines or shards) if fitting else 0
    gpu_hours, basis = _scoring_hours(section, model.name, size, volume, width)
    gpu_hours += engines * width * size.weight_bytes / (section.store_mib_per_second * 2**20) / 3600
    return TeacherPlan(
        model.name, size, volume, width, memory.kv_bytes(), memory.logits_bytes(width), memory.gpu_bytes(width), engines,
        shards, gpu_hours, basis,
        volume.rows * row_bytes(config.extraction.k, size.vocab_size), _note(memory, section, fitting),
    )  # fmt: skip


def smallest_parallel_size(memory: EngineMemory, section: PlanSection) -> int:
    """Fewest GPUs of the plan's card that hold one engine, 0 if the fleet cannot."""
    for width in _widths(memory.size, section.gpus):
        if memory.gpu_bytes(width) <= _usable_bytes(memory, section):
            return width
    return 0


def _usable_bytes(memory: EngineMemory, section: PlanSection) -> float:
    return section.gpu_memory_gib * GIB * memory.model.engine.gpu_memory_utilization


def _widths(size: ModelSize, gpus: int) -> list[int]:
    """Powers of two that the heads can be split into."""
    return [2**i for i in range(12) if 2**i <= gpus and size.num_heads % 2**i == 0]


def _widest(size: ModelSize, gpus: int) -> int:
    return _widths(size, gpus)[-1]


def _scoring_hours(section: PlanSection, name: str, size: ModelSize, volume: Volume, width: int) -> tuple[float, str]:
    """GPU-hours of one pass over the dialogues, and what they are from."""
    rate = section.tokens_per_second.get(name)
    if rate:
        return volume.tokens / rate * width / 3600, f"measured {rate:,.0f} tokens/s per engine"
    flops = volume.tokens * size.flops_per_token(volume.mean_context, head_share=volume.rows / max(1, volume.tokens))
    return flops / (section.tflops * 1e12 * section.prefill_utilisation) / 3600, "FLOPs"


def _note(memory: EngineMemory, section: PlanSection, fitting: int) -> str:
    model, size = memory.model, memory.size
    wanted = model.engine.tensor_parallel_size
    if fitting:
        if wanted > section.gpus:
            return (
                f"{model.name}: engine.tensor_parallel_size is {wanted}, the fleet has {section.gpus} GPUs (plan.gpus); "
                f"what would fit: tensor_parallel_size {fitting}, or {wanted - section.gpus} GPUs more"
            )
        if wanted >= fitting:
            return ""
        return f"{model.name}: engine.tensor_parallel_size is {wanted}, one engine needs {fitting} of these GPUs: set it to {fitting}"
    usable, share = _usable_bytes(memory, section), model.engine.gpu_memory_utilization
    needed = next((n for n in _widths(size, 2**11) if memory.gpu_bytes(n) <= usable), 0)
    width = _widest(size, section.gpus)
    card = memory.gpu_bytes(width) / share / GIB
    fleet = (
        f"{needed} GPUs of {section.gpu_memory_gib:g} GiB ({needed - section.gpus} more)"
        if needed
        else "no number of these GPUs"
    )
    return (
        f"{model.name}: {size.weight_bytes / 1e9:,.1f} GB of weights do not fit on {section.gpus} GPUs of "
        f"{section.gpu_memory_gib:g} GiB; what would fit: {fleet}, or {width} of at least {card:,.0f} GiB"
    )
