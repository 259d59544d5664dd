"""The released mode over a shard: warping over whole dialogues, first images, one-hot rows.

In: tokens of both sides, the source's rows, `Vocabularies` with texts. Out: the arrays of the aligned contract. The
released store's row i predicts token i+1; the contract's row predicts its own token. So the pivot row of token i+1 comes
from the source row after the token that the warping lays on token i. A source row that does not exist here (the source
token after it is no target) is treated as not lined up.
"""

from dataclasses import dataclass

import numpy as np

from fusechat.compilation import kept
from fusechat.storage.contracts import RowKind

from ..rows.projection import Projection
from ..rows.row_arrays import SourceRows
from ..vocabulary.vocabulary_file import ReleasedTexts, Vocabularies
from .released import WarpingTexts, costs_of, warping_texts
from .released_loops import EMPTY, ONE_HOT, choose_rows, warp

_MAPPED, _EMPTY, _ONE_HOT = int(RowKind.MAPPED), int(RowKind.EMPTY), int(RowKind.ONE_HOT)


@dataclass(frozen=True)
class DialogueTokens:
    """All tokens of a run of dialogues, the template's too."""

    token_ids: np.ndarray
    """int32 [tokens]"""
    is_scored: np.ndarray
    """bool [tokens]"""
    offsets: np.ndarray
    """int64 [dialogues+1]"""


def warped_pairs(pivot: DialogueTokens, source: DialogueTokens, texts: ReleasedTexts) -> tuple[np.ndarray, np.ndarray]:
    """(source ids, pivot ids) that the warping lays on one another; a source id twice at one pivot token counts once."""
    source_ids, pivot_ids = [], []
    for dialogue in range(len(pivot.offsets) - 1):
        p, s, first, last, _ = _warp_dialogue(pivot, source, texts, dialogue)
        place = np.repeat(np.arange(len(p)), last - first + 1)
        index = np.arange(len(place)) - np.repeat(np.cumsum(last - first + 1) - (last - first + 1), last - first + 1)
        pairs = np.unique(np.stack([place, s[first[place] + index]]), axis=1)
        source_ids.append(pairs[1])
        pivot_ids.append(p[pairs[0]])
    return np.concatenate(source_ids), np.concatenate(pivot_ids)


def project_shard(
    pivot: DialogueTokens,
    source: DialogueTokens,
    rows: SourceRows,
    logprobs: np.ndarray,
    vocabularies: Vocabularies,
    k: int,
) -> Projection:
    """Pivot rows of a run of dialogues by the released rules.

    Args:
        logprobs: float32 [source rows, k], nats.
    """
    num_rows = int(np.count_nonzero(pivot.is_scored))
    out = Projection(
        np.zeros((num_rows, k), np.int32), np.full((num_rows, k), -np.inf, np.float32),
        np.full(num_rows, np.nan, np.float32), np.zeros(num_rows, np.uint8), 0,
    )  # fmt: skip
    assert vocabularies.texts is not None, "released mode without its texts"
    row_of_token = np.where(source.is_scored, np.cumsum(source.is_scored) - 1, -1)
    row = 0
    for dialogue in range(len(pivot.offsets) - 1):
        p, s, first, last, texts = _warp_dialogue(pivot, source, vocabularies.texts, dialogue)
        p_index, s_index = _indices(p), _indices(s)
        chosen = choose_rows(p_index, s_index, first, last, *texts.pivot, *texts.source)
        base = source.offsets[dialogue]
        is_scored = pivot.is_scored[pivot.offsets[dialogue] : pivot.offsets[dialogue + 1]]
        # The row of token i+1 is what the released code computes at token i; the first token has none.
        before = np.concatenate([[ONE_HOT], chosen[:-1]])
        inside = before >= 0
        following = np.where(inside, before + 1, 0)
        inside &= following < len(s)
        source_row = np.where(inside, row_of_token[base + np.minimum(following, len(s) - 1)], -1)
        source_row = np.where(source_row >= 0, source_row, np.where(before == EMPTY, EMPTY, ONE_HOT))
        count = int(np.count_nonzero(is_scored))
        block = slice(row, row + count)
        _first_images(
            p[is_scored], source_row[is_scored], rows.topk_ids, logprobs, vocabularies.tables.source_to_pivot,
            vocabularies.vocab_size, *(array[block] for array in out[:4]),
        )  # fmt: skip
        row += count
    return out


def _warp_dialogue(
    pivot: DialogueTokens, source: DialogueTokens, texts: ReleasedTexts, dialogue: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, WarpingTexts]:
    """Pivot ids, source ids, both arrays of `warp`, and the texts that it compared, of one dialogue."""
    p = pivot.token_ids[pivot.offsets[dialogue] : pivot.offsets[dialogue + 1]]
    s = source.token_ids[source.offsets[dialogue] : source.offsets[dialogue + 1]]
    distinct = warping_texts(
        [texts.pivot[i] for i in np.unique(p).tolist()], [texts.source[i] for i in np.unique(s).tolist()], *texts.marks
    )
    first, last = warp(costs_of(distinct), _indices(s), _indices(p))
    return p, s, first, last, distinct


def _indices(token_ids: np.ndarray) -> np.ndarray:
    return np.unique(token_ids, return_inverse=True)[1].astype(np.int32)


@kept
def _first_images(
    labels: np.ndarray, source_row: np.ndarray, topk_ids: np.ndarray, logprobs: np.ndarray, images: np.ndarray,
    vocab_size: int, out_ids: np.ndarray, out_logprobs: np.ndarray, out_label: np.ndarray, out_kind: np.ndarray,
) -> None:  # fmt: skip
    """Of candidates with one image the first counts; what the others had is lost to the row, as released.

    Args:
        labels, source_row: int [rows], pivot ids and the source rows they get, ONE_HOT or EMPTY where none.
        topk_ids, logprobs: [source rows, source k]. `images`: int32 [source vocabulary], -1: unmapped.
        out_ids, out_logprobs, out_label, out_kind: those of Projection, [rows, k] and [rows].
    """
    k = out_ids.shape[1]
    for i in range(len(labels)):
        if source_row[i] < 0:
            out_kind[i] = _ONE_HOT if source_row[i] == ONE_HOT else _EMPTY
            if source_row[i] == ONE_HOT:
                out_ids[i, 0], out_logprobs[i, 0], out_label[i] = labels[i], 0.0, 0.0
            continue
        count, mass = 0, 0.0
        for c in range(topk_ids.shape[1]):
            image, logprob = images[topk_ids[source_row[i], c]], logprobs[source_row[i], c]
            if image < 0 or logprob == -np.inf or count == k or _holds(out_ids[i], count, image):
                continue
            out_ids[i, count], out_logprobs[i, count] = image, logprob
            if image == labels[i]:
                out_label[i] = logprob
            mass += np.exp(logprob)
            count += 1
        out_kind[i] = _MAPPED if count else _EMPTY
        if count and np.isnan(out_label[i]):
            out_label[i] = np.log(max(1.0 - mass, 1e-12) / max(vocab_size - count, 1))


@kept
def _holds(ids: np.ndarray, count: int, token_id: int) -> bool:
    """Whether the first `count` of `ids` (int32 [k]) have the id."""
    place = 0
    while place < count and ids[place] != token_id:
        place += 1
    return place < count
