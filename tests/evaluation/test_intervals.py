"""Intervals beside loops, and how often they hold the truth."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from evaluation import intervals
from evaluation.intervals import (
    accuracy_difference_interval,
    accuracy_interval,
    expanded_tail,
    ratio_interval,
    win_rate_interval,
)


def obvious_ratio_interval(
    numerators: np.ndarray, denominators: np.ndarray, seed: int, resamples: int
) -> tuple[float, float]:
    """The expanded percentile bootstrap of a ratio, a resample at a time."""
    generator = np.random.default_rng(seed)
    num = len(numerators)
    found = []
    for _ in range(resamples):
        drawn = generator.integers(0, num, num)
        found.append(numerators[drawn].sum() / denominators[drawn].sum())
    tail = stats.norm.cdf(-math.sqrt(num / (num - 1)) * stats.t.ppf(0.975, num - 1))
    found.sort()
    return found[round(tail * (resamples - 1))], found[round((1 - tail) * (resamples - 1))]


def skewed_dialogues(generator: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences in bits and bytes; the true ratio is 0.02."""
    num_bytes = np.exp(generator.normal(5, 0.9, num))
    return num_bytes * (0.02 + generator.normal(0, 0.05, num) + 0.05 * (generator.exponential(1, num) - 1)), num_bytes


def test_ratio_interval_equals_the_obvious_one_up_to_resampling() -> None:
    bits, num_bytes = skewed_dialogues(np.random.default_rng(3), 9)
    found = ratio_interval(bits, num_bytes, seed=0)
    expected = obvious_ratio_interval(bits, num_bytes, seed=1, resamples=5000)
    assert found == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))


def test_ratio_interval_holds_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 600)
    generator = np.random.default_rng(0)
    held = 0
    for number in range(300):
        low, high = ratio_interval(*skewed_dialogues(generator, 10), seed=number)  # type: ignore[misc]
        held += low <= 0.02 <= high
    assert 0.88 <= held / 300 <= 0.99


def test_ratio_interval_does_not_depend_on_scale_and_repeats_with_its_seed() -> None:
    bits, num_bytes = skewed_dialogues(np.random.default_rng(5), 12)
    one = ratio_interval(bits, num_bytes, seed=7)
    assert one == ratio_interval(bits, num_bytes, seed=7)
    scaled = ratio_interval(bits * 1000, num_bytes * 1000, seed=7)
    assert scaled == pytest.approx(one, rel=1e-9)
    assert one != ratio_interval(bits, num_bytes, seed=8)


@pytest.mark.parametrize("num", [0, 1, 2, 3, 4])
def test_intervals_of_too_few_dialogues_are_not_invented(num: int) -> None:
    assert ratio_interval(np.arange(num) + 1.0, np.ones(num), seed=0) is None
    assert accuracy_interval(np.ones(num, bool)) is None
    assert accuracy_difference_interval(np.ones(num, bool), np.zeros(num, bool)) is None
    assert win_rate_interval(np.ones(num)) is None


def test_win_rate_interval_is_the_difference_of_wins_and_losses_on_another_scale() -> None:
    won, lost = np.array([1, 1, 0, 1, 0, 0, 1, 1], bool), np.array([0, 0, 1, 0, 0, 0, 0, 0], bool)
    low, high = accuracy_difference_interval(won, lost)  # type: ignore[misc]
    assert win_rate_interval((1 + won - lost.astype(float)) / 2) == pytest.approx(((1 + low) / 2, (1 + high) / 2))


@pytest.mark.parametrize("share", [0.5, 0.7, 0.97])
@pytest.mark.parametrize("num", [8, 20])
def test_win_rate_interval_holds_the_truth_about_as_often_as_it_says(share: float, num: int) -> None:
    draws = (np.random.default_rng(0).random((1000, num)) < share).astype(float)
    found = [win_rate_interval(won) for won in draws]
    assert np.mean([low <= share <= high for low, high in found]) > 0.91  # type: ignore[misc]


def test_ratio_interval_of_a_model_beside_itself_is_zero() -> None:
    assert ratio_interval(np.zeros(9), np.arange(9) + 1.0, seed=0) == (0.0, 0.0)


def test_expanded_tail_comes_near_the_plain_one_for_many_dialogues_and_far_out_for_few() -> None:
    tails = [expanded_tail(num) for num in (5, 10, 100, 10_000)]
    assert tails == sorted(tails) and tails[0] < 0.002 and tails[-1] == pytest.approx(0.025, rel=2e-3)


def test_ratio_interval_of_one_ratio_everywhere_is_that_ratio() -> None:
    num_bytes = np.array([3.0, 7.0, 11.0, 200.0, 31.0])
    assert ratio_interval(0.1 * num_bytes, num_bytes, seed=0) == pytest.approx((0.1, 0.1))


def test_accuracy_interval_is_wilsons() -> None:
    correct = np.array([True] * 7 + [False] * 13)
    share, num, z = 7 / 20, 20, stats.norm.ppf(0.975)
    middle = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * math.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
    assert accuracy_interval(correct) == pytest.approx((middle - half, middle + half))


@pytest.mark.parametrize(("wins", "losses"), [(0.0, 0.0), (0.3, 0.1), (0.5, 0.5), (0.9, 0.05), (0.1, 0.0)])
def test_accuracy_difference_interval_holds_its_level_for_every_outcome_of_ten(wins: float, losses: float) -> None:
    held = 0.0
    for won, lost in itertools.product(range(11), repeat=2):
        if won + lost <= 10:
            chance = stats.multinomial.pmf([won, lost, 10 - won - lost], 10, [wins, losses, 1 - wins - losses])
            first = np.array([True] * won + [False] * (10 - won))
            second = np.array([False] * won + [True] * lost + [False] * (10 - won - lost))
            low, high = accuracy_difference_interval(first, second)  # type: ignore[misc]
            held += float(chance) * (low <= wins - losses <= high)
    assert held >= 0.94


def test_accuracy_difference_interval_of_eight_wins_against_two_holds_zero_as_the_sign_test_says() -> None:
    first, second = np.array([True] * 8 + [False] * 2), np.array([False] * 8 + [True] * 2)
    low, _ = accuracy_difference_interval(first, second)  # type: ignore[misc]
    assert low < 0 and stats.binomtest(8, 10).pvalue > 0.05


def test_accuracy_difference_interval_of_equal_answers_is_not_empty() -> None:
    low, high = accuracy_difference_interval(np.ones(10, bool), np.ones(10, bool))  # type: ignore[misc]
    assert low < 0 < high
