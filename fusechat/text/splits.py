"""Training and held-out dialogues: which is which, and which stand in both."""

import dataclasses

from .dialogues import Dialogue, Message, dialogues_digest

MAX_NAMED = 10
"""Dialogues named in one message."""


def split_dialogues(dialogues: list[Dialogue], share: float) -> tuple[list[Dialogue], list[Dialogue]]:
    """Hold out by the hash of the messages: the split does not depend on the order or the rest of the set, and copies of one
    dialogue, under whatever ids, are on one side.
    """
    train: list[Dialogue] = []
    held_out: list[Dialogue] = []
    for dialogue in dialogues:
        draw = int(dialogues_digest([Dialogue("", _said(dialogue))])[:8], 16) / 2**32
        (held_out if draw < share else train).append(dialogue)
    return train, held_out


def overlap_of(train: list[Dialogue], held_out: list[Dialogue]) -> dict[str, str]:
    """Held-out dialogue -> the training dialogue of the same messages, by their ids; which are targets is no matter."""
    seen = {_said(dialogue): dialogue.id for dialogue in train}
    return {dialogue.id: seen[_said(dialogue)] for dialogue in held_out if _said(dialogue) in seen}


def _said(dialogue: Dialogue) -> tuple[Message, ...]:
    return tuple(dataclasses.replace(message, is_trained=True) for message in dialogue.messages)


def overlap_text(overlap: dict[str, str]) -> str:
    named = [f"{one!r} is training dialogue {other!r}" for one, other in list(overlap.items())[:MAX_NAMED]]
    rest = f" and {len(overlap) - MAX_NAMED} more" if len(overlap) > MAX_NAMED else ""
    return (
        f"{len(overlap)} held-out dialogues are also training dialogues: {', '.join(named)}{rest}; expected no overlap: "
        "remove them from one of the files, or set dialogues.on_overlap: keep and be told so in the report"
    )
