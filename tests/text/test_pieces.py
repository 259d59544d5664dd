"""Dialogues and tokens made in pieces: the bytes do not depend on how they are cut, nor on who does which piece when."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from stages_here import prepare_dialogues, reading_works, token_works, tokenize
from token_runs import cut_small, files_of, in_any_order, small_objects, tokenize_all

from fusechat.config import RunConfig, load_config
from fusechat.errors import DialogueError
from fusechat.storage.artifact import Claim
from fusechat.storage.contracts import TOKENS
from fusechat.storage.pieces import open_pieces
from fusechat.storage.tokens_reader import TokensReader, read_tokens
from fusechat.text import dialogue_stage, tokenize_stage
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import read_dialogues
from fusechat.text.equal_digests import EqualDigests
from fusechat.text.rendered import ChatTemplate
from fusechat.text.tokenization import tokenize_dialogues

OPEN_ENDED = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% endfor %}"


def single_turns(path: Path, count: int) -> Path:
    path.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": f"How many is {n}?"}, {"role": "assistant", "content": "x" * n + "."}]})
            + "\n"
            for n in range(count)
        )
    )  # fmt: skip
    return path


@pytest.mark.parametrize("ends_turns", [True, False])
def test_tokens_are_the_same_however_they_are_cut(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_turns: bool
) -> None:
    overrides = []
    if not ends_turns:
        (tmp_path / "open.jinja").write_text(OPEN_ENDED)
        overrides = [
            f"pivot.template={tmp_path / 'open.jinja'}",
            f"dialogues.train=[{single_turns(tmp_path / 'single.jsonl', 40)}]",
        ]
    whole = load_config(run_file, overrides)
    made = tokenize_all(whole)
    cut_small(monkeypatch, 700)
    again = load_config(run_file, [*overrides, f"run.output={tmp_path / 'pieces'}"])
    for seed in (1, 2):
        pieces = tokenize_all(
            again.model_copy(update={"run": again.run.model_copy(update={"if_changed": "restart"})}), seed
        )
        for one, other in zip(made, pieces, strict=True):
            assert files_of(one.url) == files_of(other.url) and one.counts == other.counts
        for artifact in pieces:
            (Path(artifact.url) / "artifact.json").unlink()
    small_objects(monkeypatch, 64)
    other = tokenize_all(load_config(run_file, [*overrides, f"run.output={tmp_path / 'objects'}"]), 3)
    for one, small in zip(made[1:], other[1:], strict=True):
        left, right = read_tokens(one.url), read_tokens(small.url)
        assert left.attributes == right.attributes
        for name in TOKENS.names:
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert (read_tokens(made[1].url).attributes["appended_end"] is None) == ends_turns


def test_pieces_give_the_tokens_of_the_dialogues_one_by_one(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch, 700)
    config = load_config(run_file)
    tokenize_all(config, 5)
    tokens = read_tokens(config.tokens_url("llama"))
    tokenizer, _ = load_tokenizer(config.pivot.model)
    template = ChatTemplate.from_attributes(tokens.attributes)
    dialogues = list(read_dialogues(config.dialogues_path / "train.jsonl"))
    assert dialogues == list(read_dialogues(config.dialogues.train))
    for number, one in enumerate(tokenize_dialogues(tokenizer, template, dialogues)):
        place = tokens.tokens_of(number)
        for name in ("token_ids", "is_scored", "span", "field"):
            np.testing.assert_array_equal(getattr(tokens, name)[place], getattr(one, name))
    reader = TokensReader(config.tokens_url("llama"))
    assert reader.turn_end_ids() == tokens.turn_end_ids() and reader.longest() == tokens.lengths.max()
    assert [d for part in reader.parts(100) for d in part] == list(range(tokens.num_dialogues))


def test_stage_that_was_killed_goes_on_with_the_missing_pieces(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch, 700)
    config = load_config(run_file)
    (reading,) = reading_works(config)
    worker = reading.make_worker.func(*reading.make_worker.args)  # type: ignore[attr-defined]
    worker.start()
    worker.run_unit(2)
    (resumed,) = reading_works(config)
    assert list(resumed.missing) == [unit for unit in reading.missing if unit != 2] and resumed.done > 0
    in_any_order([resumed], 1)
    works = token_works(config, "llama")
    worker = works[0].make_worker.func(*works[0].make_worker.args)  # type: ignore[attr-defined]
    worker.start()
    worker.run_unit(1)
    resumed_works = token_works(config, "llama")
    assert 1 not in resumed_works[0].missing and len(resumed_works[0].missing) == len(works[0].missing) - 1
    in_any_order(resumed_works, 1)
    assert not pieces_in(config.run.output)


def pieces_in(folder: str | Path) -> list[str]:
    return [path.name for path in Path(folder).rglob("*.pieces")]


def test_pieces_that_a_slower_driver_began_beside_finished_artifacts_go(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(run_file)
    raced = []

    def slower(claim: Claim, make: Callable[[], object]) -> str:
        if claim.kind not in raced:
            raced.append(claim.kind)
            make()  # the faster driver makes all of it between the slower one's claim and its first piece
        return open_pieces(claim)

    def tokenize_llama() -> None:
        tokenize(config, "llama")

    monkeypatch.setattr(dialogue_stage, "open_pieces", partial(slower, make=lambda: prepare_dialogues(config)))
    monkeypatch.setattr(tokenize_stage, "open_pieces", partial(slower, make=tokenize_llama))
    reading_works(config)
    assert pieces_in(config.run.output) == ["dialogues.pieces"]
    prepare_dialogues(config)
    assert not pieces_in(config.run.output)
    token_works(config, "llama")
    assert sorted(pieces_in(config.run.output)) == ["llama.held_out.pieces", "llama.pieces"]
    tokenize_llama()
    assert not pieces_in(config.run.output) and raced == ["dialogues", "tokens"]


def with_rows(run_file: Path, train: list[dict], held_out: list[dict], *overrides: str) -> RunConfig:
    for name, rows in (("a", train), ("b", held_out)):
        (run_file.parent / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"dialogues.train=[{run_file.parent / 'a.jsonl'}]", f"dialogues.held_out=[{run_file.parent / 'b.jsonl'}]"]
    return load_config(run_file, [*files, *overrides])


def row(dialogue_id: str, text: str) -> dict:
    return {"id": dialogue_id, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]}


def test_id_that_stands_twice_in_different_pieces_is_named_or_left_out(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch, 100)
    train = [row(f"d{n}", f"answer {n}") for n in range(9)] + [row("d3", "another"), row("d1", "a third")]
    broken = {"id": "bad", "messages": []}
    held_out = [row("d1", "held out")]  # its own set: no repetition
    with pytest.raises(DialogueError) as error:
        prepare_dialogues(with_rows(run_file, [*train, broken], held_out))
    assert "3 dialogues break the rules" in str(error.value)
    lines = str(error.value).splitlines()
    assert "a.jsonl:10 (dialogue 'd3'): the id 'd3' stands at" in lines[1] and "a.jsonl:4 too" in lines[1]
    assert "a.jsonl:11 (dialogue 'd1'): the id 'd1' stands at" in lines[2] and "a.jsonl:12" in lines[3]
    config = with_rows(run_file, [*train, broken], held_out, "dialogues.on_bad=skip")
    counts = prepare_dialogues(config).counts
    kept = list(read_dialogues(config.dialogues_path / "train.jsonl"))
    assert [one.id for one in kept] == [f"d{n}" for n in range(9)] and counts["train"] == 9
    assert kept[3].messages[1].content == "answer 3" and counts["num_skipped"] == 3


def test_held_out_dialogue_among_the_training_ones_is_named_across_pieces(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch, 100)
    train, held_out = [row(f"d{n}", f"answer {n}") for n in range(9)], [row("h0", "other"), row("h1", "answer 7")]
    with pytest.raises(DialogueError, match=r"1 held-out dialogues are also .* 'h1' is training dialogue 'd7'"):
        prepare_dialogues(with_rows(run_file, train, held_out))
    kept = prepare_dialogues(with_rows(run_file, train, held_out, "dialogues.on_overlap=keep"))
    assert kept.counts["held_out_in_train"] == ["h1"] and kept.counts["held_out"] == 2


def test_corrected_file_is_read_without_asking_for_a_restart(run_file: Path) -> None:
    with pytest.raises(DialogueError, match="stands at"):
        prepare_dialogues(with_rows(run_file, [row("a", "x"), row("a", "y")], [row("h", "z")]))
    assert prepare_dialogues(with_rows(run_file, [row("a", "x"), row("b", "y")], [row("h", "z")])).counts["train"] == 2


@pytest.mark.parametrize("count", [10, 3000])
def test_equal_digests_are_found_in_any_bucket(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusechat.text.equal_digests.ENTRIES_IN_MEMORY", 100)
    draw = np.random.default_rng(0)
    first = draw.integers(0, 2**64, count, np.uint64)
    first[draw.integers(0, count, count // 2)] = first[draw.integers(0, count, count // 2)]
    rest = draw.integers(0, 2, count, np.uint64)
    expected: dict[tuple[int, int], list[int]] = {}
    for number, key in enumerate(zip(first.tolist(), rest.tolist(), strict=True)):
        expected.setdefault(key, []).append(number)
    with EqualDigests(count, tmp_path) as digests:
        for start in range(0, count, 7):
            part = slice(start, start + 7)
            digests.add(first[part], rest[part], np.arange(count)[part])
        groups = sorted(group.tolist() for group in digests.groups())
    assert groups == sorted(group for group in expected.values() if len(group) > 1) and groups
