"""What each stage of a run takes: hours, GPU-hours, bytes written. Sizes, volumes and the teachers' hours in, a list out."""

import math
from dataclasses import dataclass

from ...config import JOINT, PlanSection, RunConfig
from ...models.engine_memory import GIB
from ...models.model_sizes import BYTES_OF_DTYPE, ModelSize
from ...text.prompts import read_prompts
from ...text.questions import CHUNK_QUESTIONS, read_questions
from .dialogue_volume import Volume, asked_prompts

LABEL_BYTES, BYTES_PER_ENTRY, WIDE_ID_BYTES = 0.6, 2.27, 0.34
"""On disk: per row, per row and entry (23.3 a row measured at k=10), and more per entry for ids of 32 bits."""
GIVEN_SHARE = 0.02
"""Of the dialogues, held out in files of their own."""
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
    rates = f"{section.cpus} cores at {section.cpu_tokens_per_second:,.0f} tokens/s"
    disk = f"{section.store_mib_per_second:g} MiB/s"
    stages = [
        StagePlan("tokenize", read / cpu, 0, 13.0 * read, rates),
        StagePlan("extract", scoring_gpu_hours / section.gpus, scoring_gpu_hours, store_bytes, _prefill_basis(section)),
        StagePlan("align", len(config.sources) * of_pivot.tokens / cpu, 0, aligned, rates),
        StagePlan("train", _wall_hours(config, train, targets), train, targets * target_bytes, train_basis),
        StagePlan("merge", merged / (section.store_mib_per_second * 2**20) / 3600, 0, fused_bytes, disk),
        _answer_stage(config, sizes, volumes),
        StagePlan("evaluate", 0, 0, 0, "reads what the models left; loads none"),
    ]  # fmt: skip
    if config.rounds.count:
        stages.insert(-2, _rounds_stage(config, stages, pivot, of_pivot, targets))
    if config.dialogues.prompts:
        stages.insert(0, _write_stage(config, sizes))
    return stages


def _rounds_stage(
    config: RunConfig, stages: list[StagePlan], pivot: ModelSize, volume: Volume, targets: int
) -> StagePlan:
    """Each round extracts, aligns and trains one target on the student's answers and the given dialogues beside them.

    Answers are taken to be as long as the given ones, each prompt to be taught; writing them reads the weights at each step.
    """
    section, rounds, by_name = config.plan, config.rounds, {stage.stage: stage for stage in stages}
    files = rounds.prompts or config.dialogues.prompts
    prompts = len(read_prompts(files, on_bad="skip")) if files else volume.dialogues
    answers = prompts * rounds.samples
    share = answers / (1 - rounds.given_share) / max(1, volume.dialogues)
    longest = min(rounds.max_new_tokens, math.ceil(volume.rows / max(1, volume.dialogues)))
    steps = math.ceil(answers / CHUNK_QUESTIONS) * longest
    gpu_hours = steps * pivot.weight_bytes / (section.decode_gib_per_second * GIB) / 3600
    hours, written = gpu_hours / section.gpus, 0.0
    for name, part in (("extract", 1.0), ("align", 1.0), ("train", 1 / targets)):
        stage, times = by_name[name], part * share
        hours, gpu_hours = hours + times * stage.hours, gpu_hours + times * stage.gpu_hours
        written += part * stage.bytes * (1.0 if name == "train" else share)
    basis = f"{rounds.count} rounds of {answers:,} answers to {prompts:,} prompts"
    return StagePlan("rounds", rounds.count * hours, rounds.count * gpu_hours, rounds.count * written, basis)


def _answer_stage(config: RunConfig, sizes: dict[str, ModelSize], volumes: dict[str, Volume]) -> StagePlan:
    """Every measured model scores the held-out dialogues, and gives its longest answer to every turn."""
    section = config.plan
    share = config.dialogues.held_out_share if not config.dialogues.held_out else GIVEN_SHARE
    names = [model_id.removeprefix("source.") for model_id in config.measured_ids if model_id.startswith("source.")]
    names += [config.pivot.name] * (len(config.measured_ids) - len(names))
    scoring, rows_bytes = 0.0, 0.0
    for name in names:
        size, volume = sizes[name], volumes[name]
        flops = share * volume.tokens * size.flops_per_token(volume.mean_context)
        scoring += flops / (section.tflops * 1e12 * section.prefill_utilisation) / 3600
        ranks = config.model_named(name).engine.tensor_parallel_size  # all wait while the weights are loaded
        scoring += ranks * size.weight_bytes / (section.store_mib_per_second * 2**20) / 3600
        rows_bytes += share * volume.rows * row_bytes(config.extraction.k, size.vocab_size)
    asked = round(share * volumes[config.pivot.name].dialogues) if config.evaluation.exact.kinds else 0
    answering, answer_bytes = _answering(config, sum(sizes[name].weight_bytes for name in names), len(names), asked)
    hours = scoring + answering
    rate = f"{section.decode_gib_per_second:g} GiB/s of weights"
    basis = f"{len(names)} models, {share:.0%} of the dialogues held out; longest answers, {rate}"
    return StagePlan("answer", hours / section.gpus, hours, rows_bytes + answer_bytes, basis)


def _answering(config: RunConfig, weight_bytes: float, num_models: int, num_exact: int) -> tuple[float, float]:
    """GPU-hours and bytes of all answers of all models; each step of a chunk reads all weights once.

    Args:
        weight_bytes: of all models together.
        num_exact: held-out dialogues whose last answer is asked for, at most.
    """
    section = config.plan
    exact = -(-num_exact // CHUNK_QUESTIONS) * config.evaluation.exact.max_new_tokens
    steps, tokens = exact, num_exact * config.evaluation.exact.max_new_tokens
    for answer_set in config.evaluation.questions.sets:
        turns = [len(question.turns) for question in read_questions(answer_set.file, answer_set.form)]
        chunks = [turns[start : start + CHUNK_QUESTIONS] for start in range(0, len(turns), CHUNK_QUESTIONS)]
        steps += sum(map(max, chunks)) * answer_set.max_new_tokens
        tokens += sum(turns) * answer_set.max_new_tokens
    if not steps:
        return 0.0, 0.0
    seconds = steps / (section.decode_gib_per_second * GIB) + 1 / (section.store_mib_per_second * 2**20)
    return weight_bytes * seconds / 3600, tokens * section.bytes_per_token * num_models


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
