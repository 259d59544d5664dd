"""One turn of a row becomes a Message: OpenAI's form or ShareGPT's in, the record out, or what is wrong with the turn.

Every key that carries a value is either read or refused by name. `place` names the turn in messages. Knows nothing about
the turns around it: their order is checked in `fusechat.text.dialogue_order`.
"""

import re
from collections.abc import Mapping
from typing import Any

from ..errors import DialogueError
from .dialogue_records import Message, ToolCall
from .json_object import JsonObject
from .row_values import (
    MEDIA,
    carries,
    keys_shown,
    media_text,
    parse_json,
    refuse_unknown,
    shown,
    text_of,
    type_name,
    value_under,
)

CALLS_ROLE = "function_call"
"""ShareGPT's role for an assistant's turn that is nothing but tool calls, spelled as JSON."""
ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", CALLS_ROLE: "assistant", "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
"""The names of the roles, in OpenAI's form and in ShareGPT's, and ours for them."""
REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")
TRAIN_KEYS = ("train", "trainable", "weight", "loss", "learn")
"""Names of the flag that makes a turn a target (1, true) or only context (0, false)."""
KEYS = (
    "role", "from", "content", "value", *REASONING_KEYS, "tool_calls", "function_call", "tool_call_id", "name", *TRAIN_KEYS,
)  # fmt: skip
"""All keys of a turn that are read."""

_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


def read_message(turn: Any, place: str) -> Message:
    """The message that a turn of a row holds.

    Raises:
        DialogueError: an unknown key or role, a value of a wrong type, or one that does not go with the role.
    """
    if not isinstance(turn, Mapping):
        raise DialogueError(
            f"{place}: found {type_name(turn)}, expected an object with 'role' and 'content' (or 'from' and 'value'); "
            "correct it"
        )
    refuse_unknown(turn, KEYS, place)
    spoken = value_under(turn, ("role", "from"), place)
    if not isinstance(spoken, str) or spoken not in ROLES:
        stands = f"role {shown(spoken)}" if carries(spoken) else f"no role (keys: {keys_shown(turn)})"
        raise DialogueError(f"{place}: found {stands}, expected one of {', '.join(ROLES)}; rename it")
    role, content = ROLES[spoken], value_under(turn, ("content", "value"), place)
    calls = read_tool_calls(turn["tool_calls"], f"{place}: tool_calls") if "tool_calls" in turn else ()
    if carries(turn.get("function_call")):
        calls += read_tool_calls([turn["function_call"]], f"{place}: function_call")
    if spoken == CALLS_ROLE:
        content, spelled = _spelled_calls(content, place)
        calls += spelled
    reasoning = value_under(turn, REASONING_KEYS, place)
    message = Message(
        role,
        _joined(content, f"{place}: content"),
        "" if reasoning is None else _joined(reasoning, f"{place}: reasoning"),
        calls,
        text_of(turn["tool_call_id"], f"{place}: tool_call_id") if "tool_call_id" in turn else "",
        text_of(turn["name"], f"{place}: name") if "name" in turn else "",
        _is_trained(turn, role, place),
    )
    _refuse_misplaced(message, place)
    return message


def _refuse_misplaced(message: Message, place: str) -> None:
    for key, value, role in (
        ("reasoning", message.reasoning, "assistant"),
        ("tool_calls", message.tool_calls, "assistant"),
        ("tool_call_id", message.tool_call_id, "tool"),
    ):
        if value and message.role != role:
            raise DialogueError(
                f"{place}: found {key} on a message by {message.role}, expected it only on one by {role}; move or remove it"
            )


def _is_trained(turn: Mapping[str, Any], role: str, place: str) -> bool:
    """Whether the turn may be a target, as its flags say; they must agree."""
    flags = {key: turn[key] for key in TRAIN_KEYS if key in turn and turn[key] is not None}
    if not flags:
        return True
    for key, value in flags.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise DialogueError(
                f"{place}: found {key} {shown(value)}, expected 0 or 1 (false or true): a turn is a target or it is "
                f"context; round it, or name the key under dialogues.ignore_keys: [{key!r}]"
            )
        if value and role != "assistant":
            raise DialogueError(
                f"{place}: found {key} {value!r} on a message by {role}, expected 0: only an assistant's turn can be a "
                "target; set it to 0, or leave it out"
            )
    if len(set(map(bool, flags.values()))) > 1:
        raise DialogueError(f"{place}: found {shown(flags)}, expected flags that agree; remove the wrong one")
    return role != "assistant" or all(flags.values())


def _joined(content: Any, place: str) -> str:
    """A text, or a list of text parts joined without anything between them."""
    if not isinstance(content, (list, tuple)):
        return text_of(content, place)
    texts = []
    for number, part in enumerate(content, 1):
        here = f"{place} part {number}"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind != "text":
            if isinstance(kind, str) and (kind in MEDIA or kind.removeprefix("input_") in MEDIA):
                raise DialogueError(f"{here}: {media_text(kind)}")
            stands = f"type {shown(kind)}" if isinstance(part, Mapping) else type_name(part)
            raise DialogueError(f'{here}: found {stands}, expected {{"type": "text", "text": ...}}; write it as a text')
        refuse_unknown(part, ("type", "text"), here)
        texts.append(text_of(part.get("text"), here))
    return "".join(texts)


def read_tool_calls(value: Any, place: str) -> tuple[ToolCall, ...]:
    """The calls of a list (or of a JSON text of one), in OpenAI's form or as bare objects of `name` and `arguments`."""
    if not carries(value):
        return ()
    if isinstance(value, str):
        value = parse_json(value, place, "a list of tool calls")
    if not isinstance(value, (list, tuple)):
        raise DialogueError(f"{place}: found {type_name(value)}, expected a list of tool calls; put it into a list")
    return tuple(_tool_call(call, f"{place}[{number}]") for number, call in enumerate(value))


def _tool_call(call: Any, place: str) -> ToolCall:
    if not isinstance(call, Mapping):
        raise DialogueError(f"{place}: found {type_name(call)}, expected an object with 'function'; correct it")
    if carries(call.get("function")):
        refuse_unknown(call, ("id", "type", "function"), place)
        called, place_of_called = call["function"], f"{place}.function"
    else:
        called, place_of_called = {key: call[key] for key in call if key not in ("id", "type")}, place
    if carries(call.get("type")) and call["type"] != "function":
        raise DialogueError(f"{place}: found type {shown(call['type'])}, expected 'function'; only functions are read")
    if not isinstance(called, Mapping):
        raise DialogueError(
            f"{place_of_called}: found {type_name(called)}, expected an object with 'name' and 'arguments'; correct it"
        )
    refuse_unknown(called, ("name", "arguments"), place_of_called)
    name = text_of(called.get("name"), f"{place_of_called}.name")
    if not name.strip():
        raise DialogueError(f"{place_of_called}: found no name, expected the name of the tool that is called; add it")
    arguments = read_object(called.get("arguments"), f"{place_of_called}.arguments")
    return ToolCall(name, arguments, text_of(call.get("id"), f"{place}.id"))


def read_object(value: Any, place: str) -> JsonObject:
    """A JSON object, given as one or as the text of one; null is an empty one."""
    if isinstance(value, str):
        value = parse_json(value, place, "the text of a JSON object")
    if value is not None and not isinstance(value, Mapping):
        raise DialogueError(
            f"{place}: found {type_name(value)}, expected a JSON object, or the text of one; correct it"
        )
    try:
        return JsonObject(value)
    except DialogueError as error:
        raise DialogueError(f"{place}: {error}") from None


def _spelled_calls(value: Any, place: str) -> tuple[str, tuple[ToolCall, ...]]:
    """ShareGPT's function_call: JSON of one call or of a list; a thought before it becomes the content."""
    thought = ""
    if isinstance(value, str):
        match = _THOUGHT.match(value)
        thought = match.group() if match else ""
        value = parse_json(value[len(thought) :], place, "a tool call, or a list of them")
    calls = read_tool_calls([value] if isinstance(value, Mapping) else value, f"{place}: {CALLS_ROLE}")
    if not calls:
        raise DialogueError(
            f"{place}: found no call in a turn by {CALLS_ROLE}, expected JSON of one; fill or remove it"
        )
    return thought.strip(), calls
