"""Who teaches the dialogues of a round: written where its prompts are decided, read where its choice is made.

Knows nothing about how it was decided.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusechat.config.layout import RunLayout
from fusechat.storage.files import read_json, write_json
from fusechat.text.dialogues import Dialogue

from .choice import NOBODY

TEACHERS_FILE = "teachers.json"

Teacher = tuple[str | None, float]
"""Name of a source (None: nobody) and its trust."""


def write_teachers(layout: RunLayout, *, prompts: Mapping[str, Teacher], given: Mapping[str, Teacher]) -> None:
    """Keep the teachers of prompts and of given dialogues, by their ids."""
    write_json(f"{layout.asked_path}/{TEACHERS_FILE}", {"prompts": prompts, "given": given}, indent=None)


@dataclass(frozen=True)
class RoundTeachers:
    """Of each dialogue of a round: `source` int16 (-1: nobody), `trust` float32, `is_own` bool (the student wrote it)."""

    source: np.ndarray
    trust: np.ndarray
    is_own: np.ndarray

    def trust_of_kinds(self, kind: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """float32 [kinds, sources + 1]: the mean trust of each source on each kind; 0 where it teaches nothing.

        Args:
            kind: int [dialogues].
            shape: of the result; the last source is nobody.
        """
        count, total = np.zeros(shape), np.zeros(shape)
        np.add.at(count, (kind, self.source), 1)
        np.add.at(total, (kind, self.source), self.trust)
        mean: np.ndarray = (total / np.maximum(count, 1)).astype(np.float32)
        return mean


def read_teachers(
    layout: RunLayout, dialogues: Iterable[Dialogue], student: str, sources: Sequence[str]
) -> RoundTeachers:
    """The teachers of the dialogues of a round.

    Args:
        student: the name under which it writes; its answers' ids are the prompts' with something behind the last colon.
        sources: names, in the order of their numbers.
    """
    saved: Any = read_json(f"{layout.asked_path}/{TEACHERS_FILE}")
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(sources)}
    numbers[None] = NOBODY
    source: list[int] = []
    trusts: list[float] = []
    is_own: list[bool] = []
    for dialogue in dialogues:
        own = dialogue.author == student
        name, trust = saved["prompts"][dialogue.id.rpartition(":")[0]] if own else saved["given"][dialogue.id]
        source.append(numbers[name])
        trusts.append(trust)
        is_own.append(own)
    return RoundTeachers(np.array(source, np.int16), np.array(trusts, np.float32), np.array(is_own, bool))
