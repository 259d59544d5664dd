"""One measured model at work: shards of held-out tokens in, rows into its store; teachers' rows in, chosen logprobs out.

Units are the shards of the store, then one for all teachers of the same dialogues. Both are scored by one engine.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fusechat.errors import ModelError
from fusechat.storage.files import write_json
from fusechat.storage.retry import retried
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import HERE, Place

from ..scoring_worker import ScoringInputs, ScoringWorker
from ..serving.remote_engine import ServedBy
from .teacher_rows import TeacherRows, chosen_rows, read_dialogues, split_chosen

if TYPE_CHECKING:
    from ..capture.rows import TopKRows

ENGINE_FILE = "engine.json"
"""Beside a model's rows: what its engine was."""


@dataclass(frozen=True)
class HeldOutInputs:
    """All that the worker of one measured model is told."""

    scoring: ScoringInputs
    num_shards: int
    """Of its store; 0: nothing was held out, and there is none."""
    teachers: tuple[tuple[TeacherRows, ...], ...]
    """Of the same dialogues together: they are read once, for the ids of all."""

    def served_by(self, served: ServedBy) -> "HeldOutInputs":
        """The same work by an engine of a service."""
        return replace(self, scoring=self.scoring.served_by(served))


class _NotANumber(Exception):
    """A model gave rows that are no numbers for one of the dialogues of a unit."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


class HeldOutWorker(ScoringWorker):
    """Scores shards of held-out tokens, and the ids of teachers' rows, with one model."""

    def __init__(self, inputs: HeldOutInputs, place: Place = HERE) -> None:
        super().__init__(inputs.scoring, place)
        self.task = inputs

    def start(self) -> dict[str, Any]:
        """Open tokens, store and engine.

        Returns:
            the seconds the start took.
        Raises:
            EngineError: the engine does not start.
        """
        started, task = time.monotonic(), self.task
        if task.num_shards:
            self._open_store()
        engine = self._open_scorer()
        if task.num_shards:
            write_json(f"{task.scoring.store_url}/{ENGINE_FILE}", engine.info)
        return {"seconds": time.monotonic() - started}

    def longest(self) -> int:
        """Tokens of the longest dialogue, the teachers' among them."""
        longest = super().longest() if self.task.num_shards else 1
        firsts = [group[0] for group in self.task.teachers if group]
        self._readers = {one.tokens_url: TokensReader(one.tokens_url) for one in firsts}
        for one in firsts:
            longest = max(longest, *(_length(self._readers[one.tokens_url], number) for number in one.dialogues))
        return longest

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Score one shard of the store, or the ids of the teachers of some dialogues.

        Returns:
            units (1), rows, tokens and seconds.
        Raises:
            ArtifactError: rows or tokens are damaged.
            ModelError: a loss that is no number; the dialogue is named.
            EngineError, StorageError: as `ScoringWorker.run_unit`.
        """
        if unit >= self.task.num_shards:
            return {**self._score_chosen(self.task.teachers[unit - self.task.num_shards]), "units": 1}
        try:
            return {**super().run_unit(unit), "units": 1}
        except _NotANumber as error:
            number = self.store.layout.dialogues(unit).start + error.place
            raise ModelError(
                f"{self.inputs.model.name}: its loss of held-out dialogue number {number} is nan, expected a finite number of "
                "nats; its weights are damaged or its activations overflow: look at how it was trained or merged, or set "
                "evaluation.held_out.dtype: float32"
            ) from None

    def _score(
        self, ids: list[np.ndarray], targets: list[np.ndarray], chosen: list[np.ndarray] | None = None
    ) -> "list[TopKRows]":
        rows = super()._score(ids, targets, chosen)
        for place, of_one in enumerate(rows):
            if np.isnan(of_one.label_logprob).any():
                raise _NotANumber(place)
        return rows

    def _score_chosen(self, teachers: tuple[TeacherRows, ...]) -> dict[str, Any]:
        started, patience = time.monotonic(), self.inputs.storage_patience_seconds
        reader, dialogues = self._readers[teachers[0].tokens_url], teachers[0].dialogues
        read = retried(lambda: list(read_dialogues(reader, teachers)), seconds=patience)
        ids, targets, asked = [one[0] for one in read], [one[1] for one in read], [one[2] for one in read]
        rows = self._score(ids, targets, [np.concatenate(of_one, axis=1) for of_one in asked])
        parts = [split_chosen(*one) for one in zip(rows, asked, strict=True)]
        for place, teacher in enumerate(teachers):
            made = chosen_rows(dialogues, [of_one[place] for of_one in parts])
            retried(partial(made.write, teacher.out_url), seconds=patience)
        return {
            "rows": sum(map(len, rows)),
            "tokens": sum(map(len, ids)),
            "seconds": time.monotonic() - started,
        }


def _length(reader: TokensReader, dialogue: int) -> int:
    """Tokens of one dialogue."""
    first, last = reader.offsets_of(range(dialogue, dialogue + 1)).tolist()
    return int(last - first)
