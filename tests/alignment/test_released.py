"""The released mode equals the released code: alignments, counts, maps and distributions that it computed.

The data are its own results on 33 texts with two pairs of real tokenizers (OpenChat and Qwen1.5, SmolLM2 and Gemma-3).
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from scipy import sparse

import alignment
from alignment.released.released_shard import DialogueTokens, warped_pairs
from alignment.tokens.cooccurrence import count_ids
from alignment.vocabulary.edit_distance import distance, flatten_texts
from alignment.vocabulary.vocabulary_file import ReleasedTexts

PAIRS = ("openchat-qwen1.5", "smollm2-gemma3")


@pytest.fixture(scope="module")
def golden() -> dict:
    path = Path(__file__).parents[1] / "data" / "alignment_golden.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


def _spread(pieces: dict[str, str], size: int) -> list[str]:
    texts = [""] * size
    for key, text in pieces.items():
        texts[int(key)] = text
    return texts


def _sizes(pair: dict) -> tuple[int, int]:
    source, pivot = pair["source_to_pivot"].keys() | pair["source_pieces"].keys(), pair["pivot_pieces"]
    return max(map(int, source)) + 1, max(map(int, pivot)) + 1


def _counts(pair: dict) -> sparse.coo_matrix:
    c = pair["count_matrix"]
    return sparse.coo_matrix((c["count"], (c["source"], c["pivot"])), shape=_sizes(pair))


@pytest.mark.parametrize("name", PAIRS)
def test_align_released_golden_texts_equal(golden, name):
    pair = golden[name]
    for row in pair["rows"]:
        pivot = [pair["pivot_texts"][str(i)] for i in row["pivot_ids"]]
        source = [pair["source_texts"][str(i)] for i in row["source_ids"]]
        assert alignment.align_released(pivot, source) == row["pivot_to_source"]


@pytest.mark.parametrize("name", PAIRS)
def test_warped_pairs_golden_counts_equal(golden, name):
    pair = golden[name]
    sides = []
    for key in ("pivot_ids", "source_ids"):
        ids = np.array([i for row in pair["rows"] for i in row[key]], np.int32)
        offsets = np.cumsum([0, *(len(row[key]) for row in pair["rows"])])
        sides.append(DialogueTokens(ids, np.ones(len(ids), bool), offsets))
    source_size, pivot_size = _sizes(pair)
    texts = ReleasedTexts(
        _spread(pair["pivot_texts"], pivot_size), _spread(pair["source_texts"], source_size), tuple(pair["marks"])
    )
    counts = count_ids(*warped_pairs(*sides, texts), (source_size, pivot_size))
    assert (counts.matrix() != _counts(pair).tocsr()).nnz == 0


@pytest.mark.parametrize("name", PAIRS)
def test_map_vocabulary_released_golden_map_equal(golden, name):
    pair = golden[name]
    source_size, pivot_size = _sizes(pair)
    mapped = alignment.map_vocabulary(
        _counts(pair), _spread(pair["source_pieces"], source_size), _spread(pair["pivot_pieces"], pivot_size),
        rule="released", default_id=pair["default_pivot_id"], fixed={int(k): v for k, v in pair["fixed"].items()},
    )  # fmt: skip
    expected = np.full(source_size, pair["default_pivot_id"])
    for key, image in pair["source_to_pivot"].items():
        expected[int(key)] = image
    np.testing.assert_array_equal(mapped, expected)


@pytest.mark.parametrize("name", PAIRS)
def test_project_released_golden_distributions_equal(golden, name):
    pair = golden[name]
    source_size, _ = _sizes(pair)
    images = np.full(source_size, pair["default_pivot_id"])
    for key, image in pair["source_to_pivot"].items():
        images[int(key)] = image
    pieces = _spread(pair["source_pieces"], source_size)
    one_hot = 0
    for row, expected in zip(pair["rows"], pair["distributions"], strict=False):
        logits, ids = alignment.project_released(
            row["pivot_ids"],
            [pair["pivot_texts"][str(i)] for i in row["pivot_ids"]],
            [pair["source_texts"][str(i)] for i in row["source_ids"]],
            expected["source_topk_logits"], expected["source_topk_ids"], images, pieces, pair["pivot_vocabulary"],
            pivot_mark=pair["marks"][0], source_mark=pair["marks"][1],
        )  # fmt: skip
        assert logits == expected["aligned_logits"]
        assert ids == expected["aligned_ids"]
        one_hot += logits.count([1.0])
    assert one_hot > 0


def _cost(pivot: str, source: str) -> int:
    p, s = pivot.replace("\u2581", ""), source.replace("\u0120", "")
    return Levenshtein.distance(p, s) if p and s else Levenshtein.distance(pivot, source.replace("\u0120", "\u2581"))


def _warp_slowly(pivot: list[str], source: list[str]) -> list[list[int]]:
    """The whole table of least costs, then back from its end; diagonal before pivot before source."""
    cost = [[_cost(p, s) for p in pivot] for s in source]
    table: dict[tuple[int, int], float] = {}

    def at(i: int, j: int) -> float:
        return table.get((i, j), float("inf"))

    for i in range(len(source)):
        for j in range(len(pivot)):
            before = min(at(i - 1, j - 1), at(i, j - 1), at(i - 1, j)) if (i, j) != (0, 0) else 0
            table[i, j] = cost[i][j] + before
    groups: list[list[int]] = [[] for _ in pivot]
    i, j = len(source) - 1, len(pivot) - 1
    while True:
        groups[j].insert(0, i)
        if (i, j) == (0, 0):
            return groups
        steps = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
        i, j = min(steps, key=lambda step: at(*step))


_TEXTS = st.lists(st.text("abc d\u00e9\U0001f600", min_size=0, max_size=5), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(_TEXTS, _TEXTS)
def test_align_released_any_texts_equal_the_whole_table(pivot, source):
    assert alignment.align_released(pivot, source) == _warp_slowly(pivot, source)


def test_align_released_long_and_marked_pieces_equal_the_whole_table():
    long = "x" * 70
    pivot, source = ["\u2581go", "\u2581", long, "\u2581b", ""], ["\u0120go", long + "y", "\u0120", "", "b", "\u0120"]
    aligned = alignment.align_released(pivot, source, pivot_mark="\u2581", source_mark="\u0120")
    assert aligned == _warp_slowly(pivot, source)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=90), st.text(max_size=90))
def test_distance_any_texts_equals_rapidfuzz(a, b):
    texts = flatten_texts([a, b])
    sides = [texts.points[texts.offsets[i] : texts.offsets[i + 1]] for i in range(2)]
    assert distance(*sides) == Levenshtein.distance(a, b)
