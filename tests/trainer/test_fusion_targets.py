"""Which row supervises a token, under every choice."""

import math

import numpy as np
import pytest
import torch

from fusechat.storage.contracts import RowKind
from trainer.fusion_targets import Rows, Supervision, choose_rows, dialogue_losses, released_reward, until_strayed

MAPPED, EMPTY, ONE_HOT = int(RowKind.MAPPED), int(RowKind.EMPTY), int(RowKind.ONE_HOT)


def rows(ids: list[list[int]], probabilities: list[list[float]], labels: list[float]) -> Rows:
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array(probabilities, np.float32))
    return Rows(np.array(ids, np.uint16), logprobs, np.array(labels, np.float32))


PIVOT = rows([[1, 2], [3, 4], [5, 6]], [[0.5, 0.3], [0.6, 0.1], [0.9, 0.05]], [-1.0, -2.0, -0.5])
SOURCE = rows([[1, 7], [0, 0], [8, 9]], [[0.8, 0.1], [0.0, 0.0], [0.4, 0.3]], [-0.5, math.nan, -1.5])
KIND = np.array([MAPPED, EMPTY, MAPPED], np.uint8)


def test_min_ce_compares_both_models_over_the_same_rows() -> None:
    assert dialogue_losses(PIVOT, SOURCE, KIND) == (1.5, 2.0, 2)
    chosen = choose_rows("min_ce", PIVOT, SOURCE, KIND, num_rows=3)
    assert np.array_equal(chosen.topk_ids, PIVOT.topk_ids)
    assert chosen.source_share.tolist() == [0, 0, 0]


def test_min_ce_source_wins_dialogue_but_not_the_rows_it_lacks() -> None:
    better = Rows(SOURCE.topk_ids, SOURCE.topk_logprobs, np.array([-0.1, np.nan, -0.2], np.float32))
    chosen = choose_rows("min_ce", PIVOT, better, KIND, num_rows=3)
    assert chosen.source_share.tolist() == [1, 0, 1]
    assert chosen.topk_ids.tolist() == [[1, 7], [3, 4], [8, 9]]
    assert np.allclose(np.exp(chosen.topk_logprobs), [[0.8, 0.1], [0.6, 0.1], [0.4, 0.3]])


def test_min_ce_tie_goes_to_the_pivot() -> None:
    chosen = choose_rows(
        "min_ce", PIVOT, Rows(SOURCE.topk_ids, SOURCE.topk_logprobs, PIVOT.label_logprob), KIND, num_rows=3
    )
    assert not chosen.source_share.any()


def test_min_ce_one_hot_rows_do_not_count_as_the_sources_opinion() -> None:
    certain = Rows(SOURCE.topk_ids, SOURCE.topk_logprobs, np.array([0.0, np.nan, -1.5], np.float32))
    kind = np.array([ONE_HOT, EMPTY, MAPPED], np.uint8)
    assert dialogue_losses(PIVOT, certain, kind) == (0.5, 1.5, 1)


def test_min_ce_token_chooses_row_by_row() -> None:
    chosen = choose_rows("min_ce_token", PIVOT, SOURCE, KIND, num_rows=3)
    assert chosen.source_share.tolist() == [1, 0, 0]
    assert chosen.topk_ids.tolist() == [[1, 7], [3, 4], [5, 6]]


@pytest.mark.parametrize(("source_loss", "wins"), [(1.16, True), (1.1666, False), (1.2, False)])
def test_min_ce_released_compares_token_means_rounded_to_bfloat16(source_loss: float, wins: bool) -> None:
    # The pivot's mean is 3.5 / 3 nats per token; 1.1666 is smaller, but not once both are bfloat16.
    chosen = choose_rows("min_ce_released", PIVOT, SOURCE, KIND, num_rows=3, source_token_loss=source_loss)
    assert chosen.source_share.tolist() == ([1, 0, 1] if wins else [0, 0, 0])


def test_released_reward_rounds_as_torch_does() -> None:
    for loss in np.linspace(0.01, 9, 200):
        assert released_reward(loss) == float(torch.tensor(np.exp(-loss), dtype=torch.float32).bfloat16())


def test_average_adds_the_mass_of_equal_ids() -> None:
    same = Rows(SOURCE.topk_ids, SOURCE.topk_logprobs, np.array([-1.0, np.nan, -0.5], np.float32))
    chosen = choose_rows("average", PIVOT, same, KIND, num_rows=3)
    assert chosen.source_share.tolist() == [0.5, 0, 0.5]
    first = {i: p for i, p in zip(chosen.topk_ids[0].tolist(), np.exp(chosen.topk_logprobs[0]), strict=True) if p > 0}
    assert first == pytest.approx({1: 0.65, 2: 0.15, 7: 0.05}, rel=1e-5)
    second = {i: p for i, p in zip(chosen.topk_ids[1].tolist(), np.exp(chosen.topk_logprobs[1]), strict=True) if p > 0}
    assert second == pytest.approx({3: 0.6, 4: 0.1}, rel=1e-5)
    assert (np.diff(chosen.topk_logprobs[0][np.isfinite(chosen.topk_logprobs[0])]) <= 0).all()


def test_average_leans_to_the_model_that_knows_the_dialogue() -> None:
    chosen = choose_rows("average", PIVOT, SOURCE, KIND, num_rows=3)
    expected = math.exp(-1.0) / (math.exp(-1.0) + math.exp(-0.75))  # 2.0 and 1.5 nats over two rows
    assert chosen.source_share[[0, 2]] == pytest.approx([expected] * 2, rel=1e-5)


def test_source_only_leaves_missing_rows_to_the_label() -> None:
    chosen = choose_rows("source", None, SOURCE, KIND, num_rows=3)
    assert np.isfinite(chosen.topk_logprobs).any(1).tolist() == [True, False, True]


def test_pivot_only_and_none_need_no_source() -> None:
    assert np.array_equal(choose_rows("pivot", PIVOT, None, None, num_rows=3).topk_ids, PIVOT.topk_ids)
    assert not np.isfinite(choose_rows("none", None, None, None, num_rows=3).topk_logprobs).any()


@pytest.mark.parametrize("choice", ["min_ce", "min_ce_released", "min_ce_token", "average", "source"])
def test_dialogue_without_source_rows_is_plain_sft_and_says_so(choice: str) -> None:
    nothing = Rows(SOURCE.topk_ids, np.full((3, 2), -np.inf, np.float32), np.full(3, np.nan, np.float32))
    chosen = choose_rows(choice, PIVOT, nothing, np.zeros(3, np.uint8), num_rows=3, source_token_loss=1.0)  # type: ignore[arg-type]
    assert chosen.without_source
    assert not np.isfinite(chosen.topk_logprobs).any()


def test_rows_of_different_width_are_chosen_between() -> None:
    narrow = rows([[1], [2], [3]], [[0.9], [0.9], [0.9]], [-0.1, -0.1, -0.1])
    chosen = choose_rows("min_ce", PIVOT, narrow, np.full(3, MAPPED, np.uint8), num_rows=3)
    assert chosen.topk_ids.shape == (3, 2)
    assert np.allclose(np.exp(chosen.topk_logprobs), [[0.9, 0.0]] * 3)


def test_rows_end_behind_the_first_token_that_the_teacher_would_not_say() -> None:
    logprobs = np.log(np.array([0.9, np.nan, 0.01, 0.9, 0.001, 0.9]))
    whole = Supervision(np.zeros((6, 1), int), np.full((6, 1), -0.5, np.float32), np.ones(6, np.float32), trust=0.5)
    cut = until_strayed(whole, logprobs, 0.02)
    assert np.isfinite(cut.topk_logprobs[:, 0]).tolist() == [True, True, True, False, False, False]
    assert cut.source_share.tolist() == [1, 1, 1, 0, 0, 0] and cut.trust == 0.5
    assert np.isfinite(until_strayed(whole, logprobs, 1e-4).topk_logprobs).all()
