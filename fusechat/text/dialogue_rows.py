"""One row of a dialogue file becomes a Dialogue: a row in; the record, or what is wrong with the row, out.

A row is `{"id", "messages": [{"role", "content"}]}` or, in ShareGPT's form, `{"id", "conversations": [{"from",
"value"}]}`; docs/dialogues.md shows all that may stand beside these. A key of a message that nobody knows is refused; a column of
a row that nobody knows is left to the caller. Knows nothing about files, templates or tokens.
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ..errors import DialogueError
from .dialogue_order import HEAD_ROLES, check_dialogue
from .dialogue_records import Dialogue, Message
from .json_object import JsonObject
from .message_reading import read_message, read_object
from .row_values import (
    MAX_COMPARED,
    MEDIA,
    carries,
    check_text,
    keys_shown,
    media_text,
    parse_json,
    shown,
    text_of,
    type_name,
    value_under,
)  # fmt: skip

TURNS_COLUMNS = ("messages", "conversations")
TOOLS_COLUMNS = ("tools", "functions")
SYSTEM_COLUMNS = ("system", "system_prompt")
ARGUMENTS_COLUMNS = ("template_arguments", "chat_template_kwargs")
COLUMNS = ("id", "kind", *TURNS_COLUMNS, *TOOLS_COLUMNS, *SYSTEM_COLUMNS, *ARGUMENTS_COLUMNS, "author")
"""The keys of a row that are read."""
JSON_KEYS = frozenset({"arguments", *TOOLS_COLUMNS, *ARGUMENTS_COLUMNS})
"""Keys of JSON that is kept as it is."""
RESERVED_ARGUMENTS = frozenset({
    "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs",
})  # fmt: skip
"""What FuseChat itself tells `apply_chat_template`, and so no dialogue can."""
NEAR = 0.88
"""How alike (0 to 1) a column's name is to a known one to count as a slip of the pen: `tool` is, `conversation_id` is not."""


def read_row(row: Any, default_id: str) -> Dialogue:
    """One dialogue from a row as files hold it.

    Args:
        default_id: of a row that has none.
    Raises:
        DialogueError: what was found and what was expected.
    """
    dialogue = open_row(row, default_id)
    check_dialogue(dialogue)
    return dialogue


def is_read(column: str, ignore_keys: Collection[str]) -> bool:
    """Whether a table's column is loaded: one that is known, or one whose values must be looked at to refuse them."""
    return column not in ignore_keys and (column in COLUMNS or column in MEDIA or bool(_near(column)))


@lru_cache(maxsize=1024)  # the same few columns stand in every row
def _near(column: str) -> str:
    """The known column that a name seems to mean, or an empty text."""
    near = difflib.get_close_matches(
        str(column)[:MAX_COMPARED].casefold(), [name for name in COLUMNS if len(name) > 4], n=1, cutoff=NEAR
    )
    return near[0] if near else ""


def without_keys(value: Any, keys: Collection[str]) -> Any:
    """A row without some keys, in its messages and their calls as well, but not in what the tools are told."""
    if isinstance(value, Mapping):
        return {
            key: item if key in JSON_KEYS else without_keys(item, keys)
            for key, item in value.items()
            if key not in keys
        }
    return [without_keys(item, keys) for item in value] if isinstance(value, (list, tuple)) else value


def open_row(row: Any, default_id: str) -> Dialogue:
    """As `read_row`, of messages that need not be a whole dialogue: the order of the messages is not looked at."""
    if isinstance(row, DialogueError):
        raise row
    if not isinstance(row, dict):
        raise DialogueError(f"found {type_name(row)}, expected an object with 'messages' or 'conversations'")
    _refuse_columns(row)
    dialogue_id = row.get("id") if row.get("id") is not None else default_id
    if not isinstance(dialogue_id, (str, int)) or isinstance(dialogue_id, bool) or dialogue_id == "":
        raise DialogueError(
            f"found id {shown(dialogue_id)}, expected a text or a whole number; give it one, or leave the id out"
        )
    check_text(str(dialogue_id), "id")
    messages = _with_system(_messages(row), text_of(value_under(row, SYSTEM_COLUMNS, "the row"), "system"))
    return Dialogue(
        str(dialogue_id), messages, text_of(row.get("kind"), "kind"), _tools(value_under(row, TOOLS_COLUMNS, "the row")),
        _template_arguments(value_under(row, ARGUMENTS_COLUMNS, "the row")), text_of(row.get("author"), "author"),
    )  # fmt: skip


def _refuse_columns(row: Mapping[str, Any]) -> None:
    """Raise on columns that would change what a dialogue means, were they read."""
    for column, value in row.items():
        if column in COLUMNS or not carries(value):
            continue
        if column in MEDIA:
            raise DialogueError(media_text(column))
        if near := _near(column):
            raise DialogueError(
                f"found the column {shown(column)}, expected {near!r}; rename it, or name it under dialogues.ignore_keys: "
                f"[{shown(column)}]"
            )


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    given = [name for name in TURNS_COLUMNS if carries(row.get(name))]
    if len(given) > 1:
        raise DialogueError(
            "found 'messages' and 'conversations', expected one of them; name the other under dialogues.ignore_keys"
        )
    turns = next((row[name] for name in (*given, *TURNS_COLUMNS) if row.get(name) is not None), None)
    if not isinstance(turns, (list, tuple)):
        raise DialogueError(
            f"found {type_name(turns)} under 'messages' (keys: {keys_shown(sorted(row))}), expected a list; correct the row"
        )
    return tuple(read_message(turn, f"message {number}") for number, turn in enumerate(turns, 1))


def _with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """The messages, the text of a system column before them."""
    if not system:
        return messages
    if not messages or messages[0].role not in HEAD_ROLES:
        return (Message("system", system), *messages)
    if not messages[0].content:
        return (replace(messages[0], content=system), *messages[1:])
    if messages[0].content == system:
        return messages
    raise DialogueError(
        f"found a column 'system' and another text in a message by {messages[0].role}, expected one of them; remove the "
        "other"
    )


def _tools(value: Any) -> tuple[JsonObject, ...]:
    """The tools of a list, or of a JSON text of one; a bare function is put into OpenAI's form."""
    if isinstance(value, str):
        value = parse_json(value, "tools", "a list of tools")
    if not carries(value):
        return ()
    if not isinstance(value, (list, tuple)):
        raise DialogueError(f"tools: found {type_name(value)}, expected a list of tools; put it into a list")
    return tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(value))


def _tool(value: Any, place: str) -> JsonObject:
    tool = parse_json(value, place, "the text of a tool") if isinstance(value, str) else value
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise DialogueError(
            f'{place}: found {shown(tool)}, expected {{"type": "function", "function": {{"name": ...}}}}; write it so, '
            "with a name"
        )
    return read_object(tool if "function" in tool else {"type": "function", "function": tool}, place)


def _template_arguments(value: Any) -> JsonObject:
    arguments = read_object(value, "template_arguments")
    for name in arguments.value:
        if name in RESERVED_ARGUMENTS:
            raise DialogueError(f"template_arguments: found {name!r}, which FuseChat itself sets; remove it")
    return arguments
