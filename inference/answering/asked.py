"""What measured models are asked: sets of questions from files, held-out dialogues before their last answer, sample prompts.

All three are one thing to whoever answers: questions, each of one or several turns, or with a dialogue in front of its only turn.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusechat.config.evaluation import EXACT, SAMPLED_ROLES, SAMPLES, EvaluationSection, Form
from fusechat.text.dialogues import Dialogue, dialogues_digest
from fusechat.text.held_out import is_asked, read_held_out
from fusechat.text.questions import Question, questions_digest, read_questions, temperature_of


@dataclass(frozen=True)
class Asked:
    """One question; `dialogue`: all that stands before its answer, where that is not the user's turns alone."""

    question: Question
    dialogue: Dialogue | None = None


@dataclass(frozen=True)
class AskedSet:
    """A set of questions and how it is answered; one of `file` and `prompts` holds them."""

    name: str
    form: Form
    """In which the answers are written."""
    max_new_tokens: int
    temperature: float | None
    """None: 0, in MT-Bench FastChat's by category."""
    file: str = ""
    """Questions of that form; with `kinds`, dialogues."""
    kinds: tuple[str, ...] = ()
    """Kinds of dialogue whose last answer is asked for."""
    prompts: tuple[str, ...] = ()
    """What is asked, as it stands."""

    def read(self) -> list[Asked]:
        """All questions.

        Raises:
            DialogueError: a file that cannot be read, or holds what is no question.
        """
        if self.prompts:
            return [Asked(Question(str(number), (text,))) for number, text in enumerate(self.prompts, 1)]
        if not self.kinds:
            return [Asked(question) for question in read_questions(self.file, self.form)]
        return [before_last_answer(one) for one in read_held_out(Path(self.file)) if is_asked(one, self.kinds)]

    def settings(self) -> dict[str, Any]:
        """What the run file says of it, and decides its answers."""
        return {
            "name": self.name,
            "form": self.form,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "kinds": list(self.kinds),
            "prompts": list(self.prompts),
        }

    def digests(self) -> dict[str, str]:
        """Of what is asked, whatever file it stands in."""
        asked = self.read()
        dialogues = [one.dialogue for one in asked if one.dialogue is not None]
        digests = {"questions": questions_digest([one.question for one in asked])}
        return digests | ({"dialogues": dialogues_digest(dialogues)} if dialogues else {})

    def temperature_of(self, question: Question) -> float:
        """What a question is answered with."""
        return temperature_of(question, self.form, self.temperature)


def asked_sets(section: EvaluationSection, held_out_file: str, role: str) -> list[AskedSet]:
    """What a measured model is asked.

    Args:
        held_out_file: the held-out dialogues.
        role: the model's.
    """
    sets = []
    if section.exact.kinds:
        sets.append(
            AskedSet(EXACT, "prompts", section.exact.max_new_tokens, 0.0, held_out_file, tuple(section.exact.kinds))
        )
    if section.questions.samples and role in SAMPLED_ROLES:
        prompts = tuple(section.questions.samples)
        sets.append(AskedSet(SAMPLES, "prompts", section.exact.max_new_tokens, 0.0, prompts=prompts))
    return sets + [
        AskedSet(one.name, one.form, one.max_new_tokens, one.temperature, one.file) for one in section.questions.sets
    ]


def before_last_answer(dialogue: Dialogue) -> Asked:
    """The question whose answer is the dialogue's last turn."""
    before = dialogue.messages[:-1]
    return Asked(Question(dialogue.id, (before[-1].content,)), replace(dialogue, messages=before))
