"""Which of many digests are equal, in bounded memory: digests are spread over files by their first bits, then sorted file by file."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

_ENTRY = np.dtype([("first", "<u8"), ("rest", "<u8"), ("number", "<i8")])
ENTRIES_IN_MEMORY = 1 << 18
MAX_FILES = 256


class EqualDigests:
    """Takes digests of 128 bits with a number each; gives the numbers of those that are equal. A `with` block."""

    def __init__(self, count: int, folder: Path) -> None:
        """
        Args:
            count: how many digests will come, about.
            folder: for the files.
        """
        self._count = min(MAX_FILES, max(1, -(-count // ENTRIES_IN_MEMORY)))
        self._folder = folder

    def __enter__(self) -> "EqualDigests":
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=self._folder)))
        self._files = [self._stack.enter_context((folder / str(i)).open("w+b")) for i in range(self._count)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, first: np.ndarray, rest: np.ndarray, numbers: np.ndarray) -> None:
        """Take digests: uint64 [n] both halves, int64 [n] numbers."""
        entries = np.empty(len(first), _ENTRY)
        entries["first"], entries["rest"], entries["number"] = first, rest, numbers
        places = (first >> np.uint64(32)) * np.uint64(self._count) >> np.uint64(32)
        for place in np.unique(places):
            self._files[int(place)].write(entries[places == place].tobytes())

    def groups(self) -> Iterator[np.ndarray]:
        """int64 [two or more], ascending: the numbers of equal digests."""
        for file in self._files:
            file.seek(0)
            entries = np.frombuffer(file.read(), _ENTRY)
            entries = entries[np.lexsort((entries["number"], entries["rest"], entries["first"]))]
            same = (entries["first"][1:] == entries["first"][:-1]) & (entries["rest"][1:] == entries["rest"][:-1])
            places = np.flatnonzero(same)
            starts = places[np.flatnonzero(np.diff(places, prepend=-2) > 1)]
            for start in starts.tolist():
                stop = start + 1
                while stop < len(entries) and same[stop - 1]:
                    stop += 1
                yield entries["number"][start:stop].astype(np.int64)
