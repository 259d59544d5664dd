"""Sums over the rows of a shard, in compiled loops: arrays of both sides in; losses, kinds of text, and sums by kind, out.

What the sums mean is said in `quality`. Knows nothing about figures or files.
"""

import numpy as np

from fusechat.compilation import kept

from .tokens.token_alignment import TargetRows
from .vocabulary.vocabulary_trie import Surfaces

TEXT_KINDS = ("prose", "code", "digits", "other_scripts", "end_of_turn")
_PROSE, _CODE, _DIGITS, _OTHER, _END = range(5)
COLUMNS = (
    "rows", "real_rows", "source_mass", "aligned_mass", "segments", "real_segments", "bytes",
    "source_nats_even", "aligned_nats_even", "source_nats_label", "aligned_nats_label",
)  # fmt: skip
ROWS, _REAL, _S_MASS, _A_MASS, _SEGMENTS, _REAL_SEGMENTS, _BYTES, _S_EVEN, _A_EVEN, _S_LABEL, _A_LABEL = range(11)
_CODE_BYTES = np.isin(np.arange(256), np.frombuffer(b"{}[]<>=_;\\|&$#@^~`\t", np.uint8))


def loss_even(labels: np.ndarray, topk_ids: np.ndarray, topk_logprobs: np.ndarray, vocab_size: int) -> np.ndarray:
    """float64 [rows], nats: -log of the label's probability, the tail being spread evenly over the other ids."""
    return _loss_even(labels, topk_ids.astype(np.int32), topk_logprobs, vocab_size)


@kept
def _loss_even(labels: np.ndarray, topk_ids: np.ndarray, topk_logprobs: np.ndarray, vocab_size: int) -> np.ndarray:
    losses = np.empty(len(labels))
    for row in range(len(labels)):
        mass, entries, own = 0.0, 0, 0.0
        for c in range(topk_ids.shape[1]):
            if topk_logprobs[row, c] > -np.inf:
                entries += 1
                mass += np.exp(topk_logprobs[row, c])
                if topk_ids[row, c] == labels[row]:
                    own = topk_logprobs[row, c]
                    entries = -(2**30)
        losses[row] = -own if entries < 0 else -np.log(max(1.0 - mass, 1e-12) / max(vocab_size - entries, 1))
    return losses


def text_kinds(token_ids: np.ndarray, is_end_of_turn: np.ndarray, surfaces: Surfaces) -> np.ndarray:
    """uint8 [rows]: index into TEXT_KINDS of each token, by the bytes it spells."""
    return _text_kinds(token_ids, is_end_of_turn, surfaces.data, surfaces.offsets, _CODE_BYTES)


@kept
def _text_kinds(
    token_ids: np.ndarray, is_end_of_turn: np.ndarray, data: np.ndarray, offsets: np.ndarray, code_bytes: np.ndarray
) -> np.ndarray:
    kinds = np.zeros(len(token_ids), np.uint8)
    for row in range(len(token_ids)):
        kind = _END if is_end_of_turn[row] else _PROSE
        for place in range(offsets[token_ids[row]], offsets[token_ids[row] + 1]):
            byte = data[place]
            if byte >= 0x80:
                kind = max(kind, _OTHER)
            elif 0x30 <= byte <= 0x39:
                kind = max(kind, _DIGITS)
            elif code_bytes[byte]:
                kind = max(kind, _CODE)
        kinds[row] = kind
    return kinds


@kept
def sum_rows(
    source_row: np.ndarray, inside: np.ndarray, labels: np.ndarray, real: np.ndarray,
    source_mass: np.ndarray, aligned_mass: np.ndarray, sums: np.ndarray,
) -> None:  # fmt: skip
    """Rows and masses, added to `sums` (float64 [text kinds, columns]).

    Args:
        labels: uint8 [pivot rows], each token's text kind. `real`: bool [pivot rows], `_IS_REAL` of the row's kind.
        source_mass: float64 [source rows]. `aligned_mass`: float64 [pivot rows].
    """
    for i in range(len(labels)):
        sums[labels[i], ROWS] += 1
        sums[labels[i], _REAL] += real[i]
        if real[i] and source_row[i] >= 0 and inside[i] == 0:
            sums[labels[i], _S_MASS] += source_mass[source_row[i]]
            sums[labels[i], _A_MASS] += aligned_mass[i]


@kept
def sum_segments(
    pivot: TargetRows, source_row: np.ndarray, inside: np.ndarray, labels: np.ndarray, real: np.ndarray,
    source_even: np.ndarray, aligned_even: np.ndarray, source_label: np.ndarray, aligned_label: np.ndarray,
    sums: np.ndarray,
) -> None:  # fmt: skip
    """Segments, bytes and losses, added to `sums`; as `sum_rows`, and the losses float64 of either side's rows, nats."""
    rows = len(labels)
    i = 0
    while i < rows:
        first, kind, whole = i, labels[i], real[i]
        i += 1
        while i < rows and not pivot.opens_turn[i] and (source_row[i] < 0 or inside[i] > 0):
            kind, whole = max(kind, labels[i]), whole and real[i]
            i += 1
        ends_turn = i == rows or pivot.opens_turn[i]
        if source_row[first] < 0 or inside[first] > 0 or (ends_turn and not pivot.is_end_of_turn[first]):
            continue
        begin = source_row[first]
        stop = begin + 1 if ends_turn else source_row[i]
        sums[kind, _SEGMENTS] += 1
        if not whole or not (np.isfinite(source_label[begin:stop]).all() and np.isfinite(aligned_label[first:i]).all()):
            continue
        sums[kind, _REAL_SEGMENTS] += 1
        sums[kind, _BYTES] += pivot.ends[i - 1] - pivot.starts[first]
        sums[kind, _S_EVEN] += source_even[begin:stop].sum()
        sums[kind, _A_EVEN] += aligned_even[first:i].sum()
        sums[kind, _S_LABEL] += source_label[begin:stop].sum()
        sums[kind, _A_LABEL] += aligned_label[first:i].sum()
