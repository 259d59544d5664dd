"""The experiment on written answers: a world small enough for seconds, end to end, and what its parts promise."""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_writing, writing_speed
from benchmarks.fusion import keeping, worlds, written
from benchmarks.fusion import seed as seeds
from benchmarks.fusion.arms import lesson_of
from benchmarks.fusion.worlds import SKILLS
from benchmarks.fusion.written import WrittenSeed, answers_of

STEPS = 150
"""So many that answers end."""


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """World B with six nouns, tiny models and one epoch."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("NUM_NOUNS", 6), ("WIDTH", 48), ("NUM_LAYERS", 1), ("MODEL_BATCH", 16)):
            patch.setattr(worlds, name, value)
        sources = tuple(replace(model, steps=STEPS) for model in worlds.WORLDS["B"].sources)
        patch.setitem(worlds.WORLDS, "B", worlds.WorldSpec(1, sources))
        patch.setattr(seeds, "PIVOT", replace(worlds.PIVOT, steps=STEPS))
        yield


@pytest.fixture(scope="module")
def made(small: None, tmp_path_factory: pytest.TempPathFactory) -> WrittenSeed:
    """Its first seed, models trained."""
    return WrittenSeed("B", 0, tmp_path_factory.mktemp("bench"))


def test_all_arms_of_a_small_world_end_in_a_table_and_one_json_object(
    made: WrittenSeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").symlink_to(made.seed.pivot.parents[2])

    def here(module: str, units: list[str], options: list[str], jobs: int) -> None:
        for unit in units:
            call("--only", unit, *options)

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["bench_writing", *arguments])
        bench_writing.main()

    monkeypatch.setattr(bench_writing, "run_all", here)
    monkeypatch.setattr(writing_speed, "measure", lambda model: {"write_over_vllm": 0.97, "model": model})
    options = ("--worlds", "B", "--seeds", "1", "--out", str(tmp_path))
    call(*options, "--speed-model", str(made.seed.pivot))
    lines = capsys.readouterr().out.splitlines()
    values = json.loads(lines[-1])
    assert (values["write_over_vllm"], values["model"]) == (0.97, str(made.seed.pivot))
    for name in ("sft", "written_sft", "written_rows", "given_written_sft", "given_written_rows_sampled", "given_rows"):
        assert 0 <= values[f"{name}_accuracy"] <= 1 and 0 <= values[f"new_{name}_accuracy"] <= 1
    assert np.isfinite(values["written_rows_minus_sft_bits"]) and values["written_rows_minus_sft_bits_low"] is None
    assert sum(line.startswith("| written") for line in lines) == 4
    files = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "results" / "B" / "0").glob("*.json")}
    assert set(files) == {*bench_writing.GIVEN_ARMS, *written.ARMS, bench_writing.KEEPING}
    assert {0 <= shares["right"] <= shares["words"] <= 1 for shares in values["rules"]["B"].values()} == {True}
    assert values["rules"]["B"]["reference"]["words"] in (0, 1), "an answer that equals the given one is a right word"
    answers = files["written.greedy"]["answers"]
    assert 0 < answers["kept"] <= answers["prompts"] == 24

    def fails(*_: Any) -> Any:
        raise AssertionError("what is finished is not made again")

    for name in ("Seed", "WrittenSeed", "Keeping"):
        monkeypatch.setattr(bench_writing, name, fails)
    monkeypatch.setattr(writing_speed, "measure", fails)
    call(*options, "--speed-model", str(made.seed.pivot))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == values


def test_written_dialogues_ask_what_was_given_and_their_rows_are_those_of_the_whole(
    made: WrittenSeed,
) -> None:
    given, both = made.seed.corpus, made.both("greedy")
    mine = both.since(given.num_dialogues)
    asked = {dialogue.messages[0].content for dialogue in given.train.dialogues}
    assert mine.num_dialogues > 0 and all(d.messages[0].content in asked for d in mine.train.dialogues)
    assert both.train.dialogues[: given.num_dialogues] == given.train.dialogues
    first = both.row_offsets[given.num_dialogues]
    assert np.array_equal(mine.labels, both.labels[first:])
    for name, rows in mine.rows.items():
        assert np.array_equal(rows.topk_ids, both.rows[name].topk_ids[first:])
        assert np.allclose(rows.topk_logprobs[:, 0], both.rows[name].topk_logprobs[first:, 0])
    assert len(lesson_of(mine, "joint").weight) == len(mine.labels)


def test_greedy_answers_are_the_same_however_they_are_batched_and_sampled_ones_by_the_seed(
    made: WrittenSeed,
) -> None:
    folder, asked = made.seed.sources["Velan"], made.seed.corpus.train.dialogues[:5]
    alone = [answers_of(folder, [dialogue], "greedy", 0)[0] for dialogue in asked]
    assert answers_of(folder, asked, "greedy", 1) == alone
    assert answers_of(folder, asked, "sampled", 3) == answers_of(folder, asked, "sampled", 3)


def test_arm_that_nobody_knows_is_refused(made: WrittenSeed) -> None:
    with pytest.raises(ValueError, match="no arm is named 'writen"):
        made.run("writen.greedy")


def test_sources_whose_answers_never_end_are_named(made: WrittenSeed, monkeypatch: pytest.MonkeyPatch) -> None:
    silent: Callable[..., list[None]] = lambda folder, asked, *_: [None] * len(asked)  # noqa: E731
    monkeypatch.setattr(written, "answers_of", silent)
    with pytest.raises(ValueError, match="no answer of a source ended"):
        made.make_both("greedy")


def test_rules_keep_what_they_say_of_answers_that_are_known(made: WrittenSeed, monkeypatch: pytest.MonkeyPatch) -> None:
    """One source always gives the most frequent word, the other always nonsense, each time another."""
    drawn = itertools.count()

    def answers(folder: Path, asked: list[Any], *_: Any) -> list[str]:
        knows = folder == made.seed.sources["Velan"]
        return [made.seed.world.answers_to(d)[0] if knows else f"zzz{next(drawn)}" for d in asked]

    monkeypatch.setattr(keeping, "answers_of", answers)
    counts = keeping.keeping(made.seed)
    prompts = counts["all"]["prompts"]
    for rule in ("agreement", "agreement_at_0.25"):
        assert counts[rule] == {"prompts": prompts, "kept": prompts, "right": prompts, "words": prompts}
    given_right = sum(
        d.messages[1].content == made.seed.world.answers_to(d)[0] for d in made.seed.given if d.kind in SKILLS
    )
    assert counts["reference"] == {**counts["reference"], "kept": given_right, "right": given_right}
    assert counts["likelihood"]["kept"] == prompts


def test_speed_of_a_model_that_is_not_there_is_said_not_to_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = argparse.Namespace(out=tmp_path, speed_model=tmp_path / "none", report=False, quick=False)
    assert bench_writing.speed(arguments) == {"write_over_vllm": None}
    assert "none" in capsys.readouterr().out
