"""Prompts for models to answer: files of questions or of dialogues in, one form out.

A row with `messages` (or `conversations`) is a dialogue: what stands behind its last user's or tool's turn is a reference, and
earlier answers are context. Any other row is a question, as `fusechat.text.question_rows` reads it; a system text, tools and
template arguments may stand beside it. Knows nothing about who answers.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import DialogueError
from ..storage.write_errors import storage_errors
from .dialogue_files import read_rows
from .dialogue_order import check_dialogue
from .dialogue_records import Dialogue, Message
from .dialogue_rows import ARGUMENTS_COLUMNS, SYSTEM_COLUMNS, TOOLS_COLUMNS, TURNS_COLUMNS, open_row
from .dialogues import file_names
from .message_reading import read_message
from .question_rows import IDS, question_of, rows_of
from .row_values import carries, check_text, listed

REFERENCES = ("reference", "answer", "output", "response", "completion")
"""Keys of a row that hold a good answer; the first that holds something counts."""


@dataclass(frozen=True)
class Prompt:
    """What stands before an answer that is to be written.

    `dialogue`: the messages up to the first answer that is to be written, with tools and template arguments; `turns`: what
    the user says after that, each turn when the one before is answered; `reference`: a good answer to the last turn, or "".
    """

    dialogue: Dialogue
    turns: tuple[str, ...] = ()
    reference: str = ""

    @property
    def id(self) -> str:
        """Of its dialogue."""
        return self.dialogue.id

    def to_row(self) -> dict[str, Any]:
        """As `from_row` reads it."""
        return {**self.dialogue.to_row(), "turns": list(self.turns), "reference": self.reference}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Prompt":
        """The prompt of a row that `to_row` made."""
        dialogue = open_row({key: value for key, value in row.items() if key not in ("turns", "reference")}, "")
        return cls(dialogue, tuple(row["turns"]), row["reference"])

    def answered(self, answers: Sequence[Message]) -> Dialogue:
        """The dialogue with answers to its turns, as many as are given, each followed by what the user says next."""
        messages = list(self.dialogue.messages)
        for number, answer in enumerate(answers):
            messages.append(answer)
            if number < len(self.turns):
                messages.append(Message("user", self.turns[number]))
        return replace(self.dialogue, messages=tuple(messages))


def read_prompts(
    paths: Sequence[str | Path],
    *,
    on_bad: Literal["refuse", "skip"] = "refuse",
    bad: list[tuple[str, str]] | None = None,
) -> list[Prompt]:
    """Read the prompts of several files, in order.

    Args:
        on_bad: "refuse" raises, when all are read, if a row is no prompt; "skip" leaves such a row out.
        bad: with "skip", gets (place, reason) for each.
    Raises:
        DialogueError: file and row, what was found and what was expected; a file without a prompt.
    """
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    for path, name in zip(paths, file_names(paths), strict=True):
        before = len(prompts) + len(problems)
        for number, (place, row) in enumerate(_rows(path), 1):
            try:
                if isinstance(row, DialogueError):
                    raise row
                prompt = prompt_of(row, f"{name}-{number}", number)
                if prompt.id in places:
                    raise DialogueError(f"the id {prompt.id!r} stands at {places[prompt.id]} too; rename one")
            except (DialogueError, RecursionError) as error:
                problems.append((place, str(error)))
                continue
            places[prompt.id] = place
            prompts.append(prompt)
        if len(prompts) + len(problems) == before:
            raise DialogueError(f"{path}: holds no prompt; expected at least one, a line or a row each")
    if problems and on_bad == "refuse":
        named = listed([f"{place}: {reason}" for place, reason in problems], len(problems))
        raise DialogueError(
            f"{len(problems):,} rows are no prompts; correct them, or set dialogues.on_bad: skip, which leaves them out:\n  "
            + "\n  ".join(named)
        )
    if bad is not None:
        bad += problems
    if not prompts:
        raise DialogueError(f"{', '.join(map(str, paths))}: no prompt is left; correct the rows")
    return prompts


def prompt_of(row: Any, default_id: str, number: int = 1) -> Prompt:
    """The prompt that a row holds.

    Args:
        default_id: of a row that has none.
    Raises:
        DialogueError: what was found and what was expected.
    """
    if isinstance(row, Mapping) and any(carries(row.get(name)) for name in TURNS_COLUMNS):
        prompt = _of_dialogue(dict(row), default_id)
    else:
        prompt = _of_question(row, default_id, number)
    _check(prompt)
    return prompt


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts in one form, which `saved_prompts` reads."""
    with storage_errors(path), path.open("w", encoding="utf-8") as file:
        for prompt in prompts:
            file.write(json.dumps(prompt.to_row(), ensure_ascii=False) + "\n")


def saved_prompts(path: str | Path) -> list[Prompt]:
    """The prompts that `write_prompts` wrote."""
    return [Prompt.from_row(row) for _, row in read_rows(path)]


def _rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    return rows_of(Path(path), "prompts") if str(path).endswith(".txt") else read_rows(path)


def _of_dialogue(row: dict[str, Any], default_id: str) -> Prompt:
    dialogue = open_row({key: value for key, value in row.items() if key not in REFERENCES}, default_id)
    messages = list(dialogue.messages)
    behind: list[Message] = []
    while messages and messages[-1].role == "assistant":
        behind.insert(0, messages.pop())
    context = tuple(replace(one, is_trained=False) if one.role == "assistant" else one for one in messages)
    reference = _reference(row) or next((message.content for message in behind), "")
    return Prompt(replace(dialogue, messages=context, author=""), (), reference)


def _of_question(row: Any, default_id: str, number: int) -> Prompt:
    values = dict(row) if isinstance(row, Mapping) else row
    beside: dict[str, Any] = {}
    if isinstance(values, dict):
        beside = {
            name: values.pop(name) for name in (*SYSTEM_COLUMNS, *TOOLS_COLUMNS, *ARGUMENTS_COLUMNS) if name in values
        }
    question = question_of("the row", values, "prompts", number)
    is_named = isinstance(values, dict) and any(carries(values.get(key)) for key in IDS)
    kind = question.category or (str(values.get("kind") or "") if isinstance(values, dict) else "")
    head = {
        "id": question.id if is_named else default_id, "kind": kind,
        "messages": [{"role": "user", "content": question.turns[0]}], **beside,
    }  # fmt: skip
    reference = question.reference[-1] if question.reference else ""
    if not reference and isinstance(values, dict):
        reference = _reference({key: value for key, value in values.items() if key != "reference"})
    return Prompt(open_row(head, default_id), question.turns[1:], reference)


def _reference(row: Mapping[str, Any]) -> str:
    """A good answer that stands beside what is asked, as text."""
    given = next((row[name] for name in REFERENCES if carries(row.get(name))), "")
    if isinstance(given, Mapping):
        return read_message({"role": "assistant", **given}, "reference").content
    if not isinstance(given, str | int | float) or isinstance(given, bool):
        raise DialogueError(f"found the reference {str(given)[:80]!r}, expected a text or a number")
    check_text(str(given), "reference")
    return str(given)


def _check(prompt: Prompt) -> None:
    """Raise where an answer could not follow, by the rules that a whole dialogue keeps."""
    if not prompt.dialogue.messages:
        raise DialogueError("found no turn by a user, expected one to answer; add it")
    answers = [Message("assistant", "...")] * (1 + len(prompt.turns))
    check_dialogue(prompt.answered(answers))
