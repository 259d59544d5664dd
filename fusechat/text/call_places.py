"""Where a template writes the tool calls of a turn: what it writes for the calls and would not write for a content.

Each template has a form of its own for calls (JSON, XML, channels), so they are found by what they change: the dialogue
up to the turn is rendered with its calls, and again with a placeholder as content in their stead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..errors import DialogueError
from .dialogues import Message
from .drafts import Draft
from .rendered import Range, Rendered
from .template_text import TemplateText

TAG = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,40}\]")
"""What looks like a control token; a call neither begins nor ends inside one."""
_LAST_TAG = re.compile(rf"(?:{TAG.pattern})\s*\Z")


def place_calls(template: TemplateText, draft: Draft, rendered: Rendered) -> tuple[dict[int, Range], tuple[Range, ...]]:
    """Find the tool calls of each message that has some.

    Returns:
        where they stand, by message, characters; and the ranges of their arguments that hold the text of a control token.
    Raises:
        DialogueError: the template does not show a call, or it cannot be told where.
    """
    places: dict[int, Range] = {}
    literals: list[Range] = []
    position = 0
    for number, message in enumerate(draft.dialogue.messages):
        if not message.tool_calls:
            continue
        position = max([position, *(piece.end for piece in rendered.pieces if piece.message < number)])
        limit = min([len(rendered.text), *(piece.start for piece in rendered.pieces if piece.message > number)])
        written, start = _find_written(draft, number, rendered.text, (position, limit))
        missing = [
            call.name
            for call in message.tool_calls
            if call.name not in written and not (call.id and call.id in written)  # some write the id alone
        ]
        if missing:
            raise DialogueError(
                f"dialogue {draft.dialogue.id!r}: the chat template of {template.name} does not show the tool call "
                f"{missing[0]!r} of message {number + 1}, expected all calls; set `template` of this model to `pivot` or "
                "to a Jinja file that shows them"
            )
        if start < 0:
            raise DialogueError(
                f"dialogue {draft.dialogue.id!r}: the chat template of {template.name} writes the tool calls of message "
                f"{number + 1} in another way when more messages follow, expected one way; set `template` of this model "
                "to `pivot` or to another Jinja file"
            )
        places[number] = start, start + len(written)
        position = start + len(written)
        literals += _literals(message, rendered.text, places[number])
    return places, tuple(literals)


def _find_written(draft: Draft, number: int, text: str, within: Range) -> tuple[str, int]:
    """The template's text for the calls of a message, and where it stands in `within`; -1: nowhere."""
    written, after = _written(draft, number)
    start = text.find(written, *within)
    if number + 1 < len(draft.dialogue.messages) and not (
        start >= 0 and after and text.startswith(after, start + len(written))
    ):  # some templates write the last turn of a dialogue otherwise
        longer = _written_before_more(draft, number)
        place = text.find(longer, *within) if longer else -1
        if place >= 0 and (start < 0 or (place <= start and place + len(longer) > start + len(written))):
            return longer, place
    return written, start


def _written_before_more(draft: Draft, number: int) -> str:
    """As `_written`, with a question after the calls; "": the template takes none there."""
    try:
        return _written(draft, number, (Message("user", "And then?"),))[0]
    except DialogueError:
        return ""


def _written(draft: Draft, number: int, more: tuple[Message, ...] = ()) -> tuple[str, str]:
    """The template's text for the calls of a message, without what ends the turn, and what stands after it.

    Args:
        more: messages that follow the calls.
    """
    message = draft.dialogue.messages[number]
    until = Draft(draft.template, replace(draft.dialogue, messages=draft.dialogue.messages[: number + 1]))
    with_calls = _with_more(until, more)
    answer = replace(message, tool_calls=(), content=message.content.strip() or f"{draft.template.mark}answer")
    instead = Draft(draft.template, replace(until.dialogue, messages=(*until.dialogue.messages[:-1], answer)))
    without = _with_more(instead, more)
    start, end = _difference(with_calls, without)
    # With an answer in their stead a template may hide the thought before the calls: they begin behind it all the same.
    places = [(with_calls.find(mark), len(mark)) for mark in until.marks]
    start = max([start, *(place + length for place, length in places if 0 <= place < len(with_calls) - end)])
    written, other = with_calls[start : len(with_calls) - end], without[start : len(without) - end]
    own_end = other.rpartition(instead.marks[-1])[2]
    ending = _LAST_TAG.search(written)
    if own_end.strip() and ending:  # such a turn ends in another way than one of contents
        written = written[: ending.start()]
    return (written if written.strip() else ""), with_calls[start + len(written) :].rstrip()


def _with_more(until: Draft, more: tuple[Message, ...]) -> str:
    """The template's text with placeholders in all slots, and with more messages as they are."""
    messages = [*until.messages(until.marks), *(until.template.message_of(message) for message in more)]
    return until.template.write(replace(until.dialogue, messages=(*until.dialogue.messages, *more)), messages)


def _difference(one: str, other: str) -> tuple[int, int]:
    """How many characters both texts share at the front and at the back; no tag is cut in two."""
    back = shared(one[::-1], other[::-1])
    for text in (one, other):
        for tag in TAG.finditer(text):
            if tag.start() < len(text) - back < tag.end():
                back = len(text) - tag.end()
    front = shared(one[: len(one) - back], other[: len(other) - back])
    for text in (one, other):
        for tag in TAG.finditer(text):
            if tag.start() < front < tag.end():
                front = tag.start()
    return front, back


def shared(one: str, other: str) -> int:
    """How many characters two texts share at the front."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _literals(message: Message, text: str, place: Range) -> Iterator[Range]:
    """Where the words of a call that look like control tokens stand."""
    end = place[0]
    for leaf in _leaves([[call.name, call.arguments] for call in message.tool_calls]):
        if TAG.search(leaf):
            for form in (leaf, json.dumps(leaf, ensure_ascii=False)[1:-1], json.dumps(leaf)[1:-1]):
                start = text.find(form, end, place[1])
                if start >= 0:
                    end = start + len(form)
                    yield start, end
                    break


def _leaves(value: Any) -> Iterator[str]:
    """All texts of a JSON value, keys too, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif hasattr(value, "items"):
        for key, item in value.items():
            yield from (key, *_leaves(item))
