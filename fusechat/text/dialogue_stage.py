"""The first door of the tokenize stage: dialogue files in; one file of checked dialogues per split, and its index, out."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..config import DialoguesSection
from ..config.layout import RunLayout
from ..errors import DialogueError
from ..models import model_files
from ..models.model_limits import position_limit
from ..models.resolved_model import ResolvedModel
from ..progress import Progress
from ..storage import artifact
from ..storage.artifact import Artifact, Claim
from ..storage.files import delete_folder, read_json, write_json
from ..storage.pieces import finished_pieces, open_pieces, without_pieces
from ..storage.work import Needs, Work, done_before
from .chat_template import load_tokenizer
from .dialogue_files import file_ranges
from .dialogue_joining import DialogueJoin
from .dialogue_reading import SPLITS, DialogueReader, ReadingInputs, ReadingPart
from .dialogues import file_names
from .model_templates import given_template, read_with, used_template
from .recipes import dialogues_recipe, positions_behind, without_places
from .writing_files import DIALOGUES_FILE

ONE_CPU = Needs(cpus=1, units_in_flight=2)
"""Two units per worker: one at work and one that waits, so that none waits for the driver."""


def prepare_reading(
    layout: RunLayout, pivot: ResolvedModel, section: DialoguesSection, capture: str, *, progress: Progress
) -> list[Work]:
    """Claim the folder of the dialogues; give what is left of reading, checking, cutting and splitting them as one work.

    A dialogue longer than `dialogues.max_tokens` of the pivot is cut after its last whole turn that fits; one whose first
    exchange does not fit is set aside. Both are counted, and the first thousand named, in the artifact.

    Args:
        capture: how teachers score, which may take a position of each dialogue.
    Raises:
        DialogueError: a file that is not there, or that is broken as a whole. The work raises it for a broken dialogue (unless
            `on_bad: skip`), held-out dialogues that are training dialogues (unless `on_overlap: keep`), or none left.
        ModelError: a pivot that cannot be trained.
    """
    behind = positions_behind(capture)
    model_files.check_trainable(pivot.folder, pivot.name)
    recipe = dialogues_recipe(section, pivot.section, capture)
    parents = {"written": artifact.load(layout.written_path, "written")} if section.prompts else {}
    text = given_template(pivot, pivot)
    settings = {
        **recipe.settings,
        "train": without_places(section.train),
        "held_out": without_places(section.held_out),
        "pivot": {"template_arguments": pivot.section.template_arguments, **read_with(pivot, text)},
    }
    claim = artifact.claim(
        layout.dialogues_path, "dialogues", settings=settings, parents=parents, if_changed=layout.if_changed
    )
    if (finished := without_pieces(claim)) is not None:
        return [done_before("dialogues", finished)]
    pieces, parts = open_pieces(claim), _parts(section, layout.written_path / DIALOGUES_FILE)
    _, text = load_tokenizer(str(pivot.folder), template=text)
    # One date for the whole run: of the first try at it.
    date = str((read_json(f"{pieces}/date") or {"date": datetime.date.today().isoformat()})["date"])
    write_json(f"{pieces}/date", {"date": date})
    inputs = ReadingInputs(
        parts=parts,
        folder=pieces,
        on_bad=section.on_bad,
        ignore_keys=tuple(section.ignore_keys),
        held_out_share=None if section.held_out else section.held_out_share,
        tokenizer=str(pivot.folder),
        template=used_template(pivot, text, date),
        max_tokens=min(section.max_tokens, (position_limit(pivot.folder) or section.max_tokens + behind) - behind),
    )
    read = finished_pieces(pieces)
    missing = [unit for unit in range(len(parts)) if unit not in read]
    total = sum(part.range.num_rows for part in parts)
    files = (*section.train, *section.prompts)
    end = _End(claim, inputs, section.on_overlap == "refuse", date, files, progress)
    return [
        Work(
            name="dialogues",
            missing=missing,
            num_units=len(parts),
            total=total,
            done=total - sum(parts[unit].range.num_rows for unit in missing),
            measure="rows",
            make_worker=partial(DialogueReader, inputs),
            finish=end.finish,
            needs=ONE_CPU,
            unit_name="piece {}".format,
        )
    ]


def _parts(section: DialoguesSection, written: Path) -> tuple[ReadingPart, ...]:
    kept = [str(written)] if section.prompts and written.stat().st_size else []
    return tuple(
        ReadingPart(part, name, role)
        for role, files in enumerate((section.train, section.held_out, kept))
        for path, name in zip(files, file_names(files), strict=True)
        for part in file_ranges(path)
    )


@dataclass(frozen=True)
class _End:
    """What is done when all ranges are read."""

    claim: Claim
    inputs: ReadingInputs
    refuses_overlap: bool
    date: str
    files: tuple[str, ...]
    progress: Progress

    def finish(self) -> list[Artifact]:
        """Join the pieces and say what was cut, set aside and left out.

        Raises:
            DialogueError: what only shows in the whole set; the pieces are then gone, because the files will be corrected.
        """
        join = DialogueJoin(self.inputs, Path(self.claim.url), refuses_overlap=self.refuses_overlap)
        try:
            counts = {"date": self.date, **join.join()}
            if not counts["train"]:
                raise DialogueError(
                    f"{', '.join(self.files)}: no dialogue left to train on; see dialogues.max_tokens and on_bad"
                )
        except DialogueError:
            delete_folder(self.inputs.folder)
            raise
        self._say(counts)
        delete_folder(self.inputs.folder)
        return [self.claim.finish(counts)]

    def _say(self, counts: dict[str, Any]) -> None:
        for split in SPLITS:
            self._say_lines(counts[f"{split}_cut_or_set_aside"], counts[f"num_{split}_cut_or_set_aside"])
            added = counts[f"{split}_added_for_hidden_reasoning"]
            if added:
                several = counts[f"{split}_split_for_hidden_reasoning"]
                self.progress.say(
                    f"dialogues: {split}: the pivot's template hides earlier reasoning, so {several:,} dialogues stand there "
                    f"once for each turn whose reasoning it shows ({added:,} more), each turn a target once"
                )
        for file, columns in counts["columns_left_out"].items():
            named = ", ".join(f"{name} ({count:,} rows)" for name, count in columns.items())
            self.progress.say(f"dialogues: {file}: columns that are no part of a dialogue, and were not read: {named}")
        if near := counts["written_near_held_out"]:
            self.progress.say(
                f"dialogues: {len(near):,} written ones are left out, because they are held-out ones but for a few words"
            )
        self._say_lines(counts["skipped"], counts["num_skipped"])

    def _say_lines(self, lines: list[str], count: int) -> None:
        for line in lines:
            self.progress.say(f"dialogues: {line}")
        if count > len(lines):
            self.progress.say(f"dialogues: and {count - len(lines):,} more like these")
