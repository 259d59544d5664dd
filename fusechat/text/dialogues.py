"""Reading dialogues from files: paths in, checked dialogues out.

A row is `{"id", "messages": [{"role", "content"}]}` or, in ShareGPT's form, `{"id", "conversations": [{"from",
"value"}]}`; docs/dialogues.md shows all that may stand beside these. A row without an id is called after its file and row
number. A key of a message that nobody knows is refused; a column of a row that nobody knows is named. Knows nothing
about templates or tokens.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ..errors import DialogueError
from .dialogue_files import read_rows
from .dialogue_order import HEAD_ROLES, check_dialogue, cut_ends
from .dialogue_records import Dialogue, Field, Message, ToolCall, dialogues_digest, row_text, split_thought
from .json_object import JsonObject
from .message_reading import read_message, read_object
from .row_values import (
    MAX_COMPARED,
    MEDIA,
    carries,
    check_text,
    keys_shown,
    listed,
    media_text,
    parse_json,
    shown,
    text_of,
    type_name,
    value_under,
)  # fmt: skip

__all__ = [
    "COLUMNS", "Dialogue", "Field", "Message", "ToolCall", "dialogues_digest", "read_dialogues", "row_text", "split_thought",
]  # fmt: skip

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
TOO_DEEP = "found values nested too deeply, expected a dialogue; remove the row"
NEAR = 0.88
"""How alike (0 to 1) a column's name is to a known one to count as a slip of the pen: `tool` is, `conversation_id` is not."""


def read_dialogues(
    paths: str | Path | Iterable[str | Path],
    *,
    on_bad: Literal["refuse", "skip"] = "refuse",
    bad: list[tuple[str, str]] | None = None,
    ignore_keys: Collection[str] = (),
    left_out: dict[str, Counter[str]] | None = None,
) -> Iterator[Dialogue]:
    """Read the dialogues of one or several files, in order.

    Args:
        paths: files or dataset folders (`folder::split`) in any format of `fusechat.text.dialogue_files`.
        on_bad: "refuse" raises, when all are read, if any dialogue breaks the rules. "skip" leaves such a dialogue out, unless
            cutting its ends mends it: a blank system message, assistant turns before the first user turn, and what
            stands after the last assistant turn are cut and the rest is kept.
        bad: with "skip", gets (place, reason) for every dialogue left out or cut.
        ignore_keys: keys of rows, of messages and of what stands in them that are left unread without a word.
        left_out: gets for every path the columns that are no part of a dialogue, with the number of rows that have them.
    Raises:
        DialogueError: file, line or row, dialogue id, what was found and what was expected. A file that cannot be read
            as a whole raises under either policy.
    """
    places: dict[str, str] = {}
    problems = bad if bad is not None and on_bad == "skip" else []
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    for path, name in zip(files, file_names(files), strict=True):
        counted: Counter[str] = Counter()
        rows = read_rows(path, lambda column: is_read(column, ignore_keys))
        for one in checked_rows(rows, name, on_bad=on_bad, ignore_keys=ignore_keys):
            if one.problem:
                problems.append((one.place, one.problem))
            if one.dialogue is None:
                continue
            if one.dialogue.id in places:
                problems.append((one.place, repeated_id(one.dialogue.id, places[one.dialogue.id])))
                continue
            counted.update(one.columns)
            places[one.dialogue.id] = one.row_place
            yield one.dialogue
        if left_out is not None and counted:
            left_out[str(path)] = counted
    if problems and on_bad == "refuse":
        raise DialogueError(refusal_of(problems, len(problems)))


@dataclass(frozen=True)
class CheckedRow:
    """What became of one row of a file."""

    number: int
    """Of the row in its file, from 1."""
    row_place: str
    """Where it stands: file and line or row."""
    place: str
    """The same, with the dialogue's id where the row has one."""
    dialogue: Dialogue | None
    """None: it breaks a rule."""
    problem: str = ""
    """Which rule it breaks, or what was cut from it."""
    columns: tuple[str, ...] = ()
    """That carry a value and are no part of a dialogue."""


def checked_rows(
    rows: Iterable[tuple[str, Any]], name: str, *, on_bad: str, ignore_keys: Collection[str], rows_before: int = 0
) -> Iterator[CheckedRow]:
    """Read and check rows one by one; whether an id stands twice is for those to say who see all rows.

    Args:
        rows: (place, row), as `read_rows` gives them.
        name: what rows without an id are called after.
        on_bad, ignore_keys: as in `read_dialogues`.
        rows_before: rows of the file before these.
    """
    for number, (place, given) in enumerate(rows, rows_before + 1):
        row, cut = given, ""
        try:
            row = _without(given, ignore_keys) if ignore_keys else given
            dialogue = _to_dialogue(row, f"{name}-{number}")
            if on_bad == "skip":
                dialogue, cut = cut_ends(dialogue)
            check_dialogue(dialogue)
        except (DialogueError, RecursionError) as error:
            problem = TOO_DEEP if isinstance(error, RecursionError) else str(error)
            yield CheckedRow(number, place, _where(place, row), None, problem)
            continue
        columns = tuple(key for key, value in row.items() if key not in COLUMNS and carries(value))
        yield CheckedRow(
            number, place, _where(place, row), dialogue, f"{cut}: cut, and the rest kept" if cut else "", columns
        )


def repeated_id(dialogue_id: str, place: str) -> str:
    """What is said of an id that stands at an earlier place too."""
    return f"the id {shown(dialogue_id)} stands at {place} too, expected each id once; rename one"


def file_names(paths: Sequence[str | Path]) -> list[str]:
    """What rows without an id are called after: the file's stem, with as many parent folders as tell files of one stem
    apart, and with its ending where those do not.
    """

    def named(path: Path, depth: int, last: str) -> str:
        return "/".join([*path.parts[max(0, len(path.parts) - 1 - depth) : -1], last])

    files = [Path(str(path)) for path in paths]
    names = []
    for file in files:
        alike = [other for other in files if other.stem == file.stem]
        deepest = max(len(other.parts) for other in alike)
        for depth in range(deepest):
            if len({named(other, depth, other.stem) for other in alike}) == len(alike):
                names.append(named(file, depth, file.stem))
                break
        else:
            same = [other for other in alike if other.parent == file.parent]
            names.append(
                named(file, deepest if len(alike) > len(same) else 0, file.name if len(same) > 1 else file.stem)
            )
    return names


def open_row(row: Any, default_id: str) -> Dialogue:
    """As `read_row`, of messages that need not be a whole dialogue: the order of the messages is not looked at."""
    return _to_dialogue(row, default_id)


def read_row(row: Any, default_id: str) -> Dialogue:
    """One dialogue from a row as files hold it.

    Args:
        default_id: of a row that has none.
    Raises:
        DialogueError: what was found and what was expected.
    """
    dialogue = _to_dialogue(row, default_id)
    check_dialogue(dialogue)
    return dialogue


def refusal_of(problems: Sequence[tuple[str, str]], count: int) -> str:
    """One message on all dialogues that cannot be read.

    Args:
        problems: (place, reason) of the first ones.
        count: of all.
    """
    lines = [f"{place}: {reason}" for place, reason in problems]
    head = f"{count:,} dialogues break the rules; correct them, or set on_bad: skip, which leaves them out:"
    return lines[0] if count == 1 else "\n  ".join([head, *listed(lines, count)])


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


def _without(value: Any, keys: Collection[str]) -> Any:
    """A row without some keys, in its messages and their calls as well, but not in what the tools are told."""
    if isinstance(value, Mapping):
        return {
            key: item if key in JSON_KEYS else _without(item, keys) for key, item in value.items() if key not in keys
        }
    return [_without(item, keys) for item in value] if isinstance(value, (list, tuple)) else value


def _where(place: str, row: Any) -> str:
    named = isinstance(row, dict) and isinstance(row.get("id"), (str, int))
    return f"{place} (dialogue {shown(row['id'])})" if named else place


def _to_dialogue(row: Any, default_id: str) -> Dialogue:
    """What the row holds, under our names; `check_dialogue` looks at the order of its messages."""
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
