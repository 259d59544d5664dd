"""A round as a run of its own: where it lies, what it begins with, and what is refused."""

from pathlib import Path

import pytest

from fusechat.app.pipeline import steps
from fusechat.config import JOINT, RunConfig, load_config
from fusechat.config.round_run import round_runs
from fusechat.errors import ConfigError

ROUNDS = ("rounds.count=2", "rounds.samples=3", "rounds.divergence=kl", "rounds.trl={num_train_epochs: 1}")


def test_round_begins_with_the_student_of_the_one_before_in_a_folder_of_its_own(run_file: Path) -> None:
    config = load_config(run_file, (*ROUNDS, "run.store=s3://bucket/x", "run.seed=5"))
    first, second = round_runs(config)
    assert first.pivot.model == str(config.fused_path)
    assert second.pivot.model == str(config.run.output / "rounds/1/targets/joint")
    assert second.run.output == config.run.output / "rounds/2" and second.store_url == "s3://bucket/x/rounds/2"
    assert second.pivot.name == config.pivot.name and second.sources == config.sources
    assert (first.run.seed, second.run.seed) == (6, 7)
    assert second.target_names == second.trained_names == [JOINT]
    assert second.training.divergence == "kl" and second.writing.samples == 3
    assert second.rounds.least_probability == config.rounds.least_probability > 0
    assert second.training.trl == {**config.training.trl, "num_train_epochs": 1}
    assert round_runs(RunConfig.model_validate(first.dump())) == []


def test_rounds_are_steps_between_merge_and_report_and_models_of_the_report(run_file: Path) -> None:
    config = load_config(run_file, ROUNDS)
    labels = [step.label for step in steps(config)]
    rounds = [label for label in labels if label.startswith("rounds")]
    assert rounds[0] == "rounds 1 ask" and rounds[1] == "rounds 1 write" and rounds[-1] == "rounds 2 train"
    assert labels.index("merge") < labels.index(rounds[0]) and labels[-1] == "evaluate"
    artifacts = [artifact.url for step in steps(config) for artifact in step.artifacts]
    assert len(artifacts) == len(set(artifacts)) and str(config.run.output / "rounds/2/targets/joint") in artifacts
    stores = [artifact.store for step in steps(config) for artifact in step.artifacts if artifact.stage == "rounds"]
    assert stores.count("logprobs") == 2 * len(config.models) and stores.count("aligned") == 2 * len(config.sources)
    fused = config.model_ids.index("fused")
    assert config.model_ids[fused + 1 : fused + 3] == ["round.1", "round.2"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("rounds.count=1", "training.row_choice=min_ce"), "needs training.row_choice: trusted"),
        (("rounds.count=1", "rounds.temperature=0"), "set samples: 1, or a temperature"),
        (("rounds.count=1", "rounds.number=1"), "a run that is a round itself"),
        (("rounds.given_share=1",), "given_share"),
        (("rounds.trl={hub_token: x}",), "hub_token"),
    ],
)
def test_rounds_that_cannot_be_are_refused(run_file: Path, changes: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(run_file, changes)
