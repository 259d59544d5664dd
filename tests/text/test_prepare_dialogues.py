"""The dialogues of a run: what decides their artifact, and how they are split."""

import json
import os
from pathlib import Path

import pytest

from fusechat.config.run import RunConfig, load_config
from fusechat.errors import DialogueError
from fusechat.text.tokenize_stage import prepare_dialogues


def write_rows(file: Path, numbers: list[int], **extra: str) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"r{n}"}], **extra}
        for n in numbers
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def with_dialogues(run_file: Path, *train: Path | str, share: float = 0.0, changed: str = "refuse") -> RunConfig:
    values = {"train": json.dumps(list(map(str, train))), "held_out": "[]", "held_out_share": share}
    overrides = [f"dialogues.{name}={value}" for name, value in values.items()]
    return load_config(run_file, [*overrides, f"run.if_changed={changed}"])


def test_changed_file_below_home_is_noticed(run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_rows(tmp_path / "t.jsonl", [1, 2, 3])
    config = with_dialogues(run_file, "~/t.jsonl", changed="restart")
    assert prepare_dialogues(config).counts["train"] == 3
    write_rows(tmp_path / "t.jsonl", [1, 2, 3, 4, 5])
    assert prepare_dialogues(config).counts["train"] == 5


def test_file_that_is_not_there_is_refused_and_the_nearest_named(run_file: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [1])
    with pytest.raises(DialogueError, match=r"trian.jsonl: no such file or folder; did you mean .*train.jsonl"):
        prepare_dialogues(with_dialogues(run_file, tmp_path / "trian.jsonl"))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DialogueError, match=r"pipe.jsonl: no such file"):
        prepare_dialogues(with_dialogues(run_file, tmp_path / "pipe.jsonl"))
