"""The first stage: dialogue files in; checked dialogues and one tokens artifact per model and split out."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..errors import DialogueError
from ..models import model_files
from ..models.model_limits import position_limit
from ..progress import Progress
from ..storage import artifact
from ..storage.artifact import Artifact, storage_errors
from .chat_template import load_tokenizer, renderer_of
from .dialogue_files import file_digest
from .dialogues import Dialogue, dialogues_digest, read_dialogues, row_text, split_thought
from .fitting import fit_dialogues, refusal
from .model_templates import tokenizer_source, used_template
from .model_tokens import ModelTokens
from .recipes import dialogues_recipe, positions_behind, tokens_recipe
from .splits import near_duplicates, overlap_of, overlap_text, split_dialogues
from .template_heads import prompt_of
from .writing_files import DIALOGUES_FILE

SPLITS = ("train", "held_out")


def prepare_dialogues(config: RunConfig, *, progress: Progress | None = None) -> Artifact:
    """Read, check, cut and split the dialogues; write train.jsonl and held_out.jsonl.

    A dialogue longer than `dialogues.max_tokens` of the pivot is cut after its last whole turn that fits; one whose first
    exchange does not fit is set aside. Both are counted and named in the artifact.

    Raises:
        DialogueError: a broken dialogue (unless `on_bad: skip`), held-out dialogues that are training dialogues (unless
            `on_overlap: keep`), or none left.
    """
    progress = progress or Progress(quiet=True)
    section = config.dialogues
    behind = positions_behind(config.extraction.capture)
    model_files.check_trainable(model_files.resolve_model(config.pivot), config.pivot.name)
    recipe = dialogues_recipe(section, config.pivot, config.extraction.capture)
    settings = {
        **recipe.settings,
        "files": {path: file_digest(path) for path in [*section.train, *section.held_out]},
    }
    parents = {"written": artifact.load(config.written_path, "written")} if section.prompts else {}
    claim = artifact.claim(
        config.dialogues_path, "dialogues", settings=settings, parents=parents, if_changed=config.run.if_changed
    )
    if claim.artifact is not None:
        return claim.artifact
    bad: list[tuple[str, str]] = []
    left_out: dict[str, Counter[str]] = {}
    train, held_out = (
        list(read_dialogues(files, on_bad=section.on_bad, bad=bad, ignore_keys=section.ignore_keys, left_out=left_out))
        for files in (section.train, section.held_out)
    )
    written = list(read_dialogues(config.written_path / DIALOGUES_FILE)) if section.prompts else []
    if not section.held_out:
        train, held_out = split_dialogues(train, section.held_out_share)
        written, of_written = split_dialogues(written, section.held_out_share, by_prompt=True)
        held_out += of_written
    near = near_duplicates(written, held_out)
    own_ids = {dialogue.id for dialogue in written}
    train += [dialogue for dialogue in written if dialogue.id not in near]
    overlap = overlap_of(train, held_out)
    if overlap and section.on_overlap == "refuse":
        raise DialogueError(overlap_text(overlap))
    folder, revision, text = tokenizer_source(config.pivot, config.pivot)
    tokenizer, text = load_tokenizer(folder, revision, text)
    date = datetime.date.today().isoformat()
    template = used_template(config.pivot, text, date)
    limit = min(section.max_tokens, (position_limit(Path(folder)) or section.max_tokens + behind) - behind)
    fitted = {
        split: fit_dialogues(tokenizer, template, part, limit)
        for split, part in zip(SPLITS, (train, held_out), strict=True)
    }
    refused = [entry for one in fitted.values() for entry in one.refused]
    given = [entry for entry in refused if entry[0] not in own_ids]
    if given and section.on_bad == "refuse":
        raise DialogueError(refusal(given))
    bad += [(f"dialogue {dialogue_id!r}", f"set aside: {reason}") for dialogue_id, reason in refused]
    counts: dict[str, Any] = {
        "date": date,
        "skipped": [f"{place}: {reason}" for place, reason in bad],
        "columns_left_out": {file: dict(columns) for file, columns in left_out.items()},
        "held_out_in_train": list(overlap),
        "written": len(own_ids),
        "written_near_held_out": near,
        "reasons": _reasons(fitted["train"].dialogues),
    }
    for split, one in fitted.items():
        if split == "train" and not one.dialogues:
            raise DialogueError(
                f"{', '.join([*section.train, *section.prompts])}: no dialogue left to train on; see dialogues.max_tokens and on_bad"
            )
        _write_jsonl(config.dialogues_path / f"{split}.jsonl", one.dialogues)
        counts[split] = len(one.dialogues)
        counts[f"{split}_digest"] = dialogues_digest(one.dialogues)
        counts[f"{split}_cut_or_set_aside"] = one.notes
        counts[f"{split}_added_for_hidden_reasoning"] = one.added
        for note in one.notes:
            progress.say(f"dialogues: {note}")
        if one.added:
            progress.say(
                f"dialogues: {split}: the pivot's template hides earlier reasoning, so {one.split:,} dialogues stand there once "
                f"for each turn whose reasoning it shows ({one.added:,} more), each turn a target once"
            )
    for file, columns in left_out.items():
        named = ", ".join(f"{name} ({count:,} rows)" for name, count in columns.items())
        progress.say(f"dialogues: {file}: columns that are no part of a dialogue, and were not read: {named}")
    if near:
        progress.say(
            f"dialogues: {len(near):,} written ones are left out, because they are held-out ones but for a few words"
        )
    for line in counts["skipped"]:
        progress.say(f"dialogues: {line}")
    return claim.finish(counts)


def tokenize(config: RunConfig, name: str, *, progress: Progress | None = None) -> list[Artifact]:
    """Tokenize both splits for one model under its template.

    Returns:
        the tokens artifacts of train and held_out.
    """
    progress = progress or Progress(quiet=True)
    dialogues_artifact = artifact.load(config.dialogues_path, "dialogues")
    model = config.model_named(name)
    folder, revision, text = tokenizer_source(model, config.pivot)
    settings = {
        **tokens_recipe(model, config.extraction.capture).settings,
        "template": model_files.text_digest(text) if text else model.template,
        "tokenizer": model_files.digests(Path(folder), config.digests_path)["tokenizer"],
    }
    claims = {
        split: artifact.claim(
            config.tokens_url(name, split), "tokens", settings={**settings, "split": split},
            parents={"dialogues": dialogues_artifact}, if_changed=config.run.if_changed,
        )
        for split in SPLITS
    }  # fmt: skip
    if any(claim.artifact is None for claim in claims.values()):
        tokenizer, text = load_tokenizer(folder, revision=revision, template=text)
        template = used_template(model, text, dialogues_artifact.counts["date"])
        reasons = dialogues_artifact.counts["reasons"]
        prompt = prompt_of(renderer_of(tokenizer, template), reasons)
        template = replace(template, prompt=prompt, reasons=reasons)
        if prompt == "trained":
            progress.say(
                f"tokenize {name}: its template's own prompt is not what stands before an answer in training; it is asked "
                "with what stands there in training"
            )
        maker = ModelTokens(
            name, Path(folder), tokenizer, template, is_pivot=name == config.pivot.name, progress=progress,
            positions_behind=positions_behind(config.extraction.capture),
        )  # fmt: skip
        for split, claim in claims.items():  # train first: it decides how turns end
            path = config.dialogues_path / f"{split}.jsonl"
            if claim.artifact is None or split == "train":
                dialogues = list(read_dialogues(path)) if dialogues_artifact.counts[split] else []
                tokens, counts = maker.make(
                    dialogues, split, {**settings, "dialogues_digest": dialogues_artifact.counts[f"{split}_digest"]}
                )
            if claim.artifact is None:
                tokens.write(config.tokens_url(name, split))
                claim.finish(counts)
    return [claim.artifact for claim in claims.values() if claim.artifact is not None]


def _reasons(dialogues: list[Dialogue]) -> bool:
    """Whether most answers begin with reasoning, so that models are asked for it."""
    last = [
        next(message for message in reversed(dialogue.messages) if message.role == "assistant")
        for dialogue in dialogues
    ]
    thoughts = sum(bool(message.reasoning or split_thought(message.content)[0]) for message in last)
    return 2 * thoughts > len(last)


def _write_jsonl(path: Path, dialogues: list[Dialogue]) -> None:
    with storage_errors(path), path.open("w", encoding="utf-8") as file:
        for dialogue in dialogues:
            file.write(row_text(dialogue) + "\n")
