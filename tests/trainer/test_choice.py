"""Who teaches a dialogue and how far it is trusted, against obvious references and sources whose truth is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trainer.choice import (  # fmt: skip
    NOBODY,
    calibration,
    choose,
    loss_of_counts,
    row_entropy,
    row_label_loss,
    source_loss,
    trust_of,
)
from trainer.choice_table import Losses, Table
from trainer.losses import row_log_probabilities

VOCABULARY, K = 60, 5


def draw_rows(random: np.random.Generator, count: int, sharpness: float = 1.0) -> np.ndarray:
    """float64 [count, VOCABULARY]: distributions."""
    return random.dirichlet(np.full(VOCABULARY, 0.1 / sharpness), count)


def top(distributions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k most probable ids and their logprobs."""
    ids = np.argsort(-distributions, axis=1)[:, :K]
    with np.errstate(divide="ignore"):
        return ids, np.log(np.take_along_axis(distributions, ids, 1)).astype(np.float32)


def draw_labels(random: np.random.Generator, distributions: np.ndarray) -> np.ndarray:
    return np.array([random.choice(VOCABULARY, p=distribution) for distribution in distributions])


def by_frequency(labels: np.ndarray) -> np.ndarray:
    return loss_of_counts(labels, np.bincount(labels))


def test_frequency_loss_counts_labels_over_all_dialogues() -> None:
    seven, two = -math.log(3 / 4), -math.log(1 / 4)
    assert by_frequency(np.array([7, 7, 2, 7])) == pytest.approx([seven, seven, two, seven])


@given(arrays.arrays(np.int64, (5, 9), elements=st.integers(0, 4)))
def test_choose_equals_one_dialogue_at_a_time(losses: np.ndarray) -> None:
    """Small whole numbers make ties common."""
    pivot, frequency, sources = losses[0], losses[1], losses[2:]
    expected = []
    for dialogue in range(losses.shape[1]):
        best = min(range(len(sources)), key=lambda source: (sources[source, dialogue], source))
        wins = sources[best, dialogue] < pivot[dialogue] and sources[best, dialogue] < frequency[dialogue]
        expected.append(best if wins else NOBODY)
    assert choose(pivot, sources, frequency).tolist() == expected


def test_choose_source_that_knows_nothing_wins_nothing_even_where_the_pivot_knows_less() -> None:
    random = np.random.default_rng(0)
    labels, dialogue = random.integers(0, VOCABULARY, 400), np.repeat(np.arange(40), 10)
    guesses = draw_rows(random, 400)
    ignorant = np.bincount(dialogue, weights=-np.log(guesses[np.arange(400), labels] + 1e-9))
    pivot, frequency = ignorant + 50, np.bincount(dialogue, weights=by_frequency(labels))
    assert set(choose(pivot, ignorant[None], frequency)) == {NOBODY}


def test_choose_source_that_lacks_rows_is_charged_what_nobody_knows() -> None:
    logprob = np.array([-0.5, np.nan, -0.1], np.float32)
    is_real = np.array([True, False, False])  # the last row was borrowed from the data
    assert source_loss(logprob, is_real, np.array([3.0, 2.0, 1.0])) == pytest.approx([0.5, 2.0, 1.0])
    nothing = source_loss(logprob, np.zeros(3, bool), np.array([3.0, 2.0, 1.0])).sum()
    assert choose(np.array([9.0]), np.array([[nothing]]), np.array([6.0])).tolist() == [NOBODY]


def test_row_entropy_and_label_loss_are_over_the_listed_tokens_and_one_for_the_rest() -> None:
    ids = np.array([[3, 9], [3, 9], [4, 0], [0, 0]])
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array([[0.6, 0.3], [0.6, 0.3], [0.5, 0.0], [0.0, 0.0]], np.float32))
    mixed = -sum(p * math.log(p) for p in (0.6, 0.3, 0.1))
    assert row_entropy(logprobs) == pytest.approx([mixed, mixed, math.log(2), 0], abs=1e-5)
    loss = row_label_loss(ids, logprobs, np.array([9, 7, 0, 0]))  # listed; the rest; the id of padding; no row
    assert loss == pytest.approx([-math.log(0.3), -math.log(0.1), math.log(2), 0], abs=1e-5)


def test_row_entropy_is_that_of_the_row_as_the_loss_teaches_it() -> None:
    """Rounding may leave a stored row a mass above 1."""
    ids, logprobs = top(draw_rows(np.random.default_rng(1), 50, 5))
    logprobs[:9] += 0.02
    taught = row_log_probabilities(torch.from_numpy(logprobs), 1.0, "bucket").double().numpy()
    entropy = -np.where(taught > -np.inf, np.exp(taught) * np.maximum(taught, -99), 0).sum(1)
    assert row_entropy(logprobs) == pytest.approx(entropy, abs=1e-5)
    assert row_label_loss(ids, logprobs, ids[:, 2]) == pytest.approx(-taught[:, 2], abs=1e-4)


@pytest.mark.parametrize(("power", "low", "high"), [(1.0, 0.95, 1.0), (3.0, 0.05, 0.6)], ids=["calibrated", "too-sure"])
def test_trust_is_one_where_a_source_is_calibrated_and_low_where_it_is_surer_than_right(
    power: float, low: float, high: float
) -> None:
    random = np.random.default_rng(2)
    truth = random.dirichlet(np.full(VOCABULARY, 0.2), 4000)
    sharpened = truth**power / (truth**power).sum(1, keepdims=True)
    ids, logprobs = top(sharpened)
    dialogue = np.repeat(np.arange(100), 40)
    entropy = np.bincount(dialogue, weights=row_entropy(logprobs))
    loss = np.bincount(dialogue, weights=row_label_loss(ids, logprobs, draw_labels(random, truth)))
    assert low <= trust_of(calibration(entropy, loss)) <= high


def test_trust_is_the_median_of_the_dialogues_that_the_source_teaches_kind_by_kind() -> None:
    entropy, loss = np.array([1.0, 2.0, 3.0, 9.0, 5.0, 0.0]), np.array([2.0, 2.0, 12.0, 1.0, 1.0, 0.0])
    kind = np.array([0, 0, 0, 0, 1, 2])
    zeros = np.zeros(6)
    losses = Losses(zeros[None], zeros, zeros, entropy[None], loss[None], np.ones(6, np.int64))

    def trusts(source: list[int]) -> list[list[float]]:
        table = Table(["one"], ["a", "b", "c"])
        table.add(np.array(source, np.int16), kind, losses)
        return table.trust().tolist()

    assert trusts([0, 0, 0, NOBODY, 0, 0]) == [[0.5, 0.0], [1.0, 0.0], [1.0, 0.0]]
    assert trusts([NOBODY] * 6) == [[0.0, 0.0]] * 3
