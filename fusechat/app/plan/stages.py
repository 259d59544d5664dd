"""What each stage of a run takes: hours, GPU-hours, bytes written. Sizes, volumes and the teachers' hours in, a list out."""

import math
from dataclasses import dataclass

from ...config import JOINT, PlanSection, RunConfig
from ...models.engine_memory import GIB
from ...models.model_sizes import BYTES_OF_DTYPE, ModelSize
from ...text.questions import CHUNK_QUESTIONS, read_questions
from .dialogue_volume import Volume, asked_prompts

LABEL_BYTES, BYTES_PER_ENTRY, WIDE_ID_BYTES = 0.6, 2.27, 0.34
"""On disk: per row, per row and entry (23.3 a row measured at k=10), and more per entry for ids of 32 bits."""
TRAINING_BYTES_PER_PARAMETER = 16
"""float32 weights, gradients and two moments of Adam, without activations."""


@dataclass(frozen=True)
class StagePlan:
    """One stage of the run."""

    stage: str
    hours: float
    gpu_hours: float
    bytes: float
    basis: str


def row_bytes(k: int, vocab_size: int) -> float:
    """Bytes of one row in a store, about."""
    return LABEL_BYTES + k * (BYTES_PER_ENTRY + (WIDE_ID_BYTES if vocab_size > 65_536 else 0))


def plan_stages(
    config: RunConfig,
    sizes: dict[str, ModelSize],
    volumes: dict[str, Volume],
    *,
    scoring_gpu_hours: float,
    store_bytes: float,
) -> list[StagePlan]:
    """All stages in order.

    Args:
        sizes, volumes: by the models' names.
        scoring_gpu_hours, store_bytes: of all teachers.
    Raises:
        DialogueError: questions that cannot be read.
    """
    section, pivot = config.plan, sizes[config.pivot.name]
    of_pivot = volumes[config.pivot.name]
    cpu = section.cpus * section.cpu_tokens_per_second * 3600
    read = sum(volume.tokens for volume in volumes.values())
    targets = len(config.target_names) + config.training.train_control
    train, train_basis = _training_hours(config, pivot, of_pivot, targets)
    aligned = len(config.sources) * of_pivot.rows * (row_bytes(config.extraction.k, pivot.vocab_size) + 0.1)
    target_bytes = pivot.parameters * BYTES_OF_DTYPE.get(config.training.save_dtype, 4.0)
    fused_bytes = pivot.parameters * BYTES_OF_DTYPE.get(config.merge.dtype, pivot.bytes_per_weight)
    joint_alone = config.merged_names == [JOINT]
    merged = 0.0 if joint_alone else pivot.weight_bytes + len(config.merged_names) * target_bytes + fused_bytes
    share = config.dialogues.held_out_share if not config.dialogues.held_out else 0.02
    forward = sum(
        (targets + 2 if name == config.pivot.name else 1) * volumes[name].tokens * share
        * size.flops_per_token(volumes[name].mean_context) / (section.tflops * 1e12 * section.training_utilisation) / 3600
        for name, size in sizes.items()
    )  # fmt: skip
    rates = f"{section.cpus} cores at {section.cpu_tokens_per_second:,.0f} tokens/s"
    disk = f"{section.store_mib_per_second:g} MiB/s"
    stages = [
        StagePlan("tokenize", read / cpu, 0, 13.0 * read, rates),
        StagePlan("extract", scoring_gpu_hours / section.gpus, scoring_gpu_hours, store_bytes, _prefill_basis(section)),
        StagePlan("align", len(config.sources) * of_pivot.tokens / cpu, 0, aligned, rates),
        StagePlan("train", _wall_hours(config, train, targets), train, targets * target_bytes, train_basis),
        StagePlan("merge", merged / (section.store_mib_per_second * 2**20) / 3600, 0, fused_bytes, disk),
        StagePlan("evaluate", forward / section.gpus, forward, 0, f"FLOPs, {share:.0%} of the dialogues held out"),
    ]  # fmt: skip
    if config.dialogues.prompts:
        stages.insert(0, _write_stage(config, sizes))
    if config.evaluation.questions.sets:
        stages.insert(-1, _answer_stage(config, sizes))
    return stages


def _answer_stage(config: RunConfig, sizes: dict[str, ModelSize]) -> StagePlan:
    """Every measured model gives its longest answer to every turn; each step of a chunk reads all weights once."""
    section, steps, tokens = config.plan, 0, 0
    for answer_set in config.evaluation.questions.sets:
        turns = [len(question.turns) for question in read_questions(answer_set.file, answer_set.form)]
        chunks = [turns[start : start + CHUNK_QUESTIONS] for start in range(0, len(turns), CHUNK_QUESTIONS)]
        steps += sum(map(max, chunks)) * answer_set.max_new_tokens
        tokens += sum(turns) * answer_set.max_new_tokens
    sources = [model_id.removeprefix("source.") for model_id in config.measured_ids if model_id.startswith("source.")]
    of_pivots_size = len(config.measured_ids) - len(sources)
    weights = of_pivots_size * sizes[config.pivot.name].weight_bytes + sum(sizes[name].weight_bytes for name in sources)
    seconds = steps / (section.decode_gib_per_second * GIB) + 1 / (section.store_mib_per_second * 2**20)
    gpu_hours, written = weights * seconds / 3600, tokens * section.bytes_per_token * len(config.measured_ids)
    basis = f"{len(config.measured_ids)} models, longest answers, {section.decode_gib_per_second:g} GiB/s of weights"
    return StagePlan("answer", gpu_hours / section.gpus, gpu_hours, written, basis)


def _write_stage(config: RunConfig, sizes: dict[str, ModelSize]) -> StagePlan:
    """Every writer gives its longest answer to every prompt, all samples; each step of a chunk reads all weights once.

    What a rule asks of other models is not in it: `likelihood` takes about a pass over all answers of each scorer.
    """
    plan, section = config.plan, config.writing
    prompts, _ = asked_prompts(config)
    chunks = math.ceil(prompts / section.chunk_prompts)
    weights = sum(sizes[writer.name].weight_bytes for writer in config.writers)
    seconds = chunks * section.max_new_tokens / (plan.decode_gib_per_second * GIB) + 1 / (
        plan.store_mib_per_second * 2**20
    )
    gpu_hours = weights * seconds / 3600
    answers = prompts * section.samples * len(config.writers)
    basis = f"{answers:,} answers, the longest, {plan.decode_gib_per_second:g} GiB/s of weights"
    return StagePlan(
        "write", gpu_hours / plan.gpus, gpu_hours, answers * section.max_new_tokens * plan.bytes_per_token, basis
    )


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
        rate = f"measured {measured:,.0f} tokens/s per GPU"
        return targets * tokens / measured / 3600, f"{_trainings(config, targets)}, {rate}"
    passes = 4 if trl.get("gradient_checkpointing", True) else 3
    flops = passes * tokens * pivot.flops_per_token(volume.mean_context)
    rate = f"{section.tflops:g} TFLOP/s at {section.training_utilisation:.0%}"
    basis = f"{_trainings(config, targets)}, {rate}; one takes {_training_gpus(config, pivot)} GPUs or more"
    return targets * flops / (section.tflops * 1e12 * section.training_utilisation) / 3600, basis


def _trainings(config: RunConfig, targets: int) -> str:
    """How many targets are trained, and how many the other kinds of fusion would train."""
    control, fusion = config.training.train_control, config.training.fusion
    counts = {"pairwise": len(config.sources), "joint": 1, "both": len(config.sources) + 1}
    others = ", ".join(f"{kind} {count + control}" for kind, count in counts.items() if kind != fusion)
    return f"{targets} targets ({fusion}; {others})"


def _wall_hours(config: RunConfig, gpu_hours: float, targets: int) -> float:
    """Targets train side by side as far as the fleet has room, each on the GPUs of its own workers."""
    each = config.cluster.training_workers * (config.cluster.training_gpus or 1)
    rounds = math.ceil(targets / max(1, config.plan.gpus // each))
    return rounds * gpu_hours / targets / min(each, config.plan.gpus)


def _training_gpus(config: RunConfig, pivot: ModelSize) -> int:
    """GPUs that hold one target's weights, gradients and moments, with a quarter left for activations."""
    per_parameter = 4 if config.training.lora else TRAINING_BYTES_PER_PARAMETER
    return -(-int(pivot.parameters * per_parameter) // int(0.75 * config.plan.gpu_memory_gib * GIB))
