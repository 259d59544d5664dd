"""Values of a row and of what stands in it: what carries a value, which of several names gives it, what is wrong.

Null, an empty text, an empty list and an empty object carry no value: a key that holds one is as good as absent. All
errors are DialogueErrors; who reads the row adds the place.
"""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import DialogueError

MEDIA = frozenset({"image", "images", "image_url", "input_image", "audio", "audios", "input_audio", "video", "videos"})
"""Keys and types of content parts that hold what is not text."""
MAX_NAMED = 10
"""Mistakes named in one message."""
MAX_KEYS = 20
"""Keys of one object that a message names."""
MAX_COMPARED = 100
"""Characters of a key that are compared with the known ones: comparing takes the square of them."""


def carries(value: Any) -> bool:
    """Whether a value says anything; 0 and false do."""
    return bool(value) or not (value is None or isinstance(value, (str, list, tuple, Mapping)))


def value_under(row: Mapping[str, Any], names: Iterable[str], place: str) -> Any:
    """The value that stands under one of several names for the same thing, or None.

    Raises:
        DialogueError: two names carry different values.
    """
    given = [name for name in names if name in row and carries(row[name])]
    for name in given[1:]:
        if row[name] != row[given[0]]:
            raise DialogueError(
                f"{place}: found {given[0]!r} and {name!r} with different values, expected one of them; remove the other"
            )
    return row[given[0]] if given else None


def refuse_unknown(row: Mapping[str, Any], known: Iterable[str], place: str) -> None:
    """Raise if a key that nobody knows carries a value; the message names the nearest known one."""
    names = list(known)
    for key in row:
        if key not in names and carries(row[key]):
            if key in MEDIA:
                raise DialogueError(f"{place}: {media_text(key)}")
            near = difflib.get_close_matches(str(key)[:MAX_COMPARED].casefold(), names, n=1, cutoff=0.5)
            raise DialogueError(
                f"{place}: found the key {shown(key)} with {shown(row[key])}, expected one of {', '.join(names)}; "
                + (f"did you mean {near[0]!r}? Else " if near else "")
                + f"remove it, or name it under dialogues.ignore_keys: [{shown(key)}]"
            )


def media_text(name: str) -> str:
    """What is said about pictures and sounds."""
    return f"found {name!r}, expected text only: images, audio and video cannot be read yet; remove the dialogue"


def text_of(value: Any, place: str) -> str:
    """The value as a text without half surrogate pairs; "" if it carries none."""
    if not carries(value):
        return ""
    if not isinstance(value, str):
        raise DialogueError(f"{place}: found {type_name(value)}, expected a text; write it as one")
    check_text(value, place)
    return value


def check_text(text: str, place: str) -> None:
    """Raise on half a surrogate pair, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DialogueError(
            f"{place}: lone surrogate {text[error.start]!a} at character {error.start}, expected whole characters; "
            "write both halves of the pair, or the character itself"
        ) from None


def parse_json(text: str, place: str, expected: str) -> Any:
    """The value that a JSON text spells; a key that stands twice in an object is refused, because one would be lost."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno} column {error.colno}: {error.msg}"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise DialogueError(
        f"{place}: found the text {shown(text)}, which is not JSON ({reason}), expected {expected}; correct it"
    )


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text, for `json`'s object_pairs_hook.

    Raises:
        ValueError: a key stands twice, and one of its values would be lost.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in an object")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def listed(lines: Sequence[str], count: int, most: int = MAX_NAMED) -> list[str]:
    """The first lines of a list for messages, and how many more there are.

    Args:
        count: of all.
    """
    return [*lines[:most], *([f"and {count - most:,} more"] if count > most else [])]


def type_name(value: Any) -> str:
    """A value's type, for messages."""
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def keys_shown(row: Iterable[Any]) -> str:
    """The keys of an object for messages: each cut short, and no more than a line holds."""
    keys = list(row)
    names = [
        key if isinstance(key, str) and key.isascii() and key.isprintable() and len(key) <= 80 else shown(key)
        for key in keys
    ]
    return ", ".join(listed(names, len(names), MAX_KEYS))


def shown(value: Any) -> str:
    """A value, cut short, for messages."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
