"""One engine that answers questions: questions in, one file of answers per chunk out.

A chunk is the unit of work and of resumption: its file is written by rename when all its questions are answered. Turns
are answered one after the other, a chunk's questions together, so that the engine's batches are full.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusechat.config import ModelSection
from fusechat.config.evaluation import AnswerSetSection
from fusechat.models import model_files
from fusechat.models.model_limits import position_limit
from fusechat.models.stop_ids import own_stop_ids
from fusechat.storage import artifact
from fusechat.storage.tokens import TokensReader
from fusechat.storage.work import HERE, Place
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import Message
from fusechat.text.questions import Question, read_questions, temperature_of
from fusechat.text.rendered import ChatTemplate
from fusechat.text.template_heads import spoken
from fusechat.text.tokenization import tokenize_prompt

from ..engine.engine_worker import EngineWorker

MAX_TURN_SEEDS = 1 << 20
"""Seeds between two turns of a chunk: more than a chunk has questions."""


@dataclass(frozen=True)
class Chunk:
    """Some questions of one set: numbers [start, stop)."""

    answer_set: str
    start: int
    stop: int

    def path(self, folder: str) -> str:
        """Where its answers stand, below the folder of a model's answers to the set."""
        return f"{folder}/parts/{self.start}-{self.stop}.json"


@dataclass(frozen=True)
class AnsweringInputs:
    """All that an answering worker is told."""

    model_folder: str
    """Of the model that answers."""
    reader: ModelSection
    """The model of the run whose tokenizer and template it reads with."""
    tokens_url: str
    """The reader's tokens, which say what template they were made under."""
    sets: dict[str, AnswerSetSection]
    folders: dict[str, str]
    """Set -> folder of this model's answers."""
    chunks: tuple[Chunk, ...]
    """Of all sets; the number of a unit is that of a chunk."""
    seed: int


class AnswerWorker(EngineWorker):
    """Answers chunks of questions with one model."""

    def __init__(self, inputs: AnsweringInputs, place: Place = HERE) -> None:
        super().__init__(inputs.reader.engine, place)
        self.inputs = inputs

    def start(self) -> dict[str, Any]:
        """Open tokenizer, questions and engine.

        Returns:
            the seconds the start took, and the engine's positions.
        """
        from ..engine.teacher import Teacher

        started, inputs = time.monotonic(), self.inputs
        tokens = TokensReader(inputs.tokens_url)
        self._template = ChatTemplate.from_attributes(tokens.attributes)
        self._tokenizer, _ = load_tokenizer(str(model_files.resolve_model(inputs.reader)), template=self._template.text)
        self._stops = sorted({*tokens.turn_end_ids(), *own_stop_ids(Path(inputs.model_folder))})
        self._questions = {name: read_questions(section.file, section.form) for name, section in inputs.sets.items()}
        self._positions = self._needed_positions()
        self._teacher = Teacher(
            inputs.model_folder, max_tokens=self._positions, engine=self._engine_section, mode="generate"
        )
        return {"seconds": time.monotonic() - started, "positions": self._positions}

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Answer one chunk and write its file.

        Returns:
            questions, answers (given to all turns), tokens (of the answers) and seconds.
        Raises:
            TeacherError: the engine died.
        """
        started = time.monotonic()
        chunk = self.inputs.chunks[unit]
        section = self.inputs.sets[chunk.answer_set]
        questions = self._questions[chunk.answer_set][chunk.start : chunk.stop]
        answers, num_tokens = self._answer(section, questions, self.inputs.seed + chunk.start)
        record = {"answers": answers, "tokens": num_tokens}
        artifact.write_json(chunk.path(self.inputs.folders[chunk.answer_set]), record)
        given = sum(answer is not None for answer_turns in answers for answer in answer_turns)
        return {
            "questions": len(questions),
            "answers": given,
            "tokens": num_tokens,
            "seconds": time.monotonic() - started,
        }

    def _answer(
        self, section: AnswerSetSection, questions: list[Question], seed: int
    ) -> tuple[list[list[str | None]], int]:
        """For each question a text per turn, None from the first turn on that has no room; and the tokens of all."""
        answers: list[list[str | None]] = [[] for _ in questions]
        num_tokens = 0
        for turn in range(max(len(question.turns) for question in questions)):
            prompts: dict[float, list[tuple[int, np.ndarray]]] = {}
            for number, question in enumerate(questions):
                if turn >= len(question.turns):
                    continue
                prompt = self._prompt(question, answers[number], section.max_new_tokens)
                if prompt is None:
                    answers[number].append(None)
                    continue
                temperature = temperature_of(question, section.form, section.temperature)
                prompts.setdefault(temperature, []).append((number, prompt))
            for temperature, group in prompts.items():
                first = seed + turn * MAX_TURN_SEEDS + group[0][0]
                found = self._generate([prompt for _, prompt in group], section.max_new_tokens, temperature, first)
                for (number, _), ids in zip(group, found, strict=True):
                    answers[number].append(spoken(self._tokenizer, self._template, ids.tolist()).strip())
                    num_tokens += len(ids)
        return answers, num_tokens

    def _prompt(self, question: Question, given: list[str | None], max_new_tokens: int) -> np.ndarray | None:
        """The dialogue so far and the next turn, as token ids; None where no answer fits behind it."""
        messages = []
        for turn, text in zip(question.turns, [*given, ""], strict=False):
            if text is None:
                return None
            # A template may refuse an empty content; a model that said nothing is quoted as saying so.
            messages += [Message("user", turn), Message("assistant", text or "(no answer)")]
        ids = np.array(tokenize_prompt(self._tokenizer, self._template, messages[:-1]), np.int32)
        return ids if len(ids) + max_new_tokens <= self._positions else None

    def _generate(self, prompts: list[np.ndarray], longest: int, temperature: float, seed: int) -> list[np.ndarray]:
        with self._engine() as teacher:
            return teacher.generate(
                prompts, max_new_tokens=longest, temperature=temperature, stop_token_ids=self._stops, seed=seed
            )

    def _needed_positions(self) -> int:
        """Tokens that the longest dialogue may take, but no more than the model has positions for."""
        needed = 0
        for name, questions in self._questions.items():
            for question in questions:
                turns = [tokenize_prompt(self._tokenizer, self._template, [Message("user", t)]) for t in question.turns]
                needed = max(needed, sum(map(len, turns)) + len(turns) * (self.inputs.sets[name].max_new_tokens + 8))
        return min(needed, position_limit(Path(self.inputs.model_folder)) or needed)
