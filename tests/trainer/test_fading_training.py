"""A training whose rows fade: what the weights become, that it resumes, and that it does not depend on how a step is cut."""

from pathlib import Path

import numpy as np
import pytest
import torch
from stages_here import train
from trainer_runs import losses, make_chosen_run, stopped_at, weights

from fusechat.config import JOINT, RunConfig
from fusechat.errors import ArtifactError
from trainer import choice_stage, stage
from trainer.choice_artifact import Choice
from trainer.inputs import TrainingInputs
from trainer.run_log import read_metrics

LEAD = 400.0
"""nats, of each teacher over the pivot: more than twice what the student loses on a dialogue, so that rows fade at once."""
ONE_PASS = {"num_train_epochs": 2, "save_steps": 2}


@pytest.fixture(autouse=True)
def _large_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teachers lose nothing, and the pivot so much that the student seems to have made up for most of it."""

    def read_losses(url: str, chosen: Choice) -> tuple[np.ndarray, np.ndarray]:
        source = np.zeros(len(chosen.source))
        return source, source + LEAD

    monkeypatch.setattr(stage, "read_losses", read_losses)


def trained(folder: Path, *, fading: bool = True, **trl: int) -> RunConfig:
    config = make_chosen_run(folder, fusion="joint", fading=fading, trl={**ONE_PASS, **trl})
    train(config, JOINT)
    return config


def row_weights(config: RunConfig) -> list[float]:
    """Mean weight of the rows, of each step that has some."""
    return [record["row_weight"] for record in read_metrics(config.target_path(JOINT)) if record["row_share"]]


def test_rows_weigh_less_once_the_student_has_made_up_for_most_of_the_lead(tmp_path: Path) -> None:
    faded, plain = trained(tmp_path / "a"), trained(tmp_path / "b", fading=False)
    first, *later = row_weights(faded)
    assert first == pytest.approx(row_weights(plain)[0])
    assert max(later[1:]) < 0.8 * first and min(later) > 0
    assert losses(faded, JOINT)[0] == losses(plain, JOINT)[0]


def test_training_that_stopped_goes_on_with_the_weights_it_had(tmp_path: Path) -> None:
    whole = trained(tmp_path / "a")
    stopped = make_chosen_run(tmp_path / "b", fusion="joint", trl=ONE_PASS)
    with stopped_at(5):
        train(stopped, JOINT)
    train(stopped, JOINT)
    assert row_weights(stopped) == row_weights(whole)
    mine, theirs = weights(stopped, JOINT), weights(whole, JOINT)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_step_may_be_cut_into_any_passes(tmp_path: Path) -> None:
    whole = trained(tmp_path / "a")
    cut = trained(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert row_weights(cut) == pytest.approx(row_weights(whole), abs=1e-5)
    assert losses(cut, JOINT) == pytest.approx(losses(whole, JOINT), abs=1e-5)


def test_fading_decides_targets_of_the_rule_alone(tmp_path: Path) -> None:
    run = make_chosen_run(tmp_path)
    of_rule, of_control = (TrainingInputs.of(run).recipe(name).settings["training"] for name in ("other", "sft"))
    assert of_rule["fading"] is True and "fading" not in of_control
    published = run.model_copy(update={"training": run.training.model_copy(update={"row_choice": "min_ce"})})
    assert "fading" not in TrainingInputs.of(published).recipe("other").settings["training"]


def test_dialogues_that_changed_after_the_choice_are_refused_before_training(tmp_path: Path) -> None:
    run = make_chosen_run(tmp_path, fusion="joint", trl={"max_steps": 1})
    choice_stage.run(run.layout, "pivot", ["other", "third"])
    file = run.dialogues_path / "train.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(
        ArtifactError, match=r"train\.jsonl holds 21 dialogues, 22 were tokenized; run `fusechat inspect"
    ):
        train(run, JOINT)
