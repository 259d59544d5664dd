"""Ids of several teachers in one pass, and each teacher's share of it."""

import numpy as np
import pytest

from inference.capture.rows import TopKRows
from inference.held_out.teacher_rows import TeacherRows, by_dialogues, split_chosen


def plain(logprobs: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logprobs of the ids of a row, and of all other ids together, by sets."""
    chosen = [logprobs[one] if one >= 0 else -np.inf for one in ids]
    others = sorted(set(range(len(logprobs))) - set(ids.tolist()))
    return np.array(chosen), np.log(np.exp(logprobs[others]).sum())


@pytest.mark.parametrize("widths", [(3,), (4, 4, 4), (1, 6)])
def test_each_teacher_gets_what_a_pass_for_it_alone_would_give(widths: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(40, 12)) * 3
    whole = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    asked = [np.stack([draw.permutation(12)[:width] for _ in whole]) for width in widths]
    for ids in asked:
        ids[draw.random(ids.shape) < 0.2] = -1
    together = [plain(row, ids) for row, ids in zip(whole, np.concatenate(asked, axis=1), strict=True)]
    empty = TopKRows.empty(1)
    rows = TopKRows(
        empty.topk_ids, empty.topk_logprobs, np.zeros(len(whole), np.float32), empty.logsumexp,
        chosen_logprobs=np.stack([chosen for chosen, _ in together]).astype(np.float32),
        rest_logprob=np.array([rest for _, rest in together], np.float32),
    )  # fmt: skip
    for ids, (chosen, rest) in zip(asked, split_chosen(rows, asked), strict=True):
        alone = [plain(row, of_one) for row, of_one in zip(whole, ids, strict=True)]
        assert chosen.dtype == rest.dtype == np.float32
        np.testing.assert_allclose(chosen, np.stack([one for one, _ in alone]), atol=1e-6)
        np.testing.assert_allclose(rest, [one for _, one in alone], atol=1e-6)


def test_teachers_of_the_same_dialogues_are_asked_together() -> None:
    def teacher(name: str, split: str, dialogues: tuple[int, ...]) -> TeacherRows:
        return TeacherRows(dialogues, f"tokens/{split}", f"rows/{name}", "aligned", f"out/{name}")

    first, second = teacher("a", "train", (1, 2)), teacher("b", "train", (1, 2))
    other, fewer = teacher("a", "held_out", (1, 2)), teacher("c", "train", (1,))
    assert by_dialogues([first, other, second, fewer]) == [(first, second), (other,), (fewer,)]
