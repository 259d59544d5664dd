"""The pieces that `dialogue_reading` leaves, read back: records, notes, lines and single rows, without the dialogues that are left out.

A dialogue's number is its unit and, in the low 32 bits, its row there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..errors import ArtifactError
from ..storage.files import read_json
from .dialogue_reading import SPLITS, WRITTEN, ReadingInputs, read_records
from .dialogues import CheckedRow

ROW_BITS = 32


class DialoguePieces:
    """All pieces of a run's dialogues; who joins them says which dialogues are left out."""

    def __init__(self, inputs: ReadingInputs) -> None:
        self.inputs = inputs
        self.units = range(len(inputs.parts))
        self.repeated: dict[int, int] = {}
        """Number of a dialogue whose id stands before it -> the number of that one."""
        self.near: dict[int, tuple[str, str]] = {}
        """Number of a written dialogue that nearly is a held-out one -> its id and that one's."""

    def document(self, unit: int) -> dict[str, Any]:
        """Problems, notes, refused dialogues and columns left out of a piece.

        Raises:
            ArtifactError: the piece is gone.
        """
        document: dict[str, Any] | None = read_json(str(self.inputs.path(unit, "json")))
        if document is None:
            raise ArtifactError(f"{self.inputs.path(unit, 'json')}: gone; run `fusechat tokenize` again")
        return document

    def is_kept(self, unit: int, row: int) -> bool:
        """Whether a row is not left out."""
        number = unit << ROW_BITS | row
        return number not in self.repeated and number not in self.near

    def written_units(self) -> list[int]:
        """The pieces of dialogues that the run's models wrote."""
        return [unit for unit in self.units if self.inputs.parts[unit].role == WRITTEN]

    def records(self, unit: int, side: int) -> np.ndarray:
        """RECORD [dialogues]: those of one split that are kept."""
        records = read_records(self.inputs.path(unit, "records"))
        records = np.asarray(records[records["side"] == side])
        if self.repeated or self.near:
            records = records[[self.is_kept(unit, int(row)) for row in records["row"]]]
        return records

    def numbers(self, unit: int, side: int) -> set[int]:
        """Of those dialogues."""
        return {unit << ROW_BITS | int(row) for row in self.records(unit, side)["row"]}

    def sums(self, side: int) -> Counter[str]:
        """What the records of a split add up to: examples, dialogues split, examples added, thoughts."""
        sums: Counter[str] = Counter()
        for unit in self.units:
            records = self.records(unit, side)
            examples = records["examples"].astype(np.int64)
            sums["examples"] += int(examples.sum())
            sums["split"] += int((examples > 1).sum())
            sums["added"] += int(np.maximum(examples - 1, 0).sum())
            sums["thoughts"] += int(records["thoughts"].sum())
        return sums

    def lines(self, side: int) -> Iterator[bytes]:
        """The examples of a split, without those of dialogues that are left out."""
        filtered = {number >> ROW_BITS for number in (*self.repeated, *self.near)}
        for unit in self.units:
            with self.inputs.path(unit, f"{SPLITS[side]}.jsonl").open("rb") as lines:
                if unit not in filtered:
                    yield from lines
                    continue
                records = read_records(self.inputs.path(unit, "records"))
                for record in records[records["side"] == side]:
                    kept = self.is_kept(unit, int(record["row"]))
                    examples = [lines.readline() for _ in range(int(record["examples"]))]
                    yield from examples if kept else ()

    def dialogues(self, numbers: Iterable[int]) -> dict[int, Any]:
        """Some dialogues by number."""
        return {number: row.dialogue for number, row in self.rows(set(numbers)).items()}

    def rows(self, numbers: set[int]) -> dict[int, CheckedRow]:
        """Some rows, read again from their files."""
        wanted = defaultdict(set)
        for number in numbers:
            wanted[number >> ROW_BITS].add(number % (1 << ROW_BITS))
        rows = {}
        for unit, places in wanted.items():
            for place, row in enumerate(self.inputs.rows(unit)):
                if place in places:
                    rows[unit << ROW_BITS | place] = row
        return rows
