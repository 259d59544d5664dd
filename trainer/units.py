"""What batches are made of: single dialogues, or packs of them. Knows nothing about rows, tensors or the model."""

from collections.abc import Sequence
from typing import overload

import numpy as np


class Units(Sequence[np.ndarray]):
    """What batches are made of: single dialogues, or packs of them. A unit is an int32 array of dialogues."""

    def __init__(self, members: np.ndarray, offsets: np.ndarray | None = None) -> None:
        """
        Args:
            members: int32, the dialogues of all units, one unit after the other.
            offsets: int [units+1], the first member of each, of which it has at least one; None: each has one.
        """
        self._members, self._offsets = members, offsets

    def __len__(self) -> int:
        return len(self._members) if self._offsets is None else len(self._offsets) - 1

    @overload
    def __getitem__(self, unit: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, unit: slice) -> list[np.ndarray]: ...
    def __getitem__(self, unit: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(unit, slice):
            return [self[number] for number in range(*unit.indices(len(self)))]
        if not 0 <= unit < len(self):
            raise IndexError(f"unit {unit}, expected 0 to {len(self) - 1}")
        first, last = (unit, unit + 1) if self._offsets is None else self._offsets[unit : unit + 2]
        members: np.ndarray = self._members[first:last]
        return members

    @property
    def num_dialogues(self) -> int:
        """Of all units."""
        return len(self._members)

    def lengths(self, of_dialogues: np.ndarray) -> np.ndarray:
        """int32 [units]: tokens of each unit; `of_dialogues` int32 [dialogues], tokens of each dialogue."""
        of_members: np.ndarray = of_dialogues[self._members]
        if self._offsets is None:
            return of_members
        of_units: np.ndarray = np.add.reduceat(of_members, self._offsets[:-1], dtype=np.int32)
        return of_units


def pack(dialogues: np.ndarray, lengths: np.ndarray, max_tokens: int) -> Units:
    """Put dialogues into packs of at most `max_tokens`, best fit in descending length.

    Args:
        dialogues: int32 [n], the dialogues to pack.
        lengths: int [dialogues], tokens of every dialogue, each at most `max_tokens`.
    Returns:
        the packs.
    """
    open_packs: dict[int, list[int]] = {}  # room left, tokens -> packs with exactly that room
    rooms = np.zeros(max_tokens + 1, dtype=np.int64)  # how many packs have that room
    descending = dialogues[np.lexsort((dialogues, -lengths[dialogues].astype(np.int64)))]
    pack_of, num_packs = np.empty(len(descending), np.int64), 0
    for place, dialogue in enumerate(descending):
        length = int(lengths[dialogue])
        fitting = np.flatnonzero(rooms[length:])
        room = length + int(fitting[0]) if len(fitting) else max_tokens
        if len(fitting):
            index = open_packs[room].pop()
            rooms[room] -= 1
        else:
            index, num_packs = num_packs, num_packs + 1
        pack_of[place] = index
        open_packs.setdefault(room - length, []).append(index)
        rooms[room - length] += 1
    order = np.argsort(pack_of, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pack_of, minlength=num_packs))])
    return Units(descending[order], offsets)
