"""Rows of a file of questions: a row in; a question of one or several turns, or the reason why it is none, out.

Three forms. `prompts`: a text file with a prompt per line, or JSON (lines or one array) or Parquet of strings or of objects
with `prompt`, `instruction` or `turns`. `mt_bench`: FastChat's questions, also with their turns as a list under `prompt`.
`alpaca_eval`: AlpacaEval's instructions. A turn may be an object with a user's `content`. What stands beside an instruction
as its `input` belongs to the question; a system message has no place in one. Knows nothing about answers.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.evaluation import Form
from ..errors import DialogueError
from .dialogue_files import read_rows
from .row_values import check_text

ASKED = {
    "mt_bench": ("turns", "prompt"),
    "alpaca_eval": ("instruction",),
    "prompts": ("turns", "prompt", "instruction"),
}
"""Keys of a row that hold what is asked, by form; the first that holds something counts."""
IDS = ("question_id", "id", "prompt_id", "uid")
"""Keys that hold a question's id; the first that holds something counts."""
INPUTS = ("input", "context")
"""Keys of what an instruction is about, in Alpaca's and in Dolly's form."""
SYSTEM = ("system", "system_prompt")


@dataclass(frozen=True)
class Question:
    """What a user says, turn by turn; `reference`: good answers, one per turn (empty where there is none), or none."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    reference: tuple[str, ...] = ()
    dataset: str = ""


def rows_of(path: Path, form: Form) -> Iterator[tuple[str, Any]]:
    """The rows of a file, each with its place; a broken line is a DialogueError in the row's stead.

    Raises:
        DialogueError: a file that cannot be read; the columns that questions may have are named.
    """
    if form == "prompts" and path.suffix == ".txt" and not _is_device(path):
        yield from _lines(path)
    elif _is_folder(path):
        raise DialogueError(
            f"{path}: found a folder, expected a file of questions; write a dataset as one (`to_json`), with {_columns(form)}"
        )
    elif _head(path) == b"PAR1":
        yield from _parquet_rows(path, form)
    else:
        yield from read_rows(path)


def question_of(place: str, row: Any, form: Form, number: int) -> Question:
    """The question that a row holds.

    Args:
        number: of the row, counted from 1; the id of a question that has none.
    Raises:
        DialogueError: no question, or one of which a part would be left out.
    """
    if isinstance(row, str) and form == "prompts":
        row = {"prompt": row}
    values = {key: value for key, value in row.items() if not _is_nothing(value)} if isinstance(row, dict) else {}
    keys = [key for key in ASKED[form] if values.get(key)]
    if not keys or (form == "mt_bench" and keys[0] == "prompt" and not isinstance(values["prompt"], list)):
        raise DialogueError(f"{place}: found {str(row)[:80]!r}, expected a question with {_columns(form)}")
    turns = [_turn(place, keys[0], turn) for turn in _as_list(values[keys[0]])]
    for key in ("turns", "prompt", "instruction"):
        other = (
            [] if key == keys[0] or key not in values else [_turn(place, key, turn) for turn in _as_list(values[key])]
        )
        if other and other != turns[: len(other)]:
            raise DialogueError(f"{place}: found both {keys[0]!r} and {key!r}, and they differ; expected one of them")
    turns = _with_inputs(place, turns, values)
    question = Question(
        id=_id_of(place, values, number), turns=tuple(turns), category=str(values.get("category") or ""),
        reference=_references(place, values.get("reference")), dataset=str(values.get("dataset") or ""),
    )  # fmt: skip
    for text in (question.id, question.category, question.dataset, *question.turns, *question.reference):
        check_text(text, place)
    return question


def _columns(form: Form) -> str:
    if form == "mt_bench":
        return "'turns', or a list under 'prompt'"
    return " or ".join(map(repr, ASKED[form]))


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)  # pandas writes what is missing as NaN


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _turn(place: str, key: str, turn: Any) -> str:
    """What the user says; also of an object as chat interfaces take it."""
    if isinstance(turn, dict) and turn.get("role", "user") == "user":
        turn = turn.get("content")
    if not isinstance(turn, str) or not turn.strip():
        raise DialogueError(
            f"{place}: {key!r} holds {str(turn)[:80]!r}, expected text that is not blank, said by the user"
        )
    return turn


def _with_inputs(place: str, turns: list[str], values: dict[str, Any]) -> list[str]:
    for key in SYSTEM:
        if values.get(key):
            raise DialogueError(
                f"{place}: found {key!r}, which a question has not; expected it at the head of the first turn, or not at all"
            )
    for key in INPUTS:
        text = values.get(key, "")
        if not isinstance(text, str):
            raise DialogueError(
                f"{place}: {key!r} holds {str(text)[:80]!r}, expected text; write it as one, or leave it out"
            )
        if not text.strip():
            continue
        if len(turns) > 1:
            raise DialogueError(
                f"{place}: found {key!r} beside several turns; expected it within the turn that it belongs to"
            )
        turns = [f"{turns[0]}\n\n{text}"]
    return turns


def _id_of(place: str, values: dict[str, Any], number: int) -> str:
    given = next((values[key] for key in IDS if key in values), number)
    if not isinstance(given, str | int) or isinstance(given, bool) or given == "":
        raise DialogueError(f"{place}: found the id {given!r}, expected a text or a whole number, or none")
    return str(given)


def _references(place: str, given: Any) -> tuple[str, ...]:
    """Good answers by turn; a turn without one has an empty text, and where no turn has one there are none."""
    texts = []
    for item in _as_list(given):
        if not _is_nothing(item) and (isinstance(item, bool) or not isinstance(item, str | int | float)):
            raise DialogueError(
                f"{place}: 'reference' holds {str(item)[:80]!r}, expected a text for each turn, or null"
            )
        texts.append("" if _is_nothing(item) else str(item))
    return tuple(texts) if any(text.strip() for text in texts) else ()


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DialogueError(f"{path}: not readable as text ({error})") from None
    # Not splitlines: a prompt may hold other separators than the one between lines.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):  # which `read_rows` names
        return path.is_dir()
    return False


def _is_device(path: Path) -> bool:
    """Whether a path means a device or a pipe, which may never end; `read_rows` refuses it."""
    with contextlib.suppress(OSError, ValueError):
        return path.exists() and not (path.is_file() or path.is_dir())
    return False


def _head(path: Path) -> bytes:
    """How a file begins; nothing of what is no file or cannot be read, which `read_rows` names."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(4)
    return b""


def _parquet_rows(path: Path, form: Form) -> Iterator[tuple[str, Any]]:
    import pyarrow  # here, because it takes a second to load and most questions are JSON
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a text that is not UTF-8
        raise DialogueError(f"{path}: not readable as Parquet ({error}); expected a whole Parquet file") from None
    if not set(ASKED[form]) & set(table.column_names):
        columns = ", ".join(sorted(table.column_names))
        raise DialogueError(f"{path}: found columns {columns}, expected {_columns(form)}; rename one")
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{path}: row {number}", row
