"""What crosses HTTP between a client and an engine that stays, and who has the engine; no engine is started."""

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from fusechat.errors import ContractError
from inference.capture.rows import TopKRows
from inference.serving.scoring_records import ScoreReply, ScoreRequest
from inference.serving.turns import Turns
from inference.serving.wire import BINARY, JSON, model_of, read_reply, read_request, write_reply, write_request

IDS = (np.array([3, 1, 4, 1], np.int32), np.array([5], np.int32), np.array([9, 2, 6], np.int32))
MARKS = (np.array([0, 0, 1, 1], bool), np.array([0], bool), np.array([0, 1, 0], bool))


def rows_of(marks: tuple[np.ndarray, ...], k: int = 2, num_chosen: int | None = None) -> tuple[TopKRows, ...]:
    draw = np.random.default_rng(0)
    parts = []
    for of_one in marks:
        rows = int(of_one.sum())
        floats = [draw.random(shape, np.float32) for shape in ((rows, k), (rows,), (rows,))]
        chosen = {} if num_chosen is None else {
            "chosen_logprobs": np.full((rows, num_chosen), -np.inf, np.float32), "rest_logprob": draw.random(rows, np.float32),
        }  # fmt: skip
        parts.append(TopKRows(draw.integers(0, 9, (rows, k), np.int32), *floats, **chosen))
    return tuple(parts)


def same_arrays(one: Any, other: Any) -> bool:
    return all(np.array_equal(first, second) for first, second in zip(one, other, strict=True))


@pytest.mark.parametrize("num_chosen", [None, 0, 3])
def test_binary_form_gives_back_what_was_sent(num_chosen: int | None) -> None:
    chosen = None if num_chosen is None else tuple(np.full((int(of.sum()), num_chosen), -1, np.int32) for of in MARKS)
    sent = ScoreRequest("m", token_ids=IDS, is_scored=MARKS, chosen_ids=chosen, k=2, recipe="ab", alone=True)
    body, kind = write_request(sent)
    assert (kind, model_of(body, kind)) == (BINARY, "m")
    read = read_request(body, kind)
    assert (read.model, read.k, read.recipe, read.alone) == ("m", 2, "ab", True)
    assert same_arrays(read.token_ids, IDS) and same_arrays(read.is_scored, MARKS)
    assert (read.chosen_ids is None) == (chosen is None)
    assert chosen is None or same_arrays(read.chosen_ids, chosen)
    reply = ScoreReply("m", "ab", IDS, MARKS, rows_of(MARKS, num_chosen=num_chosen))
    back = read_reply(write_reply(reply, in_json=False)[0])
    assert (back.model, back.recipe) == ("m", "ab") and same_arrays(back.token_ids, IDS)
    for found, expected in zip(back.rows, reply.rows, strict=True):
        names = ["topk_ids", "topk_logprobs", "label_logprob", "logsumexp"]
        names += [] if num_chosen is None else ["chosen_logprobs", "rest_logprob"]
        assert all(getattr(found, name).tobytes() == getattr(expected, name).tobytes() for name in names)
        assert num_chosen is not None or found.chosen_logprobs is None


def test_json_form_gives_back_what_was_sent() -> None:
    dialogue = {"token_ids": [3, 1, 4, 1], "targets": [2, 3], "chosen_ids": [[1, -1], [2, 3]]}
    body = json.dumps({"model": "m", "k": 3, "recipe": "ab", "dialogues": [dialogue]}).encode()
    read = read_request(body, JSON)
    assert (model_of(body, JSON), read.k, read.recipe) == ("m", 3, "ab")
    assert read.is_scored[0].tolist() == [False, False, True, True] and read.chosen_ids is not None
    assert read.chosen_ids[0].tolist() == dialogue["chosen_ids"]
    reply = ScoreReply("m", "ab", read.token_ids, read.is_scored, rows_of(read.is_scored, num_chosen=2))
    (shown,) = json.loads(write_reply(reply, in_json=True)[0])["dialogues"]
    assert [row["position"] for row in shown["rows"]] == [2, 3] and [row["token_id"] for row in shown["rows"]] == [4, 1]
    assert shown["rows"][0]["chosen_logprobs"] == [None, None]
    talk = ({"messages": [{"role": "user", "content": "Hi"}]},)
    again = read_request(*write_request(ScoreRequest("m", messages=talk, chosen_ids=(np.array([[1]]),))))
    assert again.messages == talk and again.chosen_ids is not None and again.chosen_ids[0].tolist() == [[1]]


GOOD = {
    "token_ids": np.zeros(4, np.int32), "is_scored": np.zeros(4, bool), "offsets": np.array([0, 1, 4], np.int64),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"offsets": np.array([0, 3, 1, 4], np.int64)}, "offsets: expected 0"),
        ({"offsets": np.array([0, 5], np.int64)}, "offsets: expected 0"),
        ({"offsets": np.array([], np.int64)}, "offsets: expected 0"),
        ({"offsets": np.array([1, 4], np.int64)}, "offsets: expected 0"),
        ({"token_ids": np.zeros(4, np.int64)}, "token_ids: found int64"),
        ({"token_ids": np.zeros((2, 2), np.int32)}, "token_ids: found shape"),
        ({"is_scored": np.zeros(3, bool)}, "equally long"),
        ({"chosen_ids": np.zeros((3, 2), np.int32)}, "chosen_ids: found shape"),
    ],
)
def test_binary_request_that_is_wrong_is_refused(changed: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        read_request(save({**GOOD, **changed}, metadata={"model": "m"}), BINARY)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "expected an object"),
        ({"model": "m"}, "dialogues: expected"),
        ({"model": "m", "dialogues": [{"token_ids": [1, 2], "targets": [0]}]}, "positions from 1"),
        ({"model": "m", "dialogues": [{"token_ids": [1, 2], "targets": [2]}]}, "positions from 1"),
        ({"model": "m", "dialogues": [{"token_ids": [1, 2, 3], "targets": [2, 1]}]}, "ascend"),
        ({"model": "m", "dialogues": [{"token_ids": [1.5, 2]}]}, "whole numbers"),
        ({"model": "m", "dialogues": [{"token_ids": [2**40, 2]}]}, "whole numbers"),
        ({"model": "m", "dialogues": [{"token_ids": [[1], [1, 2]]}]}, "whole numbers"),
        ({"model": "m", "dialogues": [{"token_ids": [[1, 2], [1, 2]]}]}, "whole numbers"),
        ({"model": "m", "dialogues": [{"token_ids": [1, 2], "targets": [1], "chosen_ids": [5]}]}, "lists"),
        ({"model": "m", "dialogues": [{"token_ids": "12"}]}, "whole numbers"),
        ({"model": "m", "dialogues": [{"token_ids": [1]}, {"messages": []}]}, "for all"),
        ({"model": "m", "k": 0, "dialogues": [{"token_ids": [1]}]}, "k: found"),
        ({"model": "m", "K": 1, "dialogues": [{"token_ids": [1]}]}, "found K"),
    ],
)
def test_json_request_that_is_wrong_is_refused(values: Any, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        read_request(json.dumps(values).encode(), JSON)


@given(st.binary(max_size=200), st.sampled_from([BINARY, JSON]))
def test_any_bytes_are_read_or_refused(body: bytes, kind: str) -> None:
    for read in (read_request, model_of):
        with contextlib.suppress(ContractError):
            read(body, kind)


def test_turns_are_shared_or_taken_alone_in_order() -> None:
    turns, inside, seen = Turns(), [0, 0], set()
    lock = threading.Lock()

    def take(number: int) -> None:
        alone = number % 5 == 0
        with turns.take(alone=alone):
            with lock:
                inside[alone] += 1
                seen.add(tuple(inside))
            threading.Event().wait(0.002)
            with lock:
                inside[alone] -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(take, range(100)))
    assert all(alone == 0 or (alone, shared) == (1, 0) for shared, alone in seen)
    assert any(shared > 1 for shared, _ in seen) and (0, 1) in seen
