"""Training and held-out dialogues: which is which, and which stand in both."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

from .dialogue_order import HEAD_ROLES
from .dialogues import Dialogue, Message, dialogues_digest

MAX_NAMED = 10
"""Dialogues named in one message."""
SHINGLE_WORDS = 3
"""Words in a row that two texts are compared by."""
NEAR_SHARE = 0.8
"""Of the word sequences of two dialogues that both have, in all that either has: from here on they are near-duplicates."""


def said_digest(dialogue: Dialogue, *, by_prompt: bool = False) -> str:
    """Hex SHA-256 of a dialogue's messages, whichever turns are targets: copies under whatever ids have the same.

    Args:
        by_prompt: of the messages before the last answer, so that all answers to one prompt have the same.
    """
    said = _said(dialogue)
    return dialogues_digest([Dialogue("", said[:-1] if by_prompt else said)])


def is_held_out(digest: str, share: float) -> bool:
    """Hold out by the hash of the messages: the split does not depend on the order or the rest of the set.

    Args:
        digest: of `said_digest`.
    """
    return int(digest[:8], 16) / 2**32 < share


class NearDuplicates:
    """Finds dialogues that nearly are held-out ones, which stand in memory.

    Nearly the same are two dialogues that ask the same words last, whatever the answer, and two that share most of their words
    in their order (Jaccard of sequences of three words, 0.8 or more). Case, punctuation and system messages do not count.
    """

    def __init__(self, held_out: Sequence[Dialogue]) -> None:
        self._held_out = held_out
        self._by_question = {_words(_asked(dialogue)): dialogue.id for dialogue in held_out}
        self._shingles = [_shingles(dialogue) for dialogue in held_out]
        self._places: dict[tuple[str, ...], list[int]] = {}
        for number, own in enumerate(self._shingles):
            for shingle in own:
                self._places.setdefault(shingle, []).append(number)

    def of(self, dialogue: Dialogue) -> str | None:
        """The id of the held-out dialogue that this one nearly is; None: it is none."""
        asked = _words(_asked(dialogue))
        if asked and asked in self._by_question:
            return self._by_question[asked]
        own = _shingles(dialogue)
        for number, common in Counter(n for shingle in own for n in self._places.get(shingle, ())).most_common(1):
            if common / (len(own) + len(self._shingles[number]) - common) >= NEAR_SHARE:
                return self._held_out[number].id
        return None


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
