"""How a source's rows fade while the student catches up with it: the arithmetic alone.

In: for every dialogue that the student meets for the first time, the label losses of student, row and pivot. Out: a
factor in [0, 1] by which the weight of a source's rows on a kind of dialogue is multiplied. Knows nothing about tensors,
batches or files.

    gap_now   = sum(student's loss - row's label loss)         over the dialogues met for the first time
    gap_start = sum(pivot's loss - row's label loss)           over the same dialogues
    factor    = clip(FULLNESS * gap_now / gap_start, 0, 1)

The student starts as the pivot, so the ratio starts near 1 and says how much of the source's lead is left: rows teach
with their full weight while half of it is, and fall silent where the student has drawn level. A dialogue that is met again
says nothing, because the student may know it by heart; so the factors stand still after the first epoch.
"""

from typing import Any

FULLNESS = 2.0
"""The weight is full while at least 1 / FULLNESS of the lead is left."""


class Fading:
    """The gaps of every source and kind that teaches."""

    def __init__(self, fullness: float = FULLNESS, memory: float = 1.0) -> None:
        """
        Args:
            fullness: see above.
            memory: what a dialogue counts after each later one of its group, in (0, 1]; 1: all count alike.
        """
        self.fullness, self.memory = fullness, memory
        self.is_frozen = False
        self._gaps: dict[str, list[float]] = {}

    def factor(self, group: str) -> float:
        """By how much the weight of a group's rows is multiplied; 1 before anything was seen of it."""
        now, start = self._gaps.get(group, (1.0, 1.0))
        if (
            start <= 0
        ):  # decayed sums of differences whose dialogues were all chosen for a positive one cannot be; rounding can
            return 0.0
        return min(1.0, max(0.0, self.fullness * now / start))

    def observe(self, group: str, *, student_loss: float, row_loss: float, pivot_loss: float) -> None:
        """Count a dialogue that the student meets for the first time; losses are sums over the same rows, nats."""
        if self.is_frozen:
            return
        now, start = self._gaps.get(group, (0.0, 0.0))
        self._gaps[group] = [
            self.memory * now + student_loss - row_loss,
            self.memory * start + pivot_loss - row_loss,
        ]

    def freeze(self) -> None:
        """After the first epoch: the factors stay as they are."""
        self.is_frozen = True

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"is_frozen": self.is_frozen, "gaps": {group: list(gaps) for group, gaps in self._gaps.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.is_frozen = bool(state["is_frozen"])
        self._gaps = {str(group): [float(gap) for gap in gaps] for group, gaps in state["gaps"].items()}
