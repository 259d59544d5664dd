"""A JSON object that can be compared and hashed: what a tool call passes, what a tool is, what a template is told.

Goes in: a mapping. Comes out: the same mapping, which keeps the order of its keys, because templates write them in that
order. Knows nothing about dialogues.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import DialogueError
from .row_values import check_text

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=dict)


class JsonObject(Mapping[str, Any]):
    """A JSON object, equal to another of the same text: same keys in the same order, same values.

    Raises:
        DialogueError: a value that JSON does not have (NaN, half a surrogate pair, a key that is no text, ...).
    """

    __slots__ = ("text",)

    def __init__(self, value: Mapping[str, Any] | None = None) -> None:
        self.text: str = "{}" if value is None else json_text(value)
        """The object as compact JSON."""

    @property
    def value(self) -> dict[str, Any]:
        """The object as Python's own types, made afresh: whoever gets it may change it."""
        parsed: dict[str, Any] = json.loads(self.text)
        return parsed

    def __getitem__(self, key: str) -> Any:
        return self.value[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, JsonObject):
            return self.text == other.text
        return self.value == other if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"JsonObject({self.text})"


def json_text(value: Any) -> str:
    """Compact JSON of a value; keys keep their order.

    Raises:
        DialogueError: a value that JSON does not have.
    """
    if isinstance(value, JsonObject):
        return value.text
    try:
        try:
            text = _ENCODER.encode(value)
            text.encode()
            if json.loads(text) == value:
                return text
        except (TypeError, ValueError):
            pass  # the check below says where it stands; it takes ten times as long
        _check(value, "")
        return _ENCODER.encode(value)
    except RecursionError:
        raise DialogueError("found values nested too deeply, expected JSON of some ten levels; flatten it") from None


def _check(value: Any, path: str) -> None:
    """Raise on what `json` would change or refuse; `path`: where the value stands, for the message."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise DialogueError(f"{path or 'the object'} has the key {key!r}, expected a text; quote it")
            _check(key, f"{path}.{key!a}".lstrip("."))
            _check(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check(item, f"{path}[{number}]")
    elif isinstance(value, str):
        check_text(value, path)
    elif isinstance(value, float) and not math.isfinite(value):
        raise DialogueError(f"{path} is {value}, expected a number that JSON has; write null or a text")
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise DialogueError(f"{path} is of type {type(value).__name__}, expected JSON; write it as a text or a number")
