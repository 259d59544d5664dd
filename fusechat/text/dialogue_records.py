"""The records: a dialogue, its messages, their tool calls; the fields that spans point into.

A field is a text that a template shows as it is: the reasoning or the content of a message. A tool call is no field,
because each template writes it in a form of its own. What a model reads is plain Python objects
(`Message.to_template_message`); what stands in a file is `Dialogue.to_row`. Knows nothing about files or tokens.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .json_object import JsonObject, json_text

THINK, END_THINK = "<think>", "</think>"
"""Marks around a thought that stands within a content."""


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool: its name, the arguments (a JSON object) and the id that its result names; "": none."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=JsonObject)
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", JsonObject(self.arguments))

    def to_template_call(self) -> dict[str, Any]:
        """The call in OpenAI's form, its arguments as an object."""
        called = {"name": self.name, "arguments": JsonObject(self.arguments).value}
        return {**({"id": self.id} if self.id else {}), "type": "function", "function": called}


@dataclass(frozen=True)
class Message:
    """One turn. `role`: `system`, `developer`, `user`, `assistant` or `tool`.

    `reasoning` and `tool_calls` are an assistant's; `tool_call_id` says which call a tool's message answers; `name` is
    who speaks (the tool, say). `is_trained`: whether an assistant's turn is a target or only context; says nothing
    about other roles.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    is_trained: bool = True

    def to_template_message(self) -> dict[str, Any]:
        """The message as chat templates read it: OpenAI's form with `reasoning_content`, and only keys with a value.

        `content` is there always, because templates add it to texts.
        """
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        for key, value in (
            ("reasoning_content", self.reasoning),
            ("tool_calls", [call.to_template_call() for call in self.tool_calls]),
            ("tool_call_id", self.tool_call_id),
            ("name", self.name),
        ):
            if value:
                message[key] = value
        return message

    @property
    def num_bytes(self) -> int:
        """Bytes of reasoning, content and tool calls; a call counts as its name and the JSON of its arguments."""
        calls = "".join(call.name + json_text(call.arguments) for call in self.tool_calls)
        return len((self.reasoning + self.content + calls).encode())

    def to_row(self) -> dict[str, Any]:
        """The message as `fusechat.text.message_reading` reads it."""
        row = self.to_template_message()
        if self.reasoning:
            row["reasoning"] = row.pop("reasoning_content")
        return row if self.is_trained else {**row, "train": False}


@dataclass(frozen=True)
class Field:
    """A text of a dialogue that templates show: of which message (0 is the first), which of its texts, and the text."""

    message: int
    name: Literal["reasoning", "content"]
    text: str


@dataclass(frozen=True)
class Dialogue:
    """A list of messages.

    `kind` groups dialogues in reports. `tools`: the JSON objects that say which tools there are, in OpenAI's form.
    `template_arguments`: a JSON object of what the chat template is told beside messages and tools. `author`: who wrote
    the answers. All of these may be empty.
    """

    id: str
    messages: tuple[Message, ...]
    kind: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=JsonObject)
    author: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tuple(map(JsonObject, self.tools)))
        object.__setattr__(self, "template_arguments", JsonObject(self.template_arguments))

    @property
    def fields(self) -> tuple[Field, ...]:
        """Message by message: its reasoning if it has any, then its content, which may be empty."""
        fields: list[Field] = []
        for number, message in enumerate(self.messages):
            if message.reasoning:
                fields.append(Field(number, "reasoning", message.reasoning))
            fields.append(Field(number, "content", message.content))
        return tuple(fields)

    @property
    def field_bytes(self) -> bytes:
        """All fields in UTF-8, one after the other: what spans point into."""
        return "".join(one.text for one in self.fields).encode()

    @property
    def field_offsets(self) -> tuple[int, ...]:
        """Where each of `fields` begins in `field_bytes`, in bytes."""
        offsets, position = [], 0
        for one in self.fields:
            offsets.append(position)
            position += len(one.text.encode())
        return tuple(offsets)

    @property
    def exchange_ends(self) -> tuple[int, ...]:
        """The number of messages up to the end of each exchange: a user's turn and all that is done about it."""
        starts = [number for number, message in enumerate(self.messages) if message.role == "user"]
        return (*starts[1:], len(self.messages)) if starts else (len(self.messages),)

    @property
    def is_trained(self) -> bool:
        """Whether any of the assistant's turns is a target."""
        return any(message.is_trained for message in self.messages if message.role == "assistant")

    @property
    def target_bytes(self) -> int:
        """Bytes of what the assistant says in the turns that are targets."""
        return sum(one.num_bytes for one in self.messages if one.role == "assistant" and one.is_trained)

    @property
    def template_tools(self) -> list[dict[str, Any]]:
        """The tools as plain objects."""
        return [JsonObject(tool).value for tool in self.tools]

    @property
    def template_keywords(self) -> dict[str, Any]:
        """The template's arguments as a plain object."""
        return JsonObject(self.template_arguments).value

    def to_row(self) -> dict[str, Any]:
        """The dialogue as a row of a JSON lines file, which `fusechat.text.dialogue_rows` reads back to an equal one."""
        row = {"id": self.id, "kind": self.kind, "messages": [message.to_row() for message in self.messages]}
        extras = {
            "tools": self.template_tools, "template_arguments": self.template_keywords, "author": self.author,
        }  # fmt: skip
        return {**row, **{key: value for key, value in extras.items() if value}}


def dialogues_digest(dialogues: Iterable[Dialogue]) -> str:
    """Hex SHA-256 of all that the dialogues hold, in order. Lengths are hashed too.

    Of a dialogue of roles and contents alone those are hashed; of another one its row as well, which makes the number
    of texts odd, so that the two never meet.
    """
    digest = hashlib.sha256()
    for dialogue in dialogues:
        texts = [dialogue.id, dialogue.kind]
        for message in dialogue.messages:
            texts += [message.role, message.content]
        plain = Dialogue(dialogue.id, tuple(Message(m.role, m.content) for m in dialogue.messages), dialogue.kind)
        if dialogue != plain:
            texts.append(row_text(dialogue))
        digest.update(len(texts).to_bytes(8, "little"))
        for text in map(str.encode, texts):
            digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def row_text(dialogue: Dialogue) -> str:
    """The dialogue as a line of a JSON lines file, without the line's end."""
    return json.dumps(dialogue.to_row(), ensure_ascii=False)


def split_thought(content: str) -> tuple[str, str]:
    """A content with `<think>...</think>` at its head as reasoning and content; ("", content) if none stands there.

    White space around the thought, and line ends before the rest, belong to the marks and to neither text.
    """
    head = content.lstrip()
    thought, mark, rest = head.removeprefix(THINK).partition(END_THINK)
    if not (head.startswith(THINK) and mark):
        return "", content
    return thought.strip(), rest.lstrip("\n")
