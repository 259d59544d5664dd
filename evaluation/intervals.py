"""Intervals: figures of single dialogues in, 95 % intervals of what a whole set says out.

A bits-per-byte figure is a ratio of sums over dialogues, so its interval comes from drawing dialogues: the studentised
bootstrap (Efron and Tibshirani 1993, section 12.5), which repeats the t statistic and not the figure, because plain
percentiles are too narrow for few dialogues. In a simulation of skewed differences their 95 % held the truth 81 % of the
time for 5 dialogues and 86 % for 8, BCa's 79 % and 83 %, the studentised ones' 91 % and 91 %. Accuracies get Wilson's
interval, differences of accuracies Agresti and Min's (2005). Knows nothing about models.
"""

import numpy as np
from scipy import stats

LEVEL = 0.95
MIN_DIALOGUES = 4
"""With three, the studentised bootstrap held the truth 76 % of the time: that is not an interval to show."""
RESAMPLES = 4999
RESAMPLES_PER_BLOCK = 500

Interval = tuple[float, float]


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, *, seed: int) -> Interval | None:
    """Interval of sum(numerators) / sum(denominators) over dialogues.

    For a paired comparison the numerators are differences, dialogue by dialogue.

    Args:
        numerators: float [dialogues].
        denominators: float [dialogues], positive.
    Returns:
        (low, high), or None for fewer than MIN_DIALOGUES dialogues.
    """
    if len(numerators) < MIN_DIALOGUES:
        return None
    ratio = numerators.sum() / denominators.sum()
    residuals = numerators - ratio * denominators
    error = float(_standard_error(*_moments(np.ones((1, len(residuals))), residuals, denominators))[0])
    # Rounding leaves residuals where all dialogues have one ratio (a model beside itself): nothing varies there.
    if error <= 1e-12 * np.abs(numerators).sum() / denominators.sum():
        return float(ratio), float(ratio)
    statistics = _resampled_t(residuals, denominators, seed)
    low, high = np.quantile(statistics, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(ratio - high * error), float(ratio - low * error)


def _resampled_t(residuals: np.ndarray, denominators: np.ndarray, seed: int) -> np.ndarray:
    """(ratio of a resample - ratio) / standard error of the resample; resamples of one dialogue alone are left out."""
    generator = np.random.default_rng(seed)
    num = len(residuals)
    found = []
    for start in range(0, RESAMPLES, RESAMPLES_PER_BLOCK):
        size = min(RESAMPLES_PER_BLOCK, RESAMPLES - start)
        times_drawn = generator.multinomial(num, np.full(num, 1 / num), size=size).astype(np.float64)
        times_drawn = times_drawn[(times_drawn > 0).sum(1) > 1]
        moments = _moments(times_drawn, residuals, denominators)
        with np.errstate(divide="ignore", invalid="ignore"):
            statistics = (moments[0] / moments[1]) / _standard_error(*moments)
        found.append(statistics[np.isfinite(statistics)])
    return np.concatenate(found)


def _moments(times_drawn: np.ndarray, residuals: np.ndarray, denominators: np.ndarray) -> tuple[np.ndarray, ...]:
    """For each resample [B, dialogues]: sums of e, b, e^2, e*b, b^2, and the number of dialogues."""
    columns = (residuals, denominators, residuals**2, residuals * denominators, denominators**2)
    sums = times_drawn @ np.stack(columns, axis=1)
    return (*sums.T, np.full(len(times_drawn), times_drawn.shape[1]))


def _standard_error(
    sum_e: np.ndarray, sum_b: np.ndarray, sum_ee: np.ndarray, sum_eb: np.ndarray, sum_bb: np.ndarray, num: np.ndarray
) -> np.ndarray:
    """Of a ratio, linearised: sqrt(n / (n-1) * sum((e - r*b)^2)) / sum(b), with r = sum(e) / sum(b)."""
    ratio = sum_e / sum_b
    squares = np.maximum(sum_ee - 2 * ratio * sum_eb + ratio**2 * sum_bb, 0)
    return np.sqrt(squares * num / (num - 1)) / sum_b


def accuracy_interval(correct: np.ndarray) -> Interval | None:
    """Wilson's interval of a share.

    Args:
        correct: bool [dialogues].
    """
    if len(correct) < MIN_DIALOGUES:
        return None
    found = stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def accuracy_difference_interval(first: np.ndarray, second: np.ndarray) -> Interval | None:
    """Interval of mean(first) - mean(second), both over the same dialogues.

    Wald's interval after half a dialogue is added to each of the four cells, so that it is not empty where the two never
    differ; with Student's quantile, because the normal's let 8 wins against 2 of 10 (sign test: 0.11) pass for a difference.

    Args:
        first, second: bool [dialogues].
    """
    if len(first) < MIN_DIALOGUES:
        return None
    num = len(first) + 2
    wins, losses = float((first & ~second).sum()) + 0.5, float((second & ~first).sum()) + 0.5
    middle = (wins - losses) / num
    half = stats.t.ppf((1 + LEVEL) / 2, len(first) - 1) * np.sqrt((wins + losses) - (wins - losses) ** 2 / num) / num
    return float(max(middle - half, -1)), float(min(middle + half, 1))
