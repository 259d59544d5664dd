"""Joins the pieces of the dialogues: checks what needs all of them, and writes one file per split with its index.

In memory are the digests of a bucket, the numbers of the dialogues that are left out, and the first `MAX_LISTED` lines of
whatever is listed; where dialogues were written, the held-out ones too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DialogueError
from ..storage.files import write_json
from ..storage.write_errors import storage_errors
from .dialogue_pieces import ROW_BITS, DialoguePieces
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
        self._pieces = DialoguePieces(inputs)

    def join(self) -> dict[str, Any]:
        """Check and write; the counts of the artifact.

        Raises:
            DialogueError: a broken dialogue, an id that stands twice, or one that the template does not show (unless
                `on_bad: skip`), held-out dialogues that are training dialogues (unless `on_overlap: keep`).
        """
        overlap = self._check_digests()
        skipped = self._problems()
        overlap = [pair for pair in overlap if not self._pieces.near.keys() & set(pair)]
        pairs = [
            (rows[one].id, rows[other].id)
            for rows in [self._pieces.dialogues(sum(overlap, ()))]
            for one, other in overlap
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
            sums = self._pieces.sums(side)
            writer = SplitWriter(self._folder / f"{split}.jsonl")
            with storage_errors(self._folder), writer:
                for line in self._pieces.lines(side):
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

    def _check_digests(self) -> list[tuple[int, int]]:
        """Note whose ids stand twice; the (held-out, training) numbers of equal dialogues, held-out ones ascending."""
        total = sum(part.range.num_rows for part in self._inputs.parts)
        looks_for_overlap = self._inputs.held_out_share is None or bool(self._pieces.written_units())
        with EqualDigests(total, self._folder) as ids, EqualDigests(total, self._folder) as said:
            for unit in self._pieces.units:
                records = read_records(self._inputs.path(unit, "records"))
                numbers = (unit << ROW_BITS) + records["row"]
                ids.add(records["id"], records["id_rest"], numbers)
                if looks_for_overlap:
                    own = records["side"] != MADE
                    with_side = 2 * numbers + records["side"]
                    said.add(records["said"][own], records["said_rest"][own], with_side[own])
            for group in ids.groups():
                self._pieces.repeated.update({int(number): int(group[0]) for number in group[1:] if number != group[0]})
            self._find_near()
            overlap = []
            for group in said.groups():
                sides: tuple[list[int], list[int]] = ([], [])
                for number in group.tolist():
                    if number // 2 not in self._pieces.repeated and number // 2 not in self._pieces.near:
                        sides[number % 2].append(number // 2)
                overlap += [(number, sides[0][-1]) for number in sides[1] if sides[0]]
        return sorted(overlap)

    def _find_near(self) -> None:
        """Note the written training dialogues that nearly are held-out ones; the held-out ones stand in memory for it."""
        if not self._pieces.written_units():
            return
        held_out = {number for unit in self._pieces.units for number in self._pieces.numbers(unit, 1)}
        near = NearDuplicates([row for _, row in sorted(self._pieces.dialogues(held_out).items())])
        for unit in self._pieces.written_units():
            written = self._pieces.dialogues(self._pieces.numbers(unit, 0))
            for number, dialogue in sorted(written.items()):
                other = near.of(dialogue)
                if other is not None:
                    self._pieces.near[number] = dialogue.id, other

    def _written_counts(self) -> dict[str, Any]:
        kept = sum(len(self._pieces.records(unit, 0)) for unit in self._pieces.written_units())
        return {"written": kept + len(self._pieces.near), "written_near_held_out": dict(self._pieces.near.values())}

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
        for number, first in sorted(self._pieces.repeated.items()):
            repeated[number >> ROW_BITS].append((number, first))
        for unit in self._pieces.units:
            if self._inputs.parts[unit].role != role:
                continue
            rows = self._pieces.rows({number for pair in repeated[unit] for number in pair})
            problems = [
                (row, place, reason)
                for row, place, reason, was_kept in self._pieces.document(unit)["problems"]
                if not was_kept or self._pieces.is_kept(unit, row)
            ]
            for number, first in repeated[unit]:
                problems.append((number % (1 << ROW_BITS), rows[number].place, _of_repeated(rows[number], rows[first])))
            yield from ((place, reason) for _, place, reason in sorted(problems))

    def _refused_and_notes(self, skipped: Listed) -> tuple[list[Listed], dict[str, dict[str, int]]]:
        """What was cut or set aside in each split, and the columns left out of each file; `skipped` gets the refused ones.

        Raises:
            DialogueError: under `on_bad: refuse`, if the template does not show a dialogue.
        """
        notes, refused = [Listed(), Listed()], [Listed(), Listed()]
        given = Listed()
        left_out: dict[str, Counter[str]] = defaultdict(Counter)
        for unit in self._pieces.units:
            document = self._pieces.document(unit)
            left_out[document["path"]].update(document["left_out"])
            for row, side, note in document["notes"]:
                if self._pieces.is_kept(unit, row):
                    notes[side].add(note)
            for row, side, dialogue_id, reason in document["refused"]:
                if self._pieces.is_kept(unit, row):
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


def _of_repeated(row: CheckedRow, first: CheckedRow) -> str:
    assert row.dialogue is not None and first.dialogue is not None  # only those have records
    if row.dialogue.id == first.dialogue.id:
        return repeated_id(row.dialogue.id, first.row_place)
    return (
        f"the id {shown(row.dialogue.id)}, or of an example that shows one of its thoughts, is that of an example made from "
        f"{shown(first.dialogue.id)} at {first.row_place}; expected each id once; rename one"
    )
