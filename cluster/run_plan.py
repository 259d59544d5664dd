"""What a run will take before anything is spent: sizes, GPUs, hours, bytes. Reads configs and counts, starts nothing.

Forward FLOPs: two per active parameter that multiplies, attention over half a dialogue, the head for target tokens
only. Hours assume that the pool keeps all GPUs busy, so they are a lower bound on the clock and right for GPU-hours.
"""

from dataclasses import dataclass, field

from fusechat.config import ModelSection, PlanSection, RunConfig

from .dialogue_volume import Volume, estimated_volume, known_volume
from .model_sizes import ModelSize, model_size

GIB = 2**30
POOLER_BLOCK_BYTES = 2**28
"""Logits of one block of the top-k pooler (`inference/topk_pooler.py`); log-sum-exp takes as much again."""
RUNTIME_BYTES = 2 * GIB
"""Of a GPU for the driver, NCCL and the workspace of kernels."""
LABEL_BYTES, BYTES_PER_ENTRY, WIDE_ID_BYTES = 0.6, 2.27, 0.34
"""On disk: per row, per row and entry (23.3 a row measured at k=10), and more per entry for ids of 32 bits."""
TRAINING_BYTES_PER_PARAMETER = 16
"""float32 weights, gradients and two moments of Adam, without activations."""


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
    replicas: int
    """Engines that the fleet holds, at most one per shard; 0: none fits."""
    shards: int
    gpu_hours: float
    basis: str
    store_bytes: float
    note: str = ""


@dataclass(frozen=True)
class StagePlan:
    """One stage of the run."""

    stage: str
    hours: float
    gpu_hours: float
    bytes: float
    basis: str


@dataclass(frozen=True)
class RunPlan:
    """The whole plan."""

    section: PlanSection
    teachers: list[TeacherPlan]
    stages: list[StagePlan]
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
        DialogueError: dialogues that are neither tokenized nor readable.
    """
    sizes = {model.name: model_size(model) for model in config.models}
    known = {name: known_volume(config, name) for name in sizes}
    volumes = {name: volume for name, volume in known.items() if volume is not None}
    if len(volumes) < len(known):
        volumes = dict.fromkeys(known, estimated_volume(config)) | volumes
    teachers = [plan_teacher(config, model, sizes[model.name], volumes[model.name]) for model in config.models]
    problems = [teacher.note for teacher in teachers if not teacher.replicas]
    return RunPlan(config.plan, teachers, _stages(config, sizes, volumes, teachers), problems)


def plan_teacher(config: RunConfig, model: ModelSection, size: ModelSize, volume: Volume) -> TeacherPlan:
    """One model as a teacher on the plan's card."""
    section, wanted = config.plan, model.engine.tensor_parallel_size
    fitting = smallest_parallel_size(config, model, size)
    width = max(wanted, fitting) if fitting else _widest(size, section.gpus)
    shards = max(1, round(volume.tokens / config.extraction.shard_tokens))
    replicas = min(section.gpus // width, shards, config.extraction.replicas or shards) if fitting else 0
    gpu_hours, basis = _scoring_hours(section, model.name, size, volume, width)
    gpu_hours += replicas * width * size.weight_bytes / (section.store_mib_per_second * 2**20) / 3600
    return TeacherPlan(
        model.name, size, volume, width, _kv_bytes(config, model, size), _logits_bytes(config, model, size, width),
        gpu_bytes(config, model, size, width), replicas, shards, gpu_hours, basis,
        volume.rows * row_bytes(config.extraction.k, size.vocab_size), _note(config, model, size, fitting),
    )  # fmt: skip


def smallest_parallel_size(config: RunConfig, model: ModelSection, size: ModelSize) -> int:
    """Fewest GPUs of the plan's card that hold one engine, 0 if the fleet cannot."""
    for width in _widths(size, config.plan.gpus):
        if gpu_bytes(config, model, size, width) <= _usable_bytes(config, model):
            return width
    return 0


def gpu_bytes(config: RunConfig, model: ModelSection, size: ModelSize, width: int) -> float:
    """Memory that one of `width` GPUs must give an engine, bytes."""
    activations = model.engine.max_num_batched_tokens * size.hidden_size * 10 * 2
    shared = (size.weight_bytes + _kv_bytes(config, model, size)) / width
    return shared + _logits_bytes(config, model, size, width) + activations + RUNTIME_BYTES


def row_bytes(k: int, vocab_size: int) -> float:
    """Bytes of one row in a store, about."""
    return LABEL_BYTES + k * (BYTES_PER_ENTRY + (WIDE_ID_BYTES if vocab_size > 65_536 else 0))


def _usable_bytes(config: RunConfig, model: ModelSection) -> float:
    return config.plan.gpu_memory_gib * GIB * model.engine.gpu_memory_utilization


def _widths(size: ModelSize, gpus: int) -> list[int]:
    """Powers of two that the heads can be split into."""
    return [2**i for i in range(12) if 2**i <= gpus and size.num_heads % 2**i == 0]


def _widest(size: ModelSize, gpus: int) -> int:
    return _widths(size, gpus)[-1]


def _kv_bytes(config: RunConfig, model: ModelSection, size: ModelSize) -> float:
    return size.kv_bytes_per_token * (model.engine.max_num_batched_tokens + config.dialogues.max_tokens)


def _logits_bytes(config: RunConfig, model: ModelSection, size: ModelSize, width: int) -> float:
    step = model.engine.max_num_batched_tokens * size.vocab_size * 4
    head = 0 if model.engine.head_dtype == "model" else size.head_parameters * 4 / width
    if config.extraction.capture == "prompt_logprobs":
        return 2 * step + head
    return 2 * min(POOLER_BLOCK_BYTES, step / width) + head


def _scoring_hours(section: PlanSection, name: str, size: ModelSize, volume: Volume, width: int) -> tuple[float, str]:
    """GPU-hours of one pass over the dialogues, and what they are from."""
    rate = section.tokens_per_second.get(name)
    if rate:
        return volume.tokens / rate * width / 3600, f"measured {rate:,.0f} tokens/s per engine"
    flops = volume.tokens * size.flops_per_token(volume.mean_context, head_share=volume.rows / max(1, volume.tokens))
    return flops / (section.tflops * 1e12 * section.prefill_utilisation) / 3600, "FLOPs"


def _note(config: RunConfig, model: ModelSection, size: ModelSize, fitting: int) -> str:
    section, wanted = config.plan, model.engine.tensor_parallel_size
    if fitting:
        if wanted >= fitting:
            return ""
        return f"{model.name}: engine.tensor_parallel_size is {wanted}, one engine needs {fitting} of these GPUs: set it to {fitting}"
    usable, share = _usable_bytes(config, model), model.engine.gpu_memory_utilization
    needed = next((n for n in _widths(size, 2**11) if gpu_bytes(config, model, size, n) <= usable), 0)
    width = _widest(size, section.gpus)
    card = gpu_bytes(config, model, size, width) / share / GIB
    fleet = (
        f"{needed} GPUs of {section.gpu_memory_gib:g} GiB ({needed - section.gpus} more)"
        if needed
        else "no number of these GPUs"
    )
    return (
        f"{model.name}: {size.weight_bytes / 1e9:,.1f} GB of weights do not fit on {section.gpus} GPUs of "
        f"{section.gpu_memory_gib:g} GiB; what would fit: {fleet}, or {width} of at least {card:,.0f} GiB"
    )


def _stages(
    config: RunConfig, sizes: dict[str, ModelSize], volumes: dict[str, Volume], teachers: list[TeacherPlan]
) -> list[StagePlan]:
    section, pivot = config.plan, sizes[config.pivot.name]
    of_pivot = volumes[config.pivot.name]
    cpu = section.cpus * section.cpu_tokens_per_second * 3600
    read = sum(volume.tokens for volume in volumes.values())
    extract = sum(teacher.gpu_hours for teacher in teachers)
    targets = len(config.sources) + config.training.train_control
    train, train_basis = _training_hours(config, pivot, of_pivot, targets)
    aligned = len(config.sources) * of_pivot.rows * (row_bytes(config.extraction.k, pivot.vocab_size) + 0.1)
    merged = (targets + 2) * pivot.weight_bytes / (section.store_mib_per_second * 2**20) / 3600
    share = config.dialogues.held_out_share if not config.dialogues.held_out else 0.02
    forward = sum(
        (targets + 2 if name == config.pivot.name else 1) * volumes[name].tokens * share
        * size.flops_per_token(volumes[name].mean_context) / (section.tflops * 1e12 * section.training_utilisation) / 3600
        for name, size in sizes.items()
    )  # fmt: skip
    rates = f"{section.cpus} cores at {section.cpu_tokens_per_second:,.0f} tokens/s"
    disk = f"{section.store_mib_per_second:g} MiB/s"
    target_bytes = pivot.parameters * 4.0
    return [
        StagePlan("tokenize", read / cpu, 0, 13.0 * read, rates),
        StagePlan("extract", extract / section.gpus, extract, sum(t.store_bytes for t in teachers), _prefill_basis(section)),
        StagePlan("align", len(config.sources) * of_pivot.tokens / cpu, 0, aligned, rates),
        StagePlan("train", train / section.gpus, train, targets * target_bytes, train_basis),
        StagePlan("merge", merged, 0, pivot.weight_bytes, disk),
        StagePlan("evaluate", forward / section.gpus, forward, 0, f"FLOPs, {share:.0%} of the dialogues held out"),
    ]  # fmt: skip


def _prefill_basis(section: PlanSection) -> str:
    return f"{section.tflops:g} TFLOP/s at {section.prefill_utilisation:.0%}, and loading at {section.store_mib_per_second:g} MiB/s"


def _training_hours(config: RunConfig, pivot: ModelSize, volume: Volume, targets: int) -> tuple[float, str]:
    """GPU-hours of training all targets; backward is two forwards, recomputation one more."""
    section, trl = config.plan, config.training.trl
    tokens = volume.tokens * float(trl.get("num_train_epochs", 3))
    if int(trl.get("max_steps", -1)) > 0:
        batch = int(trl.get("per_device_train_batch_size", 128)) * int(trl.get("gradient_accumulation_steps", 1))
        tokens = int(trl["max_steps"]) * batch * volume.tokens / max(1, volume.dialogues)
    if section.training_tokens_per_second:
        measured = section.training_tokens_per_second
        return targets * tokens / measured / 3600, f"measured {measured:,.0f} tokens/s per GPU"
    passes = 4 if trl.get("gradient_checkpointing", True) else 3
    flops = passes * tokens * pivot.flops_per_token(volume.mean_context)
    rate = f"{section.tflops:g} TFLOP/s at {section.training_utilisation:.0%}"
    basis = f"{targets} targets, {rate}; one takes {_training_gpus(config, pivot)} GPUs or more"
    return targets * flops / (section.tflops * 1e12 * section.training_utilisation) / 3600, basis


def _training_gpus(config: RunConfig, pivot: ModelSize) -> int:
    """GPUs that hold one target's weights, gradients and moments, with a quarter left for activations."""
    per_parameter = 4 if config.training.lora else TRAINING_BYTES_PER_PARAMETER
    return -(-int(pivot.parameters * per_parameter) // int(0.75 * config.plan.gpu_memory_gib * GIB))
