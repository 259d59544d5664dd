"""Questions for models to answer: a file in; questions of one or several turns out. And the files that hold answers.

What a file holds is read by `fusechat.text.question_rows`. Answers to `prompts` and `mt_bench` are written as FastChat's model
answers, to `alpaca_eval` as AlpacaEval's model outputs. Knows nothing about models.
"""

import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.evaluation import Form
from ..errors import DialogueError
from ..storage.files import write_json
from ..storage.write_errors import storage_errors
from .question_rows import Question as Question  # part of this module's face
from .question_rows import question_of, rows_of

MT_BENCH_TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
"""What FastChat samples each category of MT-Bench with; 0.7 for any other."""
CHUNK_QUESTIONS = 32
"""Questions that an engine answers at once; their answers stand in one file until all of the set are there."""


PLAIN_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
"""An id that is written as a number and reads back as it stood; `007` would come back as `7`."""


def read_questions(path: str | Path, form: Form) -> list[Question]:
    """Read a questions file.

    Raises:
        DialogueError: a file that cannot be read, or a row that is no question; the place is named.
    """
    questions: list[Question] = []
    places: dict[str, str] = {}
    for number, (place, row) in enumerate(rows_of(Path(path), form), 1):
        if isinstance(row, DialogueError):
            raise DialogueError(f"{place}: {row}")
        question = question_of(place, row, form, number)
        if question.id in places:
            raise DialogueError(
                f"{place}: question {question.id!r} stands at {places[question.id]} already; give it another id"
            )
        places[question.id] = place
        questions.append(question)
    if not questions:
        raise DialogueError(f"{path}: holds no question; expected at least one")
    return questions


def questions_digest(questions: Sequence[Question]) -> str:
    """Digest of all that answers depend on: ids, categories (MT-Bench's temperatures) and what is asked."""
    asked = [[question.id, question.category, question.dataset, *question.turns] for question in questions]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def temperature_of(question: Question, form: Form, temperature: float | None) -> float:
    """The temperature that a question is answered with; None stands for 0, in MT-Bench for FastChat's by category."""
    if temperature is not None:
        return temperature
    return MT_BENCH_TEMPERATURES.get(question.category, 0.7) if form == "mt_bench" else 0.0


def answers_file(folder: Path, model_id: str, form: Form) -> Path:
    """Where a model's answers stand in their folder."""
    return folder / f"{model_id}.{'json' if form == 'alpaca_eval' else 'jsonl'}"


def write_answers(
    path: Path,
    model_id: str,
    form: Form,
    questions: Sequence[Question],
    answers: Sequence[Sequence[str]],
    sampling: dict[str, Any],
) -> None:
    """Write a model's answers in the form that the judges of its questions read.

    Args:
        answers: for each question one text per turn.
        sampling: how they were sampled; kept in each of FastChat's records (which ignores it).
    """
    if form == "alpaca_eval":
        write_json(
            str(path),
            [
                {
                    "dataset": question.dataset,
                    "instruction": question.turns[0],
                    "output": given[0],
                    "generator": model_id,
                }
                for question, given in zip(questions, answers, strict=True)
            ],
        )
        return
    lines = []
    for question, given in zip(questions, answers, strict=True):
        text = json.dumps([model_id, question.id, *given])
        record = {
            "question_id": int(question.id) if PLAIN_NUMBER.fullmatch(question.id) else question.id,
            "answer_id": hashlib.sha256(text.encode()).hexdigest()[:22],
            "model_id": model_id,
            "choices": [{"index": 0, "turns": list(given)}],
            "tstamp": time.time(),
            "sampling": sampling,
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    with storage_errors(path):
        path.write_text("".join(lines), encoding="utf-8")


def read_answers(path: Path, form: Form, questions: Sequence[Question]) -> list[list[str]]:
    """A model's answers in the order of the questions; one text per turn."""
    if form == "alpaca_eval":
        return [[record["output"]] for record in json.loads(path.read_text(encoding="utf-8"))]
    # Not splitlines: an answer may hold other line separators than the one between records.
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    by_id = {str(record["question_id"]): record["choices"][0]["turns"] for record in records}
    return [by_id[question.id] for question in questions]
