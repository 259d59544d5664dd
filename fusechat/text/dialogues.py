"""The Dialogue record, and reading it from files: paths in, checked dialogues out.

A row is `{"id", "kind"?, "messages": [{"role", "content"}]}` or, in ShareGPT form, `{"id", "conversations": [{"from",
"value"}]}`; a row without an id is called after its file and row number. A dialogue has at most one system message, at
its head; then user and assistant take turns, the user first and the assistant last; no content is blank. Knows nothing
about templates or tokens.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DialogueError
from .dialogue_files import read_rows

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""The names of the roles, in our form and in ShareGPT's, and ours for them."""


@dataclass(frozen=True)
class Message:
    """One turn: role `system`, `user` or `assistant`, and what is said."""

    role: str
    content: str


@dataclass(frozen=True)
class Dialogue:
    """A list of messages; `kind` groups dialogues in reports and may be empty."""

    id: str
    messages: tuple[Message, ...]
    kind: str = ""

    @property
    def content_bytes(self) -> bytes:
        """The contents of all messages in UTF-8, one after the other: what content spans point into."""
        return "".join(message.content for message in self.messages).encode()

    @property
    def content_offsets(self) -> tuple[int, ...]:
        """Where each message's content begins in `content_bytes`, in bytes."""
        offsets, position = [], 0
        for message in self.messages:
            offsets.append(position)
            position += len(message.content.encode())
        return tuple(offsets)


def read_dialogues(
    paths: str | Path | Iterable[str | Path],
    *,
    on_bad: Literal["refuse", "skip"] = "refuse",
    bad: list[tuple[str, str]] | None = None,
) -> Iterator[Dialogue]:
    """Read the dialogues of one or several files, in order.

    Args:
        paths: files or dataset folders (`folder::split`) in any format of `fusechat.text.dialogue_files`.
        on_bad: "refuse" raises on the first dialogue that breaks the rules. "skip" leaves such a dialogue out, unless
            cutting its ends mends it: a blank system message, assistant turns before the first user turn, and a last
            user turn that has no answer are cut and the rest is kept.
        bad: with "skip", gets (place, reason) for every dialogue left out or cut.
    Raises:
        DialogueError: file, line or row, dialogue id, what was found and what was expected. A file that cannot be read
            as a whole raises under either policy.
    """
    places: dict[str, str] = {}
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    for path, name in zip(files, _file_names(files), strict=True):
        for number, (place, row) in enumerate(read_rows(path), 1):
            cut = ""
            try:
                dialogue = _to_dialogue(row, f"{name}-{number}")
                if on_bad == "skip":
                    dialogue, cut = _cut_ends(dialogue)
                _check(dialogue, places)
            except DialogueError as error:
                if on_bad == "refuse":
                    raise DialogueError(f"{_where(place, row)}: {error}") from None
                if bad is not None:
                    bad.append((_where(place, row), str(error)))
                continue
            if cut and bad is not None:
                bad.append((_where(place, row), f"{cut}: cut, and the rest kept"))
            places[dialogue.id] = place
            yield dialogue


def _file_names(paths: Sequence[str | Path]) -> list[str]:
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


def dialogues_digest(dialogues: Iterable[Dialogue]) -> str:
    """Hex SHA-256 of ids, kinds, roles and contents, in order. Lengths are hashed too."""
    digest = hashlib.sha256()
    for dialogue in dialogues:
        fields = [dialogue.id, dialogue.kind]
        for message in dialogue.messages:
            fields += [message.role, message.content]
        digest.update(len(fields).to_bytes(8, "little"))
        for field in map(str.encode, fields):
            digest.update(len(field).to_bytes(8, "little") + field)
    return digest.hexdigest()


def _where(place: str, row: Any) -> str:
    named = isinstance(row, dict) and isinstance(row.get("id"), (str, int))
    return f"{place} (dialogue {row['id']!r})" if named else place


def _to_dialogue(row: Any, default_id: str) -> Dialogue:
    """The row's messages under our names of the roles; `_check` looks at their order and whether they say something."""
    if isinstance(row, DialogueError):
        raise row
    if not isinstance(row, dict):
        raise DialogueError(f"found {_type_name(row)}, expected an object with 'messages' or 'conversations'")
    dialogue_id = row.get("id") if row.get("id") is not None else default_id
    if not isinstance(dialogue_id, (str, int)) or isinstance(dialogue_id, bool) or dialogue_id == "":
        raise DialogueError(
            f"found id {dialogue_id!r}, expected a text or a whole number; give it one, or leave the id out"
        )
    kind = row.get("kind") if row.get("kind") is not None else ""
    if not isinstance(kind, str):
        raise DialogueError(f"found kind {kind!r}, expected a text; correct it")
    _check_text(str(dialogue_id), "id")
    _check_text(kind, "kind")
    turns = row.get("messages") if row.get("messages") is not None else row.get("conversations")
    if not isinstance(turns, (list, tuple)):
        keys = ", ".join(sorted(map(str, row)))
        raise DialogueError(
            f"found {_type_name(turns)} under 'messages' (keys: {keys}), expected a list; correct the row"
        )
    messages = tuple(_to_message(turn, f"message {number}") for number, turn in enumerate(turns, 1))
    return Dialogue(str(dialogue_id), messages, kind)


def _to_message(turn: Any, name: str) -> Message:
    keys = ("from", "value") if isinstance(turn, dict) and "role" not in turn else ("role", "content")
    if not isinstance(turn, dict) or not set(keys) <= turn.keys():
        found = f"keys {sorted(map(str, turn))}" if isinstance(turn, dict) else _type_name(turn)
        raise DialogueError(f"{name}: found {found}, expected 'role' and 'content' (or 'from' and 'value'); correct it")
    role, content = (turn[key] for key in keys)
    if not isinstance(role, str) or role not in ROLES:
        raise DialogueError(f"{name}: found role {role!r}, expected one of {', '.join(ROLES)}; rename it")
    if not isinstance(content, str):
        raise DialogueError(f"{name}: found {_type_name(content)} as content, expected a text; write it as one")
    _check_text(content, name)
    return Message(ROLES[role], content)


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DialogueError(
            f"{name}: lone surrogate {text[error.start]!a} at character {error.start}, expected whole characters; "
            "write both halves of the pair, or the character itself"
        ) from None


def _type_name(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def _check(dialogue: Dialogue, places: dict[str, str]) -> None:
    """Raise on the first broken rule; `places`: the ids read so far and where."""
    if dialogue.id in places:
        raise DialogueError(
            f"the id {dialogue.id!r} stands at {places[dialogue.id]} too, expected each id once; rename one"
        )
    if not dialogue.messages:
        raise DialogueError("the dialogue is empty, expected at least a user and an assistant message; remove it")
    roles = [message.role for message in dialogue.messages]
    if "assistant" not in roles:
        raise DialogueError(f"found roles {', '.join(roles)}, expected an assistant turn; remove the dialogue")
    head = 1 if roles[0] == "system" else 0
    for number, role in enumerate(roles[head:]):
        expected = "assistant" if number % 2 else "user"
        if role != expected:
            raise DialogueError(
                f"message {head + number + 1} is by {role}, expected {expected} (a system message only at the head, "
                "then user and assistant in turn); put the turns in order, or set on_bad: skip"
            )
    if roles[-1] == "user":
        raise DialogueError(
            "the last message is by user, expected assistant; remove that message, or set on_bad: skip, which cuts it"
        )
    for number, message in enumerate(dialogue.messages, 1):
        if not message.content.strip():
            raise DialogueError(
                f"message {number} ({message.role}) is blank, expected text; fill it, or set on_bad: skip"
            )


def _cut_ends(dialogue: Dialogue) -> tuple[Dialogue, str]:
    """Cut what can be cut without touching the exchanges between; second value: what was cut, or an empty text."""
    messages, cut = list(dialogue.messages), []
    if messages and messages[0].role == "system" and not messages[0].content.strip():
        del messages[0]
        cut.append("a blank system message")
    head = 1 if messages and messages[0].role == "system" else 0
    first_user = next((i for i in range(head, len(messages)) if messages[i].role != "assistant"), head)
    if first_user > head:
        del messages[head:first_user]
        cut.append(f"{first_user - head} assistant turn(s) before the first user turn")
    if len(messages) > head + 1 and messages[-1].role == "user":
        del messages[-1]
        cut.append("a last user turn without an answer")
    return Dialogue(dialogue.id, tuple(messages), dialogue.kind), " and ".join(cut)
