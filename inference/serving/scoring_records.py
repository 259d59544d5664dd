"""What is asked of an engine that scores, and what it gives, as records; and the checks that every form of them shares.

Knows nothing about bytes, engines or HTTP.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusechat.errors import ContractError

from ..capture.rows import TopKRows


@dataclass(frozen=True)
class ScoreRequest:
    """What a client asks of an engine that scores.

    `token_ids` int32 [tokens] and `is_scored` bool [tokens] per dialogue; or `messages`, rows as dialogue files hold them.
    """

    model: str
    token_ids: tuple[np.ndarray, ...] = ()
    is_scored: tuple[np.ndarray, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    chosen_ids: tuple[np.ndarray, ...] | None = None
    """int32 [rows, m] per dialogue: tokens whose logprob is asked for beside the k."""
    k: int | None = None
    """Entries kept per row; None: what the engine was started for."""
    recipe: str | None = None
    """Fingerprint that the engine must have; None: whatever it has."""
    alone: bool = False
    """On CPUs: the engine reads nothing else meanwhile, so that the rows are the same to the bit in every company."""


@dataclass(frozen=True)
class ScoreReply:
    """Rows per dialogue, and the tokens that they are of."""

    model: str
    recipe: str
    token_ids: tuple[np.ndarray, ...]
    is_scored: tuple[np.ndarray, ...]
    rows: tuple[TopKRows, ...]


def split_chosen_ids(values: np.ndarray, marks: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """int32 [rows, m] per dialogue, from the ids of all rows; `marks`: bool [tokens] per dialogue, which have rows."""
    rows = [int(of_one.sum()) for of_one in marks]
    if values.ndim != 2 or len(values) != sum(rows):
        raise ContractError(f"chosen_ids: found shape {values.shape}, expected [{sum(rows)}, ids per row]")
    return tuple(values[place].astype(np.int32) for place in places_between(np.cumsum([0, *rows])))


def places_between(offsets: np.ndarray, total: int | None = None) -> list[slice]:
    """The places between offsets that begin at 0 and never descend."""
    ends = total is not None and len(offsets) and offsets[-1] != total
    if not len(offsets) or offsets[0] != 0 or (np.diff(offsets) < 0).any() or ends:
        raise ContractError("offsets: expected 0, then the end of each dialogue among the tokens, never descending")
    return [slice(start, stop) for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def whole_number(value: Any) -> int:
    """`k` of a request, in whatever form it came."""
    try:
        number = int(value)
    except (ValueError, TypeError):
        number = 0
    if number < 1:
        raise ContractError(f"k: found {str(value)[:40]!r}, expected a whole number of at least 1")
    return number
