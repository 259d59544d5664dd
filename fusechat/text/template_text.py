"""A template at work: messages in, the text that the template writes for them out; and what a template does with them.

Templates differ in the key under which they look for reasoning, in whether they want a call's arguments as an object or
as JSON text, and in whether they take a thought out of a content. Each of these is probed once, when it first matters.
Knows nothing about where fields stand in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import DialogueError, ModelError
from .dialogues import Dialogue, Message, ToolCall
from .json_object import JsonObject
from .rendered import ChatTemplate
from .template_process import TemplateFault, TemplateSyntax, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Where templates look for a message's reasoning."""


class TemplateText:
    """A template bound to a tokenizer, whose special tokens it may name."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self.template = template
        self.name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        self.mark = "zqcontent"
        """Beginning of a placeholder that does not stand in the template."""
        while self.mark in template.text:
            self.mark += "q"
        self._arguments: dict[str, Any] = JsonObject(template.arguments).value
        named = [key for key in REASONING_KEYS if re.search(rf"\b{key}\b", template.text)]
        self._reasoning_keys = named or [REASONING_KEYS[0]]

    def write(self, dialogue: Dialogue, messages: Sequence[dict[str, Any]] | None = None, prompt: bool = False) -> str:
        """The template's text for messages of a dialogue.

        Args:
            messages: as `message_of` makes them; None: all of the dialogue's.
            prompt: add what the template puts before an answer.
        Raises:
            DialogueError: the template refuses them.
            ModelError: it is not Jinja.
        """
        if messages is None:
            messages = [self.message_of(message) for message in dialogue.messages]
        try:
            text = self._apply(dialogue, messages, prompt)
        except TemplateSyntax as error:
            raise ModelError(
                f"{self.name}: line {error.line} of the chat template is not Jinja ({error}); correct it"
            ) from None
        except TemplateFault as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DialogueError(
                f"dialogue {dialogue.id!r}: the chat template of {self.name} refuses the roles {roles} "
                f"({error}); set `template` of this model to `pivot` or to a Jinja file that takes them"
            ) from None
        return text

    def message_of(self, message: Message, texts: dict[str, str] | None = None) -> dict[str, Any]:
        """A message as this template reads it; `texts`: its content and reasoning where others are to stand there."""
        if not (message.reasoning or message.tool_calls or message.tool_call_id or message.name):
            return {"role": message.role, "content": texts["content"] if texts else message.content}
        made = message.to_template_message()
        if made.pop("reasoning_content", None):
            reasoning = texts.get("reasoning", message.reasoning) if texts else message.reasoning
            made |= dict.fromkeys(self._reasoning_keys, reasoning)
        if texts:
            made["content"] = texts["content"]
        if message.tool_calls and self._takes_json_text:
            for call in made["tool_calls"]:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return made

    @cached_property
    def takes_out_thoughts(self) -> bool:
        """Whether a `<think>...</think>` at the head of an assistant's content is reasoning to this template."""
        user, thought, said = Message("user", "Hello."), f"{self.mark}1z", f"{self.mark}2z"
        whole = Message("assistant", f"<think>\n{thought}\n</think>\n\n{said}")
        parted = Message("assistant", said, reasoning=thought)
        last = self._probe(user, whole)
        if last is not None and thought in last and last == self._probe(user, parted):
            return True
        earlier = self._probe(user, whole, user, Message("assistant", "Good day."))
        return any(text is not None and said in text and thought not in text for text in (last, earlier))

    @cached_property
    def _takes_json_text(self) -> bool:
        """Whether the arguments of a call have to be JSON text: an object is refused, or shown as Python writes it."""
        argument = f"{self.mark}1z"
        call = Message("assistant", "", tool_calls=(ToolCall("probe", {argument: "a"}, "probe0001"),))
        asked = [self.message_of(Message("user", "Hello.")), call.to_template_message()]
        as_object = self._try(asked)
        if as_object is not None and f"{{'{argument}'" not in as_object:
            return False
        asked[1]["tool_calls"][0]["function"]["arguments"] = json.dumps({argument: "a"})
        as_text = self._try(asked)
        return as_text is not None and argument in as_text

    def _probe(self, *messages: Message) -> str | None:
        return self._try([self.message_of(message) for message in messages])

    def _try(self, messages: list[dict[str, Any]]) -> str | None:
        """The text, or None where the template refuses it."""
        try:
            return self._apply(Dialogue("probe of the template", ()), messages, False)
        except (TemplateSyntax, TemplateFault):
            return None

    def _apply(self, dialogue: Dialogue, messages: Sequence[dict[str, Any]], prompt: bool) -> str:
        arguments = (
            {**self._arguments, **dialogue.template_keywords} if dialogue.template_arguments else self._arguments
        )
        variables = {
            **getattr(self._tokenizer, "special_tokens_map", {}), **arguments, "messages": list(messages),
            "tools": dialogue.template_tools or None, "documents": None, "add_generation_prompt": prompt,
        }  # fmt: skip
        return render(self.template.text, variables, self.template.date)
