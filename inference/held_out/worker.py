"""One measured model at work: shards of held-out tokens in, rows into its store; a teacher's rows in, chosen logprobs out.

Units are the shards of the store, then one for each set of chosen rows. Both are scored by one engine.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fusechat.errors import ModelError
from fusechat.storage import artifact
from fusechat.storage.chosen_rows import ChosenRows
from fusechat.storage.retry import patiently
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import TokensReader
from fusechat.storage.work import HERE, Place

from ..serving.remote_teacher import ServedBy
from ..teacher_worker import ScoringInputs, TeacherWorker

if TYPE_CHECKING:
    from ..capture.rows import TopKRows

ENGINE_FILE = "engine.json"
"""Beside a model's rows: what its engine was."""


@dataclass(frozen=True)
class TeacherRows:
    """A teacher's rows on some dialogues, and where a model's logprobs of their ids go."""

    name: str
    """Of the teacher."""
    split: Literal["train", "held_out"]
    dialogues: tuple[int, ...]
    """Numbers in the split."""
    tokens_url: str
    """Of the split, as the pivot reads it."""
    rows_url: str
    kind: Literal["logprobs", "aligned"]
    out_url: str


@dataclass(frozen=True)
class HeldOutInputs:
    """All that the worker of one measured model is told."""

    scoring: ScoringInputs
    num_shards: int
    """Of its store; 0: nothing was held out, and there is none."""
    teachers: tuple[TeacherRows, ...]

    def served_by(self, served: ServedBy) -> "HeldOutInputs":
        """The same work by an engine of a service."""
        return replace(self, scoring=self.scoring.served_by(served))


class _NotANumber(Exception):
    """A model gave rows that are no numbers for one of the dialogues of a unit."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


class HeldOutWorker(TeacherWorker):
    """Scores shards of held-out tokens, and the ids of teachers' rows, with one model."""

    def __init__(self, inputs: HeldOutInputs, place: Place = HERE) -> None:
        super().__init__(inputs.scoring, place)
        self.task = inputs

    def start(self) -> dict[str, Any]:
        """Open tokens, store and engine.

        Returns:
            the seconds the start took.
        Raises:
            TeacherError: the engine does not start.
        """
        started, task = time.monotonic(), self.task
        if task.num_shards:
            self._open_store()
        engine = self._open_engine(self.longest())
        if task.num_shards:
            artifact.write_json(f"{task.scoring.store_url}/{ENGINE_FILE}", engine.info)
        return {"seconds": time.monotonic() - started}

    def longest(self) -> int:
        """Tokens of the longest dialogue, the teachers' among them."""
        longest = super().longest() if self.task.num_shards else 1
        self._readers = {url: TokensReader(url) for url in {one.tokens_url for one in self.task.teachers}}
        for one in self.task.teachers:
            longest = max(longest, *(_length(self._readers[one.tokens_url], number) for number in one.dialogues))
        return longest

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Score one shard of the store, or one teacher's ids.

        Returns:
            units (1), rows, tokens and seconds.
        Raises:
            ArtifactError: rows or tokens are damaged.
            ModelError: a loss that is no number; the dialogue is named.
            TeacherError, StorageError: as `TeacherWorker.run_unit`.
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

    def _score_chosen(self, teacher: TeacherRows) -> dict[str, Any]:
        started, patience = time.monotonic(), self.inputs.storage_patience_seconds
        read = partial(_read_teacher, self._readers[teacher.tokens_url], teacher)
        ids, targets, chosen = patiently(read, seconds=patience)
        with self._engine_turn:
            rows = self._score(ids, targets, chosen)
        made = ChosenRows(
            np.array(teacher.dialogues, np.int64),
            np.cumsum([0, *map(len, rows)]).astype(np.int64),
            np.concatenate([one.chosen_logprobs for one in rows if one.chosen_logprobs is not None]),
            np.concatenate([one.rest_logprob for one in rows if one.rest_logprob is not None]),
        )
        patiently(lambda: made.write(teacher.out_url), seconds=patience)
        return {
            "rows": len(made.rest_logprob),
            "tokens": sum(map(len, ids)),
            "seconds": time.monotonic() - started,
        }


def _length(reader: TokensReader, dialogue: int) -> int:
    """Tokens of one dialogue."""
    first, last = reader.offsets_of(range(dialogue, dialogue + 1)).tolist()
    return int(last - first)


def _read_teacher(
    reader: TokensReader, teacher: TeacherRows
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Token ids, target marks and chosen ids (-1 where the teacher's row is padded) of each dialogue."""
    store = RowStore.open(teacher.rows_url, teacher.kind)
    ids, targets, chosen = [], [], []
    for number in teacher.dialogues:
        tokens, arrays = reader.read(range(number, number + 1)), store.read_dialogue(number)
        ids.append(tokens.token_ids)
        targets.append(tokens.is_scored)
        listed = np.isfinite(arrays["topk_logprobs"])
        chosen.append(np.where(listed, arrays["topk_ids"].astype(np.int64), -1))
    return ids, targets, chosen
