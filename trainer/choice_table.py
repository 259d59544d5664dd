"""Who teaches what, added up kind by kind while the dialogues are gone through: losses in; trusts and a table for people out."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import choice
from .choice import NOBODY


@dataclass(frozen=True)
class Losses:
    """Of consecutive dialogues, nats: `sources` float64 [sources, dialogues], the others float64 [dialogues]."""

    sources: np.ndarray
    pivot: np.ndarray
    frequency: np.ndarray
    entropy: np.ndarray
    """[sources, dialogues]: of the sources' rows, over their own outcomes"""
    own_loss: np.ndarray
    """[sources, dialogues]: of the labels, over the same outcomes"""
    num_rows: np.ndarray
    """int64 [dialogues]"""


@dataclass
class Table:
    """Who teaches what, added up while the dialogues are gone through."""

    sources: list[str]
    kinds: list[str]
    _ratios: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    """(kind, source) -> entropy over loss of each dialogue that it teaches."""

    def __post_init__(self) -> None:
        shape = len(self.kinds), len(self.sources) + 1  # the last one is nobody
        self._dialogues, self._tokens = np.zeros(shape, np.int64), np.zeros(shape, np.int64)

    def add(self, source: np.ndarray, kind: np.ndarray, losses: Losses) -> None:
        """Count consecutive dialogues; `source` int16 and `kind` int [dialogues]."""
        np.add.at(self._dialogues, (kind, source), 1)
        np.add.at(self._tokens, (kind, source), losses.num_rows)
        for number in range(len(self.sources)):
            ratio = choice.calibration(losses.entropy[number], losses.own_loss[number])
            for one in np.unique(kind[source == number]):
                self._ratios[int(one), number].append(ratio[(source == number) & (kind == one)])

    def trust(self) -> np.ndarray:
        """float32 [kinds, sources + 1]: of each source on each kind; 0 where it teaches nothing, and of nobody."""
        trust = np.zeros(self._dialogues.shape, np.float32)
        for place, ratios in self._ratios.items():
            trust[place] = choice.trust_of(np.concatenate(ratios))
        return trust

    def records(self, trust: np.ndarray) -> list[dict[str, Any]]:
        """One record per kind and teacher, those that teach nothing left out; `trust` as given by the method."""
        return [
            {
                "kind": self.kinds[kind], "source": None if number < 0 else self.sources[number],
                "dialogues": int(self._dialogues[kind, number]), "tokens": int(self._tokens[kind, number]),
                "trust": None if number < 0 else round(float(trust[kind, number]), 4),
            }
            for kind in sorted(range(len(self.kinds)), key=lambda place: self.kinds[place])
            for number in [*range(len(self.sources)), NOBODY]
            if self._dialogues[kind, number]
        ]  # fmt: skip


def table_lines(table: list[dict[str, Any]]) -> list[str]:
    """The summary for people."""
    return [
        f"{record['kind'] or 'dialogues'}: {record['source'] or 'nobody (plain SFT)'} teaches {record['dialogues']:,} dialogues, "
        f"{record['tokens']:,} tokens" + ("" if record["source"] is None else f", trust {record['trust']:.2f}")
        for record in table
    ]
