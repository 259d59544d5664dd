"""Rounds through real Ray and real vLLM on tiny models: what a whole run leaves, and that one that is killed twice ends the same.

tests/app/test_rounds.py has what needs no engines.
"""

import json
import shutil
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
    path, document = output.parent / "run.yaml", rounds_run(base, count=1)
    document["run"]["output"] = str(output)
    document["evaluation"]["models"].remove("round.2")
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_round_trains_on_rows_of_its_students_own_answers(finished: Path) -> None:
    folder = finished / "rounds/1"
    dialogues = list(read_dialogues(folder / "dialogues/train.jsonl"))
    own = [one.author == "pivot" for one in dialogues]
    choice = Choice.read(str(folder / "choice"))
    assert choice.is_own.tolist() == own and 0 < sum(own) < len(own)
    assert (choice.source[choice.is_own] == 0).all() and (choice.trust[choice.is_own] > 0).all()
    student, before = (finished / name / "model.safetensors" for name in ("rounds/1/targets/joint", "fused"))
    assert student.read_bytes() != before.read_bytes()


def test_round_is_a_row_of_the_report_and_lines_of_the_status(finished: Path) -> None:
    report = json.loads((finished / "report/report.json").read_text())
    assert [model["id"] for model in report["models"]] == ["pivot", "fused", "round.1"]
    assert ("round.1", "fused") in {(entry["model"], entry["against"]) for entry in report["differences"]}
    shown = fusechat("status", "-c", finished.parent / "run.yaml").stdout
    assert "1 train joint" in shown and "begun" not in shown


def test_round_killed_while_its_student_writes_and_while_it_is_trained_ends_with_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    path, out = run_file(finished.parent, tmp_path / "out"), tmp_path / "out"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("rounds", "measured", "report"))
    command = ("rounds", "-c", path)
    kill_when(lambda: (out / "rounds/1/writing/answers/pivot/plan.json").exists(), *command)
    kill_when(lambda: any((out / "rounds/1/targets/joint/checkpoints").glob("checkpoint-*")), *command)
    fusechat(*command)
    for name in ("asked/teachers.json", "writing/dialogues/dialogues.jsonl", "targets/joint/model.safetensors"):
        one, other = (folder / "rounds/1" / name for folder in (out, finished))
        assert one.read_bytes() == other.read_bytes(), one
