"""The chain rule: the examples of its docstring, and a plain reference that writes out all that the source could have written."""

import re

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from alignment.rows import chain_loops
from alignment.rows.projection import Projection, project_chain
from alignment.rows.row_arrays import VocabularyTables, make_tables, source_rows
from alignment.tokens.token_alignment import TargetRows, align_spans, collect_target_rows
from alignment.vocabulary.piece_segmentation import segment_pieces
from alignment.vocabulary.vocabulary_trie import build_trie, flatten_surfaces

LETTERS = "ab "
Pieces = list[bytes]
"""The bytes of each id of a vocabulary. The id after the last ends the turn and spells nothing."""


def cut(text: bytes, pieces: Pieces, allowed: set[int] | None = None) -> list[int]:
    """Longest matches from the left; `allowed`: bytes of the text at which a token may end."""
    ids: list[int] = []
    start = 0
    while start < len(text):
        ends = range(len(text), start, -1)
        end = next(end for end in ends if text[start:end] in pieces and (allowed is None or end in allowed))
        ids.append(pieces.index(text[start:end]))
        start = end
    return ids


def cut_joined(before: bytes, piece: bytes, pieces: Pieces) -> list[int]:
    """What the pivot makes of a text and a source token after it.

    A pivot token that reaches from the text into the source token ends where the pivot cuts the source token alone.
    """
    ends = len(before) + np.cumsum([len(pieces[i]) for i in cut(piece, pieces)], dtype=int)
    return cut(before + piece, pieces, {*range(len(before) + 1), *ends.tolist()})


def reference(
    source: Pieces, pivot: Pieces, source_ids: list[int], pivot_ids: list[int], probs: np.ndarray
) -> list[dict[int, float]]:
    """Pivot rows as masses per id, by writing out every text that the source could have begun with.

    Args:
        source_ids, pivot_ids: one text in the tokens of both, the turn's end last.
        probs: float64 [source tokens, source vocabulary+1], the row at each source token.
    """
    text = b"".join(pivot[i] for i in pivot_ids[:-1])
    starts = [0, *np.cumsum([len(source[j]) for j in source_ids[:-1]]).tolist()]
    reached = [1.0] + [0.0] * len(source_ids)  # probability that the source writes the text up to each boundary
    rows: list[dict[int, float]] = [{} for _ in pivot_ids]
    for j, start in enumerate(starts):
        for v in range(len(source) + 1):
            mass = reached[j] * probs[j, v]
            if v == source_ids[j] or mass == 0.0:
                continue
            tokens = (
                cut_joined(text[:start], source[v], pivot)
                if v < len(source)
                else [*cut(text[:start], pivot), len(pivot)]
            )
            ends = np.cumsum([len(pivot[i]) if i < len(pivot) else 1 for i in tokens]).tolist()
            agree = next((i for i, token in enumerate(tokens) if token != pivot_ids[i]), len(tokens))
            for i in range(min(agree + 1, len(tokens))):
                if i + 1 == agree == len(tokens) and ends[i] in starts:
                    reached[starts.index(ends[i])] += mass  # from here on it is the path
                elif ends[i] > start or i == agree:
                    rows[i][tokens[i]] = rows[i].get(tokens[i], 0.0) + mass
        reached[j + 1] += reached[j] * probs[j, source_ids[j]]
    end = 0
    for i, label in enumerate(pivot_ids[:-1]):
        end += len(pivot[label])
        j = next(j for j, start in enumerate(starts) if start >= end)
        own = reached[j] if starts[j] == end else reached[j - 1] * probs[j - 1, source_ids[j - 1]]
        if starts[j] == end:  # the path may go on into a longer pivot token, which then is no label
            joined = {v: cut_joined(text[:end], source[v], pivot) for v in range(len(source)) if v != source_ids[j]}
            own *= 1.0 - sum(probs[j, v] for v, tokens in joined.items() if tokens[: i + 1] != pivot_ids[: i + 1])
        rows[i][label] = rows[i].get(label, 0.0) + own
    rows[-1][len(pivot)] = rows[-1].get(len(pivot), 0.0) + reached[len(source_ids)]
    labels = [1.0, *(row[label] for row, label in zip(rows, pivot_ids, strict=True))]
    return [{token: mass / before for token, mass in row.items()} for row, before in zip(rows, labels, strict=False)]


def tables_of(source: Pieces, pivot: Pieces) -> VocabularyTables:
    surfaces = flatten_surfaces([*pivot, None])
    trie = build_trie(surfaces, np.diff(surfaces.offsets) > 0)
    segments = segment_pieces([*source, None], [None] * (len(source) + 1), trie, len(source) + 1)
    images = np.array([*segments.token_ids[segments.offsets[:-2]], len(pivot)], np.int32)
    return make_tables(flatten_surfaces([*source, None]), surfaces, trie, segments, images)


def turn_of(ids: list[int], pieces: Pieces) -> TargetRows:
    """The rows of a dialogue of one turn; ids hold the turn's end."""
    stops = np.cumsum([len(pieces[i]) for i in ids[:-1]])
    starts = np.concatenate([[0], stops[:-1]])
    spans = np.array([[-1, -1], *zip(starts, stops, strict=True), [-1, -1]], np.int32)
    token_ids = np.array([len(pieces), *ids], np.int32)
    return collect_target_rows(
        token_ids,
        np.arange(len(token_ids)) > 0,
        spans,
        np.array([0, len(token_ids)]),
        np.zeros(len(token_ids), np.uint8),
        np.ones(1, bool),
    )


def projected(
    source: Pieces, pivot: Pieces, source_ids: list[int], pivot_ids: list[int], probs: np.ndarray
) -> Projection:
    """The arguments are those of `reference`; every id is an entry of a row."""
    p, s = turn_of(pivot_ids, pivot), turn_of(source_ids, source)
    order = np.argsort(-probs, axis=1)
    with np.errstate(divide="ignore"):
        arrays = {
            "topk_ids": order.astype(np.int32),
            "topk_logprobs": np.log(np.take_along_axis(probs, order, 1)),
            "label_logprob": np.log(probs[np.arange(len(probs)), source_ids]),
        }
    return project_chain(p, s, align_spans(p, s), source_rows(arrays), tables_of(source, pivot), k=len(pivot) + 1)


def masses(projection: Projection, i: int) -> dict[int, float]:
    """The entries of a row, id -> probability; entries of rounding errors and padding left out."""
    probs = np.exp(projection.topk_logprobs[i]).tolist()
    return {token: prob for token, prob in zip(projection.topk_ids[i].tolist(), probs, strict=True) if prob > 1e-6}


@st.composite
def vocabularies(draw: st.DrawFn) -> Pieces:
    """Pieces over a few letters; with every piece stand all its front parts, so that the longest match is plain."""
    words = draw(st.lists(st.text(LETTERS, min_size=2, max_size=4), min_size=1, max_size=5))
    return sorted(
        {word[:n].encode() for word in words for n in range(1, len(word) + 1)} | {c.encode() for c in LETTERS}
    )


@st.composite
def texts(draw: st.DrawFn) -> tuple[Pieces, Pieces, list[int], list[int], np.ndarray]:
    """A text in the tokens of two vocabularies, of the source by any cut; the rows leave a tail."""
    source, pivot = draw(vocabularies()), draw(vocabularies())
    source_ids = draw(st.lists(st.integers(0, len(source) - 1), min_size=1, max_size=8))
    pivot_ids = cut(b"".join(source[j] for j in source_ids), pivot)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    probs = generator.dirichlet(np.full(len(source) + 2, 0.4), len(source_ids) + 1)[:, :-1]
    return source, pivot, [*source_ids, len(source)], [*pivot_ids, len(pivot)], np.maximum(probs, 1e-9)


@settings(deadline=None, max_examples=300)  # the first example compiles
@given(texts())
def test_chain_equals_all_that_the_source_could_have_written(case):
    _, pivot, _, pivot_ids, _ = case
    projection, expected = projected(*case), reference(*case)
    labels = [row[label] for row, label in zip(expected, pivot_ids, strict=True)]
    np.testing.assert_allclose(np.exp(projection.label_logprob), labels, rtol=1e-4, atol=1e-7)
    for i, row in enumerate(expected):
        written = masses(projection, i)
        for token in range(len(pivot) + 1):
            assert written.get(token, 0.0) == pytest.approx(row.get(token, 0.0), rel=1e-3, abs=2e-6)


@settings(deadline=None, max_examples=300)  # the first example compiles
@given(texts())
def test_chain_keeps_the_texts_probability(case):
    """The product of the labels' probabilities is that of the source's tokens, and of other tokens that spell the text."""
    _, _, source_ids, _, probs = case
    own = probs[np.arange(len(probs)), source_ids].prod()
    written = np.exp(projected(*case).label_logprob.astype(np.float64)).prod()
    assert own * (1 - 1e-4) <= written <= 1.0


def examples() -> list[list[tuple[str, str, dict[str, float]]]]:
    """The examples of the module's docstring: lines of (side, token, row)."""
    blocks = re.findall(r"(?:^    (?:source|pivot) .*\n)+", chain_loops.__doc__ or "", re.M)
    return [[_line(line) for line in block.splitlines()] for block in blocks]


def _line(line: str) -> tuple[str, str, dict[str, float]]:
    side, token, *row = line.split()
    return side, token, {name: float(prob) for name, prob in zip(row[::2], row[1::2], strict=True)}


def test_docstring_has_three_examples():
    assert [[line[:2] for line in example] for example in examples()] == [
        [("source", "play"), ("source", "ing"), ("pivot", "playing")],
        [("source", "playing"), ("pivot", "play"), ("pivot", "ing")],
        [("source", "play"), ("source", "ing"), ("pivot", "play"), ("pivot", "ing")],
    ]


@pytest.mark.parametrize("example", examples())
def test_docstring_example_is_what_the_chain_rule_gives(example):
    sides = {side: [line for line in example if line[0] == side] for side in ("source", "pivot")}
    words = {side: {word for _, token, row in lines for word in (token, *row)} for side, lines in sides.items()}
    letters = {letter for side in words.values() for word in side for letter in word}
    pieces = {side: sorted(word.encode() for word in side_words | letters) for side, side_words in words.items()}
    ids = {
        side: [*(pieces[side].index(token.encode()) for _, token, _ in lines), len(pieces[side])]
        for side, lines in sides.items()
    }
    probs = np.zeros((len(ids["source"]), len(pieces["source"]) + 1))
    for place, (_, _, row) in enumerate(sides["source"]):
        for word, prob in row.items():
            probs[place, pieces["source"].index(word.encode())] = prob
    probs[-1, -1] = 1.0  # after the text the turn ends
    projection = projected(pieces["source"], pieces["pivot"], ids["source"], ids["pivot"], probs)
    for i, (_, _, row) in enumerate(sides["pivot"]):
        written = {pieces["pivot"][token].decode(): prob for token, prob in masses(projection, i).items()}
        assert written == pytest.approx(row, abs=5e-5)
