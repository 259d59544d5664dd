"""The experiment on fusion: its loss is the product's, its merges do what they say, and it says when it can show nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fusion.loop import Lesson, token_loss
from benchmarks.fusion.merges import bounded_sum, by_fisher, from_control
from benchmarks.fusion.table import Results, power, seeds_interval, summary
from benchmarks.fusion.units import result_file
from benchmarks.fusion.worlds import COMMONS, SKILLS, WORLDS, World, WorldSpec
from trainer.losses import Divergence, Tail, fusion_loss


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
@pytest.mark.parametrize("divergence", ["ce", "kl", "reverse_kl"])
def test_token_loss_equals_the_trainers_loss(tail: Tail, divergence: Divergence) -> None:
    if (tail, divergence) == ("renormalise", "reverse_kl"):
        pytest.skip("the product renormalises the student too; no arm uses that")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 30, generator=generator) * 2
    labels = torch.randint(30, (40,), generator=generator)
    top = torch.randn(40, 30, generator=generator).log_softmax(-1).topk(5)
    logprobs = top.values.clone()
    logprobs[3:6] = -torch.inf  # tokens without a row
    logprobs[7, 3:] = -torch.inf  # a short row
    empty = np.zeros(0)
    lesson = Lesson(empty, empty, empty, empty, empty, tail=tail, divergence=divergence)
    mine = token_loss(logits, labels, top.indices, logprobs, torch.full((40,), 0.7), lesson).mean()
    theirs = fusion_loss(logits, labels, top.indices, logprobs, sft_weight=0.3, divergence=divergence, tail=tail)
    assert mine.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_smoothing_is_the_mean_over_the_vocabulary() -> None:
    empty = np.zeros(0)
    lesson = Lesson(empty, empty, empty, empty, empty, smoothing=0.1)
    logits, labels, none = torch.randn(5, 7), torch.arange(5), torch.zeros(5, 1)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert token_loss(logits, labels, none.long(), none, none[:, 0], lesson).mean().item() == pytest.approx(
        expected.item()
    )


def test_bounded_sum_keeps_the_sum_where_changes_oppose_and_the_longest_norm_where_they_agree() -> None:
    base = {"w": torch.zeros(2)}
    agree = bounded_sum(base, [{"w": torch.tensor([3.0, 0])}, {"w": torch.tensor([1.0, 0])}])
    oppose = bounded_sum(base, [{"w": torch.tensor([3.0, 0])}, {"w": torch.tensor([-1.0, 0])}])
    assert agree["w"].tolist() == [3, 0]
    assert oppose["w"].tolist() == [2, 0]


def test_from_control_counts_once_what_all_targets_share() -> None:
    base, control = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 1])}
    targets = [{"w": torch.tensor([3.0, 1])}, {"w": torch.tensor([1.0, 4])}]
    assert from_control(base, targets, control)["w"].tolist() == [3, 4]


def test_fisher_gives_a_weight_to_the_target_that_depends_on_it() -> None:
    base = {"w": torch.zeros(2)}
    targets, fishers = (
        [{"w": torch.tensor([2.0, 2])}, {"w": torch.tensor([4.0, 4])}],
        [{"w": torch.tensor([1.0, 0])}, {"w": torch.tensor([0.0, 1])}],
    )
    assert by_fisher(base, targets, fishers)["w"].tolist() == pytest.approx([2, 4])


def results(oracle_nats: float) -> Results:
    lexicons = (*COMMONS, *SKILLS)
    nats = {"sft": 100.0, "smoothing": 95.0, "oracle": oracle_nats, "joint": 80.0}
    return {
        seed: {
            arm: {wording: {name: [value + seed, 50.0, 5, 40] for name in lexicons} for wording in ("known", "new")}
            for arm, value in nats.items()
        }
        for seed in range(5)
    }


def test_an_oracle_that_does_not_beat_sft_shows_nothing() -> None:
    assert "can show NOTHING" in power(results(oracle_nats=100.0))
    assert "has power" in power(results(oracle_nats=70.0))


def test_the_summary_names_the_share_of_the_oracle_and_leaves_out_what_was_not_measured() -> None:
    values = summary({"B": results(oracle_nats=60.0)}, "linear")
    assert values["share_of_oracle"] == pytest.approx(0.5)
    assert values["joint_minus_sft_bits"] == pytest.approx(-20 / 50 / np.log(2), abs=1e-4)
    assert values["joint_minus_sft_bits_high"] < 0
    assert values["pairs_merged_minus_sft_bits"] is None
    assert values["can_show"] is True


def test_shares_compare_only_the_seeds_that_have_both_arms() -> None:
    """The second seed gains nothing, and was not trained without the bad source."""
    world = {seed: dict(arms) for seed, arms in results(oracle_nats=60.0).items() if seed < 2}
    world[0]["joint_without_bad"] = world[0]["joint"]
    world[1]["joint"] = world[1]["sft"]
    values = summary({"S5": world}, "linear")
    assert values["bad_source_costs_share_of_gain_S5"] == 0
    assert values["share_of_oracle_S5"] == pytest.approx(0.25)
    assert values["seeds"] == {"S5": 2}


def test_worlds_of_one_seed_share_their_words_and_wrong_answers_are_other_nouns_words() -> None:
    plain, noisy = World(3, WorldSpec(1)), World(3, WorldSpec(1, wrong_share=0.5))
    assert plain.lexicons == noisy.lexicons
    drawn = noisy.training()
    wrong = [
        not any(d.messages[1].content in words for noun, words in noisy.lexicons[d.kind].items() if f" {noun} " in d.messages[0].content)
        for d in drawn if d.kind in SKILLS
    ]  # fmt: skip
    assert 0.35 < np.mean(wrong) < 0.65


def test_worlds_that_differ_only_in_their_sources_share_the_arms_that_read_none(tmp_path: Path) -> None:
    shared = {result_file(tmp_path, world, 0, "sft") for world in ("B", "L", "N", "S5")}
    assert shared == {tmp_path / "results" / "B" / "0" / "sft.json"}
    assert len({result_file(tmp_path, world, 0, "joint") for world in WORLDS}) == len(WORLDS)
    assert len({result_file(tmp_path, world, 0, "sft") for world in ("B", "Bn", "D")}) == 3


def test_interval_of_three_seeds_is_students_and_one_seed_has_none() -> None:
    low, high = seeds_interval(np.array([1.0, 2.0, 3.0]), np.ones(3)) or (0, 0)
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert seeds_interval(np.array([1.0]), np.ones(1)) is None
