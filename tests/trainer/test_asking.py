"""What a round asks: who is taught by whom, what is left out and counted, and what is mixed in."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_runs

from fusechat.config import RoundsSection, RunConfig
from fusechat.config.round_run import round_runs
from fusechat.errors import ArtifactError, ConfigError
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import read_tokens
from fusechat.text.dialogues import Dialogue, Message, read_dialogues, row_text
from fusechat.text.prompts import read_prompts
from trainer import asking
from trainer.asking import Asking
from trainer.choice_artifact import writing
from trainer.known_answers import answered_wrongly
from trainer.round_teachers import read_teachers

KINDS = ["skill", "skill", "chat", "chat", "chat", "skill"]
TAUGHT = [0, 1, -1, 0, -1, 0]
"""By `one`, by `two`, or by nobody."""


def dialogue(number: int, kind: str, **changes: Any) -> Dialogue:
    messages = (Message("user", f"Question {number}?"), Message("assistant", f"Answer {number}"))
    return Dialogue(f"d{number}", messages, kind, **changes)


def run_with_choice(folder: Path, **rounds: Any) -> RunConfig:
    """A run that has dialogues and a choice; the last dialogue asks what the first one asks."""
    model = {"model": "none"}
    config = RunConfig.model_validate(
        {
            "run": {"output": str(folder / "run")}, "pivot": {"name": "pivot", **model},
            "sources": [{"name": name, **model} for name in ("one", "two")],
            "dialogues": {"train": ["t.jsonl"]}, "rounds": {"count": 2, **rounds},
        }
    )  # fmt: skip
    given = [dialogue(number, kind) for number, kind in enumerate(KINDS)]
    given[5] = Dialogue("d5", given[0].messages, "skill", author="pivot")
    claim = artifact.claim(config.dialogues_path, "dialogues", settings={}, parents={})
    for split, dialogues in (("train", given), ("held_out", [dialogue(9, "chat")])):
        (config.dialogues_path / f"{split}.jsonl").write_text("".join(f"{row_text(d)}\n" for d in dialogues))
    claim.finish({})
    claim = artifact.claim(config.choice_url, "choice", settings={}, parents={})
    trust = np.array([0.9, 0.5, 0, 0.25, 0, 0.9], np.float32)
    with writing(config.choice_url, ["one", "two"], len(KINDS)) as arrays:
        for name in ("pivot_loss", "frequency_loss", "is_own"):
            arrays[name].add(np.zeros(len(KINDS), bool if name == "is_own" else float))
        arrays["source_losses"].add(np.zeros((2, len(KINDS))))
        arrays["source"].add(np.array(TAUGHT, np.int16))
        arrays["trust"].add(trust)
    claim.finish({})
    return config


def ask(config: RunConfig, number: int = 1) -> tuple[Path, dict[str, Any]]:
    one = round_runs(config)[number - 1]
    made = asking.ask(config.layout, one.layout, Asking.of(config, one), progress=Progress(quiet=True))
    return one.asked_path, made.counts


def teachers(folder: Path) -> Any:
    return json.loads((folder / "teachers.json").read_text())


def ids(dialogues: Iterable[Dialogue]) -> list[str]:
    return [one.id for one in dialogues]


def test_training_dialogues_are_asked_again_once_each_where_somebody_teaches_them(tmp_path: Path) -> None:
    folder, counts = ask(run_with_choice(tmp_path, given_share=0.5, samples=1))
    prompts = read_prompts([folder / "prompts.jsonl"])
    assert [(prompt.id, prompt.dialogue.messages[-1].content, prompt.reference) for prompt in prompts] == [
        (f"d{n}", f"Question {n}?", f"Answer {n}") for n in (0, 1, 3)
    ]
    assert teachers(folder)["prompts"] == {"d0": ["one", pytest.approx(0.9)], "d1": ["two", 0.5], "d3": ["one", 0.25]}
    assert counts == {
        "prompts": 6, "untaught": 2, "wrong": 0, "held_out": 0, "twice": 1, "asked": 3, "given": 3,
    }  # fmt: skip


def test_given_dialogues_are_mixed_in_with_their_teachers_and_differ_from_round_to_round(tmp_path: Path) -> None:
    config = run_with_choice(tmp_path, given_share=0.5, samples=1)
    first, second = (ask(config, number)[0] for number in (1, 2))
    drawn = [ids(read_dialogues(folder / "given.jsonl")) for folder in (first, second)]
    assert len(drawn[0]) == len(drawn[1]) == 3 and drawn[0] != drawn[1]
    for folder, names in zip((first, second), drawn, strict=True):
        assert {name: teachers(folder)["given"][name][0] for name in names} == {
            name: [None, "one", "two"][TAUGHT[int(name[1:])] + 1] for name in names
        }
    # What the run's own pivot wrote is given: it wrote with other weights than the student has.
    everything = ask(run_with_choice(tmp_path / "all", given_share=0.9, samples=2))[0]
    assert ids(read_dialogues(everything / "given.jsonl")) == [f"d{n}" for n in range(6)]
    assert {one.author for one in read_dialogues(everything / "given.jsonl")} == {""}


def test_prompts_of_files_are_taught_as_the_same_prompt_or_as_most_of_their_kind(tmp_path: Path) -> None:
    rows = [
        {"id": "same", "prompt": "Question 1?", "kind": "skill"}, {"id": "kind", "prompt": "New?", "kind": "skill"},
        {"id": "chat", "prompt": "Hello?", "kind": "chat"}, {"id": "strange", "prompt": "Odd?", "kind": "other"},
        {"id": "held", "prompt": "Question 9?", "kind": "skill"}, {"id": "turns", "turns": ["A?", "B?"], "kind": "skill"},
    ]  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder, counts = ask(run_with_choice(tmp_path, prompts=[str(tmp_path / "prompts.jsonl")]))
    # Of skill `one` teaches two of three, of chat nobody most.
    assert {name: source for name, (source, _) in teachers(folder)["prompts"].items()} == {
        "same": "two", "kind": "one", "turns": "one",
    }  # fmt: skip
    assert (counts["untaught"], counts["held_out"], counts["asked"]) == (2, 1, 3)
    asked = {prompt.id: prompt for prompt in read_prompts([folder / "prompts.jsonl"])}
    assert asked["turns"].turns == ("B?",) and asked["same"].dialogue.kind == "skill"


def test_prompt_whose_written_answers_were_all_refused_is_not_asked(tmp_path: Path) -> None:
    names = {"right": True, "wrong": False, "open": False}
    rows = [{"id": name, "prompt": f"Is it {name}?", "kind": "skill", "reference": "yes"} for name in names]
    del rows[2]["reference"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = run_with_choice(tmp_path)
    document = config.dump()
    document["dialogues"]["prompts"] = [str(tmp_path / "prompts.jsonl")]
    document["writing"]["keep"] = "reference"
    config = RunConfig.model_validate(document)
    claim = artifact.claim(config.written_path, "written", settings={}, parents={})
    verdicts = [
        {"prompt": prompt.to_row(), "answers": [{"kept": False}, {"kept": names[prompt.id]}]}
        for prompt in read_prompts([tmp_path / "prompts.jsonl"])
    ]
    (config.written_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in verdicts))
    claim.finish({})
    folder, counts = ask(config)
    assert counts["wrong"] == 1 and set(teachers(folder)["prompts"]) == {"right", "open"}


def test_round_that_nobody_teaches_is_refused_and_says_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("One?\nTwo?\n")
    with pytest.raises(ConfigError, match=r"none of 2 prompts .*2 nobody teaches"):
        ask(run_with_choice(tmp_path, prompts=[str(tmp_path / "prompts.txt")]))


def test_what_was_asked_is_not_asked_otherwise_in_the_same_folder(tmp_path: Path) -> None:
    config = run_with_choice(tmp_path)
    folder, _ = ask(config)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert ask(config)[0] == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    changed = config.model_copy(update={"rounds": RoundsSection(count=2, samples=3)})
    with pytest.raises(ArtifactError, match="samples: 2 -> 3"):
        ask(changed)


def test_teachers_of_a_round_are_those_that_were_asked_for_and_know_the_students_own(tmp_path: Path) -> None:
    config = run_with_choice(tmp_path, given_share=0.9)
    folder, _ = ask(config)
    layout = round_runs(config)[0].layout
    mixed = list(read_dialogues(folder / "given.jsonl"))
    own = [dialogue(n, "skill", author="pivot") for n in (1, 3)]
    own = [Dialogue(f"{one.id}:pivot.{n}", one.messages, one.kind, author="pivot") for n, one in enumerate(own)]
    teachers = read_teachers(layout, [*mixed, *own], "pivot", ["one", "two"])
    assert teachers.is_own.tolist() == [False] * 6 + [True, True]
    assert teachers.source.tolist() == [*TAUGHT, 1, 0]
    assert teachers.trust[-2:].tolist() == [0.5, 0.25]
    kinds = np.array([0, 0, 1, 1, 1, 0, 0, 1])
    assert teachers.trust_of_kinds(kinds, (2, 3)).tolist() == [[pytest.approx(0.9), 0.5, 0], [0.25, 0, 0]]


def test_prompt_that_every_source_answers_wrongly_is_known_from_its_rows(tmp_path: Path) -> None:
    config = trainer_runs.make_run(tmp_path)
    tokens, store = (
        read_tokens(config.tokens_url("pivot")),
        RowStore.open(config.logprobs_url("other"), "logprobs", mode="r+"),
    )
    labels = tokens.token_ids[tokens.is_scored]
    right = {0, 3}
    for shard, arrays in store.iter_shards():
        first = store.layout.rows(shard).start
        arrays["topk_ids"][:, 0] = (labels[store.layout.rows(shard)] + 1) % 300  # never the label
        for number in right & set(store.layout.dialogues(shard)):
            rows = slice(*(int(edge) - first for edge in store.layout.row_offsets[number : number + 2]))
            arrays["topk_ids"][rows, 0] = labels[
                store.layout.row_offsets[number] : store.layout.row_offsets[number + 1]
            ]
        store.write_shard(shard, arrays)
    made = artifact.load(config.tokens_url("pivot"), "tokens")
    tokens.write(config.tokens_url("other"))
    artifact.claim(config.tokens_url("other"), "tokens", settings={}, parents={"t": made}).finish({})
    kinds = ["exact" if number < 6 else "free" for number in range(tokens.num_dialogues)]
    wrong = answered_wrongly(config.layout, ["other"], kinds, ["exact"])
    assert np.flatnonzero(wrong).tolist() == [1, 2, 4, 5]
    assert not answered_wrongly(config.layout, ["other"], kinds, []).any()
