"""Projection of source rows: against a slow reference that spells out every string the source could have written."""

import numpy as np
import pytest

from alignment.rows.projection import make_tables, project_chain, source_rows
from alignment.tokens.token_alignment import align_spans, collect_target_rows
from alignment.vocabulary.piece_segmentation import segment_pieces
from alignment.vocabulary.vocabulary_trie import build_trie, flatten_surfaces

END = b"</s>"


def _cut(text, pieces):
    """Longest match from the left."""
    found, place = [], 0
    while place < len(text):
        length = next(n for n in range(len(text) - place, 0, -1) if text[place : place + n] in pieces)
        found.append(pieces[text[place : place + length]])
        place += length
    return found


def _cut_joined(before, piece, pieces):
    """Longest match over a text and a piece after it; a token that reaches into the piece ends where the piece is cut."""
    text, found, place = before + piece, [], 0
    names = {i: p for p, i in pieces.items()}
    ends = {len(before) + int(n) for n in np.cumsum([0, *(len(names[i]) for i in _cut(piece, pieces))])}
    while place < len(text):
        fitting = (n for n in range(len(text) - place, 0, -1) if place + n <= len(before) or place + n in ends)
        length = next(n for n in fitting if text[place : place + n] in pieces)
        found.append(pieces[text[place : place + length]])
        place += length
    return found


def _random_cut(rng, text, pieces):
    found, place = [], 0
    while place < len(text):
        fitting = [n for n in range(1, len(text) - place + 1) if text[place : place + n] in pieces]
        length = int(rng.choice(fitting))
        found.append(pieces[text[place : place + length]])
        place += length
    return found


def _prefix_closed(rng, alphabet, words):
    """A vocabulary that holds every front part of its pieces."""
    found = {letter.encode() for letter in alphabet}
    for _ in range(words):
        word = "".join(rng.choice(list(alphabet), int(rng.integers(2, 5)))).encode()
        found |= {word[:n] for n in range(1, len(word) + 1)}
    return sorted(found)


def _rows_of(ids, pieces, end_id):
    """Target rows of one dialogue of one turn."""
    widths = [len(pieces[i]) for i in ids]
    stops = np.cumsum(widths)
    spans = np.stack([stops - widths, stops], axis=1)
    spans = np.concatenate([[[-1, -1]], spans, [[-1, -1]]]).astype(np.int32)
    token_ids = np.array([end_id, *ids, end_id], np.int32)
    is_scored = np.array([False] + [True] * (len(ids) + 1))
    return collect_target_rows(
        token_ids, is_scored, spans, np.array([0, len(token_ids)]), np.zeros(len(ids) + 2, np.uint8), np.ones(1, bool)
    )


def _tables(source, pivot, source_end, pivot_end):
    surfaces = flatten_surfaces([*pivot, None])
    trie = build_trie(surfaces, np.diff(surfaces.offsets) > 0)
    segments = segment_pieces([*source, None], [None] * (len(source) + 1), trie, len(source) + 1)
    images = np.full(len(source) + 1, -1, np.int32)
    for i in range(len(source)):
        images[i] = segments.token_ids[segments.offsets[i]]
    images[source_end] = pivot_end
    return make_tables(flatten_surfaces([*source, None]), surfaces, trie, segments, images)


def _reference(text, source, source_ids, probs, pivot, pivot_ids, images):
    """Masses per pivot row, by writing out every string: rows as dicts id -> probability, and the label's probability.

    `probs` [rows, source vocabulary]; the row of the end-of-turn token is the last of each side.
    """
    place_of = {piece: i for i, piece in enumerate(pivot)}
    starts = np.concatenate([[0], np.cumsum([len(source[i]) for i in source_ids])])
    pivot_starts = np.concatenate([[0], np.cumsum([len(pivot[i]) for i in pivot_ids])])
    reached = np.zeros(len(source_ids) + 2)
    reached[0] = 1.0
    rows = [{} for _ in range(len(pivot_ids) + 1)]

    def add(row, token, mass):
        rows[row][token] = rows[row].get(token, 0.0) + mass

    for j in range(len(source_ids) + 1):
        label = source_ids[j] if j < len(source_ids) else len(source)
        for v in range(len(source) + 1):
            mass = reached[j] * probs[j, v]
            if v == label or mass == 0:
                continue
            tokens, end = _cut_joined(text[: starts[j]], source[v] if v < len(source) else b"", place_of), 0
            if v == len(source):
                tokens.append(images[v])  # the source ends its turn here
            for i, token in enumerate(tokens):
                differs = i >= len(pivot_ids) or token != pivot_ids[i]
                end += len(pivot[token]) if token < len(pivot) else 1
                if i == len(tokens) - 1 and not differs and end in starts and end > starts[j]:
                    reached[int(np.flatnonzero(starts == end)[0])] += mass  # from here it goes on as the path does
                elif i < len(rows) and (end > starts[j] or differs):
                    add(i, int(token), mass)
                if differs:
                    break
        reached[j + 1] += reached[j] * probs[j, label]
    ends = pivot_starts[1:]
    for i, token in enumerate(pivot_ids):  # the path itself: whatever the candidates do not take away
        first = int(np.flatnonzero(starts >= ends[i])[0])
        taken = 0.0
        if starts[first] == ends[i]:
            for v in range(len(source)):
                same = first < len(source_ids) and v == source_ids[first]
                if (
                    not same
                    and len(_cut_joined(text[: starts[first]], source[v], place_of)) > i
                    and _cut_joined(text[: starts[first]], source[v], place_of)[: i + 1] != list(pivot_ids[: i + 1])
                ):
                    taken += probs[first, v]
        whole = (
            reached[first] if starts[first] == ends[i] else reached[first - 1] * probs[first - 1, source_ids[first - 1]]
        )
        add(i, token, whole * (1 - taken))
    add(len(pivot_ids), images[len(source)], reached[len(source_ids)] * probs[-1, len(source)])
    totals = [1.0]
    for i, row in enumerate(rows):
        label = pivot_ids[i] if i < len(pivot_ids) else images[len(source)]
        totals.append(row.get(label, 0.0))
    return [{t: m / totals[i] for t, m in row.items()} for i, row in enumerate(rows)], np.array(totals[1:]) / totals[
        :-1
    ]


@pytest.mark.parametrize("seed", range(60))
def test_chain_random_vocabularies_equals_written_out_reference(seed):
    rng = np.random.default_rng(seed)
    source, pivot = _prefix_closed(rng, "ab ", 5), _prefix_closed(rng, "ab ", 5)
    text = "".join(rng.choice(list("ab "), 12)).encode()
    source_ids = _random_cut(rng, text, {p: i for i, p in enumerate(source)})
    pivot_ids = _cut(text, {p: i for i, p in enumerate(pivot)})
    probs = rng.dirichlet(np.full(len(source) + 2, 0.4), len(source_ids) + 1)[:, :-1]  # the last share is the tail
    tables = _tables(source, pivot, len(source), len(pivot))
    p, s = _rows_of(pivot_ids, pivot, len(pivot)), _rows_of(source_ids, source, len(source))
    order = np.argsort(-probs, axis=1)
    arrays = {
        "topk_ids": order.astype(np.int32),
        "topk_logprobs": np.log(np.take_along_axis(probs, order, 1)),
        "label_logprob": np.log(probs[np.arange(len(probs)), s.token_ids]),
    }
    found = project_chain(p, s, align_spans(p, s), source_rows(arrays), tables, k=len(pivot) + 1)
    expected, labels = _reference(text, source, source_ids, probs, pivot, pivot_ids, tables.source_to_pivot)
    np.testing.assert_allclose(np.exp(found.label_logprob), labels, rtol=1e-4)
    for i, row in enumerate(expected):
        real = np.isfinite(found.topk_logprobs[i])  # the ids of padding mean nothing
        ids, logprobs = found.topk_ids[i][real].tolist(), found.topk_logprobs[i][real]
        masses = dict(zip(ids, np.exp(logprobs).tolist(), strict=True))
        assert {t for t, m in masses.items() if m > 1e-6} == {t for t, m in row.items() if m > 1e-6}
        for token, mass in row.items():
            assert mass == pytest.approx(masses.get(token, 0.0), rel=1e-3, abs=1e-6)
