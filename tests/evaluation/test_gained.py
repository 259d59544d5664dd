"""The first lines of a report: what the fused model and the joint target gained over the control and the best source."""

from typing import Any

from evaluation.report.gained import gained_lines


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


def test_lines_say_what_was_gained_against_the_control_and_each_kinds_best_source() -> None:
    _, skill, fused, joint, everything, fused_all, _ = gained_lines(document())
    assert skill == "skill: sft 7/20 exact, 1.500 bits per byte; source.velan 19/20 exact, 0.100 bits per byte"
    assert "+25 [+5, +45] points, -0.600 [-0.700, -0.500] bits against sft" in fused
    assert "-35 [-55, -15] points, +0.800 [+0.700, +0.900] bits against source.velan" in fused
    assert "target.joint 17/20 exact" in joint and "+50 [+30, +70] points" in joint
    assert everything == "all kinds: sft 1.200 bits per byte; source.chat 1.700 bits per byte"
    assert "-0.550" in fused_all and "points" not in fused_all


def test_nothing_is_said_without_a_control_or_without_a_model_that_was_fused() -> None:
    for missing in ({"sft"}, {"fused", "target.joint"}):
        made = document()
        made["models"] = [entry for entry in made["models"] if entry["id"] not in missing]
        assert list(gained_lines(made)) == []
