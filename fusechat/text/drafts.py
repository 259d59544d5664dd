"""A dialogue as one template is to show it: the texts that placeholders can stand for, and messages with any texts there.

Knows nothing about where the texts stand in what the template writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .dialogues import Dialogue, Message
from .template_text import TemplateText

SYSTEM = ("system", "developer")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


@dataclass(frozen=True)
class Slot:
    """A text that a placeholder can stand for: a field, or one side of a thought within a content.

    `offset`: where it begins in its field, characters.
    """

    field: int
    message: int
    name: Literal["reasoning", "content"]
    text: str
    offset: int = 0


class Draft:
    """A dialogue as one template is to show it: its slots, and its messages with any texts in them."""

    def __init__(self, template: TemplateText, dialogue: Dialogue, prompt: bool = False) -> None:
        self.template, self.dialogue, self.prompt = template, dialogue, prompt
        self.slots: list[Slot] = []
        self.is_plain = not (dialogue.tools or dialogue.template_arguments)
        """Whether the template's text depends on roles alone."""
        self.calls = False
        field = 0
        for number, message in enumerate(dialogue.messages):
            if message.reasoning:
                self._add(Slot(field, number, "reasoning", message.reasoning), True)
                field += 1
            self._add_content(field, number, message)
            field += 1
            if message.tool_calls or message.tool_call_id or message.name:
                self.is_plain = False
                self.calls = self.calls or bool(message.tool_calls)

    @property
    def marks(self) -> list[str]:
        """Placeholders, one for each slot; none stands within another or in the template."""
        return [f"{self.template.mark}{number}z" for number in range(len(self.slots))]

    def is_in_order(self, shown: Sequence[int]) -> bool:
        """Whether slots in the order of a text are in the dialogue's, system messages aside: those may stand anywhere."""
        others = [number for number in shown if self.dialogue.messages[self.slots[number].message].role not in SYSTEM]
        return others == sorted(others)

    def write(self, texts: list[str]) -> str:
        """The template's text with these texts in the slots."""
        return self.template.write(self.dialogue, self.messages(texts), self.prompt)

    def messages(self, texts: list[str]) -> list[dict[str, object]]:
        """The messages with these texts in the slots."""
        filled: list[dict[str, str]] = [{"content": message.content} for message in self.dialogue.messages]
        for slot, text in zip(self.slots, texts, strict=True):
            if slot.name == "content" and "thought" in filled[slot.message]:
                text = f"<think>{filled[slot.message]['thought']}</think>{text}"
            elif slot.name == "reasoning" and not self.dialogue.messages[slot.message].reasoning:
                filled[slot.message] |= {"thought": text, "content": f"<think>{text}</think>"}
                continue
            filled[slot.message][slot.name] = text
        return [
            self.template.message_of(message, one)
            for message, one in zip(self.dialogue.messages, filled, strict=True)
        ]  # fmt: skip

    def _add(self, slot: Slot, may_be_blank: bool) -> None:
        """Templates ask whether a text is there, so that no placeholder may stand for one that is not."""
        if slot.text.strip() or (slot.text and may_be_blank):
            self.slots.append(slot)

    def _add_content(self, field: int, number: int, message: Message) -> None:
        alone = not (message.reasoning or message.tool_calls)
        if message.role == "assistant" and not message.reasoning and "<think>" in message.content:
            parts = _THOUGHT.fullmatch(message.content)
            if parts and parts[1].strip() and self.template.takes_out_thoughts:
                self._add(Slot(field, number, "reasoning", parts[1], parts.start(1)), True)
                self._add(Slot(field, number, "content", parts[2], parts.start(2)), False)
                return
        self._add(Slot(field, number, "content", message.content), alone)
