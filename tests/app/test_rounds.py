"""Rounds through the pipeline, without engines and Ray: what they leave, and that what was interrupted ends the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from plain_engine import PlainEngine, use_plain_engines
from round_runs import rounds_run

from fusechat.app import pipeline
from fusechat.app.status import status_table
from fusechat.config import RunConfig
from fusechat.errors import ConfigError
from fusechat.models.measured_models import measured_models
from fusechat.progress import Progress
from fusechat.text.dialogues import read_dialogues
from trainer.choice_artifact import Choice
from trainer.fusion_trainer import FusionTrainer

BEFORE = ("tokenize", "extract", "align", "train", "merge")


@pytest.fixture(autouse=True)
def _plain_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plain_engines(monkeypatch)


def run(config: RunConfig, *stages: str) -> None:
    for stage in stages:
        pipeline.run(config, progress=Progress(quiet=True), only=stage)


def config_of(base: Path, output: Path, **rounds: Any) -> RunConfig:
    document = rounds_run(base, **rounds)
    document["run"]["output"] = str(output)
    return RunConfig.model_validate(document)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run whose rounds are finished."""
    base = tmp_path_factory.mktemp("rounds")
    config = config_of(base, base / "out")
    with pytest.MonkeyPatch.context() as patch:
        use_plain_engines(patch)
        run(config, *BEFORE, "rounds")
    return config


def record(folder: Path) -> Any:
    return json.loads((folder / "artifact.json").read_text())


def test_each_round_asks_what_somebody_teaches_and_trains_on_its_students_own_answers(finished: RunConfig) -> None:
    for number in (1, 2):
        folder = finished.run.output / "rounds" / str(number)
        asked = record(folder / "asked")["counts"]
        assert (asked["prompts"], asked["untaught"], asked["asked"], asked["given"]) == (10, 2, 8, 8)
        dialogues = list(read_dialogues(folder / "dialogues" / "train.jsonl"))
        own = [one.author == "pivot" for one in dialogues]
        choice = Choice.read(str(folder / "choice"))
        assert choice.is_own.tolist() == own and 0 < sum(own) < len(own)
        assert (choice.source[choice.is_own] == 0).all() and (choice.trust[choice.is_own] > 0).all()
        assert record(folder / "targets" / "joint")["counts"]["dialogues"] == len(dialogues)
        assert RunConfig.model_validate_json((folder / "run.json").read_text()).rounds.number == number


def test_each_round_begins_where_the_one_before_ended_and_answers_anew(finished: RunConfig) -> None:
    out = finished.run.output
    folders = [out / "fused", *(out / f"rounds/{number}/targets/joint" for number in (1, 2))]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert len(set(weights)) == 3
    digests = [record(folder)["settings"]["pivot"]["weights"] for folder in folders[1:]]
    assert digests[0] != digests[1]
    answers = [(out / f"rounds/{number}/writing/dialogues/dialogues.jsonl").read_text() for number in (1, 2)]
    assert answers[0] != answers[1]


def test_students_of_the_rounds_are_measured_and_have_lines_in_the_status(finished: RunConfig) -> None:
    models = {
        model.id: model
        for model in measured_models(finished.layout, finished.pivot, finished.sources, finished.measured_ids)
    }
    assert list(models) == ["pivot", "fused", "round.1", "round.2"]
    assert models["round.2"].folder == finished.run.output / "rounds/2/targets/joint"
    assert (models["round.2"].label, models["round.2"].reader) == ("round 2", "pivot")
    table = status_table(finished)
    rows = list(zip(*(column._cells for column in table.columns), strict=True))
    of_rounds = [row for row in rows if row[0] == "rounds"]
    assert {row[2] for row in of_rounds} == {"done"} and "2 train joint" in {row[1] for row in of_rounds}


def test_rounds_interrupted_while_the_student_writes_and_is_trained_end_with_the_same_bytes(
    finished: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(finished.run.output.parent, tmp_path / "out")
    run(config, *BEFORE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainEngine, "generate", _interrupted(PlainEngine.generate, 0))
        with pytest.raises(KeyboardInterrupt):
            run(config, "rounds")
    steps = record(finished.run.output / "rounds/1/targets/joint")["counts"]["steps"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusionTrainer, "compute_loss", _interrupted(FusionTrainer.compute_loss, steps + 1))
        with pytest.raises(KeyboardInterrupt):
            run(config, "rounds")
    assert not (config.run.output / "rounds/2/targets/joint/artifact.json").exists()
    run(config, "rounds")
    for number in (1, 2):
        for name in (
            "asked/teachers.json",
            "asked/given.jsonl",
            "writing/dialogues/dialogues.jsonl",
            "targets/joint/model.safetensors",
        ):
            one, other = (run.run.output / "rounds" / str(number) / name for run in (config, finished))
            assert one.read_bytes() == other.read_bytes(), one


def _interrupted(function: Any, after: int) -> Any:
    """The function, which a user interrupts after so many calls."""
    calls = iter(range(after))

    def call(*arguments: Any, **keywords: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*arguments, **keywords)

    return call


def test_rounds_of_a_finished_run_are_skipped_and_other_settings_are_refused(
    finished: RunConfig, tmp_path: Path
) -> None:
    seconds = pipeline.run(finished, progress=Progress(quiet=True), only="rounds")
    assert len(seconds) == 2 * 9 and not any(seconds.values())
    other = config_of(finished.run.output.parent, finished.run.output, temperature=0.5)
    with pytest.raises(Exception, match=r"temperature: 1.0 -> 0.5"):
        run(other, "rounds")


def test_run_without_rounds_says_how_to_have_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no rounds: set rounds\.count"):
        run(RunConfig.model_validate({**rounds_run(tmp_path), "rounds": {}, "evaluation": {}}), "rounds")
