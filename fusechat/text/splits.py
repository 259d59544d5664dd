"""Training and held-out dialogues: which is which, and which stand in both."""

import dataclasses
from collections.abc import Sequence

from .dialogues import Dialogue, Message, dialogues_digest

MAX_NAMED = 10
"""Dialogues named in one message."""


def said_digest(dialogue: Dialogue) -> str:
    """Hex SHA-256 of a dialogue's messages, whichever turns are targets: copies under whatever ids have the same."""
    return dialogues_digest([Dialogue("", _said(dialogue))])


def is_held_out(digest: str, share: float) -> bool:
    """Hold out by the hash of the messages: the split does not depend on the order or the rest of the set, and copies of one
    dialogue are on one side.

    Args:
        digest: of `said_digest`.
    """
    return int(digest[:8], 16) / 2**32 < share


def _said(dialogue: Dialogue) -> tuple[Message, ...]:
    return tuple(dataclasses.replace(message, is_trained=True) for message in dialogue.messages)


def overlap_text(pairs: Sequence[tuple[str, str]], count: int) -> str:
    """What is said of held-out dialogues that are training dialogues.

    Args:
        pairs: ids of the first ones, and of the training dialogues that they are.
        count: of all.
    """
    named = [f"{one!r} is training dialogue {other!r}" for one, other in pairs[:MAX_NAMED]]
    rest = f" and {count - MAX_NAMED} more" if count > MAX_NAMED else ""
    return (
        f"{count} held-out dialogues are also training dialogues: {', '.join(named)}{rest}; expected no overlap: "
        "remove them from one of the files, or set dialogues.on_overlap: keep and be told so in the report"
    )
