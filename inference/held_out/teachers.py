"""Which teachers' rows the models are compared with: a run's places in; dialogues and finished stores out.

A sample of the training dialogues, drawn by the run's seed, whose rows extraction has made; and one of the held-out dialogues,
whose rows the pivot and the sources have made as measured models. No teacher runs again for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fusechat.config.layout import RunLayout, teacher_key
from fusechat.errors import ArtifactError
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.row_store import RowStore

from .teacher_rows import TeacherRows

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class TeacherSample:
    """A teacher's finished rows on the pivot's tokens of a split, and the dialogues of it that are compared."""

    name: str
    split: Split
    kind: Literal["logprobs", "aligned"]
    rows: Artifact
    tokens: Artifact
    """The pivot's, of the split."""
    dialogues: tuple[int, ...]

    def for_model(self, layout: RunLayout, model_id: str) -> TeacherRows:
        """What the worker of a measured model is told of it."""
        out_url = layout.chosen_url(model_id, self.split, self.name)
        return TeacherRows(self.dialogues, self.tokens.url, self.rows.url, self.kind, out_url)


def teacher_samples(
    layout: RunLayout, pivot: str, sources: Sequence[str], *, split: Split, num_dialogues: int, seed: int
) -> list[TeacherSample]:
    """The teachers whose rows are finished; those of a split that nobody scored are none.

    Args:
        pivot, sources: their names.
        num_dialogues: at most so many dialogues are compared.
    Raises:
        ArtifactError: rows that were not made from the pivot's tokens of this run.
    """
    tokens = artifact.load(layout.tokens_url(pivot, split), "tokens")
    samples = []
    for name in (pivot, *sources):
        url = layout.url(teacher_key(name, split, is_pivot=name == pivot))
        kind: Literal["logprobs", "aligned"] = "logprobs" if name == pivot else "aligned"
        if not artifact.is_finished(url):
            continue
        rows = artifact.load(url, kind)
        if rows.counts.get("rows") == 0:  # nothing was held out
            continue
        if tokens.fingerprint not in rows.record["parents"].values():
            raise ArtifactError(
                f"{url}: was made from other tokens than {tokens.url}; run the stages before it again, or set "
                "evaluation.held_out.divergence_dialogues: 0"
            )
        store = RowStore.open(url, kind)
        offsets = store.row_offsets_of(range(store.layout.num_dialogues))
        samples.append(TeacherSample(name, split, kind, rows, tokens, draw(offsets, num_dialogues, seed)))
    return samples


def draw(row_offsets: np.ndarray, num_dialogues: int, seed: int) -> tuple[int, ...]:
    """Numbers of dialogues that have rows, drawn by the seed, ascending; the same for every teacher of a split.

    Args:
        row_offsets: int64 [dialogues+1].
    """
    readable = np.flatnonzero(np.diff(row_offsets) > 0)
    drawn = np.random.default_rng(seed).permutation(readable)[:num_dialogues]
    return tuple(np.sort(drawn).tolist())
