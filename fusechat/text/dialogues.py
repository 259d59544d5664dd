"""Reading dialogues from files: paths in, checked dialogues out.

What a row may hold is said in `dialogue_rows`. A row without an id is called after its file and row number; a column that nobody
knows is named. Knows nothing about templates or tokens.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DialogueError
from .dialogue_files import read_rows
from .dialogue_order import check_dialogue, cut_ends
from .dialogue_records import Dialogue, Field, Message, ToolCall, dialogues_digest, row_text, split_thought
from .dialogue_rows import COLUMNS, is_read, open_row, without_keys
from .row_values import carries, listed, shown

__all__ = [
    "COLUMNS", "Dialogue", "Field", "Message", "ToolCall", "dialogues_digest", "read_dialogues", "row_text", "split_thought",
]  # fmt: skip

TOO_DEEP = "found values nested too deeply, expected a dialogue; remove the row"


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
            row = without_keys(given, ignore_keys) if ignore_keys else given
            dialogue = open_row(row, f"{name}-{number}")
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


def refusal_of(problems: Sequence[tuple[str, str]], count: int) -> str:
    """One message on all dialogues that cannot be read.

    Args:
        problems: (place, reason) of the first ones.
        count: of all.
    """
    lines = [f"{place}: {reason}" for place, reason in problems]
    head = f"{count:,} dialogues break the rules; correct them, or set on_bad: skip, which leaves them out:"
    return lines[0] if count == 1 else "\n  ".join([head, *listed(lines, count)])


def _where(place: str, row: Any) -> str:
    named = isinstance(row, dict) and isinstance(row.get("id"), (str, int))
    return f"{place} (dialogue {shown(row['id'])})" if named else place
