"""Counts of co-occurrence and the vocabulary maps made of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from scipy import sparse

from alignment import map_vocabulary
from alignment.tokens.cooccurrence import count_ids, merge_counts
from alignment.vocabulary.piece_segmentation import Segments
from alignment.vocabulary.vocabulary_mapping import build_map, nearest_pieces


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=20), min_size=1, max_size=5),
    st.randoms(),
)
def test_merge_counts_any_order_is_equal(parts, random):
    segments = [
        count_ids(np.array([p[0] for p in part], np.int32), np.array([p[1] for p in part], np.int32), (6, 8))
        for part in parts
    ]
    whole = merge_counts(segments)
    random.shuffle(segments)
    again = merge_counts([merge_counts(segments[:1]), *segments[1:]])
    for one, other in zip(
        (whole.source_ids, whole.pivot_ids, whole.counts),
        (again.source_ids, again.pivot_ids, again.counts),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    dense = np.zeros((6, 8), int)
    for part in parts:
        for s, p in part:
            dense[s, p] += 1
    np.testing.assert_array_equal(whole.matrix().toarray(), dense)


SOURCE = [b"the", b" go", b"going", b"zz", None, "\u00e9".encode()]
PIVOT = [b"the", b" go", b"go", b"ing", b"z", None, b"e"]


def test_map_vocabulary_frequency_takes_the_most_frequent_then_falls_back():
    counts = sparse.csr_matrix((np.array([3, 5, 2, 2]), ([0, 0, 4, 1], [0, 2, 5, 1])), shape=(6, 7))
    mapped = map_vocabulary(counts, SOURCE, PIVOT)
    np.testing.assert_array_equal(mapped, [2, 1, 2, 4, 5, 4])  # seen, seen, first token, first token, seen, nearest


def test_map_vocabulary_exact_and_min_edit():
    counts = sparse.csr_matrix((6, 7))
    np.testing.assert_array_equal(map_vocabulary(counts, SOURCE, PIVOT, rule="exact"), [0, 1, -1, -1, -1, -1])
    np.testing.assert_array_equal(map_vocabulary(counts, SOURCE, PIVOT, rule="min_edit"), [0, 1, 3, 4, -1, 4])


@pytest.mark.parametrize("rule", ["frequency", "exact", "min_edit"])
def test_build_map_same_piece_is_the_id_that_stands_in_texts(rule):
    """Vocabularies with byte pieces spell `1` twice; no tokenizer writes the byte piece for it."""
    counts = sparse.csr_matrix((1, 2))
    mapped = build_map(counts, [b"1"], [b"1", b"1"], rule=rule, segments=Segments(np.array([1]), np.array([0, 1])))
    assert mapped.source_to_pivot.tolist() == [1]


def test_map_vocabulary_released_prefers_the_rarer_of_equals():
    counts = sparse.csr_matrix((np.array([1000, 1]), ([0, 0], [0, 1])), shape=(1, 2))
    assert map_vocabulary(counts, ["cat"], ["cut", "cot"], rule="released").tolist() == [1]
    assert map_vocabulary(counts, ["cat"], ["cut", "cot"]).tolist() == [0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("abcd", max_size=5), min_size=1, max_size=6),
    st.lists(st.text("abcd", min_size=1, max_size=5), min_size=1, max_size=12),
)
def test_nearest_pieces_equals_trying_them_all(queries, pieces):
    nearest = nearest_pieces(queries, [piece.encode() for piece in pieces])
    expected = [min(range(len(pieces)), key=lambda i: (Levenshtein.distance(query, pieces[i]), i)) for query in queries]
    np.testing.assert_array_equal(nearest, expected)
