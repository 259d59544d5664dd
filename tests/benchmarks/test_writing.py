"""The experiment on written answers: a world small enough for seconds, end to end, and what its parts promise."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_writing
from benchmarks.fusion import seed as seeds
from benchmarks.fusion import worlds, written
from benchmarks.fusion.arms import lesson_of
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
    call("--worlds", "B", "--seeds", "1", "--out", str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    values = json.loads(lines[-1])
    for name in ("sft", "written_sft", "written_rows", "given_written_sft", "given_written_rows_sampled", "given_rows"):
        assert 0 <= values[f"{name}_accuracy"] <= 1 and 0 <= values[f"new_{name}_accuracy"] <= 1
    assert np.isfinite(values["written_rows_minus_sft_bits"]) and values["written_rows_minus_sft_bits_low"] is None
    assert sum(line.startswith("| written") for line in lines) == 4
    files = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "results" / "B" / "0").glob("*.json")}
    assert set(files) == {*bench_writing.GIVEN_ARMS, *written.ARMS}
    answers = files["written.greedy"]["answers"]
    assert 0 < answers["kept"] <= answers["prompts"] == 24

    def fails(*_: Any) -> Any:
        raise AssertionError("what is finished is not made again")

    monkeypatch.setattr(bench_writing, "WrittenSeed", fails)
    call("--worlds", "B", "--seeds", "1", "--out", str(tmp_path))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == values


def test_written_dialogues_ask_what_was_given_and_their_rows_are_those_of_the_whole(
    made: WrittenSeed,
) -> None:
    given, both = made.seed.corpus, made._both("greedy")
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
        made._make_both("greedy")
