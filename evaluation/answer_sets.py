"""The answers that the run's models gave to `evaluation.questions.sets`: a run in; questions and answers, side by side, out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusechat.config.evaluation import Form
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.text.questions import Question, answers_file, read_answers, read_questions

from .inputs import ReportInputs
from .judge.judge import AnswerSet

SHOWN_QUESTIONS = 20
"""Questions of a set whose answers stand in the report; all of them stand in the answers' own files."""


def read_answer_sets(inputs: ReportInputs) -> list[AnswerSet]:
    """All sets with the answers of all models; a question that a model had no room for is None there."""
    made = []
    for section in inputs.section.questions.sets:
        questions = read_questions(section.file, section.form)
        answers: dict[str, Sequence[Sequence[str] | None]] = {}
        for model_id in inputs.measured_ids:
            made_of = artifact.load(inputs.layout.answers_path(section.name, model_id), "answers")
            answers[model_id] = given_answers(made_of, model_id, section.form, questions)
        made.append(AnswerSet(section.name, questions, answers))
    return made


def given_answers(
    made: Artifact, model_id: str, form: Form, questions: Sequence[Question]
) -> list[Sequence[str] | None]:
    """A model's answers to the questions of a set, a text per turn; None where it had no room for one."""
    no_room = set(made.counts["no_room"])
    given = read_answers(answers_file(Path(made.url), model_id, form), form, questions)
    return [None if question.id in no_room else turns for question, turns in zip(questions, given, strict=True)]


def set_records(inputs: ReportInputs, sets: list[AnswerSet]) -> list[dict[str, Any]]:
    """What the report says of each set: how it was sampled, counts per model, and the first questions side by side."""
    records = []
    for section, one in zip(inputs.section.questions.sets, sets, strict=True):
        counts = {
            model_id: artifact.load(inputs.layout.answers_path(one.name, model_id), "answers").counts
            for model_id in one.answers
        }
        records.append(
            {
                "name": one.name,
                "form": section.form,
                "questions": len(one.questions),
                "sampling": next(iter(counts.values()))["sampling"],
                "models": {
                    model_id: {key: entry[key] for key in ("answers", "tokens", "no_room")}
                    for model_id, entry in counts.items()
                },
                "shown": [
                    {
                        "id": question.id,
                        "category": question.category,
                        "turns": list(question.turns),
                        "answers": {model_id: given[number] for model_id, given in one.answers.items()},
                    }
                    for number, question in enumerate(one.questions[:SHOWN_QUESTIONS])
                ],
            }
        )
    return records
