"""The first lines of a report: what the fused model and the joint target gained over the control and the best source."""

import io
from typing import Any

from rich.console import Console

from evaluation.report.gained import gained, gained_title
from evaluation.report.terminal import gained_table


def model(model_id: str, skill: float, everything: float, exact: int) -> dict[str, Any]:
    return {
        "id": model_id,
        "label": model_id,
        "loss": {"skill": {"bits_per_byte": skill}, "all": {"bits_per_byte": everything}},
        "accuracy": {"skill": {"exact": exact, "asked": 20}},
    }


def difference(one: str, other: str, bits: float, points: float) -> dict[str, Any]:
    loss = {"difference": bits, "low": bits - 0.1, "high": bits + 0.1}
    accuracy = {"difference": points, "low": points - 0.2, "high": points + 0.2}
    return {"model": one, "against": other, "loss": {"skill": loss, "all": loss}, "accuracy": {"skill": accuracy}}


def document() -> dict[str, Any]:
    return {
        "models": [
            model("sft", 1.5, 1.2, 7), model("target.joint", 0.5, 1.1, 17), model("fused", 0.9, 1.15, 12),
            model("source.chat", 5.0, 1.7, 0), model("source.velan", 0.1, 6.8, 19),
        ],
        "differences": [
            difference("fused", "sft", -0.6, 0.25), difference("target.joint", "sft", -1.0, 0.5),
            difference("fused", "source.velan", 0.8, -0.35), difference("fused", "source.chat", -0.55, 0.0),
        ],
        "exact_match_kinds": ["skill"],
    }  # fmt: skip


def test_table_says_what_was_gained_against_the_control_and_each_kinds_best_source() -> None:
    (skill, skill_rows), (everything, all_rows) = gained(document())
    assert (skill, everything) == ("skill", "all")
    assert [tuple(row)[:3] for row in skill_rows] == [
        ("target.joint", "17/20", "0.500"),
        ("minus sft", "+50 [+30, +70]", "-1.000 [-1.100, -0.900]"),
        ("fused", "12/20", "0.900"),
        ("minus sft", "+25 [+5, +45]", "-0.600 [-0.700, -0.500]"),
        ("minus source.velan", "-35 [-55, -15]", "+0.800 [+0.700, +0.900]"),
        ("sft", "7/20", "1.500"),
        ("source.velan", "19/20", "0.100"),
    ]
    assert ("minus source.chat", "", "-0.550 [-0.650, -0.450]", True) in all_rows
    assert all_rows[-1] == ("source.chat", "", "1.700", False)
    assert "sft, which saw the same dialogues" in gained_title(document())


def test_table_fits_a_terminal_of_80_columns() -> None:
    shown = io.StringIO()
    Console(file=shown, width=80).print(gained_table(document()))
    lines = [line.rstrip() for line in shown.getvalue().splitlines()]
    assert "  target.joint          17/20                  0.500" in lines
    assert "    minus source.velan  -35 [-55, -15]         +0.800 [+0.700, +0.900]" in lines


def test_nothing_is_said_without_a_control_or_without_a_model_that_was_fused() -> None:
    for missing in ({"sft"}, {"fused", "target.joint"}):
        made = document()
        made["models"] = [entry for entry in made["models"] if entry["id"] not in missing]
        assert gained(made) == []
