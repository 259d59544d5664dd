"""Figures of hand-made numbers."""

import math

import numpy as np
import pytest

from evaluation.figures import (
    HeldOut,
    accuracy_differences,
    accuracy_figures,
    compared_pairs,
    loss_differences,
    loss_figures,
    supported,
)
from fusechat.text.dialogues import Dialogue, Message


def dialogue(number: int, kind: str, answers: list[str]) -> Dialogue:
    messages = [message for answer in answers for message in (Message("user", "äöü?"), Message("assistant", answer))]
    return Dialogue(f"d{number}", tuple(messages), kind)


@pytest.fixture
def held_out() -> HeldOut:
    """Six dialogues of kind a (10 bytes each), one of kind b (20 bytes), one without a kind (4 bytes)."""
    dialogues = [dialogue(number, "a", ["0123456789"]) for number in range(6)]
    return HeldOut.of([*dialogues, dialogue(6, "b", ["é" * 5, "0123456789"]), dialogue(7, "", ["\U0001f600"])])


def test_held_out_counts_bytes_of_assistant_turns_alone_and_orders_kinds_by_size(held_out: HeldOut) -> None:
    assert held_out.num_bytes.tolist() == [10] * 6 + [20, 4]
    assert held_out.kind_names[0] == "a" and set(held_out.kind_names) == {"a", "b", "other"}


def test_loss_figures_are_bits_over_bytes_not_means_of_means(held_out: HeldOut) -> None:
    bits = np.array([10, 20, 30, 10, 20, 30, 60, 4], dtype=float)
    found = loss_figures(held_out, bits * math.log(2), seed=0)
    assert found["all"]["bits_per_byte"] == pytest.approx(184 / 84)
    assert found["a"]["bits_per_byte"] == pytest.approx(2) and found["a"]["low"] < 2 < found["a"]["high"]
    assert found["b"] == pytest.approx(
        {"bits_per_byte": 3, "low": None, "high": None, "dialogues": 1, "bytes": 20, "nats": 60 * math.log(2)}
    )


def test_loss_figures_leave_out_what_the_model_could_not_read(held_out: HeldOut) -> None:
    nats = np.full(8, 10 * math.log(2))
    nats[[0, 6]] = np.nan
    found = loss_figures(held_out, nats, seed=0)
    assert found["all"]["dialogues"] == 6 and found["all"]["bytes"] == 54
    assert found["b"]["bits_per_byte"] is None and found["b"]["dialogues"] == 0


def test_loss_differences_are_paired_over_what_both_could_read(held_out: HeldOut) -> None:
    hard = np.array([1, 100, 3, 80, 9, 40, 7, 5], dtype=float)  # varies far more than the models differ
    first, second = hard.copy(), hard + 0.1 * held_out.num_bytes * math.log(2)
    second[2] = np.nan
    found = loss_differences(held_out, first, second, seed=0)
    assert found["all"]["difference"] == pytest.approx(-0.1) and found["all"]["dialogues"] == 7
    assert found["all"]["supports"] == "lower" and found["all"]["high"] == pytest.approx(-0.1)
    assert found["b"]["supports"] == "too few"


def test_accuracy_figures_and_differences_count_who_was_asked(held_out: HeldOut) -> None:
    first = {number: number < 5 for number in range(6)}
    second = dict.fromkeys(range(5), False)
    found = accuracy_figures(held_out, first, ["a"])
    assert found["a"]["accuracy"] == pytest.approx(5 / 6) and (found["a"]["exact"], found["a"]["asked"]) == (5, 6)
    difference = accuracy_differences(held_out, first, second, ["a"])["a"]
    assert difference["difference"] == 1 and difference["asked"] == 5 and difference["supports"] == "higher"
    assert accuracy_figures(held_out, {}, ["a"])["a"]["accuracy"] is None


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((-2.0, -1.0), "lower"),
        ((1.0, 2.0), "higher"),
        ((-1.0, 0.0), "undecided"),
        ((0.0, 0.0), "undecided"),
        (None, "too few"),
    ],
)
def test_supported_says_only_what_the_interval_does(interval: tuple[float, float] | None, expected: str) -> None:
    assert supported(interval) == expected


def test_compared_pairs_hold_measured_models_only() -> None:
    assert compared_pairs(["pivot", "fused"]) == [("fused", "pivot")]
    pairs = compared_pairs(["pivot", "sft", "target.x", "target.y", "fused", "source.x"])
    assert pairs[0] == ("fused", "sft") and ("target.y", "sft") in pairs and ("fused", "source.x") in pairs
    assert len(pairs) == len(set(pairs)) == 10
    assert ("target.joint", "source.x") in compared_pairs(["target.joint", "source.x"])
    of_rounds = [pair for pair in compared_pairs(["sft", "fused", "round.1", "round.2"]) if pair[0].startswith("round")]
    assert of_rounds == [
        ("round.1", "fused"), ("round.1", "sft"), ("round.2", "round.1"), ("round.2", "fused"), ("round.2", "sft"),
    ]  # fmt: skip
