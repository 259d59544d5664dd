"""Packed rows, the targets of a request and the checks on a dialogue."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusechat.errors import ContractError
from inference.capture.rows import (
    TopKRows,
    check_chosen,
    check_dialogue,
    concatenate_rows,
    decode_chosen,
    decode_targets,
    encode_chosen,
    encode_targets,
    unpack_rows,
)


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=40))
def test_targets_of_a_request_are_its_marked_tokens(tokens: list[tuple[int, bool]]) -> None:
    ids = np.array([token for token, _ in tokens], dtype=np.int64)
    rows, labels = decode_targets(encode_targets(ids, np.array([mark for _, mark in tokens], dtype=bool)))
    expected = [(place, token) for place, (token, mark) in enumerate(tokens) if mark]
    assert list(zip(rows.tolist(), labels.tolist(), strict=True)) == expected


def test_unpack_rows_gives_each_column_its_place() -> None:
    floats = np.array([[-0.5, -1.5, -2.0, 9.25], [-0.25, -3.0, -0.25, 8.0]], dtype=np.float32)
    packed = np.concatenate([np.array([[7, 2**31 - 1], [0, 5]], dtype=np.int32), floats.view(np.int32)], axis=1)
    rows = unpack_rows(packed)
    assert rows.topk_ids.tolist() == [[7, 2**31 - 1], [0, 5]]
    assert rows.topk_logprobs.tolist() == [[-0.5, -1.5], [-0.25, -3.0]]
    assert rows.label_logprob.tolist() == [-2.0, -0.25] and rows.logsumexp.tolist() == [9.25, 8.0]
    assert (len(rows), rows.k) == (2, 2)


def test_unpack_rows_with_chosen_ids_keeps_rest_and_chosen_apart() -> None:
    floats = np.array([[-0.5, -2.0, 9.25, -0.125, -4.0, -np.inf]], dtype=np.float32)
    rows = unpack_rows(np.concatenate([np.array([[7]], dtype=np.int32), floats.view(np.int32)], axis=1), 2)
    assert (rows.k, rows.topk_logprobs.tolist(), rows.logsumexp.tolist()) == (1, [[-0.5]], [9.25])
    assert rows.rest_logprob is not None and rows.rest_logprob.tolist() == [-0.125]
    assert rows.chosen_logprobs is not None and rows.chosen_logprobs.tolist() == [[-4.0, -np.inf]]
    empty = TopKRows.empty(3, 5)
    assert empty.chosen_logprobs is not None and empty.chosen_logprobs.shape == (0, 5) and empty.k == 3
    assert TopKRows.empty(3).chosen_logprobs is None


def test_chosen_ids_travel_as_they_are() -> None:
    ids = np.array([[3, 151_935, -1], [0, -1, -1]])
    np.testing.assert_array_equal(decode_chosen(encode_chosen(ids), 2), ids)
    assert decode_chosen(encode_chosen(np.zeros((2, 0), np.int32)), 2).shape == (2, 0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((2, 4), np.int32), r"int32 \(2, 4\), expected whole numbers \[3, m\]"),
        (np.zeros(3, np.int32), r"\(3,\)"),
        (np.zeros((3, 1)), "float64"),
        (np.full((3, 1), 10), r"10\.\.10, the model's vocabulary ends at 9"),
        (np.full((3, 1), -2), r"-2\.\.-2"),
    ],
)
def test_check_chosen_refuses_what_does_not_fit(ids: np.ndarray, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_chosen(ids, np.array([False, True, True, True]), vocab_size=10, place="d")


def test_concatenate_rows_of_nothing_is_empty_and_typed() -> None:
    rows = concatenate_rows([], 3)
    assert rows.topk_ids.shape == (0, 3) and rows.topk_ids.dtype == np.int32
    assert rows.topk_logprobs.dtype == rows.label_logprob.dtype == rows.logsumexp.dtype == np.float32
    both = concatenate_rows([rows, TopKRows.empty(3)], 3)
    assert len(both) == 0 and both.k == 3


@pytest.mark.parametrize(
    ("ids", "marks", "message"),
    [
        ([1, 2, 3], [True, False, False], "token 0 is marked"),
        ([1, 2, 3], [False, True], r"\(3,\) and is_scored \(2,\)"),
        ([1, 2, 3, 4, 5], [False] * 5, "has 5 tokens, the engine was opened for 4"),
        ([1, 10], [False, True], r"1\.\.10, the model's vocabulary ends at 9"),
        ([-1, 3], [False, True], r"-1\.\.3"),
    ],
)
def test_check_dialogue_refuses_what_no_teacher_can_score(ids: list[int], marks: list[bool], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_dialogue(np.array(ids), np.array(marks), max_tokens=4, vocab_size=10, place="d")


def test_check_dialogue_accepts_an_empty_one() -> None:
    check_dialogue(np.zeros(0, np.int32), np.zeros(0, bool), max_tokens=4, vocab_size=10, place="d")
