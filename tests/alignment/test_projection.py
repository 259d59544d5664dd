"""Projection of rows, by the chain rule and by the map: any text, tokenizers of every kind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from span_cases import (
    ADVERSARIAL,
    ANY_TEXT,
    FEW_EXAMPLES,
    TEMPLATES,
    fake_rows,
    tables_of,
    target_rows,
    tokenizers_of_every_kind,
)
from transformers import PreTrainedTokenizerFast

from alignment.rows.projection import pass_through, project_chain, project_map
from alignment.rows.row_arrays import source_rows
from alignment.tokens.token_alignment import align_spans
from fusechat.errors import DialogueError
from fusechat.storage.contracts import RowKind


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return tokenizers_of_every_kind()


@pytest.mark.parametrize(
    ("text", "pieces"), [("\ufb01ne", 3), ("\uff46\uff55\uff4c\uff4c", 3), ("e\u0301", 2), ("\u2460 1\u00bd", 3)]
)
def test_project_chain_normalising_tokenizers_keep_the_sources_probability(tokenizers, text, pieces):
    """Ligatures, wide letters, combining marks and circled digits: NFKC changes their bytes, not where they stand."""
    pivot, source = (
        target_rows(tokenizers["nfkc"], TEMPLATES[1], "q", text),
        target_rows(tokenizers["bytes"], TEMPLATES[0], "q", text),
    )
    content = ~pivot.is_end_of_turn
    assert pivot.starts[content].min() == 1 and pivot.ends[content].max() == 1 + len(text.encode())
    spans = align_spans(pivot, source)
    met = spans.source_row >= 0
    assert met.any() and (source.starts[spans.source_row[met]] + spans.inside[met] == pivot.starts[met]).all()
    tables = tables_of(tokenizers["nfkc"], tokenizers["bytes"])
    arrays = fake_rows(np.random.default_rng(0), source, len(tables.source.offsets) - 1, 5)
    rows = project_chain(pivot, source, spans, source_rows(arrays), tables, 5)
    assert (rows.kind[~met] == RowKind.EMPTY).all()
    assert (rows.label_logprob[rows.kind != RowKind.EMPTY] <= 0).all()


@FEW_EXAMPLES
@given(
    ANY_TEXT,
    st.integers(0, 1000),
    st.sampled_from(["bytes", "more_bytes", "marks", "words"]),
    st.sampled_from(["bytes", "marks"]),
)
def test_project_chain_any_text_keeps_the_laws(tokenizers, text, seed, one, other):
    """Mass at most 1, rows descend, labels in the row; the label's losses add up to the source's own."""
    try:
        pivot, source = (
            target_rows(tokenizers[one], TEMPLATES[0], "q", text),
            target_rows(tokenizers[other], TEMPLATES[1], "q", text),
        )
    except DialogueError:
        return
    tables = tables_of(tokenizers[one], tokenizers[other])
    arrays = fake_rows(np.random.default_rng(seed), source, len(tables.source.offsets) - 1, 6)
    projected = project_chain(pivot, source, align_spans(pivot, source), source_rows(arrays), tables, 6)
    assert (np.exp(projected.topk_logprobs.astype(np.float64)).sum(axis=1) <= 1 + 1e-5).all()
    filled = np.where(np.isfinite(projected.topk_logprobs), projected.topk_logprobs, -1e9)
    assert (np.diff(filled, axis=1) <= 0).all()
    real = projected.kind != RowKind.EMPTY
    assert np.isfinite(projected.label_logprob[real]).all() and np.isnan(projected.label_logprob[~real]).all()
    in_row = (projected.topk_ids == pivot.token_ids[:, None]) & np.isfinite(projected.topk_logprobs)
    assert in_row[real].any(axis=1).all()
    if one == "bytes" == other:
        np.testing.assert_allclose(projected.label_logprob.sum(), arrays["label_logprob"].sum(), atol=1e-2)


@pytest.mark.parametrize("text", ADVERSARIAL)
@pytest.mark.parametrize("names", [("bytes", "marks"), ("marks", "bytes"), ("more_bytes", "bytes")])
def test_project_chain_adversarial_text_has_a_row_everywhere(tokenizers, text, names):
    pivot, source = (target_rows(tokenizers[n], t, "q", text) for n, t in zip(names, TEMPLATES, strict=True))
    tables = tables_of(tokenizers[names[0]], tokenizers[names[1]])
    arrays = fake_rows(np.random.default_rng(0), source, len(tables.source.offsets) - 1, 5)
    projected = project_chain(pivot, source, align_spans(pivot, source), source_rows(arrays), tables, 5)
    marks = (pivot.starts == pivot.ends) & ~pivot.is_end_of_turn
    assert (projected.kind[~marks] != RowKind.EMPTY).all()
    assert projected.kind[-1] == RowKind.END_OF_TURN


def test_project_chain_word_of_100k_letters_loses_nothing(tokenizers):
    rows = [target_rows(tokenizers[name], TEMPLATES[0], "q", "ab" * 50_000) for name in ("bytes", "marks")]
    spans = align_spans(*rows)
    content = ~rows[0].is_end_of_turn
    assert (spans.source_row[content] >= 0).all()
    assert rows[0].ends[content].max() - rows[0].starts[content].min() == 100_000
    tables = tables_of(tokenizers["bytes"], tokenizers["marks"])
    arrays = fake_rows(np.random.default_rng(0), rows[1], len(tables.source.offsets) - 1, 5)
    projected = project_chain(*rows, spans, source_rows(arrays), tables, 5)
    assert (projected.kind != RowKind.EMPTY).all()
    # The source's own tokens are one way to write the text; candidates that spell the same add a little.
    own, aligned = (sums.sum(dtype=np.float64) for sums in (arrays["label_logprob"], projected.label_logprob))
    assert own - 1.0 <= aligned <= 0.99 * own


def test_pass_through_returns_the_rows_padded(tokenizers):
    rows = target_rows(tokenizers["bytes"], TEMPLATES[0], "q", "How many apples? 12 + 34")
    arrays = fake_rows(np.random.default_rng(1), rows, 256, 4)
    projected = pass_through(arrays, 6)
    np.testing.assert_array_equal(projected.topk_ids[:, :4], arrays["topk_ids"])
    np.testing.assert_array_equal(projected.topk_logprobs[:, :4], arrays["topk_logprobs"])
    assert np.isneginf(projected.topk_logprobs[:, 4:]).all() and (projected.kind == RowKind.IDENTITY).all()


@FEW_EXAMPLES
@given(ANY_TEXT, st.integers(0, 1000), st.integers(1, 8), st.sampled_from(["bytes", "marks", "words"]))
def test_project_map_through_the_identity_returns_the_rows(tokenizers, text, seed, k, name):
    try:
        rows = target_rows(tokenizers[name], TEMPLATES[0], "q", text)
    except DialogueError:
        return
    arrays = fake_rows(np.random.default_rng(seed), rows, 600, k)
    projected = project_map(rows, align_spans(rows, rows), source_rows(arrays), np.arange(600, dtype=np.int32), 600, k)
    for i in range(rows.num_rows):
        masses = np.zeros(600)
        np.add.at(masses, arrays["topk_ids"][i], np.exp(arrays["topk_logprobs"][i].astype(np.float64)))
        got = np.zeros(600)
        real = np.isfinite(projected.topk_logprobs[i])
        got[projected.topk_ids[i][real]] = np.exp(projected.topk_logprobs[i][real])
        np.testing.assert_allclose(got, masses, rtol=1e-5, atol=1e-9)


@FEW_EXAMPLES
@given(st.lists(st.integers(-1, 20), min_size=600, max_size=600), st.integers(0, 1000), st.integers(1, 8))
def test_project_map_any_map_never_lifts_the_mass_above_the_rows(tokenizers, images, seed, k):
    rows = target_rows(tokenizers["bytes"], TEMPLATES[0], "q", "How many apples? 12 + 34")
    arrays = fake_rows(np.random.default_rng(seed), rows, 600, 6)
    projected = project_map(rows, align_spans(rows, rows), source_rows(arrays), np.array(images, np.int32), 600, k)
    mass = np.exp(projected.topk_logprobs.astype(np.float64)).sum(axis=1)
    assert (mass <= np.exp(arrays["topk_logprobs"].astype(np.float64)).sum(axis=1) + 1e-5).all()
    for ids, logprobs in zip(projected.topk_ids, projected.topk_logprobs, strict=True):
        real = ids[np.isfinite(logprobs)]
        assert len(set(real.tolist())) == len(real)


def test_project_map_two_ids_with_one_image_add_up(tokenizers):
    rows = target_rows(tokenizers["bytes"], TEMPLATES[0], "q", "a")
    arrays = {
        "topk_ids": np.tile(np.array([[5, 6, 7]], np.int32), (rows.num_rows, 1)),
        "topk_logprobs": np.log(np.tile([[0.5, 0.3, 0.1]], (rows.num_rows, 1))),
        "label_logprob": np.full(rows.num_rows, -1.0),
    }
    images = np.full(600, -1, np.int32)
    images[[5, 6, 7]] = [9, 8, 9]
    projected = project_map(rows, align_spans(rows, rows), source_rows(arrays), images, 600, 3)
    np.testing.assert_array_equal(projected.topk_ids[0, :2], [9, 8])
    np.testing.assert_allclose(np.exp(projected.topk_logprobs[0]), [0.6, 0.3, 0.0], rtol=1e-6)
