"""Rows of dialogue files with calls, results and tools, and how a test writes and reads them."""

import json
from pathlib import Path
from typing import Any

from fusechat.text.dialogues import Dialogue, Message, ToolCall, read_dialogues

USER, ANSWER = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Sunny."}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"city": "Ulm"}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sun"}
LOOK = ToolCall("look", {"city": "Ulm"}, "c1")
ANONYMOUS = ToolCall("look", {"city": "Ulm"})
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, row: object, **options: Any) -> Dialogue:
    (dialogue,) = read_dialogues(write(folder, row), **options)
    return dialogue


def messages_of(folder: Path, *turns: dict, column: str = "messages", **columns: object) -> tuple[Message, ...]:
    return read(folder, {"id": "a", column: list(turns), **columns}).messages


def turns(*more: dict) -> dict:
    return {"id": "a", "messages": [USER, *more]}


def calling(**changes: object) -> dict:
    """The row whose one call has other keys."""
    return turns({**CALLING, "tool_calls": [{**CALL, **changes}]}, RESULT, ANSWER)


def whole(**columns: object) -> dict:
    return {"id": "a", "messages": [USER, ANSWER], **columns}
