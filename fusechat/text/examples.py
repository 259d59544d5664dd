"""Rows in memory as a model reads them: rows as dialogue files hold them in, tokenized examples out. Writes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import DialogueError
from .dialogue_rows import read_row
from .dialogues import Dialogue
from .fitting import fit_each
from .layout import TokenizedDialogue
from .rendered import ChatTemplate
from .tokenization import tokenize_dialogues

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize_rows(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, rows: Iterable[Mapping[str, Any]]
) -> list[tuple[Dialogue, TokenizedDialogue]]:
    """One pair per training example, in the order of the rows; a template that hides earlier thoughts makes several of one.

    Raises:
        DialogueError: names the row, counted from 1, and the field.
        ModelError: a template that cannot be used.
    """
    given = [_dialogue(number, row) for number, row in enumerate(rows, 1)]
    examples: list[Dialogue] = []
    ids = {dialogue.id for dialogue in given}
    for number, fitted in enumerate(fit_each(tokenizer, template, given, sys.maxsize, ids), 1):
        if fitted.refused:
            raise DialogueError(f"row {number}: {fitted.refused}")
        examples += fitted.examples
    return list(zip(examples, tokenize_dialogues(tokenizer, template, examples), strict=True))


def _dialogue(number: int, row: Mapping[str, Any]) -> Dialogue:
    try:
        return read_row(row, f"row-{number}")
    except DialogueError as error:
        raise DialogueError(f"row {number}: {error}") from None
