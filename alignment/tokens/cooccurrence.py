"""Counts how often a source token and a pivot token begin at the same byte of the same text.

In: an aligned run of dialogues. Out: sparse counts that add up in any order, so shards may be counted in parallel.
Knows nothing about pieces or distributions; `vocabulary_mapping` reads the counts. The statistic is the paper's
mapping frequency (arXiv 2408.07990, section 3.2), counted at shared boundaries: that is where a source row is read.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fusechat.errors import AlignmentError

from .token_alignment import SpanAlignment, TargetRows


@dataclass(frozen=True)
class Cooccurrence:
    """Sparse counts of (source id, pivot id), in the order of the source ids, then the pivot ids."""

    source_ids: np.ndarray
    """int32 [pairs]"""
    pivot_ids: np.ndarray
    """int32 [pairs]"""
    counts: np.ndarray
    """int64 [pairs]"""
    shape: tuple[int, int]
    """(source vocabulary, pivot vocabulary)"""

    def matrix(self) -> sparse.csr_matrix:
        """int64 [source vocabulary, pivot vocabulary]."""
        return sparse.csr_matrix((self.counts, (self.source_ids, self.pivot_ids)), shape=self.shape)


def count_pairs(
    pivot: TargetRows, source: TargetRows, alignment: SpanAlignment, shape: tuple[int, int]
) -> Cooccurrence:
    """Count the pairs of tokens that begin at the same byte, end-of-turn tokens included.

    Args:
        shape: (source vocabulary, pivot vocabulary).
    """
    shared = (alignment.source_row >= 0) & (alignment.inside == 0)
    return count_ids(source.token_ids[alignment.source_row[shared]], pivot.token_ids[shared], shape)


def count_ids(source_ids: np.ndarray, pivot_ids: np.ndarray, shape: tuple[int, int]) -> Cooccurrence:
    """Count pairs of ids, int [pairs] each.

    Raises:
        AlignmentError: an id outside its vocabulary.
    """
    for name, ids, size in (("source", source_ids, shape[0]), ("pivot", pivot_ids, shape[1])):
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise AlignmentError(f"{name} token ids reach from {ids.min()} to {ids.max()}, expected 0 to {size - 1}")
    return _unpack(*np.unique(source_ids.astype(np.int64) * shape[1] + pivot_ids, return_counts=True), shape)


def merge_counts(parts: Iterable[Cooccurrence]) -> Cooccurrence:
    """Add counts up; the result does not depend on the order of the parts.

    Raises:
        AlignmentError: no parts, or parts over different vocabularies.
    """
    parts = list(parts)
    shapes = {part.shape for part in parts}
    if len(shapes) != 1:
        raise AlignmentError(
            f"counts over vocabularies {sorted(shapes)} cannot be added, expected one pair of vocabularies"
        )
    shape = shapes.pop()
    keys = np.concatenate([part.source_ids.astype(np.int64) * shape[1] + part.pivot_ids for part in parts])
    unique, place = np.unique(keys, return_inverse=True)
    counts = np.zeros(len(unique), np.int64)
    np.add.at(counts, place, np.concatenate([part.counts for part in parts]))
    return _unpack(unique, counts, shape)


def _unpack(keys: np.ndarray, counts: np.ndarray, shape: tuple[int, int]) -> Cooccurrence:
    source_ids, pivot_ids = np.divmod(keys, shape[1])
    return Cooccurrence(source_ids.astype(np.int32), pivot_ids.astype(np.int32), counts.astype(np.int64), shape)
