"""Prompts in memory: rows that end before an answer in, messages out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import DialogueError
from .dialogue_records import Message
from .message_reading import read_message


def read_prompts(rows: Iterable[Mapping[str, Any]]) -> list[tuple[Message, ...]]:
    """The messages of each row, such as `{"messages": [{"role": "user", "content": "Hi"}]}`.

    Raises:
        DialogueError: names the row, counted from 1, and the field.
    """
    prompts = []
    for number, row in enumerate(rows, 1):
        messages = row.get("messages") if isinstance(row, Mapping) else None
        if not isinstance(messages, list) or not messages or set(row) != {"messages"}:
            raise DialogueError(
                f"row {number}: expected an object with `messages`, a list of messages, and nothing else"
            )
        read = tuple(read_message(turn, f"row {number}: message {place}") for place, turn in enumerate(messages))
        if read[-1].role == "assistant":
            raise DialogueError(f"row {number}: found an answer at its end, expected what stands before one")
        prompts.append(read)
    return prompts
