"""Where fields stand in a template's text, found by rendering placeholders: a dialogue in, a Rendered out.

A template may strip white space off a field, leave out an assistant's reasoning (those that hide earlier thoughts do) or
what is said beside a tool call, and rewrite a tool's result; anything else it does to a field is refused, because spans
into the field would then be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import ModelError
from .call_places import place_calls
from .dialogues import Dialogue
from .drafts import SYSTEM, Draft, Slot
from .rendered import Piece, Range, Rendered, Turn
from .template_heads import mark_before_reasoning
from .template_text import TemplateText
from .turn_ends import end_of_turn, with_end

MAX_SKELETONS = 512
"""Sequences of roles whose rendering is kept per template; a longer list would cost memory and save no time."""


@dataclass(frozen=True)
class Skeleton:
    """The template's own texts around the slots that it shows (`shown`: their numbers): one more than there are of those."""

    parts: tuple[str, ...]
    shown: tuple[int, ...]


class Renderer:
    """Renders dialogues under one template, and keeps its text for each sequence of roles."""

    def __init__(self, template: TemplateText) -> None:
        self.template = template
        self._skeletons: dict[tuple[tuple[tuple[str, str], ...], bool], Skeleton] = {}

    @cached_property
    def mark_before_reasoning(self) -> str:
        """As the function of this name."""
        return mark_before_reasoning(self)

    @cached_property
    def end_of_turn(self) -> str:
        """As the function of this name."""
        return end_of_turn(self.template)

    def render(self, dialogue: Dialogue, prompt: bool = False) -> Rendered:
        """Render a dialogue, find its fields, and what a model writes in each turn.

        Raises:
            DialogueError, ModelError: as `find`.
        """
        rendered = self.find(dialogue, prompt)
        mark = self.mark_before_reasoning if any(piece.name == "reasoning" for piece in rendered.pieces) else ""
        if not mark:
            return rendered
        first = {piece.message: piece for piece in reversed(rendered.pieces)}
        turns = tuple(_led(turn, first[turn.message], mark, rendered.text) for turn in rendered.turns)
        return replace(rendered, turns=turns)

    def find(self, dialogue: Dialogue, prompt: bool = False) -> Rendered:
        """Render a dialogue and find its fields and turns; the marks before reasoning are left to `render`.

        Raises:
            DialogueError: the template refuses the dialogue, or does not show a tool call.
            ModelError: the template leaves a field out, repeats, moves or rewrites it.
        """
        draft = Draft(self.template, dialogue, prompt)
        text = draft.write([slot.text for slot in draft.slots])
        skeleton, ranges = self._skeleton(draft), None
        for fresh in (False, True):  # the template may write the date, and midnight may have passed
            if fresh:
                self._skeletons.clear()
                skeleton = self._skeleton(draft)
            ranges = self._match(draft, skeleton, text)
            if ranges is not None:
                break
        shown = [draft.slots[number] for number in skeleton.shown]
        if ranges is None:  # the template's own text depends on a field
            ranges = _find_once([slot.text for slot in shown], text)
        if ranges is None:
            raise self._rewritten(draft, shown, text)
        pieces = tuple(_piece(slot, text, *place) for slot, place in zip(shown, ranges, strict=True))
        if list(skeleton.shown) != sorted(skeleton.shown):  # a system message that moved is context without spans
            pieces = tuple(
                replace(piece, covered=None) if dialogue.messages[piece.message].role in SYSTEM else piece
                for piece in pieces
            )
        hidden = {(slot.message, slot.name) for number, slot in enumerate(draft.slots) if number not in skeleton.shown}
        return self._with_turns(draft, Rendered(text, pieces, (), tuple(sorted(hidden))))

    def _with_turns(self, draft: Draft, rendered: Rendered) -> Rendered:
        dialogue, turns = draft.dialogue, []
        calls, literals = place_calls(self.template, draft, rendered) if draft.calls else ({}, ())
        edges: dict[int, Range] = dict(calls)
        for piece in rendered.pieces:
            start, end = edges.get(piece.message, (piece.start, piece.end))
            edges[piece.message] = min(start, piece.start), max(end, piece.end)
        for number, message in enumerate(dialogue.messages):
            if message.role == "assistant" and number in edges:
                turns.append(Turn(number, *edges[number], calls.get(number)))
        if turns and self.end_of_turn:
            turns = [with_end(turn, rendered, self.end_of_turn) for turn in turns]
        return replace(rendered, turns=tuple(turns), literals=literals)

    def _skeleton(self, draft: Draft) -> Skeleton:
        key = tuple((draft.dialogue.messages[slot.message].role, slot.name) for slot in draft.slots), draft.prompt
        skeleton = self._skeletons.get(key) if draft.is_plain else None
        if skeleton is None:
            marks = draft.marks
            text = draft.write(marks)
            shown = tuple(
                number for number, slot in enumerate(draft.slots) if self._is_shown(draft, slot, marks[number], text)
            )
            shown = tuple(sorted(shown, key=lambda number: text.index(marks[number])))
            if not draft.is_in_order(shown):
                raise self._moved(draft)
            places = [text.index(marks[number]) for number in shown]
            ends = [start + len(marks[number]) for start, number in zip(places, shown, strict=True)]
            parts = tuple(text[a:b] for a, b in zip([0, *ends], [*places, len(text)], strict=True))
            skeleton = Skeleton(parts, shown)
            if draft.is_plain:
                if len(self._skeletons) >= MAX_SKELETONS:
                    self._skeletons.clear()
                self._skeletons[key] = skeleton
        return skeleton

    def _is_shown(self, draft: Draft, slot: Slot, mark: str, text: str) -> bool:
        count, message = text.count(mark), draft.dialogue.messages[slot.message]
        may_be_hidden = slot.name == "reasoning" or bool(message.tool_calls)
        if count == 1 or (count == 0 and may_be_hidden):
            return count == 1
        what = "" if slot.name == "content" else "the reasoning of "
        raise ModelError(
            f"{self.template.name}: the chat template shows {what}message {slot.message + 1} of "
            f"{len(draft.dialogue.messages)} ({message.role}) {count} times, expected once (dialogue "
            f"{draft.dialogue.id!r}); set `template` to `pivot` or to a Jinja file which does"
        )

    def _match(self, draft: Draft, skeleton: Skeleton, text: str) -> list[Range] | None:
        """Where the shown slots stand, if the text is the skeleton's; None if it is not."""
        shown: list[str | None] = []
        for place, number in enumerate(skeleton.shown):
            slot = draft.slots[number]
            stripped = slot.text == slot.text.strip()
            shown.append(slot.text if stripped else self._stripped(draft, skeleton, place))
        ranges = _interleave(skeleton.parts, shown, text)
        if ranges is None and any(message.role == "tool" for message in draft.dialogue.messages):
            for place, number in enumerate(skeleton.shown):
                if draft.dialogue.messages[draft.slots[number].message].role == "tool":
                    shown[place] = None
            ranges = _interleave(skeleton.parts, shown, text)
        return ranges

    def _stripped(self, draft: Draft, skeleton: Skeleton, place: int) -> str:
        """What the template makes of one slot's text, found by rendering it among placeholders; itself if that fails."""
        number = skeleton.shown[place]
        slot, marks = draft.slots[number], draft.marks
        text = draft.write([*marks[:number], slot.text, *marks[number + 1 :]])
        others = [marks[shown] for shown in skeleton.shown]
        before = "".join(part + mark for part, mark in zip(skeleton.parts, [*others[:place], ""], strict=False))
        after = "".join(
            mark + part for part, mark in zip(skeleton.parts[place + 1 :], ["", *others[place + 1 :]], strict=True)
        )
        if text.startswith(before) and text.endswith(after) and len(before) + len(after) <= len(text):
            shown = text[len(before) : len(text) - len(after)]
            if shown in slot.text and shown.strip() == slot.text.strip():
                return shown
        return slot.text

    def _moved(self, draft: Draft) -> ModelError:
        roles = ", ".join(message.role for message in draft.dialogue.messages)
        return ModelError(
            f"{self.template.name}: the chat template puts the messages {roles} into another order, expected theirs "
            f"(dialogue {draft.dialogue.id!r}); set `template` to `pivot` or to a Jinja file that keeps it"
        )

    def _rewritten(self, draft: Draft, shown: list[Slot], text: str) -> ModelError:
        lost = [slot for slot in shown if slot.text.strip() not in text]
        which = "a message"
        if lost:
            role = draft.dialogue.messages[lost[0].message].role
            which = f"message {lost[0].message + 1} ({role}: {lost[0].text[:60]!r})"
        return ModelError(
            f"dialogue {draft.dialogue.id!r}: the chat template of {self.template.name} rewrites {which}, expected each "
            "text as it is or stripped of white space; set `template` to `pivot` or to a Jinja file that does so"
        )


def _interleave(parts: tuple[str, ...], shown: list[str | None], text: str) -> list[Range] | None:
    """Where the texts stand if `text` is parts and texts in turn; None if it is not.

    Args:
        shown: one less than there are parts; None for a text that is not known: it ends where the next part begins.
    """
    position, ranges = 0, []
    for number, one in enumerate(shown):
        if not text.startswith(parts[number], position):
            return None
        start = position + len(parts[number])
        if one is None:
            following = parts[number + 1]
            position = text.find(following, start) if following else -1
        else:
            position = start + len(one) if text.startswith(one, start) else -1
        if position < 0:
            return None
        ranges.append((start, position))
    return ranges if text[position:] == parts[-1] else None


def _find_once(contents: list[str], text: str) -> list[Range] | None:
    """Where the texts stand if each, whole or stripped, is found exactly once and in order; None if not."""
    ranges: list[Range] = []
    for content in contents:
        whole = next((form for form in (content, content.strip()) if form and form in text), "")
        start = text.find(whole)
        if not whole or start != text.rfind(whole) or (ranges and start < ranges[-1][1]):
            return None
        ranges.append((start, start + len(whole)))
    return ranges


def _led(turn: Turn, first: Piece, mark: str, text: str) -> Turn:
    """The turn with the mark before its reasoning, which the model writes."""
    is_led = first.name == "reasoning" and first.start == turn.start and text.endswith(mark, 0, turn.start)
    return replace(turn, start=turn.start - len(mark), is_led=True) if is_led else turn


def _piece(slot: Slot, text: str, start: int, end: int) -> Piece:
    """The slot at its place; what it does not show of its text is white space at the ends."""
    shown, content = text[start:end], slot.text
    if not shown.strip():
        first = content.find(shown)
    else:
        first = len(content) - len(content.lstrip()) - (len(shown) - len(shown.lstrip()))
    is_covered = content[first : first + len(shown)] == shown and (bool(shown.strip()) or not content.strip())
    covered = (slot.offset + first, slot.offset + first + len(shown)) if is_covered and first >= 0 else None
    return Piece(slot.field, slot.message, slot.name, start, end, covered)
