"""Which prompts every source answers wrongly: read off what is there, nothing is generated.

In: each source's tokens and logprobs stores, or the verdicts on answers that were written. Out: dialogues, or prompts.
Greedy decoding gives an answer exactly where every one of its tokens is the most probable after those before it.
"""

import json
from collections.abc import Sequence

import numpy as np

from fusechat.config.layout import RunLayout
from fusechat.storage.contracts import TokenField
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import TokensReader
from fusechat.text.writing_files import VERDICTS_FILE


def answered_wrongly(
    layout: RunLayout, sources: Sequence[str], kinds: Sequence[str], exact_kinds: Sequence[str]
) -> np.ndarray:
    """bool [dialogues]: of a kind whose last answer is a reference, and no source's greedy answer is that reference.

    Args:
        kinds: of each dialogue.
        exact_kinds: those whose last answer is a reference.
    """
    wrong = np.isin(np.array(kinds, dtype=str), list(exact_kinds))
    if wrong.any():
        for source in sources:
            wrong &= ~_is_right(layout, source, wrong)
    return wrong


def refused_prompts(layout: RunLayout) -> set[str]:
    """Ids of the prompts that have a reference, and to which no writer gave an answer that is kept."""
    wrong: set[str] = set()
    with (layout.written_path / VERDICTS_FILE).open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["prompt"]["reference"] and not any(answer["kept"] for answer in row["answers"]):
                wrong.add(row["prompt"]["id"])
    return wrong


def _is_right(layout: RunLayout, source: str, asked: np.ndarray) -> np.ndarray:
    """bool [dialogues]: the source's greedy answer is the label throughout; False where it is not asked."""
    tokens, store = TokensReader(layout.tokens_url(source)), RowStore.open(layout.logprobs_url(source), "logprobs")
    right = np.zeros(tokens.num_dialogues, bool)
    for shard, arrays in store.iter_shards():
        numbers = store.layout.dialogues(shard)
        if not asked[numbers.start : numbers.stop].any():
            continue
        part = tokens.read(numbers)
        labels, field = part.token_ids[part.is_scored], part.field[part.is_scored]
        is_first = arrays["topk_ids"][:, 0].astype(np.int64) == labels
        for place, dialogue in enumerate(numbers):
            rows = slice(int(part.row_offsets[place]), int(part.row_offsets[place + 1]))
            ends = np.flatnonzero(field[rows] == TokenField.END_OF_TURN)
            is_break = np.append(np.diff(ends) > 1, False)  # a turn's end may take several tokens
            earlier = ends[is_break]
            last_turn = is_first[rows][earlier[-1] + 1 if len(earlier) else 0 :]
            right[dialogue] = len(last_turn) > 0 and bool(last_turn.all())
    return right
