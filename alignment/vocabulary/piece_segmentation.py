"""Cuts every piece of the source's vocabulary into the pivot's tokens.

In: the bytes each id spells, and the pivot's tokenizer. Out: the pivot ids that spell each source id, and which pivot
ids the tokenizer ever produces. Knows nothing about texts or counts.

The tokenizer itself is asked first, alone and after a line end (some tokenizers put a space before a text, none does
within one); an answer counts only if it spells exactly the piece's bytes. Where none does (half a character, a text
that looks like a control token), the longest match from the left over the pivot's vocabulary is taken.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fusechat.compilation import kept

from ..rows.compiled import compiled
from .vocabulary_trie import NO_TOKEN, Surfaces, Trie, build_trie, descend, flatten_surfaces, longest_match

_CONTEXTS = ("", "\n")
_BLOCK = 8192
"""Pieces that are encoded at once."""


class Segments(NamedTuple):
    """The pivot ids that spell each source id, in order."""

    token_ids: np.ndarray
    """int32 [segments]"""
    offsets: np.ndarray
    """int64 [source vocabulary+1]; no segments: the id spells nothing, or bytes the pivot cannot spell."""


def encode_pieces(
    pieces: Sequence[bytes | None], tokenizer: Any, surfaces: Sequence[bytes | None]
) -> list[list[int] | None]:
    """What the tokenizer makes of each piece; None where its answer does not spell the piece.

    Args:
        tokenizer: a transformers tokenizer with a `tokenizers` backend, or such a backend.
        surfaces: bytes per id of that tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    backend.no_padding()  # a tokenizer.json may set either; pieces are encoded whole and alone
    backend.no_truncation()
    texts = [_decode(piece) for piece in pieces]
    ids_of: list[list[int] | None] = [None] * len(pieces)
    for context in _CONTEXTS:
        open_ids = [i for i, text in enumerate(texts) if text is not None and ids_of[i] is None]
        for start in range(0, len(open_ids), _BLOCK):  # an encoding holds far more than its ids
            block = open_ids[start : start + _BLOCK]
            encodings = backend.encode_batch_fast([f"{context}{texts[i]}" for i in block], add_special_tokens=False)
            for i, encoding in zip(block, encodings, strict=True):
                ids_of[i] = _spelled_tail(encoding.ids, surfaces, pieces[i] or b"")
    return ids_of


def segment_pieces(
    pieces: Sequence[bytes | None], encoded: Sequence[Sequence[int] | None], trie: Trie, vocab_size: int
) -> Segments:
    """Segments of every source id.

    Args:
        encoded: pivot ids per piece from `encode_pieces`, or None: then the longest match is taken.
        trie: of the pivot's vocabulary.
        vocab_size: of the source's model, at least `len(pieces)`.
    """
    flat = flatten_surfaces(pieces)
    cuts = [_cut_longest(trie, flat, i) if ids is None else ids for i, ids in enumerate(encoded)]
    cuts += [[]] * (vocab_size - len(cuts))
    offsets = np.concatenate([[0], np.cumsum([len(cut) for cut in cuts])]).astype(np.int64)
    return Segments(np.fromiter((i for cut in cuts for i in cut), np.int32, int(offsets[-1])), offsets)


def pivot_trie(surfaces: Sequence[bytes | None], tokenizer: Any, vocab_size: int) -> Trie:
    """A trie over the pivot ids that its tokenizer produces for their own bytes.

    An id for whose bytes the tokenizer gives other ids (a byte piece for a letter that has its own, a number the
    tokenizer always splits) never stands in a text and is left out.
    """
    encoded = encode_pieces(surfaces, tokenizer, surfaces)
    reachable = np.zeros(max(vocab_size, len(surfaces)), np.bool_)
    for token_id, ids in enumerate(encoded):
        reachable[token_id] = surfaces[token_id] is not None and (ids is None or ids == [token_id])
    return build_trie(flatten_surfaces(surfaces, vocab_size), reachable)


def _decode(piece: bytes | None) -> str | None:
    try:
        return piece.decode("utf-8") if piece else None
    except UnicodeDecodeError:
        return None


def _spelled_tail(ids: Sequence[int], surfaces: Sequence[bytes | None], piece: bytes) -> list[int] | None:
    """The last ids, if together they spell exactly the piece (what is before them is context)."""
    length = 0
    for count, token_id in enumerate(reversed(ids), 1):
        surface = surfaces[token_id] if token_id < len(surfaces) else None
        if surface is None:
            return None
        length += len(surface)
        if length >= len(piece):
            tail = list(ids[len(ids) - count :])
            return tail if b"".join(surfaces[i] or b"" for i in tail) == piece else None
    return None


def _cut_longest(trie: Trie, flat: Surfaces, token_id: int) -> list[int]:
    start, stop = flat.offsets[token_id : token_id + 2]
    ids = cut_longest(trie, flat.data, start, stop)
    return [] if len(ids) and ids[-1] == NO_TOKEN else ids.tolist()


@kept
def cut_longest(trie: Trie, data: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Longest matches in `data[start:stop]` (uint8 [bytes]) from the left, int32 [tokens].

    The last is -1 if the rest cannot be spelled.
    """
    ids = np.empty(stop - start, np.int32)
    count = 0
    while start < stop:
        ids[count], covered = longest_match(trie, data, start, stop, 0)
        count += 1
        if covered == 0:
            ids[count - 1] = -1
            break
        start += covered
    return ids[:count]


@compiled
def longest_of_segments(trie: Trie, segments: Segments, pivot: Surfaces, token: int, node: int) -> tuple[int, int, int]:
    """The longest id whose path leads from `node` through whole segments of a source token.

    What the pivot would make of a text and the token written after it: a token that reaches beyond the text ends where
    the pivot cuts the source token anyway. So after three spaces ` return` stays whole where a fourth space alone would
    have made a longer token: which tokens its tokenizer never joins is not in a vocabulary's bytes, but shows here.

    Args:
        node: where the text before the token leads.
    Returns:
        (id, bytes of the token it covers, place of the next segment); (-1, 0, _) if there is none. An id that ends at
        `node` itself covers 0 bytes.
    """
    token_id, covered, read = trie.token_ids[node], 0, 0
    following = segments.offsets[token]
    for place in range(segments.offsets[token], segments.offsets[token + 1]):
        piece = segments.token_ids[place]
        node = descend(trie, pivot.data, pivot.offsets[piece], pivot.offsets[piece + 1], node)
        if node < 0:
            break
        read += pivot.offsets[piece + 1] - pivot.offsets[piece]
        if trie.token_ids[node] >= 0:
            token_id, covered, following = trie.token_ids[node], read, place + 1
    return token_id, covered, following
