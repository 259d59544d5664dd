"""The second door of the tokenize stage: checked dialogues in; one tokens artifact per model and split out.

`prepare_tokens` gives two works a split: pieces are tokenized, then joined. `cluster.tokenizing` does them on Ray where there
is something to share out, else in its own process; the bytes are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..config.layout import RunLayout
from ..models.resolved_model import ResolvedModel
from ..progress import Progress
from ..storage import artifact
from ..storage.artifact import Artifact, Claim
from ..storage.files import delete_folder
from ..storage.pieces import finished_pieces, open_pieces, without_pieces
from ..storage.token_pieces import JoinInputs, TokenIndex, TokenJoiner, TokenSums, lay_out_pieces, sum_counts
from ..storage.tokens import finish_tokens
from ..storage.tokens_reader import TokensReader
from ..storage.work import Work, done_before, nothing_left
from .chat_template import load_tokenizer, renderer_of
from .dialogue_reading import SPLITS
from .dialogue_set import read_index
from .dialogue_stage import ONE_CPU, prepare_reading
from .model_templates import given_template, read_with, used_template
from .model_tokens import TokenInputs, TokenMaker, none_readable, own_end, vocab_size
from .recipes import positions_behind, tokens_recipe
from .template_heads import prompt_of

__all__ = ["SPLITS", "prepare_reading", "prepare_tokens"]

MAX_NAMED = 10
"""Dialogues named in one message."""
MAX_LISTED = 1000
"""Dialogues named in a record."""


def prepare_tokens(
    layout: RunLayout, model: ResolvedModel, pivot: ResolvedModel, capture: str, *, progress: Progress
) -> list[Work]:
    """Claim both splits' folders; give what is left of them: to tokenize, then to join, the training dialogues first.

    Args:
        model: that reads the dialogues under its template, which may be the pivot's.
        capture: how it will score, which may take a position of each dialogue.
    Raises:
        ArtifactError: the dialogues are not finished, or another recipe's work stands in a folder.
        ModelError, ConfigError: no tokenizer or template that can be used.
    """
    dialogues, name = artifact.load(layout.dialogues_path, "dialogues"), model.name
    section, text = model.section, given_template(model, pivot)
    settings = tokens_recipe(section, capture).with_files(**read_with(model, text))
    claims = {
        split: artifact.claim(
            layout.tokens_url(name, split), "tokens", settings={**settings, "split": split},
            parents={"dialogues": dialogues}, if_changed=layout.if_changed,
        )
        for split in SPLITS
    }  # fmt: skip
    finished = [finished for claim in claims.values() if (finished := without_pieces(claim)) is not None]
    if len(finished) == len(claims):
        return [nothing_left(f"tokenize {name}", lambda: finished)]
    tokenizer, text = load_tokenizer(str(model.folder), template=text)
    template = used_template(model, text, dialogues.counts["date"])
    reasons = dialogues.counts["reasons"]
    prompt = prompt_of(renderer_of(tokenizer, template), reasons)
    template = replace(template, prompt=prompt, reasons=reasons)
    if prompt == "trained":
        progress.say(
            f"tokenize {name}: its template's own prompt is not what stands before an answer in training; it is asked "
            "with what stands there in training"
        )
    works = []
    for split, claim in claims.items():
        if claim.artifact is not None:
            works.append(done_before(f"tokenize {name} {split}", claim.artifact))
            continue
        inputs = TokenInputs(
            name=name,
            folder=str(model.folder),
            template=template,
            is_pivot=name == pivot.name,
            positions_behind=positions_behind(capture),
            dialogues=str(layout.dialogues_path / f"{split}.jsonl"),
            index=read_index(layout.dialogues_path, split),
            pieces=open_pieces(claim),
        )
        attributes = {
            "model": section.model, "revision": section.revision, **settings, "split": split,
            "dialogues_digest": dialogues.counts[f"{split}_digest"], **template.to_attributes(),
            "vocab_size": vocab_size(model.folder, tokenizer),
        }  # fmt: skip
        end = _End(claim, inputs, split, layout.tokens_url(name, "train"), attributes, tokenizer, progress)
        works += _works(inputs, end)
    return works


def _works(inputs: TokenInputs, end: _End) -> list[Work]:
    """Tokenizing and joining of one split."""
    finished = finished_pieces(inputs.pieces)
    units = range(inputs.index.num_pieces)
    missing = [unit for unit in units if unit not in finished]
    total = inputs.index.dialogues[-1]
    name = f"{inputs.name} {end.split}"
    return [
        Work(
            name=f"tokenize {name}",
            missing=missing,
            num_units=len(units),
            total=total,
            done=total - sum(inputs.index.num_dialogues(unit) for unit in missing),
            measure="dialogues",
            make_worker=partial(TokenMaker, inputs),
            finish=end.lay_out,
            needs=ONE_CPU,
            unit_name="piece {}".format,
        ),
        Work(
            name=f"join {name}",
            missing=units,
            num_units=len(units),
            total=total,
            done=0,
            measure="dialogues",
            make_worker=partial(TokenJoiner, JoinInputs(end.claim.url, inputs.pieces)),
            finish=end.finish,
            needs=ONE_CPU,
            unit_name="piece {}".format,
        ),
    ]


@dataclass(frozen=True)
class _End:
    """What is done when all pieces of a split are tokenized, and when they are joined."""

    claim: Claim
    inputs: TokenInputs
    split: str
    train_url: str
    """Tokens of the training split, which decides how turns end."""
    attributes: dict[str, Any]
    tokenizer: Any
    progress: Progress

    def lay_out(self) -> list[Artifact]:
        """Decide how turns end, and make the arrays that the pieces are joined into.

        Raises:
            ModelError: no dialogue can be read, or nothing ends a turn: neither the template nor the model's generation
                settings.
        """
        sums = self._sums()
        if sums.num_set_aside and sums.num_set_aside == sums.dialogues:
            raise none_readable(self.inputs.name, sums.dialogues, self.split, sums.set_aside[0][1])
        if self.split == "train":
            is_open = bool(sums.turns) and sums.open_turns == sums.turns
            appended = own_end(self.inputs.name, Path(self.inputs.folder)) if is_open else None
        else:
            appended = TokensReader(self.train_url).attributes["appended_end"]
        self._say(sums, appended)
        lay_out_pieces(self.claim.url, self.inputs.pieces, sums, self.inputs.index.num_pieces, appended)
        return []

    def finish(self) -> list[Artifact]:
        """Say that the tokens are whole."""
        sums, index = self._sums(), TokenIndex.read(self.inputs.pieces)
        ends = {"appended_end": index.appended_end, "turn_end_ids": sums.end_ids(index.appended_end)}
        finish_tokens(self.claim.url, {**self.attributes, **ends})
        tokens = TokensReader(self.claim.url)
        counts = {
            "dialogues": tokens.num_dialogues, "tokens": tokens.num_tokens, "rows": tokens.num_rows,
            "set_aside": [f"{dialogue_id}: {reason}" for dialogue_id, reason in sums.set_aside],
            "num_set_aside": sums.num_set_aside,
            "turns_without_end": sums.open_turns, "turns_without_their_reasoning": sums.hidden,
        }  # fmt: skip
        delete_folder(self.inputs.pieces)
        return [self.claim.finish(counts)]

    def _sums(self) -> TokenSums:
        return sum_counts(self.inputs.pieces, self.inputs.index.num_pieces, MAX_LISTED)

    def _say(self, sums: TokenSums, appended: int | None) -> None:
        where = f"tokenize {self.inputs.name} {self.split}"
        if sums.num_set_aside:
            named = "; ".join(
                reason if dialogue_id in reason else f"{dialogue_id!r}: {reason}"
                for dialogue_id, reason in sums.set_aside[:MAX_NAMED]
            )
            more = sums.num_set_aside - MAX_NAMED
            rest = f"; and {more:,} more" if more > 0 else ""
            self.progress.say(f"{where}: {sums.num_set_aside:,} dialogues are set aside for this source: {named}{rest}")
        if appended is not None:
            token = self.tokenizer.convert_ids_to_tokens(appended)
            self.progress.say(
                f"{where}: the template ends no turn; {token!r}, the model's own end, is put behind each dialogue"
            )
        elif sums.open_turns:
            self.progress.say(
                f"{where}: {sums.open_turns:,} of {sums.turns:,} assistant turns have no token that ends them"
            )
        if sums.hidden:
            self.progress.say(f"{where}: the template does not show the reasoning of {sums.hidden:,} assistant turns")
