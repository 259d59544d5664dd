"""What the released FuseChat code computes, at compiled speed: token alignment, vocabulary map, distribution alignment.

In: token texts (`decode([id])`), pieces and counts. Out: exactly the released code's results (its script
`align_token_and_vocab.py`, default settings), to compare with and to reproduce published runs. Known weaknesses, kept on
purpose: quadratic in the text; of two pivot ids at the same edit distance the rarer wins; the label alone (one-hot)
where tokens do not line up; of two source ids with one image only the first counts.

A word-start mark (U+2581 or U+0120) is taken off a text before it is compared, unless nothing would remain. Which of the
two a vocabulary uses is read off its pieces where it is not given.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from scipy import sparse

from fusechat.errors import AlignmentError

from ..vocabulary.edit_distance import Texts, flatten_texts
from .released_loops import EMPTY, ONE_HOT, choose_rows, warp

MARKS = ("\u2581", "\u0120")
CONTAINED_WEIGHT = 0.1
"""Factor on the distance of two pieces of which one contains the other."""
ONE_HOT_LOGIT = 1.0


class WarpingTexts(NamedTuple):
    """Distinct token texts of both sides; each stripped and as it is, at 2n and 2n+1."""

    pivot: Texts
    source: Texts
    pivot_forms: list[str]
    source_forms: list[str]


def word_start_mark(pieces: Sequence[str | None]) -> str:
    """The mark that more of the pieces begin with; U+2581 if neither does."""
    counts = [sum(1 for piece in pieces if piece and piece.startswith(mark)) for mark in MARKS]
    return MARKS[1] if counts[1] > counts[0] else MARKS[0]


def align_released(
    pivot_texts: Sequence[str],
    source_texts: Sequence[str],
    *,
    pivot_mark: str | None = None,
    source_mark: str | None = None,
) -> list[list[int]]:
    """The released code's token alignment of one text: dynamic time warping with edit distances between token texts.

    Args:
        pivot_texts, source_texts: the decoded text of each token.
        pivot_mark, source_mark: word-start marks; default: the one with which more of the side's texts begin.
    Returns:
        for each pivot token the source tokens it is laid on, ascending.
    Raises:
        AlignmentError: one side has no tokens.
    """
    if not pivot_texts or not source_texts:
        raise AlignmentError(
            f"found {len(pivot_texts)} pivot and {len(source_texts)} source tokens, expected some of each"
        )
    pivot_index, pivot_distinct = _distinct(pivot_texts)
    source_index, source_distinct = _distinct(source_texts)
    texts = warping_texts(
        pivot_distinct,
        source_distinct,
        pivot_mark or word_start_mark(pivot_texts),
        source_mark or word_start_mark(source_texts),
    )
    first, last = warp(costs_of(texts), source_index, pivot_index)
    return [list(range(i, j + 1)) for i, j in zip(first.tolist(), last.tolist(), strict=True)]


def warping_texts(pivot: Sequence[str], source: Sequence[str], pivot_mark: str, source_mark: str) -> WarpingTexts:
    """Lay out distinct texts for the compiled loops."""
    p = [form for text in pivot for form in (text.replace(pivot_mark, ""), text)]
    s = [form for text in source for form in (text.replace(source_mark, ""), text.replace(source_mark, pivot_mark))]
    return WarpingTexts(flatten_texts(p), flatten_texts(s), p, s)


def costs_of(texts: WarpingTexts) -> np.ndarray:
    """int32 [distinct source texts, distinct pivot texts]: edit distances of the stripped texts.

    Where stripping leaves nothing of either, they are compared as they are.
    """

    def distances(sources: list[str], pivots: list[str]) -> np.ndarray:
        return process.cdist(sources, pivots, scorer=Levenshtein.distance, dtype=np.int32, workers=1)

    pivot, source = texts.pivot_forms[1::2], texts.source_forms[1::2]
    costs = distances(texts.source_forms[::2], texts.pivot_forms[::2])
    for s in [i for i, text in enumerate(texts.source_forms[::2]) if not text]:
        costs[s] = distances([source[s]], pivot)
    for p in [i for i, text in enumerate(texts.pivot_forms[::2]) if not text]:
        costs[:, p] = distances(source, [pivot[p]])[:, 0]
    return costs


def map_seen(
    counts: sparse.csr_matrix,
    source_pieces: Sequence[str],
    pivot_pieces: Sequence[str],
    *,
    pivot_mark: str | None = None,
    source_mark: str | None = None,
) -> np.ndarray:
    """The released vocabulary map of the source ids that were seen.

    argmin over the co-occurring pivot ids, ascending, first wins, of
    edit_distance * (0.1 if one piece contains the other) * sigmoid(count).

    Args:
        counts: sparse [V_source, V_pivot].
        source_pieces, pivot_pieces: the vocabularies' own pieces, with their word-start marks.
    Returns:
        int32 [V_source], -1 where a source id was never seen.
    """
    p_mark, s_mark = pivot_mark or word_start_mark(pivot_pieces), source_mark or word_start_mark(source_pieces)
    matrix = sparse.csr_matrix(counts)
    matrix.sum_duplicates()
    weights = 1.0 / (1.0 + np.exp(-matrix.data.astype(np.float64)))
    images = np.full(matrix.shape[0], -1, np.int32)
    for source_id in np.flatnonzero(np.diff(matrix.indptr)).tolist():
        block = slice(matrix.indptr[source_id], matrix.indptr[source_id + 1])
        columns = matrix.indices[block]
        piece = source_pieces[source_id]
        scores = [_piece_cost(piece, pivot_pieces[c], s_mark, p_mark) for c in columns.tolist()]
        images[source_id] = columns[np.argmin(np.array(scores) * weights[block])]
    return images


def _piece_cost(source: str, pivot: str, source_mark: str, pivot_mark: str) -> float:
    a, b = source.replace(source_mark, ""), pivot.replace(pivot_mark, "")
    if not a or not b:
        a, b = source.replace(source_mark, pivot_mark), pivot
    return Levenshtein.distance(a, b) * (CONTAINED_WEIGHT if a in b or b in a else 1)


def candidate_map(
    source_to_pivot: np.ndarray,
    source_pieces: Sequence[str | None],
    pivot_vocabulary: Mapping[str, int],
    *,
    pivot_mark: str,
    source_mark: str,
) -> np.ndarray:
    """Where each candidate of a row goes: the pivot's id of the same piece, else the map's; int32 [V_source]."""
    images = np.array(source_to_pivot, np.int32)
    for source_id, piece in enumerate(source_pieces[: len(images)]):
        if piece is not None:
            images[source_id] = pivot_vocabulary.get(piece.replace(source_mark, pivot_mark), images[source_id])
    return images


def project_released(
    pivot_ids: Sequence[int],
    pivot_texts: Sequence[str],
    source_texts: Sequence[str],
    source_topk_logits: Sequence[Sequence[float]],
    source_topk_ids: Sequence[Sequence[int]],
    source_to_pivot: np.ndarray,
    source_pieces: Sequence[str | None],
    pivot_vocabulary: Mapping[str, int],
    *,
    pivot_to_source: Sequence[Sequence[int]] | None = None,
    pivot_mark: str | None = None,
    source_mark: str | None = None,
) -> tuple[list[list[float]], list[list[int]]]:
    """The released code's distribution alignment of one text, row by row.

    Here alone row i is the distribution AFTER token i, as in the released store.

    Args:
        pivot_ids: the text in the pivot's tokens; `pivot_texts`, `source_texts`: decoded token texts of both sides.
        source_topk_logits, source_topk_ids: one row per source token.
        source_to_pivot: int [V_source], the released map, its default filled in.
        source_pieces: piece of each source id; `pivot_vocabulary`: piece -> id of the pivot.
        pivot_to_source: result of `align_released`; default: it is computed.
    Returns:
        (logits, ids) per pivot token. Where tokens do not line up: ([1.0], [the next pivot token]), the last token's
        next being itself; a row may be empty.
    """
    p_mark = pivot_mark or word_start_mark(list(pivot_vocabulary))
    s_mark = source_mark or word_start_mark(source_pieces)
    pivot_index, pivot_distinct = _distinct(pivot_texts)
    source_index, source_distinct = _distinct(source_texts)
    texts = warping_texts(pivot_distinct, source_distinct, p_mark, s_mark)
    if pivot_to_source is None:
        first, last = warp(costs_of(texts), source_index, pivot_index)
    else:
        first, last = (np.array([row[end] for row in pivot_to_source], np.int32) for end in (0, -1))
    chosen = choose_rows(pivot_index, source_index, first, last, *texts.pivot, *texts.source)
    labels = [*pivot_ids[1:], pivot_ids[-1]]
    logits, ids = [], []
    for row, label in zip(chosen.tolist(), labels, strict=True):
        if row in (ONE_HOT, EMPTY):
            logit_of = {int(label): ONE_HOT_LOGIT} if row == ONE_HOT else {}
        else:
            logit_of = _first_images(
                source_topk_logits[row],
                source_topk_ids[row],
                source_to_pivot,
                source_pieces,
                pivot_vocabulary,
                (p_mark, s_mark),
            )
        logits.append(list(logit_of.values()))
        ids.append(list(logit_of))
    return logits, ids


def _first_images(
    logits: Sequence[float],
    ids: Sequence[int],
    source_to_pivot: np.ndarray,
    source_pieces: Sequence[str | None],
    vocabulary: Mapping[str, int],
    marks: tuple[str, str],
) -> dict[int, float]:
    """Pivot id -> logit; of candidates with one image the first counts."""
    logit_of: dict[int, float] = {}
    for logit, source_id in zip(logits, ids, strict=True):
        piece = (source_pieces[source_id] or "").replace(marks[1], marks[0])
        logit_of.setdefault(int(vocabulary.get(piece, source_to_pivot[source_id])), logit)
    return logit_of


def _distinct(texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    places: dict[str, int] = {}
    index = np.fromiter((places.setdefault(text, len(places)) for text in texts), np.int32, len(texts))
    return index, list(places)
