"""The checked dialogues of a split as they lie in a run: one JSON Lines file, and where its pieces begin.

A piece is a run of whole dialogues that one worker tokenizes. Its place in the file is known, so that no reader needs what
stands before it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ArtifactError
from ..storage.files import read_json
from .dialogue_rows import read_row
from .dialogues import Dialogue

INDEX_FILE = "index.json"
"""Beside the files of the splits."""


@dataclass(frozen=True)
class SplitIndex:
    """Where the pieces of one split stand: [pieces+1] `bytes` in its file, and `dialogues` before them."""

    bytes: tuple[int, ...]
    dialogues: tuple[int, ...]

    @property
    def num_pieces(self) -> int:
        return len(self.bytes) - 1

    def num_dialogues(self, piece: int) -> int:
        """Of one piece."""
        return self.dialogues[piece + 1] - self.dialogues[piece]


def read_index(folder: Path, split: str) -> SplitIndex:
    """The index of a split.

    Args:
        folder: of the dialogues artifact.
    Raises:
        ArtifactError: there is none.
    """
    index = read_json(str(folder / INDEX_FILE))
    try:
        offsets = index[split]  # type: ignore[index]  # None is told like any other wrong value
        return SplitIndex(tuple(offsets["bytes"]), tuple(offsets["dialogues"]))
    except (TypeError, KeyError):
        raise ArtifactError(
            f"{folder / INDEX_FILE}: no index of the pieces of {split}; delete {folder} and run `fusechat tokenize` again"
        ) from None


def read_piece(path: Path, index: SplitIndex, piece: int) -> list[Dialogue]:
    """The dialogues of one piece.

    Args:
        path: of the split's file.
    Raises:
        ArtifactError: the file is not the one that the index is of.
    """
    with path.open("rb") as file:
        file.seek(index.bytes[piece])
        lines = file.read(index.bytes[piece + 1] - index.bytes[piece]).splitlines()
    if len(lines) != index.num_dialogues(piece):
        raise ArtifactError(
            f"{path}: piece {piece} has {len(lines)} dialogues, the index says {index.num_dialogues(piece)}; delete its "
            "folder and run `fusechat tokenize` again"
        )
    return [read_row(json.loads(line), "") for line in lines]


@dataclass(frozen=True)
class Kinds:
    """The kind of each dialogue: `number` int32 [dialogues], a place in `names`."""

    number: np.ndarray
    names: list[str]


def read_kinds(path: Path) -> Kinds:
    """The kinds of the dialogues of a file that the tokenize stage wrote: 4 bytes a dialogue.

    Raises:
        ArtifactError: the file is not as it was written.
    """
    names: dict[str, int] = {}
    blocks, block = [], []
    with path.open("rb") as lines:
        for line in lines:
            try:
                kind = json.loads(line).get("kind") or ""
            except (ValueError, AttributeError):
                raise ArtifactError(
                    f"{path}: damaged; run `fusechat inspect {path.parent} --repair`, then start the same command again"
                ) from None
            block.append(names.setdefault(kind, len(names)))
            if len(block) == 8192:
                blocks.append(np.array(block, np.int32))
                block = []
    return Kinds(np.concatenate([*blocks, np.array(block, np.int32)]), list(names))
