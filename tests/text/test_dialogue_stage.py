"""What the first stage keeps of the dialogues it reads, and what it says it did not keep."""

import json
from pathlib import Path

import pytest
from stages_here import prepare_dialogues

from fusechat.config import RunConfig, load_config
from fusechat.errors import DialogueError
from fusechat.progress import Progress
from fusechat.text.dialogues import read_dialogues

LONG = "one two three four " * 40


def row(name: str, *answers: tuple[str, bool], **columns: object) -> dict:
    """A dialogue of (answer, is it a target) pairs."""
    turns = [
        turn
        for number, (text, is_trained) in enumerate(answers)
        for turn in (
            {"role": "user", "content": f"{name} {number}?"},
            {"role": "assistant", "content": text, "train": is_trained},
        )
    ]
    return {"id": name, "messages": turns, **columns}


def config_of(run_file: Path, train: list[dict], held_out: list[dict], *overrides: str) -> RunConfig:
    files = {"train": train, "held_out": held_out}
    for split, rows in files.items():
        text = "".join(json.dumps(one) + "\n" for one in rows)
        (run_file.parent / f"{split}.jsonl").write_text(text, encoding="utf-8")
    named = [f"dialogues.{split}=[{run_file.parent / f'{split}.jsonl'}]" for split in files]
    return load_config(run_file, [*named, *overrides])


def test_written_dialogues_read_back_equal_and_other_columns_are_named(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [
        row(
            "a", ("x", False), ("y", True), author="gemma", template_arguments={"date": "1 May"}, kind="k", source="web"
        ),
        row("b", ("z", True), source="web", score=1),
    ]
    config = config_of(run_file, train, [row("c", ("v", True))])
    made = prepare_dialogues(config, progress=Progress())
    assert list(read_dialogues(config.dialogues_path / "train.jsonl")) == list(read_dialogues(config.dialogues.train))
    assert made.counts["columns_left_out"] == {config.dialogues.train[0]: {"source": 2, "score": 1}}
    assert "not read: source (2 rows), score (1 rows)" in capsys.readouterr().err


def test_ignored_columns_are_not_named(run_file: Path) -> None:
    config = config_of(
        run_file, [row("a", ("x", True), source="web")], [row("c", ("v", True))], "dialogues.ignore_keys=[source]"
    )
    assert prepare_dialogues(config).counts["columns_left_out"] == {}


def test_dialogue_of_which_the_cut_leaves_no_target_is_set_aside(run_file: Path) -> None:
    train = [row("a", ("x", False), (LONG, True)), row("b", ("x", True), (LONG, True))]
    config = config_of(run_file, train, [row("c", ("v", True))], "dialogues.max_tokens=64")
    made = prepare_dialogues(config)
    (kept,) = read_dialogues(config.dialogues_path / "train.jsonl")
    assert kept.id == "b" and len(kept.messages) == 2
    (note,) = [note for note in made.counts["train_cut_or_set_aside"] if "'a'" in note]
    assert "set aside, because no turn that is left is a target" in note


def test_overlap_is_found_whichever_turns_are_targets(run_file: Path) -> None:
    first, second = row("a", ("x", False), ("y", True)), row("a", ("x", True), ("y", True))
    config = config_of(run_file, [first], [{**second, "id": "c"}])
    with pytest.raises(DialogueError, match="'c' is training dialogue 'a'"):
        prepare_dialogues(config)


def test_unknown_key_of_a_message_ends_the_run_or_is_counted(run_file: Path) -> None:
    bad = row("b", ("z", True))
    bad["messages"][1]["masked"] = True
    config = config_of(run_file, [row("a", ("x", True)), bad], [row("c", ("v", True))])
    with pytest.raises(DialogueError, match=r"train.jsonl:2 \(dialogue 'b'\): message 2: found the key 'masked'"):
        prepare_dialogues(config)
    made = prepare_dialogues(load_config(run_file, [
        f"dialogues.train={config.dialogues.train}", f"dialogues.held_out={config.dialogues.held_out}",
        "dialogues.on_bad=skip", "run.if_changed=restart",
    ]))  # fmt: skip
    assert made.counts["train"] == 1
    assert len(made.counts["skipped"]) == 1 and "found the key 'masked'" in made.counts["skipped"][0]
