"""How rows fade: the factor is full while half of the source's lead is left, and 0 where the student has drawn level."""

import pytest

from benchmarks.fusion.fading import Fading


def observed(*student_losses: float, memory: float = 1.0) -> Fading:
    fading = Fading(memory=memory)
    for loss in student_losses:
        fading.observe("source/skill", student_loss=loss, row_loss=2.0, pivot_loss=10.0)
    return fading


@pytest.mark.parametrize(("loss", "factor"), [(10.0, 1.0), (6.0, 1.0), (4.0, 0.5), (2.0, 0.0), (1.0, 0.0), (14.0, 1.0)])
def test_factor_follows_the_share_of_the_lead_that_is_left(loss: float, factor: float) -> None:
    assert observed(loss).factor("source/skill") == pytest.approx(factor)


def test_a_group_that_was_not_seen_teaches_in_full() -> None:
    assert observed(2.0).factor("source/other") == 1.0


def test_dialogues_count_alike_without_forgetting_and_the_later_ones_more_with_it() -> None:
    assert observed(6.0, 2.0).factor("source/skill") == pytest.approx(2 * 4 / 16)
    assert observed(6.0, 2.0, memory=0.5).factor("source/skill") == pytest.approx(2 * 2 / 12)


def test_a_frozen_factor_stays() -> None:
    fading = observed(4.0)
    fading.freeze()
    fading.observe("source/skill", student_loss=0.0, row_loss=2.0, pivot_loss=10.0)
    assert fading.factor("source/skill") == pytest.approx(0.5)


def test_a_state_that_is_loaded_goes_on_as_the_one_that_was_saved() -> None:
    first, second = observed(5.0), Fading()
    second.load(first.state())
    for fading in (first, second):
        fading.observe("source/skill", student_loss=3.0, row_loss=2.0, pivot_loss=10.0)
    assert second.factor("source/skill") == first.factor("source/skill") == pytest.approx(2 * 4 / 16)


def test_no_lead_left_to_begin_with_teaches_nothing() -> None:
    fading = Fading()
    fading.observe("source/skill", student_loss=5.0, row_loss=4.0, pivot_loss=3.0)
    assert fading.factor("source/skill") == 0.0
