"""The door of training: the pivot, its tokens and the rows in; one target out.

`run` works in one process, or in each of several that `accelerate launch -m trainer RUN.yaml TARGET` or Ray Train
started. Killed and started again, it goes on from its last whole checkpoint.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState

from fusechat.config import CONTROL
from fusechat.errors import ConfigError, ModelError
from fusechat.models import model_files
from fusechat.models.resolved_model import ResolvedModel, resolve
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.row_store import RowStore
from fusechat.storage.seals import CHECKPOINTS
from fusechat.storage.tokens_reader import OFFSETS_IN_MEMORY, TokensReader
from fusechat.storage.zarr_arrays import ranges
from fusechat.text.dialogues import read_dialogues
from fusechat.text.model_templates import template_of

from . import choice_stage, target_model
from .arguments import model_arguments, packing_arguments, training_arguments
from .checkpoints import CheckpointPace, last_checkpoint, remove_damaged, remove_partial
from .choice import NOBODY
from .choice_artifact import Choice, read_losses
from .collator import FusionCollator
from .fading import Fading, Leads
from .fusion_dataset import FusionDataset, Teachers
from .fusion_targets import RowChoice
from .inputs import TrainingInputs
from .losses import LossOptions
from .model_card import write_model_card
from .open_rows import open_rows
from .packing_check import check_packing
from .recipe import row_choice
from .run_log import RunLog, read_metrics
from .target_claim import claim_target, parents_of
from .target_prompt import write_target_prompt
from .units import Units, pack


@dataclass(frozen=True)
class TrainingData:
    """What one target is trained from."""

    choice: RowChoice
    tokens: TokensReader
    pivot_folder: Path
    stores: dict[str, RowStore]
    teachers: Teachers | None
    leads: Leads | None
    """Of the teachers; None: rows do not fade."""


def run(inputs: TrainingInputs, target_name: str, *, progress: Progress | None = None) -> Artifact:
    """Train one target.

    Args:
        target_name: a source's name, `joint`, or `sft` for the control.
    Raises:
        ArtifactError: artifacts that were not made from one another, or another recipe's work in the target's folder.
        ConfigError: a field of `training.trl` that does not exist or cannot be set.
        FuseChatError: the loss is not finite.
    """
    progress = progress or Progress(quiet=True)
    processes = PartialState(cpu=not torch.accelerator.is_available())
    with processes.main_process_first():
        pivot = resolve(inputs.pivot, inputs.layout.digests_path)
        data = read_data(inputs, pivot, target_name)
    arguments = training_arguments(
        inputs.section.trl, seed=inputs.seed, max_tokens=inputs.max_tokens, num_processes=processes.num_processes
    )
    with processes.main_process_first():
        claim = claim_target(inputs, pivot, target_name)
    if claim.artifact is None:
        _train(inputs, target_name, data, arguments, claim, progress)
        processes.wait_for_everyone()
    return claim.artifact or artifact.load(inputs.layout.target_path(target_name), "target")


def read_data(inputs: TrainingInputs, pivot: ResolvedModel, target_name: str) -> TrainingData:
    """Open what a target is trained from, and refuse what does not belong together; no model is loaded.

    Raises:
        ConfigError: no such target, or a template that the dialogues were not tokenized under.
        ArtifactError: an artifact is missing, or was made from other tokens than the pivot's of this run.
        ModelError: the pivot's tokenizer is not the one the dialogues were tokenized with.
    """
    if target_name not in (known := list(dict.fromkeys([*inputs.names, CONTROL]))):
        raise ConfigError(f"no target {target_name!r}; the run has {known}")
    parents, tokens_url = parents_of(inputs, target_name), inputs.layout.tokens_url(pivot.name)
    tokens = TokensReader(tokens_url)
    model_files.check_trainable(pivot.folder, pivot.name)
    if tokens.attributes["tokenizer"] != pivot.digests["tokenizer"]:
        raise ModelError(
            f"{pivot.folder}: its tokenizer files have digest {pivot.digests['tokenizer']}, the dialogues were tokenized with "
            f"{tokens.attributes['tokenizer']}; run `fusechat tokenize` again"
        )
    if tokens.attributes["template"] != template_of(pivot, pivot):
        raise ConfigError(
            f"pivot.template: {pivot.section.template!r} is not the template that {tokens_url} was made under; "
            "set it back, or run all stages from tokenize on again"
        )
    stores: dict[str, RowStore] = {
        role: open_rows(parents[role], parents["tokens"], tokens)
        for role in ("pivot_rows", "source_rows")
        if role in parents
    }
    if "source_own_rows" in parents:
        stores["source_own_rows"] = RowStore.open(parents["source_own_rows"].url, "logprobs")
    teachers = leads = None
    if "choice" in parents:
        chosen = Choice.read(parents["choice"].url)
        teachers = _teachers(parents, chosen, tokens, inputs.least_probability)
        if inputs.section.fading and not inputs.is_round:
            leads = _leads(inputs, parents["choice"], chosen, tokens, teachers.number)
    return TrainingData(row_choice(inputs.section, target_name), tokens, pivot.folder, stores, teachers, leads)


def _teachers(parents: dict[str, Artifact], chosen: Choice, tokens: TokensReader, least_probability: float) -> Teachers:
    """Who teaches a target's dialogues: of those that its sources did not win, nobody."""
    names = [role.removeprefix("rows.") for role in parents if role.startswith("rows.")]
    number = np.full(tokens.num_dialogues, NOBODY, np.int16)
    for place, name in enumerate(names):
        number[chosen.source == chosen.sources.index(name)] = place
    stores = [open_rows(parents[f"rows.{name}"], parents["tokens"], tokens) for name in names]
    is_own = chosen.is_own if chosen.is_own.any() else None
    return Teachers(stores, number, chosen.trust, is_own, least_probability)


def _leads(inputs: TrainingInputs, made: Artifact, chosen: Choice, tokens: TokensReader, number: np.ndarray) -> Leads:
    """By how much each dialogue's teacher leads, grouped by source and kind; `number` int16 [dialogues], -1: nobody."""
    kinds = choice_stage.kinds_of(inputs.layout, tokens.num_dialogues)
    group, num_rows = kinds.number, np.empty(len(number), np.int32)
    for part in ranges(len(number), OFFSETS_IN_MEMORY):
        block = slice(part.start, part.stop)
        of_kinds = number[block].astype(np.int32) * len(kinds.names) + group[block]
        group[block] = np.where(number[block] < 0, NOBODY, of_kinds)
        num_rows[block] = np.diff(tokens.row_offsets_of(part))
    return Leads(group, *read_losses(made.url, chosen), num_rows)


def _train(
    inputs: TrainingInputs, name: str, data: TrainingData, arguments: dict[str, Any], claim: Claim, progress: Progress
) -> None:
    from .fusion_trainer import FusionTrainer, sft_config

    target, training = inputs.layout.target_path(name), inputs.section
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    load_arguments = model_arguments(arguments)
    packed, flat = packing_arguments(arguments, str(load_arguments.get("attn_implementation", "sdpa")))
    checkpoints = target / CHECKPOINTS
    settings: Any = sft_config({**arguments, "output_dir": str(checkpoints)})
    max_tokens = settings.max_length or inputs.max_tokens
    dataset = FusionDataset(
        data.tokens, choice=data.choice, max_tokens=max_tokens, teachers=data.teachers, **data.stores
    )
    units, lengths = _units(dataset, packed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(data.pivot_folder)
    log = RunLog(progress, f"train {name}", target)
    pivot = target_model.load_pivot(data.pivot_folder, load_arguments)
    if packed:
        check_packing(pivot)
    pad = target_model.padding_id(pivot, tokenizer)
    trainer = FusionTrainer(
        pivot, settings,
        collator=FusionCollator(
            dataset, units, pad_token_id=pad, packed=packed, flat=flat, pad_to_multiple_of=settings.pad_to_multiple_of,
            fusion_weight=1 - training.sft_weight,
        ),
        unit_lengths=lengths, tokenizer=tokenizer, callbacks=[log], peft_config=target_model.lora_config(training.lora),
        options=LossOptions(training.sft_weight, training.divergence, training.temperature, training.tail),
        name_dialogues=lambda numbers: _dialogue_ids(inputs, numbers),
        pace=None if {"save_strategy", "save_steps"} & training.trl.keys() else CheckpointPace(),
        fading=None if data.leads is None else Fading(data.leads),
    )  # fmt: skip
    if trainer.is_world_process_zero():
        remove_partial(checkpoints)
        for damaged in remove_damaged(checkpoints):
            progress.say(f"train {name}: {damaged} is not as it was written, and was deleted")
    trainer.accelerator.wait_for_everyone()
    resumed = last_checkpoint(checkpoints)
    if resumed is not None:
        progress.say(f"train {name}: goes on from step {resumed.name.removeprefix('checkpoint-')}")
        trainer.go_on_from(resumed)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    trained, state = trainer.gather()
    if trainer.is_world_process_zero():
        model = target_model.whole_model(trained, state, data.pivot_folder, training.lora)
        template = data.tokens.attributes["template"]
        target_model.save_target(model, data.pivot_folder, target, template, training.save_dtype)
        write_target_prompt(target, data.tokens)
        counts = _counts(dataset, units, lengths, trainer.state.global_step, read_metrics(target))
        write_model_card(target, inputs, name, claim.recipe, counts)
        claim.finish(counts)
        shutil.rmtree(checkpoints, ignore_errors=True)


def _units(dataset: FusionDataset, packed: bool) -> tuple[Units, np.ndarray]:
    """The units of batches and their lengths, tokens."""
    dialogues = dataset.trainable()
    if not len(dialogues):
        raise ConfigError(
            f"training.trl.max_length: no dialogue keeps a target token within {dataset.max_tokens} tokens; raise it"
        )
    lengths = dataset.lengths()
    units = pack(dialogues, lengths, dataset.max_tokens) if packed else Units(dialogues)
    return units, units.lengths(lengths)


def _counts(
    dataset: FusionDataset, units: Units, lengths: np.ndarray, steps: int, metrics: list[dict[str, float]]
) -> dict[str, Any]:
    last = metrics[-1] if metrics else {}
    kept = ("loss", "sft_loss", "fusion_loss", "row_entropy", "source_share", "token_accuracy")
    trained = units.num_dialogues
    return {
        "steps": steps,
        "dialogues": trained,
        "dialogues_without_target": len(dataset) - trained,
        "tokens": int(lengths.sum()),
        "last_step": {name: round(float(last[name]), 6) for name in kept if name in last},
        "dialogues_without_source": int(sum(record.get("dialogues_without_source", 0) for record in metrics)),
        "source_share": round(float(np.mean([record["source_share"] for record in metrics])), 6) if metrics else 0.0,
    }


def _dialogue_ids(inputs: TrainingInputs, numbers: list[int]) -> list[str]:
    wanted = set(numbers)
    dialogues = enumerate(read_dialogues(inputs.layout.dialogues_path / "train.jsonl"))
    ids = {number: dialogue.id for number, dialogue in dialogues if number in wanted}
    return [ids[number] for number in numbers]
