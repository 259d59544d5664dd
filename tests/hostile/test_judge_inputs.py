"""A judge's replies that mean harm count as no verdict, and none takes long to read."""

import pytest
from hostile import limits

from evaluation.judge.judge_prompts import read_score, read_verdict

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
