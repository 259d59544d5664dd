"""The command line in its own process: exit statuses and what a mistake is answered with."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fusechat.app import pipeline
from fusechat.app.cli import app, main
from fusechat.config import load_config
from fusechat.errors import UserError
from fusechat.progress import Progress


def fusechat(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fusechat", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["pivot.model=/nowhere/at/all"], "no model folder /nowhere/at/all"),
        (["dialogues.train=[/nowhere.jsonl]"], "/nowhere.jsonl"),
        (["pivot.template=/nowhere.jinja"], "neither 'native', 'pivot' nor a readable Jinja file"),
    ],
)
def test_run_users_mistake_is_one_clear_line_and_status_2(
    run_file: Path, overrides: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part for override in overrides for part in ("--set", override)]
    monkeypatch.setattr(sys, "argv", ["fusechat", "tokenize", "-c", str(run_file), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and says in shown, shown


def test_misspelt_key_ends_the_process_with_the_nearest_one_and_status_2(run_file: Path) -> None:
    result = fusechat("tokenize", "-c", str(run_file), "--set", "extraction.kk=3")
    assert result.returncode == 2 and "did you mean 'k'" in result.stderr and "Traceback" not in result.stderr


def test_keys_of_earlier_run_files_end_the_process_with_their_new_names_and_status_2(run_file: Path) -> None:
    old = ("--set", "evaluation.kl_dialogues=3", "--set", "evaluation.lm_eval=[arc_easy]")
    result = fusechat("tokenize", "-c", str(run_file), *old)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    for new in ("held_out.divergence_dialogues", "lm_eval.tasks"):
        assert f"moved to evaluation.{new}, write it there" in result.stderr


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["merge.method=scee"], "found 'scee'; did you mean 'sce'"),
        (["merge.parameters={select_top: 0.1}"], "did you mean 'select_topk'"),
        (["evaluation.questions.sets=[{name: a, file: /nowhere.jsonl}]"], "/nowhere.jsonl"),
        (
            [
                "evaluation.questions.sets=[{name: a, file: ASKED}]",
                "evaluation.judge={url: 'http://h/v1', model: m, key_variable: NO_SUCH_KEY}",
            ],
            "NO_SUCH_KEY is not set",
        ),
    ],
)
def test_run_that_a_late_stage_would_refuse_is_refused_before_the_first(
    run_file: Path, tmp_path: Path, overrides: list[str], says: str
) -> None:
    (tmp_path / "asked.txt").write_text("Say hello.\n")
    filled = [override.replace("ASKED", str(tmp_path / "asked.txt")) for override in overrides]
    config = load_config(run_file, filled)
    with pytest.raises(UserError, match=says):
        pipeline.run(config, progress=Progress(quiet=True))
    assert not config.run.output.exists()


def test_version_help_and_unknown_verb_answer() -> None:
    assert fusechat("--version").stdout.startswith("fusechat ")
    assert "tokenize" in fusechat("--help").stdout
    assert fusechat("fuze").returncode == 2


def test_inspect_folder_without_artifact_is_refused(tmp_path: Path) -> None:
    result = fusechat("inspect", str(tmp_path))
    assert result.returncode == 2 and "give the folder of an artifact" in result.stderr


@pytest.mark.parametrize("verb", ["merge", "ablate"])
def test_interrupted_command_says_that_it_can_go_on(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupted)
    ablation = {
        "base": str(run_file),
        "output": str(tmp_path / "ablation"),
        "tables": [{"title": "t", "variants": {"v": {}}}],
    }
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(ablation))
    result = CliRunner().invoke(app, [verb, "-c", str(tmp_path / "ablation.yaml" if verb == "ablate" else run_file)])
    assert result.exit_code == 130, result.output
    assert "interrupted; the same command goes on from here" in result.stderr
