"""Maps every source id to a pivot id, from co-occurrence counts and from what the pieces spell.

In: sparse counts and pieces. Out: one pivot id per source id. Knows nothing about rows or files.
Rules (arXiv 2408.07990, section 3.2, and its baselines):

- `frequency`: the pivot id that stood most often where the source id stood; of equals the same piece, then the
  smallest id. This is the paper's statistic.
- `released`: what the released code computes (see `released.map_seen`): seen ids only, the rest get `default_id`.
- `min_edit`: the same piece, else the piece at the least edit distance, of equals the smallest id.
- `exact`: the same piece or none.

Ids without counts fall back, under `frequency`, to the same piece, then to the pivot's first token for the piece's
bytes, then to the least edit distance.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
from scipy import sparse

from fusechat.compilation import kept

from ..released.released import map_seen
from .edit_distance import Texts, flatten_texts, nearest, signature
from .piece_segmentation import Segments, segment_pieces
from .vocabulary_trie import NO_TOKEN, build_trie, flatten_surfaces

Rule = Literal["frequency", "released", "min_edit", "exact"]
Piece = str | bytes | None
WORD_START_MARKS = ("\u2581", "\u0120")
"""Sentencepiece's and GPT-2's signs for a space."""


class Origin(IntEnum):
    """How a source id found its pivot id."""

    NONE = 0  # unmapped: a control token, or bytes that no rule could place
    COUNTED = 1  # by the counts
    SAME_PIECE = 2
    FIRST_TOKEN = 3  # the pivot's first token for its bytes
    NEAREST = 4  # least edit distance
    GIVEN = 5  # end-of-turn and such, or the released code's default


class VocabularyMap(NamedTuple):
    """The map and how it was found."""

    source_to_pivot: np.ndarray
    """int32 [source vocabulary], -1: unmapped"""
    origin: np.ndarray
    """uint8 [source vocabulary], Origin"""

    def counts(self) -> dict[str, int]:
        """Source ids per origin."""
        totals = np.bincount(self.origin, minlength=len(Origin))
        return {origin.name.lower(): int(totals[origin]) for origin in Origin}


def map_vocabulary(
    counts: sparse.spmatrix,
    source_pieces: Sequence[Piece],
    pivot_pieces: Sequence[Piece],
    *,
    rule: Rule = "frequency",
    default_id: int = NO_TOKEN,
    fixed: Mapping[int, int] | None = None,
) -> np.ndarray:
    """Map each source id to a pivot id.

    Args:
        counts: sparse [V_source, V_pivot], how often the two ids stood in one place.
        source_pieces, pivot_pieces: what each id spells: bytes, or text in which a word-start mark (U+2581, U+0120)
            stands for a space; None for control tokens, which are mapped by counts or `fixed` alone.
        rule: `frequency`, `released`, `min_edit` or `exact`; see the module.
        default_id: under `released`, where ids without counts go (the released code: the unknown token, else eos).
        fixed: source id -> pivot id that overrides the rule (the released code: bos to bos, eos to eos).
    Returns:
        int32 [V_source]; -1 where unmapped.
    """
    return build_map(counts, source_pieces, pivot_pieces, rule=rule, default_id=default_id, fixed=fixed).source_to_pivot


def build_map(
    counts: sparse.spmatrix,
    source_pieces: Sequence[Piece],
    pivot_pieces: Sequence[Piece],
    *,
    rule: Rule = "frequency",
    default_id: int = NO_TOKEN,
    fixed: Mapping[int, int] | None = None,
    segments: Segments | None = None,
) -> VocabularyMap:
    """As `map_vocabulary`, with the origin of each image.

    Args:
        segments: pivot ids that spell each source id; default: longest matches over the pivot's pieces.
    """
    matrix = sparse.csr_matrix(counts)
    result = VocabularyMap(np.full(matrix.shape[0], NO_TOKEN, np.int32), np.zeros(matrix.shape[0], np.uint8))
    if rule == "released":
        seen = map_seen(
            matrix,
            [_text(p, keep_marks=True) for p in source_pieces],
            [_text(p, keep_marks=True) for p in pivot_pieces],
        )
        _set(result, np.arange(matrix.shape[0]), default_id, Origin.GIVEN)
        _set(result, np.flatnonzero(seen >= 0), seen[seen >= 0], Origin.COUNTED)
    else:
        source, pivot = [_spell(p) for p in source_pieces], [_spell(p) for p in pivot_pieces]
        same = _same_piece(source, pivot, matrix.shape[0])
        if segments is not None:  # of several ids that spell the same, the one that stands in texts
            alone = np.flatnonzero(np.diff(segments.offsets) == 1)
            same[alone] = segments.token_ids[segments.offsets[alone]]
        if rule == "frequency":
            images = most_frequent(matrix, same)
            _set(result, np.flatnonzero(images >= 0), images[images >= 0], Origin.COUNTED)
        _fill(result, same, Origin.SAME_PIECE)
        if rule == "frequency":
            _fill(result, _first_tokens(source, pivot, segments, matrix.shape[0]), Origin.FIRST_TOKEN)
        if rule != "exact":
            _fill_nearest(result, source, pivot)
    for source_id, pivot_id in (fixed or {}).items():
        _set(result, np.array([source_id]), pivot_id, Origin.GIVEN)
    return result


def most_frequent(matrix: sparse.csr_matrix, same: np.ndarray) -> np.ndarray:
    """int32 [V_source]: the column with the largest count of each row; of equals the same piece, then the smallest."""
    matrix = matrix.copy()
    matrix.sum_duplicates()
    return _most_frequent(matrix.indptr, matrix.indices, matrix.data.astype(np.float64), same)


@kept
def _most_frequent(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, same: np.ndarray) -> np.ndarray:
    """`most_frequent` over the arrays of a CSR matrix, its data float64; `same` int32 [V_source]."""
    images = np.full(len(indptr) - 1, -1, np.int32)
    for row in range(len(images)):
        best = 0.0
        for place in range(indptr[row], indptr[row + 1]):
            if data[place] > best or (data[place] == best and best > 0 and indices[place] == same[row]):
                best, images[row] = data[place], indices[place]
    return images


def _spell(piece: Piece) -> bytes | None:
    """Bytes of a piece; in a text piece a word-start mark is a space where something follows it."""
    if not isinstance(piece, str):
        return piece
    for mark in WORD_START_MARKS:
        piece = piece.replace(mark, " ")
    return piece.encode("utf-8", "surrogatepass")


def _text(piece: Piece, *, keep_marks: bool = False) -> str:
    if isinstance(piece, str) and keep_marks:
        return piece
    return (_spell(piece) or b"").decode("utf-8", "surrogateescape")


def _same_piece(source: Sequence[bytes | None], pivot: Sequence[bytes | None], size: int) -> np.ndarray:
    place = {piece: i for i, piece in reversed(list(enumerate(pivot))) if piece}
    same = np.full(size, NO_TOKEN, np.int32)
    same[: len(source)] = [place.get(piece, NO_TOKEN) if piece else NO_TOKEN for piece in source]
    return same


def _first_tokens(
    source: Sequence[bytes | None], pivot: Sequence[bytes | None], segments: Segments | None, size: int
) -> np.ndarray:
    if segments is None:
        surfaces = flatten_surfaces(pivot)
        trie = build_trie(surfaces, np.diff(surfaces.offsets) > 0)
        segments = segment_pieces(source, [None] * len(source), trie, size)
    first = np.full(size, NO_TOKEN, np.int32)
    has = np.flatnonzero(np.diff(segments.offsets) > 0)
    first[has] = segments.token_ids[segments.offsets[has]]
    lost = [i for i, piece in enumerate(source) if piece and first[i] < 0]  # the pivot can spell a front part at most
    if lost:
        place = {piece: i for i, piece in reversed(list(enumerate(pivot))) if piece}
        first[lost] = [_longest_front(source[i] or b"", place) for i in lost]
    return first


def _longest_front(piece: bytes, place: Mapping[bytes, int]) -> int:
    return next((place[piece[:n]] for n in range(len(piece), 0, -1) if piece[:n] in place), NO_TOKEN)


def _fill_nearest(result: VocabularyMap, source: Sequence[bytes | None], pivot: Sequence[bytes | None]) -> None:
    """Least edit distance for ids that spell something and have no image yet."""
    missing = [i for i, piece in enumerate(source) if piece and result.source_to_pivot[i] < 0]
    if missing:
        _set(result, np.array(missing), nearest_pieces([_text(source[i]) for i in missing], pivot), Origin.NEAREST)


def nearest_pieces(queries: Sequence[str], pivot: Sequence[bytes | None]) -> np.ndarray:
    """int32 [queries]: the pivot id whose piece is at the least edit distance, in code points; the smallest of equals."""
    texts = flatten_texts([_text(piece) for piece in pivot])
    lengths = np.diff(texts.offsets)
    allowed = np.array([bool(piece) for piece in pivot])
    order = np.lexsort((np.arange(len(lengths)), lengths))
    order = order[allowed[order]]
    first_of_length = np.searchsorted(lengths[order], np.arange(int(lengths.max(initial=0)) + 2))
    return _nearest_all(flatten_texts(queries), texts, order, first_of_length)


@kept
def _nearest_all(queries: Texts, texts: Texts, order: np.ndarray, first_of_length: np.ndarray) -> np.ndarray:
    """`nearest` of each query, int32 [queries]; `order` and `first_of_length` as there."""
    signatures = np.zeros(len(texts.offsets) - 1, np.uint64)
    for i in order:
        signatures[i] = signature(texts.points[texts.offsets[i] : texts.offsets[i + 1]])
    nearest_ids = np.empty(len(queries.offsets) - 1, np.int32)
    for q in range(len(nearest_ids)):
        query = queries.points[queries.offsets[q] : queries.offsets[q + 1]]
        nearest_ids[q] = nearest(query, texts.points, texts.offsets, order, signatures, first_of_length)[0]
    return nearest_ids


def _set(result: VocabularyMap, ids: np.ndarray, images: np.ndarray | int, origin: Origin) -> None:
    result.source_to_pivot[ids] = images
    result.origin[ids] = np.where(np.broadcast_to(images, np.shape(ids)) >= 0, origin, Origin.NONE)


def _fill(result: VocabularyMap, images: np.ndarray, origin: Origin) -> None:
    ids = np.flatnonzero((result.source_to_pivot < 0) & (images >= 0))
    _set(result, ids, images[ids], origin)
