"""A judge's replies that mean harm count as no verdict, and none takes long to read."""

import json
from pathlib import Path
from typing import Any

import pytest
from hostile import limits, nested
from judge_endpoint import serving

from evaluation.judge.judge import AnswerSet, judge_answers
from evaluation.judge.judge_prompts import read_score, read_verdict
from fusechat.config.evaluation import JudgeSection
from fusechat.errors import JudgeError
from fusechat.text.questions import Question

REPLIES = [
    "", "SCORE:", "SCORE: 11", "SCORE: 1e9", "SCORE: " + "9" * 5000, "SCORE: NaN", "<script>SCORE: 10</script>", "<think>SCORE: 10",
    "SCORE: ９", "VERDICT: C", "VERDICT: A VERDICT: B", "\0", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("reply", REPLIES)
def test_reply_that_is_no_verdict_counts_as_none(reply: str) -> None:
    with limits():
        assert read_score(reply) is None or reply == "SCORE: ９"
        assert read_verdict(reply) is None


@pytest.mark.parametrize(
    "part",
    [
        " ",
        "\n",
        "*",
        "SCORE:",
        "SCORE: 1",
        "SCORE: *",
        "VERDICT: ",
        "VERDICT:A ",
        "<think>",
        "</think>",
        "#",
        "[(",
        "\n*",
    ],
)
def test_endless_reply_is_read_in_time(part: str) -> None:
    for reply in (part * 20_000, f"{part * 20_000}x", f"x\n{part * 20_000}\nSCORE: 5"):
        with limits():
            read_score(reply), read_verdict(reply)


WRONG = [None, 5, -1, 1e999, "x", "9" * 5000, [], [[]], {}, {"a": 1}, True, "\ud800"]
NO_REPLIES = [
    b"", b"[]", b"null", b"5", b'"x"', b"{", b"\xff\xfe", b"<html>SCORE: 10</html>", b'{"choices": []}', b'{"choices": {"0": 1}}',
    b'{"choices": [5]}', b'{"choices": [{"message": "SCORE: 10"}]}', b'{"choices": [{"message": []}]}', nested(5000).encode(),
    b'{"choices": [{"message": {"content": "SCORE: 9"}}], "a": ' + nested(100_000).encode() + b"}",
]  # fmt: skip
"""Bodies that are no reply of a chat."""


def judged(directory: Path, reply: Any = None, fault: Any = None, **fields: Any) -> dict[str, Any]:
    """Verdicts on one question for which the endpoint gives one body."""
    with serving() as endpoint:
        endpoint.reply, endpoint.fault = lambda body, number: reply, lambda number: fault
        section = JudgeSection(url=endpoint.url, model="m", backoff_seconds=0.001, repeats=1, concurrency=1, **fields)
        answers = AnswerSet("set", [Question("0", ("a question",))], {"fused": [["an answer"]]})
        return judge_answers(section, [answers], directory / "verdicts.jsonl", seed=0)


@pytest.mark.parametrize("number", range(len(NO_REPLIES)))
def test_body_that_is_no_reply_is_a_failure_of_the_endpoint(tmp_path: Path, number: int) -> None:
    with pytest.raises(JudgeError, match="1 of 1 verdicts failed 2 times"):
        judged(tmp_path, NO_REPLIES[number], max_attempts=2)


@pytest.mark.parametrize("place", ["content", "part", "finish_reason", "usage", "prompt_tokens"])
def test_reply_with_a_value_of_another_type_is_read_or_no_verdict(tmp_path: Path, place: str) -> None:
    for number, wrong in enumerate(WRONG):
        content = {"content": wrong, "part": [{"type": "text", "text": wrong}, wrong]}.get(place, "SCORE: 7")
        choice = {"message": {"content": content}, "finish_reason": wrong if place == "finish_reason" else "stop"}
        usage = wrong if place == "usage" else {"prompt_tokens": wrong, "completion_tokens": 3}
        (tmp_path / str(number)).mkdir()
        result = judged(tmp_path / str(number), json.dumps({"choices": [choice], "usage": usage}).encode())
        fused = result["sets"]["set"]["single"]["fused"]
        if place in ("content", "part"):
            assert fused["nonsense"] == 1
        else:
            assert fused["score"] == 7 and fused["nonsense"] == 0


def test_reply_without_an_end_costs_its_time_and_no_more(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="1 of 1 verdicts failed 2 times"):
        judged(tmp_path, fault="endless", max_attempts=2, timeout_seconds=0.3)
