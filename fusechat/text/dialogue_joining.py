"""Joins the pieces of the dialogues: checks what needs all of them, and writes one file per split with its index.

In memory are the digests of a bucket, the numbers of the dialogues that are left out, and the first `MAX_LISTED` lines of
whatever is listed; where dialogues were written, the held-out ones too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError, DialogueError
from ..storage.files import read_json, write_json
from ..storage.write_errors import storage_errors
from .dialogue_reading import MADE, SPLITS, WRITTEN, ReadingInputs, read_records
from .dialogue_set import INDEX_FILE
from .dialogues import CheckedRow, refusal_of, repeated_id
from .equal_digests import EqualDigests
from .fitting import refusal
from .row_values import shown
from .split_writer import SplitWriter
from .splits import NearDuplicates, overlap_text

MAX_LISTED = 1000
"""Lines of one list in the record; all are counted."""
_ROW_BITS = 32


@dataclass
class Listed:
    """A list of which all entries are counted and the first ones kept."""

    lines: list[Any] = field(default_factory=list)
    count: int = 0

    def add(self, line: Any) -> None:
        self.count += 1
        if len(self.lines) < MAX_LISTED:
            self.lines.append(line)


class DialogueJoin:
    """One end of the dialogues' first work: pieces in, `train.jsonl`, `held_out.jsonl` and their index out."""

    def __init__(self, inputs: ReadingInputs, folder: Path, *, refuses_overlap: bool) -> None:
        """
        Args:
            folder: of the dialogues artifact.
        """
        self._inputs, self._folder, self._refuses_overlap = inputs, folder, refuses_overlap
        self._units = range(len(inputs.parts))
        self._repeated: dict[int, int] = {}
        """Number of a dialogue whose id stands before it -> the number of that one."""
        self._near: dict[int, tuple[str, str]] = {}
        """Number of a written dialogue that nearly is a held-out one -> its id and that one's."""
        self._has_written = any(part.role == WRITTEN for part in inputs.parts)

    def join(self) -> dict[str, Any]:
        """Check and write; the counts of the artifact.

        Raises:
            DialogueError: a broken dialogue, an id that stands twice, or one that the template does not show (unless
                `on_bad: skip`), held-out dialogues that are training dialogues (unless `on_overlap: keep`).
        """
        overlap = self._check_digests()
        skipped = self._problems()
        overlap = [pair for pair in overlap if not self._near.keys() & set(pair)]
        pairs = [
            (rows[one].id, rows[other].id) for rows in [self._dialogues(sum(overlap, ()))] for one, other in overlap
        ]
        if pairs and self._refuses_overlap:
            raise DialogueError(overlap_text(pairs, len(pairs)))
        notes, left_out = self._refused_and_notes(skipped)
        counts: dict[str, Any] = {
            "skipped": skipped.lines, "num_skipped": skipped.count, "columns_left_out": left_out,
            "held_out_in_train": list(dict(pairs)), **self._written_counts(),
        }  # fmt: skip
        index, thoughts = {}, 0
        for side, split in enumerate(SPLITS):
            sums = self._sums(side)
            writer = SplitWriter(self._folder / f"{split}.jsonl")
            with storage_errors(self._folder), writer:
                for line in self._lines(side):
                    writer.add(line)
            index[split] = writer.index
            counts[split] = sums["examples"]
            counts[f"{split}_digest"] = writer.digest
            counts[f"{split}_cut_or_set_aside"] = notes[side].lines
            counts[f"num_{split}_cut_or_set_aside"] = notes[side].count
            counts[f"{split}_split_for_hidden_reasoning"] = sums["split"]
            counts[f"{split}_added_for_hidden_reasoning"] = sums["added"]
            thoughts = thoughts if side else sums["thoughts"]
        counts["reasons"] = 2 * thoughts > counts["train"]
        write_json(str(self._folder / INDEX_FILE), index, indent=None)
        return counts

    def _document(self, unit: int) -> dict[str, Any]:
        document: dict[str, Any] | None = read_json(str(self._inputs.path(unit, "json")))
        if document is None:
            raise ArtifactError(f"{self._inputs.path(unit, 'json')}: gone; run `fusechat tokenize` again")
        return document

    def _is_kept(self, unit: int, row: int) -> bool:
        number = unit << _ROW_BITS | row
        return number not in self._repeated and number not in self._near

    def _check_digests(self) -> list[tuple[int, int]]:
        """Note whose ids stand twice; the (held-out, training) numbers of equal dialogues, held-out ones ascending."""
        total = sum(part.range.num_rows for part in self._inputs.parts)
        with EqualDigests(total, self._folder) as ids, EqualDigests(total, self._folder) as said:
            for unit in self._units:
                records = read_records(self._inputs.path(unit, "records"))
                numbers = (unit << _ROW_BITS) + records["row"]
                ids.add(records["id"], records["id_rest"], numbers)
                if self._inputs.held_out_share is None or self._has_written:
                    own = records["side"] != MADE
                    with_side = 2 * numbers + records["side"]
                    said.add(records["said"][own], records["said_rest"][own], with_side[own])
            for group in ids.groups():
                self._repeated.update({int(number): int(group[0]) for number in group[1:] if number != group[0]})
            self._find_near()
            overlap = []
            for group in said.groups():
                sides: tuple[list[int], list[int]] = ([], [])
                for number in group.tolist():
                    if number // 2 not in self._repeated and number // 2 not in self._near:
                        sides[number % 2].append(number // 2)
                overlap += [(number, sides[0][-1]) for number in sides[1] if sides[0]]
        return sorted(overlap)

    def _find_near(self) -> None:
        """Note the written training dialogues that nearly are held-out ones; the held-out ones stand in memory for it."""
        if not self._has_written:
            return
        held_out = {unit << _ROW_BITS | int(row) for unit in self._units for row in self._own_records(unit, 1)["row"]}
        near = NearDuplicates([row for _, row in sorted(self._dialogues(held_out).items())])
        for unit in self._written_units():
            rows = {unit << _ROW_BITS | int(row) for row in self._own_records(unit, 0)["row"]}
            for number, dialogue in sorted(self._dialogues(rows).items()):
                other = near.of(dialogue)
                if other is not None:
                    self._near[number] = dialogue.id, other

    def _written_units(self) -> list[int]:
        return [unit for unit in self._units if self._inputs.parts[unit].role == WRITTEN]

    def _written_counts(self) -> dict[str, Any]:
        kept = sum(len(self._own_records(unit, 0)) for unit in self._written_units())
        return {"written": kept + len(self._near), "written_near_held_out": dict(self._near.values())}

    def _problems(self) -> Listed:
        """All that is wrong with rows, in order.

        Raises:
            DialogueError: under `on_bad: refuse`, if anything is.
        """
        everything = Listed()
        for role in (0, 1, WRITTEN):
            listed = Listed()
            for place, reason in self._problems_of(role):
                listed.add((place, reason))
                everything.add(f"{place}: {reason}")
            if listed.count and (self._inputs.on_bad == "refuse" or role == WRITTEN):
                raise DialogueError(refusal_of(listed.lines, listed.count))
        return everything

    def _problems_of(self, role: int) -> Iterator[tuple[str, str]]:
        repeated = defaultdict(list)
        for number, first in sorted(self._repeated.items()):
            repeated[number >> _ROW_BITS].append((number, first))
        for unit in self._units:
            if self._inputs.parts[unit].role != role:
                continue
            rows = self._rows({number for pair in repeated[unit] for number in pair})
            problems = [
                (row, place, reason)
                for row, place, reason, was_kept in self._document(unit)["problems"]
                if not was_kept or self._is_kept(unit, row)
            ]
            for number, first in repeated[unit]:
                problems.append(
                    (number % (1 << _ROW_BITS), rows[number].place, _of_repeated(rows[number], rows[first]))
                )
            yield from ((place, reason) for _, place, reason in sorted(problems))

    def _refused_and_notes(self, skipped: Listed) -> tuple[list[Listed], dict[str, dict[str, int]]]:
        """What was cut or set aside in each split, and the columns left out of each file; `skipped` gets the refused ones.

        Raises:
            DialogueError: under `on_bad: refuse`, if the template does not show a dialogue.
        """
        notes, refused = [Listed(), Listed()], [Listed(), Listed()]
        given = Listed()
        left_out: dict[str, Counter[str]] = defaultdict(Counter)
        for unit in self._units:
            document = self._document(unit)
            left_out[document["path"]].update(document["left_out"])
            for row, side, note in document["notes"]:
                if self._is_kept(unit, row):
                    notes[side].add(note)
            for row, side, dialogue_id, reason in document["refused"]:
                if self._is_kept(unit, row):
                    refused[side].add((dialogue_id, reason))
                    if self._inputs.parts[unit].role != WRITTEN:
                        given.add(reason)
        lines, count = [*refused[0].lines, *refused[1].lines], refused[0].count + refused[1].count
        if given.count and self._inputs.on_bad == "refuse":
            raise DialogueError(refusal(given.lines, given.count))
        for dialogue_id, reason in lines:
            skipped.add(f"dialogue {dialogue_id!r}: set aside: {reason}")
        skipped.count += count - len(lines)
        return notes, {path: dict(columns) for path, columns in left_out.items() if columns}

    def _sums(self, side: int) -> Counter[str]:
        sums: Counter[str] = Counter()
        for unit in self._units:
            records = self._own_records(unit, side)
            examples = records["examples"].astype(np.int64)
            sums["examples"] += int(examples.sum())
            sums["split"] += int((examples > 1).sum())
            sums["added"] += int(np.maximum(examples - 1, 0).sum())
            sums["thoughts"] += int(records["thoughts"].sum())
        return sums

    def _own_records(self, unit: int, side: int) -> np.ndarray:
        records = read_records(self._inputs.path(unit, "records"))
        records = np.asarray(records[records["side"] == side])
        if self._repeated or self._near:
            records = records[[self._is_kept(unit, int(row)) for row in records["row"]]]
        return records

    def _lines(self, side: int) -> Iterator[bytes]:
        """The examples of a split, without those of dialogues that are left out."""
        filtered = {number >> _ROW_BITS for number in (*self._repeated, *self._near)}
        for unit in self._units:
            with self._inputs.path(unit, f"{SPLITS[side]}.jsonl").open("rb") as lines:
                if unit not in filtered:
                    yield from lines
                    continue
                records = read_records(self._inputs.path(unit, "records"))
                for record in records[records["side"] == side]:
                    kept = self._is_kept(unit, int(record["row"]))
                    examples = [lines.readline() for _ in range(int(record["examples"]))]
                    yield from examples if kept else ()

    def _dialogues(self, numbers: Iterable[int]) -> dict[int, Any]:
        return {number: row.dialogue for number, row in self._rows(set(numbers)).items()}

    def _rows(self, numbers: set[int]) -> dict[int, CheckedRow]:
        """Some rows, read again from their files."""
        wanted = defaultdict(set)
        for number in numbers:
            wanted[number >> _ROW_BITS].add(number % (1 << _ROW_BITS))
        rows = {}
        for unit, places in wanted.items():
            for place, row in enumerate(self._inputs.rows(unit)):
                if place in places:
                    rows[unit << _ROW_BITS | place] = row
        return rows


def _of_repeated(row: CheckedRow, first: CheckedRow) -> str:
    assert row.dialogue is not None and first.dialogue is not None  # only those have records
    if row.dialogue.id == first.dialogue.id:
        return repeated_id(row.dialogue.id, first.row_place)
    return (
        f"the id {shown(row.dialogue.id)}, or of an example that shows one of its thoughts, is that of an example made from "
        f"{shown(first.dialogue.id)} at {first.row_place}; expected each id once; rename one"
    )
