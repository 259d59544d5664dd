"""Writes one split of the dialogues: lines in; a file, its digest, and where its pieces begin, out."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .dialogue_files import RANGE_BYTES


class SplitWriter:
    """Writes lines one after the other; gives their digest, and where every piece of about `RANGE_BYTES` begins."""

    def __init__(self, path: Path) -> None:
        self._path, self._sha = path, hashlib.sha256()
        self._bytes, self._dialogues = [0], [0]
        self._position = self._count = 0

    def __enter__(self) -> SplitWriter:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, line: bytes) -> None:
        self._file.write(line)
        self._sha.update(line)
        self._position, self._count = self._position + len(line), self._count + 1
        if self._position - self._bytes[-1] >= RANGE_BYTES:
            self._end_piece()

    def _end_piece(self) -> None:
        self._bytes.append(self._position)
        self._dialogues.append(self._count)

    @property
    def index(self) -> dict[str, list[int]]:
        if self._position > self._bytes[-1]:
            self._end_piece()
        return {"bytes": self._bytes, "dialogues": self._dialogues}

    @property
    def digest(self) -> str:
        """Of all that the dialogues hold, in order."""
        return self._sha.hexdigest()
