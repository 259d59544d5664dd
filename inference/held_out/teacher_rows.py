"""Teachers' rows on the same dialogues, whose ids a measured model is asked for in one pass.

Goes in: the teachers' stores and the rows of one pass. Comes out: the ids that are asked for, and what the model says of each
teacher's. Knows nothing about engines or units.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fusechat.storage.chosen_rows import ChosenRows
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import TokensReader

from ..capture.rows import TopKRows


@dataclass(frozen=True)
class TeacherRows:
    """A teacher's rows on some dialogues, and where a model's logprobs of their ids go."""

    dialogues: tuple[int, ...]
    """Numbers in their split."""
    tokens_url: str
    """Of the split, as the pivot reads it."""
    rows_url: str
    kind: Literal["logprobs", "aligned"]
    out_url: str


def by_dialogues(teachers: Sequence[TeacherRows]) -> list[tuple[TeacherRows, ...]]:
    """The teachers of the same dialogues together, in the order in which these come."""
    groups: dict[tuple[str, tuple[int, ...]], list[TeacherRows]] = {}
    for one in teachers:
        groups.setdefault((one.tokens_url, one.dialogues), []).append(one)
    return [tuple(group) for group in groups.values()]


def read_dialogues(
    reader: TokensReader, teachers: Sequence[TeacherRows]
) -> Iterator[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
    """Token ids, target marks and each teacher's ids (int64 [rows, k], -1 where its row is padded) of each dialogue."""
    stores = [RowStore.open(one.rows_url, one.kind) for one in teachers]
    for number in teachers[0].dialogues:
        tokens, asked = reader.read(range(number, number + 1)), []
        for store in stores:
            arrays = store.read_dialogue(number)
            listed = np.isfinite(arrays["topk_logprobs"])
            asked.append(np.where(listed, arrays["topk_ids"].astype(np.int64), -1))
        yield tokens.token_ids, tokens.is_scored, asked


def split_chosen(rows: TopKRows, asked: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the model says of each teacher's ids, from rows whose chosen ids are those of all teachers side by side.

    The rest of one teacher is the rest of all, and with it the ids that only others listed.

    Args:
        asked: int64 [rows, k] per teacher, -1 pads.
    Returns:
        (chosen_logprobs float32 [rows, k], rest_logprob float32 [rows]) per teacher.
    """
    assert rows.chosen_logprobs is not None and rows.rest_logprob is not None, "ids were chosen"
    ids = np.concatenate(asked, axis=1)
    same = ids[:, :, None] == ids[:, None, :]  # [rows, m, m]
    is_first = ~np.tril(same, -1).any(axis=2) & (ids >= 0)
    parts, start = [], 0
    for of_one in asked:
        own = slice(start, start + of_one.shape[1])
        start = own.stop
        others = is_first & ~same[:, :, own].any(axis=2)
        logprobs = np.where(others, rows.chosen_logprobs.astype(np.float64), -np.inf)
        rest = np.logaddexp(rows.rest_logprob.astype(np.float64), np.logaddexp.reduce(logprobs, axis=1))
        parts.append((rows.chosen_logprobs[:, own], np.minimum(rest, 0).astype(np.float32)))
    return parts


def chosen_rows(dialogues: Sequence[int], parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> ChosenRows:
    """One artifact of the parts of all dialogues, in order."""
    return ChosenRows(
        np.array(dialogues, np.int64),
        np.cumsum([0, *(len(rest) for _, rest in parts)]).astype(np.int64),
        np.concatenate([chosen for chosen, _ in parts]),
        np.concatenate([rest for _, rest in parts]),
    )
