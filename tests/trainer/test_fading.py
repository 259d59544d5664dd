"""How rows fade: the factor is full while half of the source's lead is left, and 0 where the student has drawn level."""

import numpy as np
import pytest

from trainer.fading import Fading, Leads

PIVOT, SOURCE = 10.0, 2.0


def fading_of(*groups: int) -> Fading:
    """Dialogues of four target tokens each, on which the source loses 2 nats and the pivot 10."""
    num = len(groups)
    return Fading(Leads(np.array(groups, np.int32), np.full(num, SOURCE), np.full(num, PIVOT), np.full(num, 4)))


def see(fading: Fading, losses: dict[int, float], *, num_rows: int = 4, processes: int = 1) -> None:
    """One step in which the student loses so much on some dialogues."""
    dialogues = np.array(list(losses))
    fading.observe(dialogues, np.array(list(losses.values())), np.full(len(losses), num_rows))
    fading.finish_step(lambda gaps: processes * gaps)


@pytest.mark.parametrize(("loss", "factor"), [(10.0, 1.0), (6.0, 1.0), (4.0, 0.5), (2.0, 0.0), (1.0, 0.0), (14.0, 1.0)])
def test_factor_follows_the_share_of_the_lead_that_is_left(loss: float, factor: float) -> None:
    fading = fading_of(0, 0)
    see(fading, {0: loss})
    assert fading.factors(np.array([0, 1])) == pytest.approx([factor, factor])


def test_a_group_that_was_not_seen_and_a_dialogue_that_nobody_teaches_keep_their_weight() -> None:
    fading = fading_of(0, 1, -1)
    see(fading, {0: 2.0, 2: 0.0})
    assert fading.factors(np.array([0, 1, 2])).tolist() == [0.0, 1.0, 1.0]


def test_dialogues_of_a_group_count_alike() -> None:
    fading = fading_of(0, 0)
    see(fading, {0: 6.0, 1: 2.0})
    assert fading.factors(np.array([0])) == pytest.approx(2 * 4 / 16)


def test_a_dialogue_that_was_cut_says_nothing() -> None:
    fading = fading_of(0)
    see(fading, {0: 2.0}, num_rows=3)
    assert fading.factors(np.array([0])).tolist() == [1.0]


def test_what_a_step_sees_counts_from_the_next_one_on_and_over_all_processes() -> None:
    fading = fading_of(0, 0)
    fading.observe(np.array([0]), np.array([2.0]), np.array([4]))
    assert fading.factors(np.array([1])).tolist() == [1.0]
    fading.finish_step(lambda gaps: gaps + [[8.0, 8.0]])  # another process saw one on which the whole lead is left
    assert fading.factors(np.array([1])) == pytest.approx(2 * 8 / 16)


def test_a_state_that_is_loaded_goes_on_as_the_one_that_was_saved() -> None:
    first, second = fading_of(0, 0), fading_of(0, 0)
    see(first, {0: 5.3})
    second.load(first.state())
    for fading in (first, second):
        see(fading, {1: 3.1})
    assert second.factors(np.array([0])).tolist() == first.factors(np.array([0])).tolist()


def test_a_source_that_does_not_lead_teaches_nothing_once_that_is_seen() -> None:
    fading = Fading(Leads(np.array([0]), np.array([4.0]), np.array([3.0]), np.array([4])))
    see(fading, {0: 5.0})
    assert fading.factors(np.array([0])).tolist() == [0.0]


def test_where_nobody_teaches_there_is_nothing_to_count_save_or_load() -> None:
    fading = fading_of(-1, -1)
    see(fading, {0: 3.0, 1: 2.0})
    fading.load(fading.state())
    see(fading, {0: 3.0})
    assert fading.factors(np.array([0, 1])).tolist() == [1.0, 1.0]
