"""The held-out dialogues of a run, and which of them models are asked about: the folder of dialogues in, dialogues out."""

from collections.abc import Collection
from pathlib import Path

from .dialogues import Dialogue, read_dialogues


def read_held_out(path: Path) -> list[Dialogue]:
    """All of them, in the order of the tokens artifacts; none where nothing was held out."""
    return list(read_dialogues(path)) if path.is_file() and path.stat().st_size else []


def is_asked(dialogue: Dialogue, kinds: Collection[str]) -> bool:
    """Whether its last answer is asked for: it is of such a kind, and no tool call."""
    return dialogue.kind in kinds and not dialogue.messages[-1].tool_calls
