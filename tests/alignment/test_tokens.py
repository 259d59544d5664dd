"""Span alignment and target rows: any text, tokenizers of every kind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from span_cases import (
    ANY_TEXT,
    FEW_EXAMPLES,
    TEMPLATES,
    sentencepiece_like,
    target_rows,
    tokenizers_of_every_kind,
)
from tiny_models import byte_level_tokenizer
from transformers import PreTrainedTokenizerFast

from alignment.tokens.token_alignment import align_spans, collect_target_rows
from alignment.vocabulary.piece_segmentation import encode_pieces
from fusechat.errors import AlignmentError, DialogueError
from fusechat.storage.contracts import TokenField
from fusechat.text.dialogues import read_dialogues
from fusechat.text.token_surface import token_surfaces


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return tokenizers_of_every_kind()


def test_pieces_are_cut_as_if_the_tokenizer_set_no_padding_or_truncation():
    pivot, source = sentencepiece_like(), token_surfaces(byte_level_tokenizer(400, TEMPLATES[0]))
    surfaces = token_surfaces(pivot)
    expected = encode_pieces(source, pivot, surfaces)
    pivot.backend_tokenizer.enable_truncation(max_length=2)
    pivot.backend_tokenizer.enable_padding(pad_id=0, pad_token="<unk>", length=16)
    assert encode_pieces(source, pivot, surfaces) == expected


@FEW_EXAMPLES
@given(
    ANY_TEXT, st.sampled_from(["bytes", "more_bytes", "marks"]), st.sampled_from(["bytes", "marks", "words", "nfkc"])
)
def test_align_spans_any_text_is_monotone_and_holds_the_byte(tokenizers, text, one, other):
    try:
        pivot, source = (
            target_rows(tokenizers[one], TEMPLATES[0], "q", text),
            target_rows(tokenizers[other], TEMPLATES[1], "q", text),
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


@FEW_EXAMPLES
@given(ANY_TEXT, ANY_TEXT, st.sampled_from(["bytes", "more_bytes", "marks"]))
def test_target_rows_any_text_cover_the_content_exactly(tokenizers, text, again, name):
    rows = target_rows(tokenizers[name], TEMPLATES[0], "q", text, "and", again)
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


@FEW_EXAMPLES
@given(ANY_TEXT, st.sampled_from(["bytes", "more_bytes", "marks", "words"]))
def test_align_spans_with_itself_is_the_identity(tokenizers, text, name):
    try:
        rows = target_rows(tokenizers[name], TEMPLATES[0], "q", text, "again", text)
    except DialogueError:
        return
    spans = align_spans(rows, rows)
    np.testing.assert_array_equal(spans.source_row, np.arange(rows.num_rows))
    assert not spans.inside.any()


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
    rows = target_rows(tokenizers["bytes"], TEMPLATES[0], "q", "a")
    with pytest.raises(AlignmentError, match="the same dialogues"):
        align_spans(rows, rows._replace(offsets=np.array([0, 1, rows.num_rows])))


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
