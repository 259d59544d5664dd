"""Span alignment and projection; any text, tokenizers of every kind."""

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from tiny_models import byte_level_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignment import map_vocabulary
from alignment.rows.projection import pass_through, project_chain, project_map
from alignment.rows.row_arrays import make_tables, source_rows
from alignment.tokens.token_alignment import align_spans, collect_target_rows
from alignment.vocabulary.piece_segmentation import encode_pieces, pivot_trie, segment_pieces
from alignment.vocabulary.vocabulary_trie import flatten_surfaces
from fusechat.errors import AlignmentError, DialogueError
from fusechat.storage.contracts import RowKind, TokenField
from fusechat.text.dialogues import Dialogue, Message, read_dialogues
from fusechat.text.token_surface import token_surfaces
from fusechat.text.tokenization import tokenize_dialogue

TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}",
)
ADVERSARIAL = [
    "e\u0301e\u0301 a\u030a", "\U0001f469\u200d\U0001f680 \U0001f680\U0001f680", "a\r\nb\rc\n\n\td ", "<|im_end|> </s> <s> [INST]",
    "x" * 3000, "1234567890 1000000", "\u200b\ufeff\u00a0", "\uac00\u0e33\u0b95\u0bcd", " lead", "\u2581\u0120##x",
]  # fmt: skip


def _sentencepiece_like() -> PreTrainedTokenizerFast:
    """BPE with byte fallback and a word-start mark that stands before every text."""
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    pieces = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"<0x{b:02X}>" for b in range(256)), *letters]
    merges = [
        ("\u2581", "a"),
        ("t", "h"),
        ("th", "e"),
        ("\u2581", "the"),
        ("1", "2"),
        ("12", "3"),
        ("l", "e"),
        ("\u2581", "l"),
    ]
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return fast


def _lowercasing_words() -> PreTrainedTokenizerFast:
    """WordPiece that lowercases, strips accents and drops white space."""
    words = [
        "[UNK]",
        "<|im_start|>",
        "<|im_end|>",
        *"abcdefghijklmnopqrstuvwxyz",
        "the",
        *(f"##{c}" for c in "abcdefgh"),
        ":",
        ".",
    ]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return fast


def _compatible_forms() -> PreTrainedTokenizerFast:
    """Byte-level BPE over NFKC: one letter may come of several, several of one."""
    fast = byte_level_tokenizer(400, TEMPLATES[1])
    fast.backend_tokenizer.normalizer = normalizers.NFKC()
    return fast


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {
        "bytes": byte_level_tokenizer(500, TEMPLATES[0]),
        "more_bytes": byte_level_tokenizer(330, TEMPLATES[1]),
        "marks": _sentencepiece_like(),
        "words": _lowercasing_words(),
        "nfkc": _compatible_forms(),
    }


def _rows(tokenizer, template, *contents):
    messages = [Message("user" if i % 2 == 0 else "assistant", content) for i, content in enumerate(contents)]
    tokens = tokenize_dialogue(tokenizer, template, Dialogue("d", tuple(messages)))
    return collect_target_rows(
        tokens.token_ids,
        tokens.is_scored,
        tokens.span,
        np.array([0, len(tokens.token_ids)]),
        tokens.field,
        np.ones(1, bool),
    )


def _fake_rows(rng, source, vocab_size, k):
    """Rows in which the label has some probability."""
    ids = np.stack([rng.choice(vocab_size, k, replace=False) for _ in range(source.num_rows)]).astype(np.int32)
    ids[:, 0] = source.token_ids
    ids[:, 1:][ids[:, 1:] == source.token_ids[:, None]] = (source.token_ids.max(initial=0) + 1) % vocab_size
    probs = -np.sort(-rng.dirichlet(np.full(k + 1, 0.5), source.num_rows)[:, :k], axis=1)
    return {
        "topk_ids": ids,
        "topk_logprobs": np.log(np.maximum(probs, 1e-9)).astype(np.float32),
        "label_logprob": np.log(np.maximum(probs[:, 0], 1e-9)).astype(np.float32),
    }


@lru_cache
def _tables(pivot_tokenizer, source_tokenizer):
    pivot, source = token_surfaces(pivot_tokenizer), token_surfaces(source_tokenizer)
    trie = pivot_trie(pivot, pivot_tokenizer, len(pivot))
    segments = segment_pieces(source, encode_pieces(source, pivot_tokenizer, pivot), trie, len(source))
    counts = sparse.csr_matrix((len(source), len(pivot)))
    images = map_vocabulary(counts, source, pivot)
    return make_tables(flatten_surfaces(source), flatten_surfaces(pivot), trie, segments, images)


def test_pieces_are_cut_as_if_the_tokenizer_set_no_padding_or_truncation():
    pivot, source = _sentencepiece_like(), token_surfaces(byte_level_tokenizer(400, TEMPLATES[0]))
    surfaces = token_surfaces(pivot)
    expected = encode_pieces(source, pivot, surfaces)
    pivot.backend_tokenizer.enable_truncation(max_length=2)
    pivot.backend_tokenizer.enable_padding(pad_id=0, pad_token="<unk>", length=16)
    assert encode_pieces(source, pivot, surfaces) == expected


_ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: text.strip())
_FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@_FEW
@given(_ANY, st.sampled_from(["bytes", "more_bytes", "marks"]), st.sampled_from(["bytes", "marks", "words", "nfkc"]))
def test_align_spans_any_text_is_monotone_and_holds_the_byte(tokenizers, text, one, other):
    try:
        pivot, source = (
            _rows(tokenizers[one], TEMPLATES[0], "q", text),
            _rows(tokenizers[other], TEMPLATES[1], "q", text),
        )
    except DialogueError:
        return  # a word tokenizer drops the whole text
    spans = align_spans(pivot, source)
    met = spans.source_row >= 0
    assert (np.diff(spans.source_row[met]) >= 0).all()
    starts, ends = source.starts[spans.source_row[met]], source.ends[spans.source_row[met]]
    assert (starts + spans.inside[met] == pivot.starts[met]).all()
    assert ((pivot.starts[met] < ends) | (starts == ends)).all()
    covers = ~pivot.is_end_of_turn & (pivot.starts < pivot.ends)
    assert met[covers & (pivot.starts >= source.starts.min()) & (pivot.starts < source.ends.max())].all()


@_FEW
@given(_ANY, _ANY, st.sampled_from(["bytes", "more_bytes", "marks"]))
def test_target_rows_any_text_cover_the_content_exactly(tokenizers, text, again, name):
    rows = _rows(tokenizers[name], TEMPLATES[0], "q", text, "and", again)
    for turn, content in zip(
        np.split(np.arange(rows.num_rows), np.flatnonzero(rows.opens_turn)[1:]), (text, again), strict=True
    ):
        inside = turn[~rows.is_end_of_turn[turn]]
        first = len(b"q") if content is text and turn[0] == 0 else len(("q" + text + "and").encode())
        assert rows.starts[inside[0]] == first
        assert rows.ends[inside[-1]] == first + len(content.encode())
        np.testing.assert_array_equal(rows.starts[inside[1:]], rows.ends[inside[:-1]])
        assert (
            rows.starts[rows.is_end_of_turn & np.isin(np.arange(rows.num_rows), turn)] == rows.ends[inside[-1]]
        ).all()


@pytest.mark.parametrize(
    ("text", "pieces"), [("\ufb01ne", 3), ("\uff46\uff55\uff4c\uff4c", 3), ("e\u0301", 2), ("\u2460 1\u00bd", 3)]
)
def test_project_chain_normalising_tokenizers_keep_the_sources_probability(tokenizers, text, pieces):
    """Ligatures, wide letters, combining marks and circled digits: NFKC changes their bytes, not where they stand."""
    pivot, source = (
        _rows(tokenizers["nfkc"], TEMPLATES[1], "q", text),
        _rows(tokenizers["bytes"], TEMPLATES[0], "q", text),
    )
    content = ~pivot.is_end_of_turn
    assert pivot.starts[content].min() == 1 and pivot.ends[content].max() == 1 + len(text.encode())
    spans = align_spans(pivot, source)
    met = spans.source_row >= 0
    assert met.any() and (source.starts[spans.source_row[met]] + spans.inside[met] == pivot.starts[met]).all()
    tables = _tables(tokenizers["nfkc"], tokenizers["bytes"])
    arrays = _fake_rows(np.random.default_rng(0), source, len(tables.source.offsets) - 1, 5)
    rows = project_chain(pivot, source, spans, source_rows(arrays), tables, 5)
    assert (rows.kind[~met] == RowKind.EMPTY).all()
    assert (rows.label_logprob[rows.kind != RowKind.EMPTY] <= 0).all()


@_FEW
@given(_ANY, st.sampled_from(["bytes", "more_bytes", "marks", "words"]))
def test_align_spans_with_itself_is_the_identity(tokenizers, text, name):
    try:
        rows = _rows(tokenizers[name], TEMPLATES[0], "q", text, "again", text)
    except DialogueError:
        return
    spans = align_spans(rows, rows)
    np.testing.assert_array_equal(spans.source_row, np.arange(rows.num_rows))
    assert not spans.inside.any()


@_FEW
@given(
    _ANY,
    st.integers(0, 1000),
    st.sampled_from(["bytes", "more_bytes", "marks", "words"]),
    st.sampled_from(["bytes", "marks"]),
)
def test_project_chain_any_text_keeps_the_laws(tokenizers, text, seed, one, other):
    """Mass at most 1, rows descend, labels in the row; the label's losses add up to the source's own."""
    try:
        pivot, source = (
            _rows(tokenizers[one], TEMPLATES[0], "q", text),
            _rows(tokenizers[other], TEMPLATES[1], "q", text),
        )
    except DialogueError:
        return
    tables = _tables(tokenizers[one], tokenizers[other])
    arrays = _fake_rows(np.random.default_rng(seed), source, len(tables.source.offsets) - 1, 6)
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
    pivot, source = (_rows(tokenizers[n], t, "q", text) for n, t in zip(names, TEMPLATES, strict=True))
    tables = _tables(tokenizers[names[0]], tokenizers[names[1]])
    arrays = _fake_rows(np.random.default_rng(0), source, len(tables.source.offsets) - 1, 5)
    projected = project_chain(pivot, source, align_spans(pivot, source), source_rows(arrays), tables, 5)
    marks = (pivot.starts == pivot.ends) & ~pivot.is_end_of_turn
    assert (projected.kind[~marks] != RowKind.EMPTY).all()
    assert projected.kind[-1] == RowKind.END_OF_TURN


def test_project_chain_word_of_100k_letters_loses_nothing(tokenizers):
    rows = [_rows(tokenizers[name], TEMPLATES[0], "q", "ab" * 50_000) for name in ("bytes", "marks")]
    spans = align_spans(*rows)
    content = ~rows[0].is_end_of_turn
    assert (spans.source_row[content] >= 0).all()
    assert rows[0].ends[content].max() - rows[0].starts[content].min() == 100_000
    tables = _tables(tokenizers["bytes"], tokenizers["marks"])
    arrays = _fake_rows(np.random.default_rng(0), rows[1], len(tables.source.offsets) - 1, 5)
    projected = project_chain(*rows, spans, source_rows(arrays), tables, 5)
    assert (projected.kind != RowKind.EMPTY).all()
    # The source's own tokens are one way to write the text; candidates that spell the same add a little.
    own, aligned = (sums.sum(dtype=np.float64) for sums in (arrays["label_logprob"], projected.label_logprob))
    assert own - 1.0 <= aligned <= 0.99 * own


def test_lone_surrogate_is_refused(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(
        '{"id": "d", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a\\ud800"}]}\n'
    )
    with pytest.raises(DialogueError, match="surrogate"):
        list(read_dialogues([str(path)]))


def test_collect_target_rows_backward_spans_are_refused():
    with pytest.raises(AlignmentError, match="token 1"):
        spans = np.array([[4, 6], [0, 4]], np.int32)
        collect_target_rows(
            np.zeros(2, np.int32), np.ones(2, bool), spans, np.array([0, 2]), np.zeros(2, np.uint8), np.ones(1, bool)
        )


def test_align_spans_other_number_of_dialogues_is_refused(tokenizers):
    rows = _rows(tokenizers["bytes"], TEMPLATES[0], "q", "a")
    with pytest.raises(AlignmentError, match="the same dialogues"):
        align_spans(rows, rows._replace(offsets=np.array([0, 1, rows.num_rows])))


def test_pass_through_returns_the_rows_padded(tokenizers):
    rows = _rows(tokenizers["bytes"], TEMPLATES[0], "q", "How many apples? 12 + 34")
    arrays = _fake_rows(np.random.default_rng(1), rows, 256, 4)
    projected = pass_through(arrays, 6)
    np.testing.assert_array_equal(projected.topk_ids[:, :4], arrays["topk_ids"])
    np.testing.assert_array_equal(projected.topk_logprobs[:, :4], arrays["topk_logprobs"])
    assert np.isneginf(projected.topk_logprobs[:, 4:]).all() and (projected.kind == RowKind.IDENTITY).all()


@_FEW
@given(_ANY, st.integers(0, 1000), st.integers(1, 8), st.sampled_from(["bytes", "marks", "words"]))
def test_project_map_through_the_identity_returns_the_rows(tokenizers, text, seed, k, name):
    try:
        rows = _rows(tokenizers[name], TEMPLATES[0], "q", text)
    except DialogueError:
        return
    arrays = _fake_rows(np.random.default_rng(seed), rows, 600, k)
    projected = project_map(rows, align_spans(rows, rows), source_rows(arrays), np.arange(600, dtype=np.int32), 600, k)
    for i in range(rows.num_rows):
        masses = np.zeros(600)
        np.add.at(masses, arrays["topk_ids"][i], np.exp(arrays["topk_logprobs"][i].astype(np.float64)))
        got = np.zeros(600)
        real = np.isfinite(projected.topk_logprobs[i])
        got[projected.topk_ids[i][real]] = np.exp(projected.topk_logprobs[i][real])
        np.testing.assert_allclose(got, masses, rtol=1e-5, atol=1e-9)


@_FEW
@given(st.lists(st.integers(-1, 20), min_size=600, max_size=600), st.integers(0, 1000), st.integers(1, 8))
def test_project_map_any_map_never_lifts_the_mass_above_the_rows(tokenizers, images, seed, k):
    rows = _rows(tokenizers["bytes"], TEMPLATES[0], "q", "How many apples? 12 + 34")
    arrays = _fake_rows(np.random.default_rng(seed), rows, 600, 6)
    projected = project_map(rows, align_spans(rows, rows), source_rows(arrays), np.array(images, np.int32), 600, k)
    mass = np.exp(projected.topk_logprobs.astype(np.float64)).sum(axis=1)
    assert (mass <= np.exp(arrays["topk_logprobs"].astype(np.float64)).sum(axis=1) + 1e-5).all()
    for ids, logprobs in zip(projected.topk_ids, projected.topk_logprobs, strict=True):
        real = ids[np.isfinite(logprobs)]
        assert len(set(real.tolist())) == len(real)


def test_project_map_two_ids_with_one_image_add_up(tokenizers):
    rows = _rows(tokenizers["bytes"], TEMPLATES[0], "q", "a")
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


@pytest.mark.parametrize("calls_meet", [True, False])
def test_tool_calls_meet_where_both_sides_spell_them_alike_and_stand_apart_elsewhere(calls_meet):
    """One turn: a thought of 2 bytes, a mark, 3 bytes of content, a call of 4 bytes, the end; the sides cut it differently."""
    mark, calls, end = int(TokenField.MARK), int(TokenField.TOOL_CALLS), int(TokenField.END_OF_TURN)

    def side(thought, content, call):
        spans, fields = [(-1, -1)], [0]
        for widths, first, field in (
            (thought, 0, 1),
            (None, 0, mark),
            (content, 2, 2),
            (call, 0, calls),
            (None, 0, end),
        ):
            stops = np.cumsum(widths) + first if widths else [-1]
            starts = [first, *stops[:-1]] if widths else [-1]
            spans += list(zip(starts, stops, strict=True))
            fields += [field] * len(stops)
        count = len(spans)
        return collect_target_rows(
            np.arange(count, dtype=np.int32), np.arange(count) > 0, np.array(spans, np.int32), np.array([0, count]),
            np.array(fields, np.uint8), np.array([calls_meet]),
        )  # fmt: skip

    pivot, source = side([1, 1], [1, 2], [2, 2]), side([2], [3], [1, 1, 2])
    assert pivot.opens_turn.tolist() == [True, False, False, True, False, not calls_meet, False, not calls_meet]
    made = align_spans(pivot, source)
    expected = [0, 0, 1, 2, 2, *([3, 5] if calls_meet else [-1, -1]), 6]
    assert made.source_row.tolist() == expected
    assert made.inside.tolist() == [0, 1, 0, 0, 1, 0, 0, 0]
    assert pivot.is_apart.tolist() == [False] * 5 + [not calls_meet] * 2 + [False]
