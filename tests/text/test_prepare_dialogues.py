"""The dialogues of a run: what decides their artifact, and how they are split."""

import json
import os
import shutil
from pathlib import Path

import pytest
from stages_here import prepare_dialogues, tokenize

from fusechat.app.inspection import show_artifact
from fusechat.config.run import RunConfig, load_config
from fusechat.errors import ArtifactError, DialogueError, ModelError
from fusechat.models.resolved_model import resolve
from inference.stage import claim_store


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


def test_template_of_the_pivot_that_is_changed_in_place_is_noticed_and_one_that_is_moved_is_not(
    run_file: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "one.jinja", tmp_path / "two.jinja"
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    for file in (first, second):
        file.write_text(text)
    base = [f"dialogues.{key}" for key in (f"train=[{write_rows(tmp_path / 't.jsonl', [1, 2])}]", "held_out=[]")]
    config, moved = (load_config(run_file, [*base, f"pivot.template={file}"]) for file in (first, second))
    made = prepare_dialogues(config)
    assert prepare_dialogues(moved).record == made.record
    first.write_text(text.replace(": ", "> "))
    with pytest.raises(ArtifactError, match=r"settings\.pivot\.template: '\w{16}' -> '\w{16}'"):
        prepare_dialogues(config)


def test_model_that_moves_keeps_what_was_made_with_it_and_one_that_changes_does_not(
    run_file: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    shutil.copytree(tiny_models["llama"], first)
    config, moved = (load_config(run_file, [f"pivot.model={folder}"]) for folder in (first, second))

    def make(config: RunConfig) -> list[dict]:
        """Records of what is finished, and the recipe of a store that is begun."""
        finished = [prepare_dialogues(config), *tokenize(config, "llama")]
        begun, _ = claim_store(config.layout, resolve(config.pivot, config.digests_path), config.extraction)
        return [*(one.record for one in finished), begun.recipe]

    made = make(config)
    first.rename(second)
    assert make(moved) == made
    with pytest.raises(ArtifactError, match=rf"tokenizer of {first}, which is no longer there"):
        show_artifact(moved.tokens_url("llama"), dialogue=0, num_rows=1, verify=False)
    settings = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 128}))
    with pytest.raises(ArtifactError, match=r"settings\.pivot\.config: '\w{16}' -> '\w{16}'"):
        prepare_dialogues(moved)


def test_files_that_move_keep_what_was_made_of_them_and_ones_that_change_or_change_places_do_not(
    run_file: Path, tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        write_rows(tmp_path / folder / "a.jsonl", [1, 2])
        write_rows(tmp_path / folder / "b.jsonl", [3])

    def of(*names: str) -> RunConfig:
        return load_config(run_file, [f"dialogues.train=[{', '.join(str(tmp_path / name) for name in names)}]"])

    made = prepare_dialogues(of("one/a.jsonl", "one/b.jsonl"))
    assert prepare_dialogues(of("two/a.jsonl", "two/b.jsonl")).record == made.record
    with pytest.raises(ArtifactError, match=r"settings\.train: \['a.jsonl \w{16}', 'b.jsonl \w{16}'\] -> \['b.jsonl"):
        prepare_dialogues(of("two/b.jsonl", "two/a.jsonl"))
    write_rows(tmp_path / "two" / "b.jsonl", [4])
    with pytest.raises(ArtifactError, match=r"settings\.train"):
        prepare_dialogues(of("two/a.jsonl", "two/b.jsonl"))


def test_file_that_is_not_there_is_refused_and_the_nearest_named(run_file: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [1])
    with pytest.raises(DialogueError, match=r"trian.jsonl: no such file or folder; did you mean .*train.jsonl"):
        prepare_dialogues(with_dialogues(run_file, tmp_path / "trian.jsonl"))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DialogueError, match=r"pipe.jsonl: no such file"):
        prepare_dialogues(with_dialogues(run_file, tmp_path / "pipe.jsonl"))


def split_of(config: RunConfig) -> tuple[set[str], set[str]]:
    """The first questions of both splits."""
    prepare_dialogues(config)
    files = [config.dialogues_path / f"{split}.jsonl" for split in ("train", "held_out")]
    train, held_out = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    return {row["messages"][0]["content"] for row in train}, {row["messages"][0]["content"] for row in held_out}


def test_copies_of_a_dialogue_are_on_one_side_of_the_automatic_split(run_file: Path, tmp_path: Path) -> None:
    twice = write_rows(tmp_path / "twice.jsonl", [*range(50), *range(50)])
    train, held_out = split_of(with_dialogues(run_file, twice, share=0.2))
    assert len(train) + len(held_out) == 50 and not train & held_out and 4 <= len(held_out) <= 18
    with twice.open("a") as file:  # the same dialogue again, of which no turn is a target
        for number in range(50):
            turns = [
                {"role": "user", "content": f"q{number}"},
                {"role": "assistant", "content": f"r{number}", "weight": 0},
            ]
            turns += [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
            copy = [{**turns[1], "weight": 1} if turn is turns[1] else turn for turn in turns]
            file.writelines(json.dumps({"messages": messages}) + "\n" for messages in (turns, copy))
    prepare_dialogues(with_dialogues(run_file, twice, share=0.2, changed="restart"))  # refuses what is on both sides
    other = write_rows(tmp_path / "once.jsonl", [*range(25), *range(100, 200)][::-1], kind="k")
    train_again, held_out_again = split_of(with_dialogues(run_file, other, share=0.2, changed="restart"))
    assert not train & held_out_again and not held_out & train_again


def test_files_of_one_name_are_told_apart_by_their_folders(run_file: Path, tmp_path: Path) -> None:
    files = [write_rows(tmp_path / name, [place, 10 + place]) for place, name in enumerate(NAMES)]
    config = with_dialogues(run_file, *files)
    assert prepare_dialogues(config).counts["train"] == 2 * len(files)
    rows = [json.loads(line) for line in (config.dialogues_path / "train.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"{name}-{number}" for name in NAMES.values() for number in (1, 2)]


NAMES = {
    "gsm8k/train.jsonl": "gsm8k/train", "code/train.jsonl": "code/train", "alone.jsonl": "alone",
    "a/en/chat.jsonl": "a/en/chat", "b/en/chat.jsonl": "b/en/chat", "one/x.jsonl": "x.jsonl", "one/x.json": "x.json",
}  # fmt: skip
"""File -> what its rows are called after."""


def test_token_beyond_the_models_embedding_is_refused_with_its_dialogue(run_file: Path, tmp_path: Path) -> None:
    config = load_config(run_file)
    shutil.copytree(config.pivot.model, tmp_path / "small")
    values = json.loads((tmp_path / "small" / "config.json").read_text())
    (tmp_path / "small" / "config.json").write_text(json.dumps({**values, "vocab_size": 300}))
    config = load_config(run_file, [f"pivot.model={tmp_path / 'small'}"])
    prepare_dialogues(config)
    with pytest.raises(
        ModelError, match=r"llama: dialogue 'd0' has the token id \d+, the model's embedding ends at 299"
    ):
        tokenize(config, "llama")
    tokenize(load_config(run_file, ["run.output=" + str(tmp_path / "out")]), "mixtral")
