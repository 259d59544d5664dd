"""The tokens of one model, piece by piece: dialogues in; arrays, and what had to be set aside or mended, out.

A dialogue that a source cannot read has no tokens there, so that the others keep their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DialogueError, ModelError
from ..models.model_limits import position_limit, vocabulary_columns
from ..models.process_memory import give_memory_back
from ..storage.token_pieces import PieceCounts, write_piece
from ..storage.tokens import OF_TOKENS, Tokens
from ..storage.work import HERE, Place
from .chat_template import load_tokenizer
from .dialogue_set import SplitIndex, read_piece
from .dialogues import Dialogue
from .layout import TokenizedDialogue
from .rendered import ChatTemplate
from .token_process import prepare_token_process
from .tokenization import tokenize_each

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOTHING = TokenizedDialogue(
    np.empty(0, np.int32), np.empty(0, bool), np.empty((0, 2), np.int32), np.empty(0, np.uint8)
)  # fmt: skip


@dataclass(frozen=True)
class TokenInputs:
    """All that a worker is told."""

    name: str
    """Of the model."""
    folder: str
    template: ChatTemplate
    is_pivot: bool
    positions_behind: int
    """Positions that a dialogue leaves free."""
    dialogues: str
    """The split's file."""
    index: SplitIndex
    pieces: str
    """URL of the folder in which the pieces are written."""


class TokenMaker:
    """Tokenizes pieces of one model's split."""

    def __init__(self, inputs: TokenInputs, place: Place = HERE) -> None:
        self._inputs, self._place = inputs, place

    def start(self) -> dict[str, Any]:
        """Load the tokenizer."""
        prepare_token_process(self._place)
        inputs = self._inputs
        tokenizer, _ = load_tokenizer(inputs.folder, template=inputs.template.text)
        self._tokens = ModelTokens(
            inputs.name, Path(inputs.folder), tokenizer, inputs.template, is_pivot=inputs.is_pivot,
            positions_behind=inputs.positions_behind,
        )  # fmt: skip
        return {}

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Tokenize one piece and write it.

        Raises:
            DialogueError, ModelError: as `ModelTokens.make`.
        """
        dialogues = read_piece(Path(self._inputs.dialogues), self._inputs.index, unit)
        tokens, counts = self._tokens.make(dialogues)
        write_piece(self._inputs.pieces, unit, {name: getattr(tokens, name) for name in OF_TOKENS}, counts)
        return {"dialogues": len(dialogues), "tokens": tokens.num_tokens}

    def close(self) -> None:
        """Let the tokenizer go."""
        del self._tokens
        give_memory_back()


class ModelTokens:
    """Makes the tokens of one model from dialogues in memory."""

    def __init__(
        self,
        name: str,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        *,
        is_pivot: bool,
        positions_behind: int = 0,
    ) -> None:
        """
        Args:
            positions_behind: that a dialogue leaves free.
        """
        self.name, self._folder, self._tokenizer, self._template = name, folder, tokenizer, template
        self._is_pivot = is_pivot
        self._limit = (position_limit(folder) or 0) - positions_behind
        self._columns = vocabulary_columns(folder)

    def make(self, dialogues: list[Dialogue]) -> tuple[Tokens, PieceCounts]:
        """Tokens, without attributes and as the template ends turns, and their counts.

        Raises:
            DialogueError, ModelError: the pivot cannot read a dialogue.
            ModelError: an id beyond the model's embedding.
        """
        parts, aside = self._tokenize(dialogues)
        tokens = _joined(parts)
        _check_ids(tokens, self._columns, dialogues, self.name)
        counts = PieceCounts(
            tokens.lengths.tolist(), np.diff(tokens.row_offsets).tolist(), tokens.call_digest.tolist(),
            sum(part.turns for part in parts), sum(part.open_turns for part in parts), _hidden_turns(parts, dialogues),
            aside, tokens.turn_end_ids(),
        )  # fmt: skip
        return tokens, counts

    def own_end(self) -> int:
        """The id that ends a turn where the template ends none; raises ModelError as `own_end`."""
        return own_end(self.name, self._folder)

    def attributes(self) -> dict[str, Any]:
        """What a tokens artifact says of the model."""
        return {**self._template.to_attributes(), "vocab_size": vocab_size(self._folder, self._tokenizer)}

    def _tokenize(self, dialogues: list[Dialogue]) -> tuple[list[TokenizedDialogue], list[tuple[str, str]]]:
        """The tokens of each dialogue, none for those set aside; and (id, reason) of these."""
        limit = self._limit
        parts: list[TokenizedDialogue] = []
        aside: list[tuple[str, str]] = []
        made = tokenize_each(self._tokenizer, self._template, dialogues)
        for dialogue, tokenized in zip(dialogues, made, strict=True):
            if isinstance(tokenized, (DialogueError, ModelError)):
                if self._is_pivot:
                    raise tokenized
                aside.append((dialogue.id, str(tokenized)))
                parts.append(_NOTHING)
            elif 0 < limit < len(tokenized) and not self._is_pivot:
                aside.append((dialogue.id, f"it has {len(tokenized):,} tokens, and the model reads {limit:,}"))
                parts.append(_NOTHING)
            else:
                parts.append(tokenized)
        return parts, aside


def none_readable(name: str, count: int, what: str, reason: str) -> ModelError:
    """The error of a model that can read none of some dialogues."""
    return ModelError(
        f"{name}: none of the {count:,} dialogues of {what} can be read by it; the first: {reason}; set another `template`, or "
        "leave this source out"
    )


def vocab_size(folder: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids that the model knows; padded vocabularies are larger than the tokenizer's."""
    return max(vocabulary_columns(folder) or 0, len(tokenizer))


def own_end(name: str, folder: Path) -> int:
    """The id that a model's generation settings name as its end.

    Raises:
        ModelError: they name none.
    """
    path = folder / "generation_config.json"
    named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    ids = named if isinstance(named, list) else [named]
    if ids[0] is None:
        raise ModelError(
            f"{name}: its chat template ends no assistant turn, and {path} names no eos_token_id, expected one of "
            "the two, or the model would never learn to stop; set `template` to a Jinja file that ends turns, or add "
            "eos_token_id there"
        )
    return int(ids[0])


def _hidden_turns(parts: Sequence[TokenizedDialogue], dialogues: Sequence[Dialogue]) -> int:
    """Turns that are targets and whose reasoning is not shown."""
    return sum(
        name == "reasoning" and dialogue.messages[message].is_trained
        for part, dialogue in zip(parts, dialogues, strict=True)
        for message, name in part.hidden
    )


def _joined(parts: list[TokenizedDialogue]) -> Tokens:
    all_parts = parts or [_NOTHING]
    return Tokens(
        token_ids=np.concatenate([part.token_ids for part in all_parts]),
        is_scored=np.concatenate([part.is_scored for part in all_parts]),
        span=np.concatenate([part.span for part in all_parts]),
        field=np.concatenate([part.field for part in all_parts]),
        call_digest=np.array([part.call_digest for part in parts], np.uint32),
        offsets=np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64),
        attributes={},
    )


def _check_ids(tokens: Tokens, columns: int | None, dialogues: Sequence[Dialogue], name: str) -> None:
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
