"""Training and held-out dialogues: which is which, and which stand in both."""

import dataclasses
import re
from collections import Counter

from .dialogue_order import HEAD_ROLES
from .dialogues import Dialogue, Message, dialogues_digest

MAX_NAMED = 10
"""Dialogues named in one message."""
SHINGLE_WORDS = 3
"""Words in a row that two texts are compared by."""
NEAR_SHARE = 0.8
"""Of the word sequences of two dialogues that both have, in all that either has: from here on they are near-duplicates."""


def split_dialogues(
    dialogues: list[Dialogue], share: float, *, by_prompt: bool = False
) -> tuple[list[Dialogue], list[Dialogue]]:
    """Hold out by the hash of the messages: the split does not depend on the order or the rest of the set, and copies of one
    dialogue, under whatever ids, are on one side.

    Args:
        by_prompt: by the messages before the last answer, so that all answers to one prompt are on one side.
    """
    train: list[Dialogue] = []
    held_out: list[Dialogue] = []
    for dialogue in dialogues:
        said = _said(dialogue)
        draw = int(dialogues_digest([Dialogue("", said[:-1] if by_prompt else said)])[:8], 16) / 2**32
        (held_out if draw < share else train).append(dialogue)
    return train, held_out


def overlap_of(train: list[Dialogue], held_out: list[Dialogue]) -> dict[str, str]:
    """Held-out dialogue -> the training dialogue of the same messages, by their ids; which are targets is no matter."""
    seen = {_said(dialogue): dialogue.id for dialogue in train}
    return {dialogue.id: seen[_said(dialogue)] for dialogue in held_out if _said(dialogue) in seen}


def near_duplicates(dialogues: list[Dialogue], held_out: list[Dialogue]) -> dict[str, str]:
    """Dialogue -> the held-out one that it nearly is, by their ids.

    Nearly the same are two dialogues that ask the same words last, whatever the answer, and two that share most of their words
    in their order (Jaccard of sequences of three words, 0.8 or more). Case, punctuation and system messages do not count.
    """
    by_question = {_words(_asked(dialogue)): dialogue.id for dialogue in held_out}
    shingles = [_shingles(dialogue) for dialogue in held_out]
    places: dict[tuple[str, ...], list[int]] = {}
    for number, own in enumerate(shingles):
        for shingle in own:
            places.setdefault(shingle, []).append(number)
    near: dict[str, str] = {}
    for dialogue in dialogues:
        asked = _words(_asked(dialogue))
        if asked and asked in by_question:
            near[dialogue.id] = by_question[asked]
            continue
        own = _shingles(dialogue)
        for number, common in Counter(n for shingle in own for n in places.get(shingle, ())).most_common(1):
            if common / (len(own) + len(shingles[number]) - common) >= NEAR_SHARE:
                near[dialogue.id] = held_out[number].id
    return near


def _asked(dialogue: Dialogue) -> str:
    """All that stands before the last answer, but for a system message."""
    return " ".join(message.content for message in dialogue.messages[:-1] if message.role not in HEAD_ROLES)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))


def _shingles(dialogue: Dialogue) -> set[tuple[str, ...]]:
    words = _words(f"{_asked(dialogue)} {dialogue.messages[-1].content}")
    return {words[start : start + SHINGLE_WORDS] for start in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def _said(dialogue: Dialogue) -> tuple[Message, ...]:
    return tuple(dataclasses.replace(message, is_trained=True) for message in dialogue.messages)


def overlap_text(overlap: dict[str, str]) -> str:
    named = [f"{one!r} is training dialogue {other!r}" for one, other in list(overlap.items())[:MAX_NAMED]]
    rest = f" and {len(overlap) - MAX_NAMED} more" if len(overlap) > MAX_NAMED else ""
    return (
        f"{len(overlap)} held-out dialogues are also training dialogues: {', '.join(named)}{rest}; expected no overlap: "
        "remove them from one of the files, or set dialogues.on_overlap: keep and be told so in the report"
    )
