"""Every chat template that the installed TRL carries, with dialogues of every kind: ids, scored tokens, spans, refusals."""

import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from small_tokenizers import byte_level
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from fusechat.errors import DialogueError, ModelError
from fusechat.storage.contracts import TokenField
from fusechat.text.dialogues import Dialogue, Message, ToolCall
from fusechat.text.layout import TokenizedDialogue
from fusechat.text.rendered import ChatTemplate
from fusechat.text.token_surface import token_surfaces
from fusechat.text.tokenization import tokenize_dialogue

spec = importlib.util.find_spec("trl")
assert spec is not None and spec.submodule_search_locations
TEMPLATES = sorted(Path(spec.submodule_search_locations[0], "chat_templates").glob("*.jinja"))
DATE = "2026-01-31"
TAGS = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|<\|?[a-z_]+\|?>|</[a-z_]+>|\[[A-Z_]+\]")


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str, reasoning: str = "", *calls: ToolCall) -> Message:
    return Message("assistant", text, reasoning, calls)


def result(text: str, number: int, name: str = "find_city") -> Message:
    return Message("tool", text, tool_call_id=f"call0000{number}", name=name)


def tool(name: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "its name"}},
        "required": ["city"],
    }
    return {"type": "function", "function": {"name": name, "description": "Finds it.", "parameters": parameters}}


PARIS = ToolCall("find_city", {"city": "Paris ulica"}, "call00001")
ROME = ToolCall("find_weather", {"city": "Roma ulica"}, "call00002")
DIALOGUES = {
    "plain": (user("How many apples?"), said("Three of them.")),
    "system": (Message("system", "Be brief."), user("How many apples?"), said("Three of them.")),
    "turns": (user("How many apples?"), said("Three of them."), user("And pears?"), said("Four of those.")),
    "reasoning": (user("How many apples?"), said("Three of them.", "I count to three.")),
    "reasoning in every turn": (
        user("How many apples?"), said("Three of them.", "I count to three."),
        user("And pears?"), said("Four of those.", "One more than before."),
    ),
    "tool call": (user("Where is it?"), said("", "", PARIS), result("In France.", 1), said("It is in France.")),
    "parallel tool calls": (
        user("Where is it?"), said("", "", PARIS, ROME), result("In France.", 1),
        result("It is warm.", 2, "find_weather"), said("It is in France."),
    ),
    "white space": (user("  How many apples? \n"), said("\n Three of them.\n\n"), user("And pears?\n"), said(" Four of those. ")),
}  # fmt: skip


def dialogue_of(kind: str) -> Dialogue:
    tools = tuple(tool(call.name) for call in (PARIS, ROME)) if "tool" in kind else ()
    return Dialogue(kind, DIALOGUES[kind], tools=tools)


@cache
def tokenizer_for(template: str) -> PreTrainedTokenizerFast:
    """Byte-level, with the template's own tags as tokens: special ones, and such as `<think>` that are added only."""
    backend = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    for tag in sorted(set(TAGS.findall(template))):
        special = bool(re.search(r"[|｜\[]", tag))
        backend.add_tokens([AddedToken(tag, special=special, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def own_text(tokenizer: PreTrainedTokenizerFast, template: str, dialogue: Dialogue, count: int | None = None) -> str:
    """What `apply_chat_template` writes, the arguments of calls as objects, or as text where it wants them so.

    Raises:
        Exception: the template refuses the dialogue.
    """
    from datetime import date

    for as_text in (False, True):
        messages = [message.to_template_message() for message in dialogue.messages[:count]]
        for message in messages:
            if "reasoning_content" in message:
                message |= {"thinking": message["reasoning_content"], "reasoning": message["reasoning_content"]}
            for call in message.get("tool_calls", []) if as_text else []:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, tools=dialogue.template_tools or None, tokenize=False,
                strftime_now=date.fromisoformat(DATE).strftime,
            )  # fmt: skip
        except TypeError:
            if as_text or not dialogue.tools:
                raise
            continue
        assert isinstance(text, str)
        return text
    raise AssertionError


@pytest.mark.parametrize("kind", DIALOGUES)
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_of_trl(path: Path, kind: str) -> None:
    template, dialogue = path.read_text(encoding="utf-8"), dialogue_of(kind)
    tokenizer = tokenizer_for(template)
    try:
        tokens = tokenize_dialogue(tokenizer, ChatTemplate(template, date=DATE), dialogue)
    except (DialogueError, ModelError) as error:
        assert_refused_by_the_template(tokenizer, template, dialogue, error)
        return
    text = own_text(tokenizer, template, dialogue)
    assert tokens.token_ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert_spans_spell(tokenizer, dialogue, tokens)
    assert_scored_is_what_the_assistant_writes(tokenizer, dialogue, tokens, text)


def assert_refused_by_the_template(
    tokenizer: PreTrainedTokenizerFast, template: str, dialogue: Dialogue, error: Exception
) -> None:
    plain = dialogue_of("plain")
    try:
        text = own_text(tokenizer, template, dialogue)
        if "Three of them." not in own_text(tokenizer, template, plain):
            return  # it reads lists of parts: images and text
    except (jinja2.TemplateError, TypeError):
        return
    # It shows no calls: what the assistant did would be missing between question and result.
    shown = text[text.rindex("Where is it?") :]
    calls = [call.name for message in dialogue.messages for call in message.tool_calls if call.name not in shown]
    results = [
        message.content for message in dialogue.messages if message.role == "tool" and message.content not in shown
    ]
    words = "does not show the tool call" if calls and not results else r"\(tool\) 0 times"
    assert (calls or results) and re.search(words, str(error)), f"{error}\n{text}"


def assert_spans_spell(tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue, tokens: TokenizedDialogue) -> None:
    surfaces, data = token_surfaces(tokenizer.backend_tokenizer), dialogue.field_bytes
    calls = b""
    for token_id, (start, end), field in zip(
        tokens.token_ids.tolist(), tokens.span.tolist(), tokens.field, strict=True
    ):
        spelled = surfaces[token_id] or tokenizer.convert_ids_to_tokens(token_id).encode()
        if field == TokenField.TOOL_CALLS:
            assert (start, end) == (len(calls), len(calls) + len(spelled))
            calls += spelled
        elif start >= 0:
            assert data[start:end] in spelled and (end > start or not spelled)
    called = [call for message in dialogue.messages for call in message.tool_calls]
    assert all(call.name.encode() in calls and call.arguments["city"].encode() in calls for call in called)
    assert bool(calls) == bool(called) == bool(tokens.call_digest)


def assert_scored_is_what_the_assistant_writes(
    tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue, tokens: TokenizedDialogue, text: str
) -> None:
    covered = np.zeros(len(dialogue.field_bytes), bool)
    fields = np.isin(tokens.field, (TokenField.REASONING, TokenField.CONTENT))
    for start, end in tokens.span[tokens.is_scored & fields].tolist():
        covered[start:end] = True
    hidden = set(tokens.hidden)
    for number, (field, start) in enumerate(zip(dialogue.fields, dialogue.field_offsets, strict=True)):
        part = covered[start : start + len(field.text.encode())]
        if dialogue.messages[field.message].role != "assistant" or (field.message, field.name) in hidden:
            assert not part.any(), number
        else:
            first = len(field.text) - len(field.text.lstrip())
            assert part[first : len(field.text.rstrip())].all(), number
    assert hidden <= {
        (field.message, field.name) for field in dialogue.fields if field.text and field.text not in text
    } | ({(field.message, field.name) for field in dialogue.fields if field.name == "reasoning"})
    assert all(name == "reasoning" and dialogue.messages[message].reasoning not in text for message, name in hidden)
    context = tokenizer.decode(tokens.token_ids[~tokens.is_scored].tolist(), skip_special_tokens=False)
    scored = tokenizer.decode(tokens.token_ids[tokens.is_scored].tolist(), skip_special_tokens=False)
    for message in dialogue.messages:
        if message.role != "assistant":
            assert message.content.strip() in context and message.content.strip() not in scored
    assert not re.search(r"How many|pears\?|In France\.|is warm|Where is it", scored)
    ends = tokens.field == TokenField.END_OF_TURN
    assert (tokens.is_scored[ends]).all() and not tokens.span[ends].max(initial=-1) >= 0
    turns = sum(message.role == "assistant" for message in dialogue.messages)
    groups = int((ends & ~np.append(False, ends[:-1])).sum())
    assert groups == turns or (groups == turns - 1 and text.rstrip().endswith(dialogue.messages[-1].content.strip()))
