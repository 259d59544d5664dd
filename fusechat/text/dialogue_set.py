"""The checked dialogues of a split as they lie in a run: one JSON Lines file, and where its pieces begin.

A piece is a run of whole dialogues that one worker tokenizes. Its place in the file is known, so that no reader needs what
stands before it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ArtifactError


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
