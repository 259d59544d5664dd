"""The arrays that the projection reads and fills: tables of two vocabularies, a source's rows, the pivot's rows.

Knows nothing about files or about how a row is made.
"""

from typing import NamedTuple

import numpy as np

from ..vocabulary.piece_segmentation import Segments
from ..vocabulary.vocabulary_trie import Surfaces, Trie, nodes_of


class VocabularyTables(NamedTuple):
    """What the two vocabularies are to each other."""

    source: Surfaces
    pivot: Surfaces
    trie: Trie
    """Over the pivot's reachable ids."""
    segments: Segments
    """Pivot ids that spell each source id."""
    source_to_pivot: np.ndarray
    """int32 [source vocabulary], -1: unmapped."""
    candidates: np.ndarray
    """int32 [source vocabulary, 4], what the loops ask of every candidate, side by side: its image, its first segment
    (-1: none), its length in bytes, its first byte."""
    nodes: np.ndarray
    """int32 [pivot vocabulary]: the trie's node that the bytes of each pivot id lead to, -1: none."""


def make_tables(
    source: Surfaces, pivot: Surfaces, trie: Trie, segments: Segments, source_to_pivot: np.ndarray
) -> VocabularyTables:
    """Lay out the tables of the loops.

    Args:
        source_to_pivot: int32 [source vocabulary], -1: unmapped.
    """
    size = len(source.offsets) - 1
    candidates = np.full((size, 4), -1, np.int32)
    candidates[:, 0] = source_to_pivot
    spelled = np.flatnonzero(np.diff(segments.offsets) > 0)
    candidates[spelled, 1] = segments.token_ids[segments.offsets[spelled]]
    candidates[:, 2] = np.diff(source.offsets)
    some = np.flatnonzero(candidates[:, 2] > 0)
    candidates[some, 3] = source.data[source.offsets[some]]
    return VocabularyTables(source, pivot, trie, segments, source_to_pivot, candidates, nodes_of(trie, pivot))


class SourceRows(NamedTuple):
    """Rows of a logprobs store, as probabilities."""

    topk_ids: np.ndarray
    """int32 [source rows, source k]"""
    topk_probs: np.ndarray
    """float64 [source rows, source k], 0 where padded"""
    label_probs: np.ndarray
    """float64 [source rows]"""


def source_rows(arrays: dict[str, np.ndarray]) -> SourceRows:
    """Rows of the logprobs contract as probabilities.

    Args:
        arrays: `topk_ids` integers [rows, k]; `topk_logprobs` floats [rows, k] and `label_logprob` [rows], nats.
    """
    return SourceRows(
        arrays["topk_ids"].astype(np.int32),
        np.exp(arrays["topk_logprobs"].astype(np.float64)),
        np.exp(arrays["label_logprob"].astype(np.float64)),
    )


class PivotRows(NamedTuple):
    """The arrays of the aligned contract."""

    topk_ids: np.ndarray
    """int32 [pivot rows, k]"""
    topk_logprobs: np.ndarray
    """float32 [pivot rows, k], nats, descending, -inf padded"""
    label_logprob: np.ndarray
    """float32 [pivot rows], nats; NaN in EMPTY rows"""
    kind: np.ndarray
    """uint8 [pivot rows], RowKind"""


def empty_rows(num_rows: int, k: int) -> PivotRows:
    """EMPTY rows, to be filled."""
    return PivotRows(
        np.zeros((num_rows, k), np.int32),
        np.full((num_rows, k), -np.inf, np.float32),
        np.full(num_rows, np.nan, np.float32),
        np.zeros(num_rows, np.uint8),
    )
