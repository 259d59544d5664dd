"""The tokens of one model: its dialogues in; arrays, and what had to be set aside or mended, out.

A dialogue that a source cannot read has no tokens there, so that the others keep their numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DialogueError, ModelError
from ..models.model_limits import position_limit, vocabulary_columns
from ..progress import Progress
from ..storage.contracts import TokenField
from ..storage.tokens import Tokens
from .dialogues import Dialogue
from .layout import TokenizedDialogue
from .rendered import ChatTemplate
from .tokenization import tokenize_each

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_NAMED = 10
"""Dialogues named in one message."""
_NOTHING = TokenizedDialogue(
    np.empty(0, np.int32), np.empty(0, bool), np.empty((0, 2), np.int32), np.empty(0, np.uint8)
)  # fmt: skip


@dataclass
class ModelTokens:
    """Makes the tokens of one model, split by split; the first one decides how turns end where the template ends none."""

    name: str
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    is_pivot: bool
    progress: Progress
    positions_behind: int = 0
    """Positions that a dialogue leaves free."""
    _appended: int | None = field(default=None, init=False)
    _is_first: bool = field(default=True, init=False)

    def make(self, dialogues: list[Dialogue], split: str, attributes: dict[str, Any]) -> tuple[Tokens, dict[str, Any]]:
        """Tokenize the dialogues of a split.

        Returns:
            the tokens, and the counts of their artifact.
        Raises:
            DialogueError, ModelError: the pivot cannot read a dialogue.
            ModelError: nothing ends a turn: neither the template nor the model's generation settings.
        """
        parts, aside = self._tokenize(dialogues, split)
        open_turns = sum(part.open_turns for part in parts)
        turns = sum(part.turns for part in parts)
        if self._is_first and turns and open_turns == turns:
            self._appended = self._own_end()
        self._is_first = False
        if self._appended is not None:
            parts = [_ended(part, self._appended) for part in parts]
        hidden = _hidden_turns(parts, dialogues)
        self._say(split, aside, open_turns, turns, hidden)
        columns = vocabulary_columns(self.folder)
        attributes = {
            **attributes, **self.template.to_attributes(), "appended_end": self._appended,
            "vocab_size": max(columns or 0, len(self.tokenizer)),  # padded vocabularies are larger than the tokenizer's
        }  # fmt: skip
        tokens = _joined(parts, attributes)
        _check_ids(tokens, columns, dialogues, self.name)
        counts = {
            "dialogues": tokens.num_dialogues, "tokens": tokens.num_tokens, "rows": tokens.num_rows,
            "set_aside": [f"{dialogue_id}: {reason}" for dialogue_id, reason in aside],
            "turns_without_end": open_turns, "turns_without_their_reasoning": hidden,
        }  # fmt: skip
        return tokens, counts

    def _tokenize(self, dialogues: list[Dialogue], split: str) -> tuple[list[TokenizedDialogue], list[tuple[str, str]]]:
        """The tokens of each dialogue, none for those set aside; and (id, reason) of these."""
        limit = (position_limit(self.folder) or 0) - self.positions_behind
        parts: list[TokenizedDialogue] = []
        aside: list[tuple[str, str]] = []
        with self.progress.task(f"tokenize {self.name} {split}", len(dialogues), "dialogues") as task:
            for dialogue, found in zip(dialogues, tokenize_each(self.tokenizer, self.template, dialogues), strict=True):
                if isinstance(found, (DialogueError, ModelError)):
                    if self.is_pivot:
                        raise found
                    aside.append((dialogue.id, str(found)))
                    found = _NOTHING
                elif 0 < limit < len(found) and not self.is_pivot:
                    aside.append((dialogue.id, f"it has {len(found):,} tokens, and the model reads {limit:,}"))
                    found = _NOTHING
                parts.append(found)
                task.advance()
        if aside and len(aside) == len(dialogues):
            raise ModelError(
                f"{self.name}: none of the {len(dialogues):,} dialogues of {split} can be read by it; the first: "
                f"{aside[0][1]}; set another `template`, or leave this source out"
            )
        return parts, aside

    def _say(self, split: str, aside: list[tuple[str, str]], open_turns: int, turns: int, hidden: int) -> None:
        where = f"tokenize {self.name} {split}"
        if aside:
            named = "; ".join(
                reason if dialogue_id in reason else f"{dialogue_id!r}: {reason}"
                for dialogue_id, reason in aside[:MAX_NAMED]
            )
            rest = f"; and {len(aside) - MAX_NAMED:,} more" if len(aside) > MAX_NAMED else ""
            self.progress.say(f"{where}: {len(aside):,} dialogues are set aside for this source: {named}{rest}")
        if self._appended is not None:
            token = self.tokenizer.convert_ids_to_tokens(self._appended)
            self.progress.say(
                f"{where}: the template ends no turn; {token!r}, the model's own end, is put behind each dialogue"
            )
        elif open_turns:
            self.progress.say(f"{where}: {open_turns:,} of {turns:,} assistant turns have no token that ends them")
        if hidden:
            self.progress.say(f"{where}: the template does not show the reasoning of {hidden:,} assistant turns")

    def _own_end(self) -> int:
        """The id that the model's generation settings name as its end."""
        path = self.folder / "generation_config.json"
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        ids = named if isinstance(named, list) else [named]
        if ids[0] is None:
            raise ModelError(
                f"{self.name}: its chat template ends no assistant turn, and {path} names no eos_token_id, expected one of "
                "the two, or the model would never learn to stop; set `template` to a Jinja file that ends turns, or add "
                "eos_token_id there"
            )
        return int(ids[0])


def _ended(part: TokenizedDialogue, token_id: int) -> TokenizedDialogue:
    """The dialogue with a token behind it that ends its last turn."""
    if not len(part):
        return part
    return replace(
        part,
        token_ids=np.append(part.token_ids, np.int32(token_id)),
        is_scored=np.append(part.is_scored, part.is_scored[-1]),
        span=np.append(part.span, np.full((1, 2), -1, np.int32), axis=0),
        field=np.append(part.field, np.uint8(TokenField.END_OF_TURN)),
    )


def _hidden_turns(parts: list[TokenizedDialogue], dialogues: list[Dialogue]) -> int:
    """Turns that are targets and whose reasoning is not shown."""
    return sum(
        name == "reasoning" and dialogue.messages[message].is_trained
        for part, dialogue in zip(parts, dialogues, strict=True)
        for message, name in part.hidden
    )


def _joined(parts: list[TokenizedDialogue], attributes: dict[str, Any]) -> Tokens:
    all_parts = parts or [_NOTHING]
    return Tokens(
        token_ids=np.concatenate([part.token_ids for part in all_parts]),
        is_scored=np.concatenate([part.is_scored for part in all_parts]),
        span=np.concatenate([part.span for part in all_parts]),
        field=np.concatenate([part.field for part in all_parts]),
        call_digest=np.array([part.call_digest for part in parts], np.uint32),
        offsets=np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64),
        attributes=attributes,
    )


def _check_ids(tokens: Tokens, columns: int | None, dialogues: list[Dialogue], name: str) -> None:
    """Refuse ids beyond the model's embedding, which its own tokenizer may hold: a model cannot read them."""
    if columns is None or not tokens.num_tokens or tokens.token_ids.max() < columns:
        return
    place = int(np.argmax(tokens.token_ids >= columns))
    dialogue = dialogues[int(np.searchsorted(tokens.offsets, place, side="right")) - 1]
    raise ModelError(
        f"{name}: dialogue {dialogue.id!r} has the token id {tokens.token_ids[place]}, the model's embedding ends at "
        f"{columns - 1}: its tokenizer has tokens that it was not resized for; resize the model, or use a template and "
        "dialogues without that token"
    )
