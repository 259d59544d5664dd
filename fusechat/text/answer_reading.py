"""What a model wrote, as a message: token ids in; reasoning, content and tool calls, each in its field, out.

The way back from a template. How it marks reasoning, and how it writes a tool call, is probed with a message that is known;
nothing is looked up by a template's name. What cannot be read back is refused, and never kept as loose text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import DialogueError, ModelError
from ..storage.tokens import turn_end_ids
from .call_places import TAG
from .chat_template import renderer_of
from .dialogues import Dialogue, Message, ToolCall
from .message_reading import read_tool_calls
from .rendered import ChatTemplate
from .template_heads import ANSWER, QUESTION, AnswerMarks, answer_marks
from .tokenization import tokenize_dialogue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = Dialogue("probe of an answer", (QUESTION, Message("assistant", ANSWER)))
CALL_ID = "probe0001"
"""Nine characters, which some templates insist on."""
REPLACEMENT = "\ufffd"
"""What tokenizers put in the place of bytes that are no UTF-8."""
ARGUMENT_KEYS = ("arguments", "parameters")
"""Where templates put a call's arguments."""


@dataclass(frozen=True)
class CallForm:
    """How a template writes tool calls. `head`: its text before the first, "": none; `is_json`: each is a JSON object."""

    head: str
    is_json: bool


class AnswerReader:
    """Reads answers of one model under its template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._renderer = renderer_of(tokenizer, template)
        self._call_forms: dict[str, CallForm] = {}

    @cached_property
    def stop_ids(self) -> list[int]:
        """Ids that end an assistant's turn under the template; empty where it ends none."""
        tokenized = tokenize_dialogue(self._tokenizer, self._template, PROBE)
        return turn_end_ids(tokenized.token_ids, tokenized.is_scored, tokenized.field)

    @cached_property
    def _controls(self) -> list[str]:
        """The texts of the tokenizer's special tokens."""
        added = [token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        return [token for token in dict.fromkeys([*added, *self._tokenizer.all_special_tokens]) if token]

    @cached_property
    def _marks(self) -> AnswerMarks:
        return answer_marks(self._renderer)

    def read(self, token_ids: list[int], asked: Dialogue) -> Message:
        """The message that an answer is.

        Args:
            token_ids: what the model wrote, without what ended it.
            asked: the messages before it, with the tools that it may call.
        Raises:
            DialogueError: it says nothing, its reasoning does not end, it goes on behind a control token, or a tool call
                cannot be read back.
        """
        text = str(self._tokenizer.decode(token_ids, skip_special_tokens=False))
        if ending := self._renderer.end_of_turn:
            text = text.partition(ending[: ending.rindex(TAG.findall(ending)[-1])])[0]
        reasoning, text = self._parted(text)
        content, calls = self._without_calls(text, asked)
        message = Message("assistant", self._plain(content), self._plain(reasoning), calls)
        if not (message.content or message.tool_calls):
            raise DialogueError("it says nothing")
        if REPLACEMENT in message.content + message.reasoning:
            raise DialogueError("it holds bytes that are no text")
        return message

    def _parted(self, text: str) -> tuple[str, str]:
        """(reasoning, the rest): by the template's marks, or by those of a thought within a content."""
        marks = self._marks
        opened, before, end = text.lstrip(), text, ""
        if marks.end in text:
            before, end, text = text.partition(marks.end)
        is_open = marks.is_opened or (marks.start and opened.startswith(marks.start))
        if not end:
            if is_open:
                raise DialogueError("its reasoning does not end")
            return "", opened.removeprefix(marks.plain_head) if marks.plain_head else text
        return before.strip().removeprefix(marks.start).strip(), text

    def _without_calls(self, text: str, asked: Dialogue) -> tuple[str, tuple[ToolCall, ...]]:
        """(content, tool calls) of what is not reasoning."""
        if not asked.tools:
            return text, ()
        form = self._form(asked)
        if form.head and form.head not in text:
            return text, ()
        content, _, written = text.partition(form.head) if form.head else ("", "", text)
        objects = list(_json_objects(written)) if form.is_json else []
        calls = [one for one in objects if isinstance(one.get("name"), str)]
        if not form.head and (not calls or not text.lstrip().startswith("{")):
            return text, ()
        if not calls:
            raise DialogueError("it calls a tool in a form that cannot be read back")
        names = {tool["function"]["name"] for tool in asked.template_tools}
        if unknown := [call["name"] for call in calls if call["name"] not in names]:
            raise DialogueError(f"it calls {unknown[0]!r}, which is none of the tools")
        return content, read_tool_calls([_call(one) for one in calls], "tool calls")

    def _form(self, asked: Dialogue) -> CallForm:
        """How the template writes calls of these tools; probed once for each set of them."""
        key = json.dumps(asked.template_tools, sort_keys=True)
        if key not in self._call_forms:
            name = asked.template_tools[0]["function"]["name"]
            call = ToolCall(name, {"zq": "1z"}, CALL_ID)
            probe = Dialogue(
                "probe of a call", (QUESTION, Message("assistant", "", tool_calls=(call,))), tools=asked.tools
            )
            self._call_forms[key] = self._probed_form(probe, name)
        return self._call_forms[key]

    def _probed_form(self, probe: Dialogue, name: str) -> CallForm:
        try:
            rendered = self._renderer.render(probe)
        except (DialogueError, ModelError):
            return CallForm("", False)  # the template shows no calls, so a model cannot have been taught to write them
        place = rendered.turns[-1].calls
        written = rendered.text[slice(*place)] if place else ""
        start = written.find("{")
        is_json = any(one.get("name") == name for one in _json_objects(written))
        if not is_json:
            tags = TAG.findall(written)
            return CallForm(tags[0] if tags else written[:1], False)
        return CallForm(written[:start].strip().rstrip("[").strip(), True)

    def _plain(self, text: str) -> str:
        """The text without control tokens at its end and without white space around it.

        Raises:
            DialogueError: a control token stands within it.
        """
        controls = self._controls
        text = text.strip()
        while ended := next((token for token in controls if text.endswith(token)), None):
            text = text.removesuffix(ended).rstrip()
        while begun := next((token for token in controls if text.startswith(token)), None):
            text = text.removeprefix(begun).lstrip()
        if within := next((token for token in controls if token in text), None):
            raise DialogueError(f"it goes on behind the control token {within!r}")
        return text


def _call(written: dict[str, Any]) -> dict[str, Any]:
    arguments: Any = next((written[key] for key in ARGUMENT_KEYS if key in written), {})
    own_id = written.get("id")
    return {"name": written["name"], "arguments": arguments, **({"id": own_id} if isinstance(own_id, str) else {})}


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects that stand in a text, one after the other; what stands within one is not looked at."""
    decoder, position = json.JSONDecoder(), text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict):
            yield value
        position = text.find("{", end)
