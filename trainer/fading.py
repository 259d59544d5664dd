"""How a source's rows fade while the student catches up with it: the arithmetic alone, in numpy.

In: the label losses of student, source and pivot on dialogues that the student meets for the first time. Out: a factor in
[0, 1] by which the weight of a source's rows on a kind of dialogue (a group) is multiplied. Knows nothing about tensors,
batches or files.

    gap_now   = sum(student's loss - source's loss)         over the dialogues met for the first time
    gap_start = sum(pivot's loss - source's loss)           over the same dialogues
    factor    = clip(FULLNESS * gap_now / gap_start, 0, 1)

The student starts as the pivot, so the ratio starts near 1 and says how much of the source's lead is left: rows teach with
their full weight while half of it is, and fall silent where the student has drawn level. A dialogue that is met again says
nothing, because the student may know it by heart; so after the first epoch the factors stand still.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

FULLNESS = 2.0
"""The weight is full while at least 1 / FULLNESS of the lead is left."""


def factors_of(gaps: np.ndarray) -> np.ndarray:
    """float64 [groups], in [0, 1]; 1 for a group of which nothing was seen yet.

    Args:
        gaps: float64 [groups, 2], nats: now and at the start.
    """
    now, start = gaps.T
    left = np.clip(FULLNESS * now / np.where(start > 0, start, 1.0), 0.0, 1.0)
    factors: np.ndarray = np.where((gaps == 0).all(axis=1), 1.0, np.where(start > 0, left, 0.0))
    return factors


@dataclass(frozen=True)
class Leads:
    """By how much the teacher of each dialogue leads: the losses that its choice was made by.

    `group` int32 [dialogues], of source and kind (-1: nobody teaches it); `source_loss` and `pivot_loss` float64 [dialogues],
    nats over all target tokens, `num_rows` int32 [dialogues], how many these are.
    """

    group: np.ndarray
    source_loss: np.ndarray
    pivot_loss: np.ndarray
    num_rows: np.ndarray

    @property
    def num_groups(self) -> int:
        """Those that no dialogue has are among them."""
        return int(self.group.max(initial=-1)) + 1


class Fading:
    """The factors of one training, step by step: within a step they stand still, so that its parts may be done anywhere."""

    def __init__(self, leads: Leads) -> None:
        self.leads = leads
        self._gaps = np.zeros((leads.num_groups, 2))
        self._of_step = np.zeros_like(self._gaps)

    def factors(self, dialogues: np.ndarray) -> np.ndarray:
        """float64 [n], what the weight of the rows of these dialogues is multiplied by; 1 where nobody teaches."""
        group = self.leads.group[dialogues]
        return np.where(group < 0, 1.0, np.append(factors_of(self._gaps), 1.0)[group])

    def observe(self, dialogues: np.ndarray, student_loss: np.ndarray, num_rows: np.ndarray) -> None:
        """Count dialogues that the student meets for the first time; one that was cut cannot be compared, and is left out.

        Args:
            dialogues: int64 [n]; `student_loss` float64 [n], nats over the `num_rows` int64 [n] tokens that were trained on.
        """
        leads = self.leads
        seen = (leads.group[dialogues] >= 0) & (num_rows == leads.num_rows[dialogues])
        dialogues, student_loss = dialogues[seen], student_loss[seen]
        gaps = np.stack([student_loss, leads.pivot_loss[dialogues]], axis=1) - leads.source_loss[dialogues][:, None]
        np.add.at(self._of_step, leads.group[dialogues], gaps)

    def finish_step(self, reduce: Callable[[np.ndarray], np.ndarray]) -> None:
        """Let what was observed count from the next step on; `reduce` adds up the gaps of all processes."""
        self._gaps += reduce(self._of_step)
        self._of_step[:] = 0

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint; between steps."""
        return {"gaps": self._gaps.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self._gaps = np.array(state["gaps"], np.float64).reshape(-1, 2)
