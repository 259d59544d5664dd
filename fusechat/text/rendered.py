"""The records of rendering: how a template is used, and where the fields of a dialogue stand in the text it makes.

Knows nothing about how they are found or about token ids.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from .json_object import JsonObject

Range = tuple[int, int]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template as a model of a run uses it.

    `arguments`: what the template is told beside messages and tools. `date`: the day that it writes as today's
    (YYYY-MM-DD); "": the clock's. `prompt`: what stands before an answer that the model writes: what the template puts
    there for a generation, or what stands there in a trained dialogue, where the two differ. `reasons`: answers begin
    with reasoning.
    """

    text: str
    arguments: Mapping[str, Any] = field(default_factory=JsonObject)
    date: str = ""
    prompt: Literal["template", "trained"] = "template"
    reasons: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", JsonObject(self.arguments))

    @classmethod
    def of(cls, template: ChatTemplate | str) -> ChatTemplate:
        """The template itself, or the text of one that is told nothing."""
        return cls(template) if isinstance(template, str) else template

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> ChatTemplate:
        """The template that tokens were made under."""
        return cls(
            attributes["template"], attributes["template_arguments"], attributes["date"], attributes["prompt"],
            attributes["reasons"],
        )  # fmt: skip

    @property
    def keywords(self) -> dict[str, Any]:
        """What `apply_chat_template` is told beside messages and tools."""
        told = JsonObject(self.arguments).value
        if self.date:
            told["strftime_now"] = datetime.datetime.fromisoformat(self.date).strftime
        return told

    def to_attributes(self) -> dict[str, Any]:
        """What `from_attributes` reads."""
        return {
            "template": self.text,
            "template_arguments": JsonObject(self.arguments).value,
            "date": self.date,
            "prompt": self.prompt,
            "reasons": self.reasons,
        }


@dataclass(frozen=True)
class Piece:
    """A field, or one side of a thought within a content, that stands in a text.

    `field`: its number among `Dialogue.fields`, whose characters `covered` it shows; `covered` is None where the template
    rewrites a text that is only context (a tool's result as JSON). `start`, `end`: where it stands, characters.
    """

    field: int
    message: int
    name: Literal["reasoning", "content"]
    start: int
    end: int
    covered: Range | None


@dataclass(frozen=True)
class Turn:
    """An assistant's message in a text: [start, end) holds all that the model writes but the end of its turn.

    `calls`: where its tool calls stand; None: it has none. `is_led`: it begins with a mark that the model writes before
    its reasoning. `until`: where its end of turn ends, for templates that write several control tokens there; None: one.
    """

    message: int
    start: int
    end: int
    calls: Range | None = None
    is_led: bool = False
    until: int | None = None

    @property
    def edges(self) -> tuple[int, ...]:
        """All its places."""
        return (self.start, self.end, *(self.calls or ()), *(() if self.until is None else (self.until,)))


@dataclass(frozen=True)
class Rendered:
    """A dialogue under a template.

    `pieces`: in the order of the text. `hidden`: the texts that the template does not show, by message and field name.
    `literals`: further ranges, all of the template's side, in which the text of a control token is only text (an argument
    of a tool call that holds one).
    """

    text: str
    pieces: tuple[Piece, ...]
    turns: tuple[Turn, ...] = ()
    hidden: tuple[tuple[int, str], ...] = ()
    literals: tuple[Range, ...] = ()

    @cached_property
    def said(self) -> tuple[Range, ...]:
        """The ranges whose text is never a control token, in order; empty ones stand at further edges of turns."""
        pieces = tuple((piece.start, piece.end) for piece in self.pieces)
        known = {edge for piece in pieces for edge in piece}
        edges = {edge for turn in self.turns for edge in turn.edges}
        if self.literals or not edges <= known:
            return tuple(sorted([*pieces, *self.literals, *((edge, edge) for edge in edges - known)]))
        return pieces

    @property
    def contents(self) -> tuple[str, ...]:
        """What stands in the ranges of `said`."""
        return tuple(self.text[start:end] for start, end in self.said)

    @property
    def template_parts(self) -> tuple[str, ...]:
        """The template's own texts before, between and after the ranges of `said`: one more than there are of those."""
        starts, ends = [start for start, _ in self.said], [end for _, end in self.said]
        return tuple(self.text[a:b] for a, b in zip([0, *ends], [*starts, len(self.text)], strict=True))

    def before_answer(self) -> Rendered:
        """The text up to where the last turn begins, for a model that is to write it."""
        start = self.turns[-1].start
        pieces = tuple(piece for piece in self.pieces if piece.end <= start)
        literals = tuple(one for one in self.literals if one[1] <= start)
        return Rendered(self.text[:start], pieces, (), (), literals)
