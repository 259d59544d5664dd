"""Rounds end to end, through real Ray and real vLLM on tiny models: what they leave, and that a killed run ends the same."""

import json
from pathlib import Path

import pytest
import yaml
from killed_runs import fusechat, kill_when
from round_runs import rounds_run

from fusechat.text.dialogues import read_dialogues
from trainer.choice_artifact import Choice

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that is finished."""
    base = tmp_path_factory.mktemp("rounds")
    fusechat("run", "-c", run_file(base, base / "out"))
    return base / "out"


def run_file(base: Path, output: Path) -> Path:
    """The run file of a run over the models in `base`."""
    path = output.parent / "run.yaml"
    document = rounds_run(base)
    document["run"]["output"] = str(output)
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def counts(folder: Path) -> dict:
    found: dict = json.loads((folder / "artifact.json").read_text())["counts"]
    return found


def test_each_round_asks_what_somebody_teaches_and_trains_on_rows_of_its_students_own_answers(finished: Path) -> None:
    for number in (1, 2):
        folder = finished / "rounds" / str(number)
        asked = counts(folder / "asked")
        assert (asked["prompts"], asked["untaught"], asked["asked"], asked["given"]) == (10, 2, 8, 8)
        dialogues = list(read_dialogues(folder / "dialogues" / "train.jsonl"))
        own = [one.author == "pivot" for one in dialogues]
        choice = Choice.read(str(folder / "choice"))
        assert choice.is_own.tolist() == own and 0 < sum(own) < len(own)
        assert (choice.source[choice.is_own] == 0).all() and (choice.trust[choice.is_own] > 0).all()
        assert counts(folder / "targets" / "joint")["dialogues"] == len(dialogues)


def test_second_round_begins_where_the_first_ended(finished: Path) -> None:
    recipes = [json.loads((finished / f"rounds/{n}/targets/joint/artifact.json").read_text()) for n in (1, 2)]
    digests = [recipe["settings"]["pivot"]["weights"] for recipe in recipes]
    assert digests[0] != digests[1]
    students = [
        (finished / name / "model.safetensors").read_bytes()
        for name in ("fused", "rounds/1/targets/joint", "rounds/2/targets/joint")
    ]
    assert len(set(students)) == 3


def test_rounds_are_rows_of_the_report_and_lines_of_the_status(finished: Path) -> None:
    report = json.loads((finished / "report" / "report.json").read_text())
    assert [model["id"] for model in report["models"]] == ["pivot", "fused", "round.1", "round.2"]
    compared = {(entry["model"], entry["against"]) for entry in report["differences"]}
    assert {("round.1", "fused"), ("round.2", "round.1"), ("round.2", "fused")} <= compared
    shown = fusechat("status", "-c", finished.parent / "run.yaml").stdout
    assert "2 train joint" in shown and "begun" not in shown


def test_run_killed_while_the_student_writes_and_while_it_is_trained_ends_with_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    path, out = run_file(finished.parent, tmp_path / "out"), tmp_path / "out"
    kill_when(path, lambda: (out / "rounds/1/writing/answers/pivot/plan.json").exists())
    kill_when(path, lambda: any((out / "rounds/2/targets/joint/checkpoints").glob("checkpoint-*")))
    fusechat("run", "-c", path)
    for number in (1, 2):
        for name in ("asked/teachers.json", "writing/dialogues/dialogues.jsonl", "targets/joint/model.safetensors"):
            one, other = out / "rounds" / str(number) / name, finished / "rounds" / str(number) / name
            assert one.read_bytes() == other.read_bytes(), one
