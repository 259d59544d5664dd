"""The first stage: dialogue files in; checked dialogues and one tokens artifact per model and split out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..config import ModelSection, RunConfig
from ..errors import ConfigError, DialogueError
from ..models import model_files
from ..progress import Progress
from ..storage import artifact
from ..storage.artifact import Artifact, storage_errors
from ..storage.tokens import Tokens
from .chat_template import load_tokenizer
from .dialogues import Dialogue, Message, dialogues_digest, read_dialogues, row_text
from .tokenization import cut_dialogue, tokenize_dialogues

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "held_out")
TEMPLATE_NAMES = ("native", "pivot")
MAX_NAMED = 10
"""Dialogues named in one message."""


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
    settings = {
        **section.model_dump(mode="json"),
        "pivot": config.pivot.model_dump(mode="json", include={"model", "revision", "template"}),
        "files": {path: _file_digest(path) for path in [*section.train, *section.held_out]},
    }
    claim = artifact.claim(
        config.dialogues_path, "dialogues", settings=settings, parents={}, if_changed=config.run.if_changed
    )
    if claim.artifact is not None:
        return claim.artifact
    bad: list[tuple[str, str]] = []
    left_out: dict[str, Counter[str]] = {}
    train, held_out = (
        list(read_dialogues(files, on_bad=section.on_bad, bad=bad, ignore_keys=section.ignore_keys, left_out=left_out))
        for files in (section.train, section.held_out)
    )
    if not section.held_out:
        train, held_out = _split(train, section.held_out_share)
    overlap = _overlap(train, held_out)
    if overlap and section.on_overlap == "refuse":
        raise DialogueError(_overlap_text(overlap))
    tokenizer, template = load_tokenizer(*_tokenizer_source(config, config.pivot))
    counts: dict = {
        "skipped": [f"{place}: {reason}" for place, reason in bad],
        "columns_left_out": {file: dict(columns) for file, columns in left_out.items()},
        "held_out_in_train": list(overlap),
    }
    for split, dialogues in zip(SPLITS, (train, held_out), strict=True):
        kept, notes = _cut_all(dialogues, tokenizer, template, section.max_tokens)
        if split == "train" and not kept:
            raise DialogueError(
                f"{', '.join(section.train)}: no dialogue left to train on; see dialogues.max_tokens and on_bad"
            )
        _write_jsonl(config.dialogues_path / f"{split}.jsonl", kept)
        counts[split] = len(kept)
        counts[f"{split}_digest"] = dialogues_digest(kept)
        counts[f"{split}_cut_or_set_aside"] = notes
        for note in notes:
            progress.say(f"dialogues: {note}")
    for file, columns in left_out.items():
        named = ", ".join(f"{name} ({count:,} rows)" for name, count in columns.items())
        progress.say(f"dialogues: {file}: columns that are no part of a dialogue, and were not read: {named}")
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
    folder, revision, text = _tokenizer_source(config, model)
    settings = {
        "model": model.model,
        "revision": model.revision,
        "template": model_files.text_digest(text) if text else model.template,
        "tokenizer": model_files.digests(Path(folder), config.run.output / "digests.json")["tokenizer"],
    }
    claims = {
        split: artifact.claim(
            config.tokens_url(name, split), "tokens", settings={**settings, "split": split},
            parents={"dialogues": dialogues_artifact}, if_changed=config.run.if_changed,
        )
        for split in SPLITS
    }  # fmt: skip
    if any(claim.artifact is None for claim in claims.values()):
        tokenizer, template = load_tokenizer(folder, revision=revision, template=text)
        vocab_size = _vocab_size(Path(folder), len(tokenizer))
        for split, claim in claims.items():
            if claim.artifact is None:
                path = config.dialogues_path / f"{split}.jsonl"
                dialogues = list(read_dialogues(path)) if dialogues_artifact.counts[split] else []
                digest = dialogues_artifact.counts[f"{split}_digest"]
                attributes = {**settings, "template": template, "vocab_size": vocab_size, "dialogues_digest": digest}
                tokens = _tokenize_all(dialogues, tokenizer, template, attributes, f"tokenize {name} {split}", progress)
                tokens.write(config.tokens_url(name, split))
                claim.finish({"dialogues": tokens.num_dialogues, "tokens": tokens.num_tokens, "rows": tokens.num_rows})
    return [claim.artifact for claim in claims.values() if claim.artifact is not None]


def template_of(config: RunConfig, name: str) -> str:
    """Text of the template that the run gives a model.

    Raises:
        ConfigError, ModelError: as `tokenize`.
    """
    folder, revision, text = _tokenizer_source(config, config.model_named(name))
    return text or load_tokenizer(folder, revision=revision)[1]


def _tokenizer_source(config: RunConfig, model: ModelSection) -> tuple[str, str | None, str | None]:
    """Folder, revision and template text (None: the model's own) of a model."""
    folder = str(model_files.resolve_model(model))
    if model.template == "pivot" and model is not config.pivot and model.name != config.pivot.name:
        pivot_folder, revision, text = _tokenizer_source(config, config.pivot)
        return folder, None, text or load_tokenizer(pivot_folder, revision=revision)[1]
    if model.template in TEMPLATE_NAMES:
        return folder, None, None
    try:
        return folder, None, Path(model.template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{model.name}: template {model.template!r} is neither 'native', 'pivot' nor a readable Jinja file ({error})"
        ) from None


def _tokenize_all(
    dialogues: list[Dialogue],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    attributes: dict,
    label: str,
    progress: Progress,
) -> Tokens:
    parts = []
    with progress.task(label, len(dialogues), "dialogues") as task:
        for part in tokenize_dialogues(tokenizer, template, dialogues):
            parts.append(part)
            task.advance()
    offsets = np.concatenate([[0], np.cumsum([len(part.token_ids) for part in parts])]).astype(np.int64)
    return Tokens(
        token_ids=np.concatenate([part.token_ids for part in parts] or [np.empty(0, np.int32)]),
        is_scored=np.concatenate([part.is_scored for part in parts] or [np.empty(0, bool)]),
        span=np.concatenate([part.span for part in parts] or [np.empty((0, 2), np.int32)]),
        field=np.concatenate([part.field for part in parts] or [np.empty(0, np.uint8)]),
        call_digest=np.array([part.call_digest for part in parts], np.uint32),
        offsets=offsets,
        attributes=attributes,
    )


def _cut_all(
    dialogues: list[Dialogue], tokenizer: PreTrainedTokenizerBase, template: str, max_tokens: int
) -> tuple[list[Dialogue], list[str]]:
    kept, notes = [], []
    for dialogue in dialogues:
        fitting, note = cut_dialogue(tokenizer, template, dialogue, max_tokens)
        if fitting is not None and not fitting.is_trained:
            fitting, note = None, f"{note}; set aside, because no turn that is left is a target"
        if fitting is not None:
            kept.append(fitting)
        if note:
            notes.append(note)
    return kept, notes


def _split(dialogues: list[Dialogue], share: float) -> tuple[list[Dialogue], list[Dialogue]]:
    """Hold out by the hash of the id, so that the split does not depend on the order or the rest of the set."""
    train: list[Dialogue] = []
    held_out: list[Dialogue] = []
    for dialogue in dialogues:
        draw = int(hashlib.sha256(dialogue.id.encode()).hexdigest()[:8], 16) / 2**32
        (held_out if draw < share else train).append(dialogue)
    return train, held_out


def _overlap(train: list[Dialogue], held_out: list[Dialogue]) -> dict[str, str]:
    """Held-out dialogue -> the training dialogue of the same messages, by their ids; which are targets is no matter."""
    seen = {_said(dialogue): dialogue.id for dialogue in train}
    return {dialogue.id: seen[_said(dialogue)] for dialogue in held_out if _said(dialogue) in seen}


def _said(dialogue: Dialogue) -> tuple[Message, ...]:
    return tuple(dataclasses.replace(message, is_trained=True) for message in dialogue.messages)


def _overlap_text(overlap: dict[str, str]) -> str:
    named = [f"{one!r} is training dialogue {other!r}" for one, other in list(overlap.items())[:MAX_NAMED]]
    rest = f" and {len(overlap) - MAX_NAMED} more" if len(overlap) > MAX_NAMED else ""
    return (
        f"{len(overlap)} held-out dialogues are also training dialogues: {', '.join(named)}{rest}; expected no overlap: "
        "remove them from one of the files, or set dialogues.on_overlap: keep and be told so in the report"
    )


def _write_jsonl(path: Path, dialogues: list[Dialogue]) -> None:
    with storage_errors(path), path.open("w", encoding="utf-8") as file:
        for dialogue in dialogues:
            file.write(row_text(dialogue) + "\n")


def _vocab_size(folder: Path, tokenizer_size: int) -> int:
    """Columns of the model's head: padded vocabularies are larger than the tokenizer's."""
    config = model_files.read_model_config(folder)
    return max(int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size", 0)), tokenizer_size)


def _file_digest(path: str) -> str:
    """Digest of a dialogue file or of all files of a dataset folder."""
    base = Path(path.split("::")[0])
    digest = hashlib.sha256()
    for file in sorted(base.rglob("*")) if base.is_dir() else [base]:
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
