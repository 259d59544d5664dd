"""Training examples, read from the artifacts one dialogue at a time.

In: the pivot's tokens, its logprobs store and the sources' aligned stores, joined by dialogue. Out: `Example`s. The
corpus's rows never sit in memory. Knows nothing about tensors, batches or the model.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.zarr_arrays import ranges

from .fusion_targets import RowChoice, Rows, Supervision, choose_rows, until_strayed, without_rows


@dataclass(frozen=True)
class Teachers:
    """Who teaches each dialogue under the choice `trusted`.

    `stores`: aligned stores; `number` int [dialogues], a place in `stores`, or -1; `trust` float [dialogues], in [0, 1].
    """

    stores: list[RowStore]
    number: np.ndarray
    trust: np.ndarray
    is_own: np.ndarray | None = None
    """bool [dialogues]: the student's own answers, which teach by rows alone; None: there are none."""
    least_probability: float = 0.0
    """Of a token of an own answer under its teacher: behind the first less probable one there are no rows."""


@dataclass(frozen=True)
class Example:
    """One dialogue, cut to the longest sequence that is trained on.

    `token_ids` int32 [tokens]; `positions` int64 [rows], where the target tokens stand; `supervision` holds their rows.
    A target token at position 0 is predicted from nothing and has been left out, and so has one of the student's own
    answer that has no row.
    """

    dialogue: int
    token_ids: np.ndarray
    positions: np.ndarray
    supervision: Supervision
    is_own: bool = False
    """The student's own answer: its labels teach nothing."""


class FusionDataset:
    """Reads examples by dialogue number."""

    def __init__(
        self,
        tokens: TokensReader,
        *,
        choice: RowChoice,
        max_tokens: int,
        pivot_rows: RowStore | None = None,
        source_rows: RowStore | None = None,
        source_own_rows: RowStore | None = None,
        teachers: Teachers | None = None,
    ) -> None:
        """
        Args:
            max_tokens: longer dialogues are cut there, tokens and rows alike.
            pivot_rows: the pivot's logprobs store; not read for the choices `none` and `source`.
            source_rows: the source's aligned store; not read for `none` and `pivot`.
            source_own_rows: the source's logprobs store on its own tokens; read for `min_ce_released` alone.
            teachers: for `trusted`, which reads no other rows.
        """
        assert (teachers is not None) == (choice == "trusted")
        self._teachers = teachers
        self.tokens, self.choice, self.max_tokens = tokens, choice, max_tokens
        self._pivot = pivot_rows if choice not in ("none", "source", "trusted") else None
        self._source = source_rows if choice not in ("none", "pivot", "trusted") else None
        self._source_own = source_own_rows if choice == "min_ce_released" else None
        everything = range(tokens.num_dialogues)
        # 16 bytes a dialogue: they are read in random order, and each look at the disk would cost as much as the row.
        self._offsets, self._row_offsets = tokens.offsets_of(everything), tokens.row_offsets_of(everything)

    def __len__(self) -> int:
        return self.tokens.num_dialogues

    def lengths(self, dialogues: slice = slice(None)) -> np.ndarray:
        """int32 [dialogues]: tokens of each example, of all or of consecutive ones."""
        first, last, _ = dialogues.indices(len(self))
        lengths = np.empty(last - first, np.int32)
        for part in ranges(last - first, 1 << 16):  # as numbers of 8 bytes they never stand there all
            bounds = self._offsets[first + part.start : first + part.stop + 1]
            lengths[part.start : part.stop] = np.minimum(np.diff(bounds), self.max_tokens)
        return lengths

    @cached_property
    def has_own(self) -> bool:
        """Whether the student's own answers are among the dialogues."""
        return self._teachers is not None and self._teachers.is_own is not None and bool(self._teachers.is_own.any())

    def trainable(self) -> np.ndarray:
        """int32: the dialogues that keep at least one target token after the cut, and of the student's own those that have
        a teacher.
        """
        kept, num_kept = np.empty(len(self), np.int32), 0
        for part in self.tokens.parts():
            block = slice(part.start, part.stop)
            bounds = self._offsets[part.start : part.stop + 1]
            scored = self.tokens.read_arrays(("is_scored",), slice(int(bounds[0]), int(bounds[-1])))["is_scored"]
            starts, lengths = bounds[:-1] - bounds[0], self.lengths(block)
            counts = np.concatenate([[0], np.cumsum(scored)])
            predicted = counts[starts + lengths] - counts[np.minimum(starts + 1, len(scored))]
            is_kept = (predicted > 0) & (lengths > 1)
            if self._teachers is not None and self._teachers.is_own is not None:
                is_kept &= ~self._teachers.is_own[block] | (self._teachers.number[block] >= 0)
            of_part = part.start + np.flatnonzero(is_kept)
            kept[num_kept : num_kept + len(of_part)] = of_part
            num_kept += len(of_part)
        return kept[:num_kept]

    def read(self, dialogue: int) -> Example:
        """Read one dialogue: its tokens, and the rows that supervise them."""
        place = slice(int(self._offsets[dialogue]), int(self._offsets[dialogue + 1]))
        arrays = self.tokens.read_arrays(("token_ids", "is_scored"), place)
        token_ids = arrays["token_ids"][: self.max_tokens]
        positions = np.flatnonzero(arrays["is_scored"])
        supervision = self._supervision(dialogue, len(positions))
        # Both losses of MinCE are taken over the whole dialogue, so the cut comes after the choice.
        kept = (positions > 0) & (positions < self.max_tokens)
        is_own = self.has_own and bool(self._teachers.is_own[dialogue])  # type: ignore[union-attr,index]  # it has some
        if is_own:
            kept &= np.isfinite(supervision.topk_logprobs).any(axis=1)
        cut = Supervision(
            supervision.topk_ids[kept],
            supervision.topk_logprobs[kept],
            supervision.source_share[kept],
            supervision.without_source,
            supervision.trust,
        )
        return Example(dialogue, token_ids, positions[kept], cut, is_own)

    def _supervision(self, dialogue: int, num_rows: int) -> Supervision:
        if self._teachers is not None:
            return self._taught(self._teachers, dialogue, num_rows)
        pivot = self._rows(self._pivot, dialogue)
        source = self._rows(self._source, dialogue)
        return choose_rows(
            self.choice,
            pivot and pivot[0],
            source and source[0],
            source and source[1],
            num_rows=num_rows,
            source_token_loss=self._source_token_loss(dialogue),
        )

    def _source_token_loss(self, dialogue: int) -> float:
        if self._source_own is None:
            return float("nan")
        return -float(self._source_own.read_dialogue(dialogue)["label_logprob"].mean(dtype=np.float64))

    def _taught(self, teachers: Teachers, dialogue: int, num_rows: int) -> Supervision:
        """The rows of the dialogue's teacher; plain SFT where it has none."""
        number = int(teachers.number[dialogue])
        if number < 0:
            return without_rows(num_rows, without_source=True)
        rows = self._rows(teachers.stores[number], dialogue)
        assert rows is not None
        chosen = choose_rows("source", None, rows[0], rows[1], num_rows=num_rows)
        if teachers.is_own is not None and teachers.is_own[dialogue] and teachers.least_probability:
            chosen = until_strayed(chosen, rows[0].label_logprob, teachers.least_probability)
        return replace(chosen, trust=float(teachers.trust[dialogue]))

    def _rows(self, store: RowStore | None, dialogue: int) -> tuple[Rows, np.ndarray | None] | None:
        if store is None:
            return None
        arrays = store.read_dialogue(dialogue, slice(*self._row_offsets[dialogue : dialogue + 2].tolist()))
        rows = Rows(arrays["topk_ids"], arrays["topk_logprobs"], arrays["label_logprob"])
        return rows, arrays.get("kind")
