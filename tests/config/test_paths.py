"""Paths in run files: `~` is put in once, in every field that holds a path; variables are refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fusechat.config.ablation import load_ablation
from fusechat.config.run import load_config
from fusechat.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run_values(**run: Any) -> dict[str, Any]:
    return {
        "run": run,
        "pivot": {"name": "p", "model": "~/p", "template": "~/p.jinja", "engine": {"extra": {"download_dir": "~/hub"}}},
        "sources": [{"name": "s", "model": "~/s"}],
        "dialogues": {"train": ["~/t.jsonl", "~/set::train"], "held_out": ["~/h.jsonl"]},
        "training": {
            "trl": {"deepspeed": "~/z.json", "model_init_kwargs": {"cache_dir": "~/c"}, "lr_scheduler_type": "~x"}
        },
        "evaluation": {"questions": {"sets": [{"name": "a", "file": "~/q.txt"}]}, "lm_eval": {"folder": "~/tasks"}},
    }


def test_home_is_put_into_every_path_of_a_run_file(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run_values(output="~/out", store="~/store")))
    config = load_config(file, ["evaluation.questions.samples=[~/x]"])
    assert config.run.output == home / "out" and config.run.store == f"{home}/store"
    assert [model.model for model in config.models] == [f"{home}/p", f"{home}/s"]
    assert config.pivot.template == f"{home}/p.jinja" and config.sources[0].template == "native"
    assert config.pivot.engine.extra == {"download_dir": f"{home}/hub"}
    assert config.dialogues.train == [f"{home}/t.jsonl", f"{home}/set::train"]
    assert config.dialogues.held_out == [f"{home}/h.jsonl"]
    assert config.training.trl["deepspeed"] == f"{home}/z.json"
    assert config.training.trl["model_init_kwargs"] == {"cache_dir": f"{home}/c"}
    assert config.training.trl["lr_scheduler_type"] == "~x"  # free-form: only what looks like a path
    assert config.evaluation.questions.sets[0].file == f"{home}/q.txt"
    assert config.evaluation.lm_eval.folder == home / "tasks"
    assert config.evaluation.questions.samples == ["~/x"]  # a prompt, no path
    assert "~" not in str({key: value for key, value in config.dump().items() if key not in ("training", "evaluation")})


def test_home_is_put_into_an_ablation_file_and_the_run_file_it_names(tmp_path: Path, home: Path) -> None:
    home.mkdir()
    (home / "run.yaml").write_text(yaml.safe_dump(run_values()))
    file = tmp_path / "ablation.yaml"
    table = {"title": "t", "variants": {"a": {"run.output": "~/elsewhere"}}}
    file.write_text(yaml.safe_dump({"base": "~/run.yaml", "output": "~/grid", "tables": [table]}))
    ablation = load_ablation(file)
    assert ablation.output == home / "grid"
    assert ablation.run_config({"run.output": "~/elsewhere"}).run.output == home / "elsewhere"
    assert load_config("~/run.yaml").pivot.model == f"{home}/p"


@pytest.mark.parametrize("path", ["$HOME/out", "${SCRATCH}/out", "/data/$USER/out"])
def test_variable_in_a_path_is_refused_with_the_way_out(run_file: Path, path: str) -> None:
    for field in ("run.output", "run.store", "pivot.model", "dialogues.train.0"):
        with pytest.raises(ConfigError, match=r"found the variable \$.*which is not put in here.*--set"):
            load_config(run_file, [f"{field}={path}"])


def test_path_of_a_user_that_is_not_there_is_refused(run_file: Path) -> None:
    with pytest.raises(ConfigError, match="found ~no-such-user, expected a user"):
        load_config(run_file, ["run.output=~no-such-user/out"])
    assert load_config(run_file, ["run.output=/data/~x/a$b"]).run.output == Path("/data/~x/a$b")
