"""The experiment on rounds: a world small enough for seconds, end to end, and what its parts promise."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import bench_rounds
from benchmarks.fusion import round_lessons, rounds, worlds
from benchmarks.fusion import seed as seeds
from benchmarks.fusion.loop import Lesson, token_loss
from benchmarks.fusion.rounds import ARMS, Rounds
from trainer import fusion_loss


@pytest.fixture
def small() -> Iterator[None]:
    """World B with six nouns, tiny models that answer badly, one epoch and rounds of two steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("NUM_NOUNS", 6), ("WIDTH", 48), ("NUM_LAYERS", 1), ("MODEL_BATCH", 16)):
            patch.setattr(worlds, name, value)
        sources = tuple(replace(model, steps=150) for model in worlds.WORLDS["B"].sources)
        patch.setitem(worlds.WORLDS, "B", worlds.WorldSpec(1, sources))
        patch.setattr(seeds, "PIVOT", replace(worlds.PIVOT, steps=150))
        for name, arm in ARMS.items():
            patch.setitem(ARMS, name, replace(arm, steps=tuple(2 for _ in arm.steps)))
        yield


def test_all_arms_of_a_length_take_as_many_steps() -> None:
    for name, arm in ARMS.items():
        assert sum(arm.steps) == (360 if name.startswith("long_") else 180), name


def test_quick_run_ends_with_json_and_a_second_one_trains_nothing(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_rounds", "--quick", "--out", str(tmp_path)])
    bench_rounds.main()
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert np.isfinite(first["rounds_minus_joint_bits"]) and np.isfinite(first["new_rounds_minus_joint_accuracy"])
    assert first["rounds_minus_joint_bits_low"] is None and first["can_show"] is None  # of one seed
    counts = json.loads((tmp_path / "results" / "B" / "0" / "rounds.json").read_text())["rounds"]
    assert len(counts) == 2 and counts[0]["answers"] > 0
    monkeypatch.setattr(rounds, "run", lambda *_: pytest.fail("trained again"))
    bench_rounds.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first


@pytest.mark.parametrize(
    "arm", [Rounds(divergence="reverse_kl", chosen=True), Rounds(teacher="answer", until=0.02), Rounds(prompts="new")]
)
def test_every_sort_of_round_runs(small: None, arm: Rounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, "tried", replace(arm, steps=(4, 2)))
    found = rounds.RoundsSeed("B", 0, tmp_path).run("tried")
    assert len(found["rounds"]) == 1 and {"known", "new"} == found["figures"].keys()


def test_rows_end_behind_the_first_token_that_the_source_would_not_say() -> None:
    corpus = SimpleNamespace(row_offsets=np.array([0, 3, 6]), dialogue=np.array([0, 0, 0, 1, 1, 1]))
    logprobs = np.log(np.array([0.9, 0.001, 0.9, 0.001, 0.9, 0.9]))
    nothing = np.zeros(6)
    lesson = Lesson(nothing[:, None].astype(int), nothing[:, None], nothing, logprobs, nothing)
    kept = round_lessons.read_until(corpus, lesson, 0.02).topk_logprobs[:, 0]  # type: ignore[arg-type]  # all that it reads
    assert np.isfinite(kept).tolist() == [True, True, False, True, False, False]


def test_loss_on_own_words_is_the_products() -> None:
    logits, labels = torch.randn(6, 9), torch.arange(6)
    rows = torch.randn(6, 9).log_softmax(-1).topk(4)
    nothing, is_own = np.zeros(0), torch.arange(6) < 3
    lesson = Lesson(nothing, nothing, nothing, nothing, nothing)
    weight = torch.linspace(0.2, 1, 6)
    mine = token_loss(logits, labels, rows.indices, rows.values, weight, lesson, is_own).mean()
    of_labels = torch.where(is_own, 0, 1 - weight)
    theirs = fusion_loss(
        logits, labels, rows.indices, rows.values, tail="bucket", row_weights=weight, label_weights=of_labels
    )
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
