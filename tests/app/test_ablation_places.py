"""Which artifacts a variant of an ablation shares with the base, and which not."""

from pathlib import Path
from typing import Any

import pytest
from ablations import ASKED, ablation_of

from fusechat.app.ablation_places import shared_places
from fusechat.config import CONTROL

STAGES = ("dialogues", "tokens", "logprobs", "aligned", "targets", "fused")


def changed(run_file: Path, tmp_path: Path, overrides: dict[str, Any]) -> set[str]:
    """The artifacts that a variant does not share with the base, but for what measured models leave."""
    return {key for key in all_changed(run_file, tmp_path, overrides) if key.split("/")[0] not in MEASURED}


def all_changed(run_file: Path, tmp_path: Path, overrides: dict[str, Any]) -> set[str]:
    """The artifacts that a variant does not share with the base."""
    made = ablation_of(run_file, tmp_path)
    base, variant = (shared_places(made.run_config(o), tmp_path) for o in ({}, overrides))
    return {key for key in base if key in variant and base[key] != variant[key]}


MEASURED = ("held_out", "held_out_aligned", "chosen", "answers", "harness")


IDS = ["pivot", CONTROL, "target.mixtral", "fused", "source.mixtral"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            {"evaluation.exact.max_new_tokens": 5},
            {"answers/exact": IDS, "answers/samples": ["pivot", CONTROL, "fused"]},
        ),
        ({"evaluation.held_out.divergence_dialogues": 5}, {"chosen": [id for id in IDS if id != "source.mixtral"]}),
        (
            {"merge.method": "linear"},
            {key: ["fused"] for key in ("held_out", "chosen", "answers/exact", "answers/samples", "harness")},
        ),
    ],
)
def test_variant_shares_what_models_leave_that_its_change_does_not_decide(
    run_file: Path, tmp_path: Path, overrides: dict[str, Any], expected: dict[str, list[str]]
) -> None:
    own = {key for key in all_changed(run_file, tmp_path, overrides) if key.split("/")[0] in MEASURED}
    assert {f"{kind}/{model_id}" for kind, ids in expected.items() for model_id in ids} == {
        "/".join(key.split("/")[:2]) if key.startswith("chosen/") else key for key in own
    }


ALL_TARGETS = {"targets/mixtral", "fused"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"merge.method": "linear"}, {"fused"}),
        ({"merge.threads": 2}, set()),
        ({"evaluation.exact.max_new_tokens": 5}, set()),
        ({"training.row_choice": "average"}, ALL_TARGETS),
        ({"training.sft_weight": 0.5}, ALL_TARGETS),
        ({"training.trl": {"max_steps": 3}}, {*ALL_TARGETS, "targets/sft"}),
        ({"run.seed": 4}, {*ALL_TARGETS, "targets/sft"}),
        ({"alignment.vocabulary_rule": "min_edit"}, {*ALL_TARGETS, "choice", "aligned/mixtral"}),
        ({"extraction.k": 3}, {*ALL_TARGETS, "choice", "aligned/mixtral", "logprobs/llama", "logprobs/mixtral"}),
        (
            {"sources.0.template": "pivot"},
            {
                *ALL_TARGETS,
                "choice",
                "aligned/mixtral",
                "logprobs/mixtral",
                "tokens/mixtral",
                "tokens/mixtral.held_out",
            },
        ),
    ],
)
def test_variant_shares_all_that_its_change_does_not_decide(
    run_file: Path, tmp_path: Path, overrides: dict[str, Any], expected: set[str]
) -> None:
    assert changed(run_file, tmp_path, overrides) == expected


def test_change_of_the_dialogues_shares_nothing_but_measured_models(run_file: Path, tmp_path: Path) -> None:
    kinds = changed(run_file, tmp_path, {"dialogues.max_tokens": 64})
    assert {key.split("/")[0] for key in kinds} == {*STAGES, "choice"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"merge.method": "linear"}, {"fused"}),
        ({"training.row_choice": "average"}, {"fused", "target.mixtral"}),
        ({"evaluation.exact.max_new_tokens": 5}, set()),
        ({"sources.0.template": "pivot"}, {"fused", "target.mixtral", "source.mixtral"}),
        (
            {"evaluation.questions.sets": [{"name": "own", "file": "asked.txt", "temperature": 1}]},
            {"pivot", CONTROL, "fused", "target.mixtral", "source.mixtral"},
        ),
        ({"pivot.engine.dtype": "bfloat16"}, {"fused", "target.mixtral"}),  # its rows change, not how it is measured
        (
            {"evaluation.held_out.dtype": "bfloat16"},
            {"pivot", CONTROL, "fused", "target.mixtral", "source.mixtral"},
        ),
    ],
)
def test_variant_shares_the_answers_of_models_that_it_does_not_change(
    run_file: Path, tmp_path: Path, overrides: dict[str, Any], expected: set[str]
) -> None:
    made = ablation_of(run_file, tmp_path, set=ASKED)
    base, variant = (made.run_config(o) for o in ({}, overrides))
    places = [shared_places(config, tmp_path) for config in (base, variant)]
    keys = {f"answers/own/{model_id}": model_id for model_id in base.model_ids}
    assert {model_id for key, model_id in keys.items() if places[0][key] != places[1][key]} == expected
    placed = base.with_places(places[0])
    assert placed.answers_path("own", "fused") == Path(places[0]["answers/own/fused"])
    assert placed.verdicts_path == tmp_path / "verdicts.jsonl"
