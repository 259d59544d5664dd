"""Reads one range of a dialogue file: rows in; checked, cut and split dialogues, and what the whole set is checked by, out.

What needs all dialogues at once (ids once, no held-out dialogue among the training ones) is left to `dialogue_joining`,
which sees a record of 49 bytes of each.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DialogueError
from ..models.process_memory import give_memory_back
from ..storage.files import write_json
from ..storage.work import HERE, Place
from ..storage.write_errors import storage_errors
from .chat_template import load_tokenizer
from .dialogue_files import read_range
from .dialogue_rows import is_read
from .dialogues import CheckedRow, Dialogue, checked_rows, row_text, split_thought
from .file_range import FileRange
from .fitting import FittedDialogue, fit_each
from .rendered import ChatTemplate
from .splits import is_held_out, said_digest
from .token_process import prepare_token_process

SPLITS = ("train", "held_out")
MADE = 2
"""`side` of a record that stands for the id of an example made from a dialogue."""
RECORD = np.dtype([
    ("id", "<u8"), ("id_rest", "<u8"), ("said", "<u8"), ("said_rest", "<u8"), ("row", "<i8"), ("side", "u1"),
    ("examples", "<u4"), ("thoughts", "<u4"),
])  # fmt: skip
"""Of a dialogue that keeps the rules: digests of its id and of its messages, its row in the range, its split, how many
examples stand in its place and how many of these end with reasoning."""
BATCH_ROWS = 256
WRITTEN = 2
"""`role` of dialogues that the run's models wrote."""


@dataclass(frozen=True)
class ReadingPart:
    """One range to read."""

    range: FileRange
    name: str
    """What rows without an id are called after."""
    role: int
    """0: of the training files, 1: of the held-out files, 2: of the dialogues that the run's models wrote (WRITTEN)."""


@dataclass(frozen=True)
class ReadingInputs:
    """All that a worker is told."""

    parts: tuple[ReadingPart, ...]
    """The number of a unit is that of a part."""
    folder: str
    """Where the pieces are written."""
    on_bad: str
    ignore_keys: tuple[str, ...]
    held_out_share: float | None
    """Of the training files' dialogues; None: held-out dialogues have files of their own."""
    tokenizer: str
    """Folder of the pivot."""
    template: ChatTemplate
    max_tokens: int

    def rows(self, unit: int) -> Iterator[CheckedRow]:
        """The checked rows of a part."""
        part = self.parts[unit]
        rows = read_range(part.range, partial(_is_read, self.ignore_keys))
        return checked_rows(
            rows,
            part.name,
            on_bad=self.on_bad_of(unit),
            ignore_keys=self.ignore_keys,
            rows_before=part.range.rows_before,
        )

    def on_bad_of(self, unit: int) -> str:
        """What becomes of rows that break the rules; those that the run itself wrote break none."""
        return "refuse" if self.parts[unit].role == WRITTEN else self.on_bad

    def path(self, unit: int, kind: str) -> Path:
        """A file of a piece: `train.jsonl`, `held_out.jsonl`, `records` or `json`, which is written last."""
        return Path(self.folder) / f"{unit:06d}.{kind}"


def _is_read(ignore_keys: tuple[str, ...], column: str) -> bool:
    return is_read(column, ignore_keys)


@dataclass
class _Piece:
    """What one range gives, beside dialogues and records."""

    problems: list[tuple[int, str, str, bool]] = field(default_factory=list)
    """Row, place, reason, and whether the dialogue was kept."""
    notes: list[tuple[int, int, str]] = field(default_factory=list)
    """Row, split and what was cut or set aside."""
    refused: list[tuple[int, int, str, str]] = field(default_factory=list)
    """Row, split, id and why the pivot's template does not show it."""
    left_out: Counter[str] = field(default_factory=Counter)


class DialogueReader:
    """Reads ranges of dialogue files."""

    def __init__(self, inputs: ReadingInputs, place: Place = HERE) -> None:
        self._inputs, self._place = inputs, place

    def start(self) -> dict[str, Any]:
        """Load the pivot's tokenizer, which decides what fits."""
        prepare_token_process(self._place)
        self._tokenizer, _ = load_tokenizer(self._inputs.tokenizer, template=self._inputs.template.text)
        return {}

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Read one range and write its piece.

        Raises:
            DialogueError: the file is broken as a whole.
            StorageError: the piece cannot be written.
        """
        inputs, piece, num_rows = self._inputs, _Piece(), 0
        rows = inputs.rows(unit)
        with storage_errors(inputs.folder), ExitStack() as files:
            splits = [
                files.enter_context(inputs.path(unit, f"{split}.jsonl").open("w", encoding="utf-8")) for split in SPLITS
            ]
            records = files.enter_context(inputs.path(unit, "records").open("wb"))
            while batch := list(islice(rows, BATCH_ROWS)):
                num_rows += len(batch)
                made = []
                for record, examples in self._read(unit, batch, piece):
                    made += record
                    for example in examples:
                        splits[record[0][5]].write(row_text(example) + "\n")
                records.write(np.array(made, RECORD).tobytes())
            del rows
        document = {
            "problems": piece.problems, "notes": piece.notes, "refused": piece.refused, "left_out": dict(piece.left_out),
            "path": inputs.parts[unit].range.path,
        }  # fmt: skip
        write_json(str(inputs.path(unit, "json")), document, indent=None)
        return {"rows": num_rows}

    def close(self) -> None:
        """Let the tokenizer go."""
        del self._tokenizer
        give_memory_back()

    def _read(
        self, unit: int, batch: list[CheckedRow], piece: _Piece
    ) -> Iterator[tuple[list[tuple[Any, ...]], tuple[Dialogue, ...]]]:
        """For each dialogue that keeps the rules its records, its own first, and the examples that stand in its place."""
        inputs, part = self._inputs, self._inputs.parts[unit]
        checked = []
        for one in batch:
            row = one.number - part.range.rows_before - 1
            if one.problem:
                piece.problems.append((row, one.place, one.problem, one.dialogue is not None))
            if one.dialogue is not None:
                piece.left_out.update(one.columns)
                checked.append((row, one.dialogue))
        # One problem ends the whole run, so nothing that is made here would be used.
        is_over = inputs.on_bad_of(unit) == "refuse" and bool(piece.problems)
        dialogues = [dialogue for _, dialogue in checked]
        fitted: Iterable[FittedDialogue] = (FittedDialogue(()) for _ in dialogues)
        if not is_over:
            fitted = fit_each(self._tokenizer, inputs.template, dialogues, inputs.max_tokens, set())
        for (row, dialogue), fit in zip(checked, fitted, strict=True):
            said = said_digest(dialogue)
            side = self._side(part.role, dialogue, said)
            if fit.refused:
                piece.refused.append((row, side, dialogue.id, fit.refused))
            if fit.note:
                piece.notes.append((row, side, fit.note))
            thoughts = sum(map(_ends_with_thought, fit.examples))
            digests = (*_id_digest(part.role, dialogue.id), int(said[:16], 16), int(said[16:32], 16))
            records: list[tuple[Any, ...]] = [(*digests, row, side, len(fit.examples), thoughts)]
            for example in fit.examples:
                if example.id != dialogue.id:
                    records.append((*_id_digest(part.role, example.id), 0, 0, row, MADE, 0, 0))
            yield records, fit.examples

    def _side(self, role: int, dialogue: Dialogue, said: str) -> int:
        """The split that a dialogue belongs to; all answers to one prompt that were written are on one side."""
        share = self._inputs.held_out_share
        if share is None:
            return 1 if role == 1 else 0
        return int(is_held_out(said_digest(dialogue, by_prompt=True) if role == WRITTEN else said, share))


def read_records(path: Path) -> np.ndarray:
    """The records of one piece.

    Raises:
        DialogueError: the file is not whole.
    """
    data = path.read_bytes()
    if len(data) % RECORD.itemsize:
        raise DialogueError(f"{path}: not whole; delete its folder and run `fusechat tokenize` again")
    return np.frombuffer(data, RECORD)


def _id_digest(role: int, dialogue_id: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{role} {dialogue_id}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _ends_with_thought(dialogue: Dialogue) -> bool:
    """Whether its last answer begins with reasoning."""
    last = next(message for message in reversed(dialogue.messages) if message.role == "assistant")
    return bool(last.reasoning or split_thought(last.content)[0])
