"""One engine that answers questions: sets of questions in, one file of answers per chunk out.

A chunk is the unit of work and of resumption: its file is written by rename when all its questions are answered. Turns
are answered one after the other, a chunk's questions together, so that the engine's batches are full.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusechat.config import ModelSection
from fusechat.errors import DialogueError, ModelError
from fusechat.models import model_files
from fusechat.models.model_limits import position_limit
from fusechat.models.stop_ids import own_stop_ids
from fusechat.storage.files import write_json
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import HERE, Place
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import Message
from fusechat.text.rendered import ChatTemplate
from fusechat.text.template_heads import spoken
from fusechat.text.tokenization import tokenize_prompt

from ..engine.engine_worker import EngineInputs, EngineWorker
from .asked import Asked, AskedSet

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


@dataclass(frozen=True, kw_only=True)
class AnsweringInputs(EngineInputs):
    """All that an answering worker is told."""

    reader: ModelSection
    """The model of the run whose tokenizer and template it reads with."""
    tokens_url: str
    """The reader's tokens, which say what template they were made under."""
    sets: dict[str, AskedSet]
    folders: dict[str, str]
    """Set -> folder of this model's answers."""
    chunks: tuple[Chunk, ...]
    """Of all sets; the number of a unit is that of a chunk."""
    seed: int


class AnswerWorker(EngineWorker):
    """Answers chunks of questions with one model."""

    def __init__(self, inputs: AnsweringInputs, place: Place = HERE) -> None:
        super().__init__(inputs, place)
        self.inputs = inputs

    def longest(self) -> int:
        """Tokens of the longest dialogue with its answers; opens tokenizer and questions."""
        inputs = self.inputs
        tokens = TokensReader(inputs.tokens_url)
        self._template = ChatTemplate.from_attributes(tokens.attributes)
        self._tokenizer, _ = load_tokenizer(str(model_files.resolve_model(inputs.reader)), template=self._template.text)
        self._folder = model_files.resolve_model(inputs.model)
        self._stops = sorted({*tokens.turn_end_ids(), *own_stop_ids(self._folder)})
        self._questions = {name: asked_set.read() for name, asked_set in inputs.sets.items()}
        self._positions = self._needed_positions()
        return self._positions

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Answer one chunk and write its file.

        Returns:
            units (1), questions, answers (given to all turns), tokens (of the answers) and seconds.
        Raises:
            EngineError: the engine died.
        """
        started = time.monotonic()
        chunk = self.inputs.chunks[unit]
        asked_set = self.inputs.sets[chunk.answer_set]
        questions = self._questions[chunk.answer_set][chunk.start : chunk.stop]
        answers, num_tokens = self._answer(asked_set, questions, self.inputs.seed + chunk.start)
        record = {"answers": answers, "tokens": num_tokens}
        write_json(chunk.path(self.inputs.folders[chunk.answer_set]), record)
        given = sum(answer is not None for answer_turns in answers for answer in answer_turns)
        return {
            "units": 1,
            "questions": len(questions),
            "answers": given,
            "tokens": num_tokens,
            "seconds": time.monotonic() - started,
        }

    def _answer(self, asked_set: AskedSet, questions: list[Asked], seed: int) -> tuple[list[list[str | None]], int]:
        """For each question a text per turn, None from the first turn on that has no room; and the tokens of all."""
        answers: list[list[str | None]] = [[] for _ in questions]
        num_tokens = 0
        for turn in range(max(len(asked.question.turns) for asked in questions)):
            prompts: dict[float, list[tuple[int, np.ndarray]]] = {}
            for number, asked in enumerate(questions):
                if turn >= len(asked.question.turns):
                    continue
                prompt = self._prompt(asked, answers[number], asked_set.max_new_tokens)
                if prompt is None:
                    answers[number].append(None)
                    continue
                temperature = asked_set.temperature_of(asked.question)
                prompts.setdefault(temperature, []).append((number, prompt))
            for temperature, group in prompts.items():
                first = seed + turn * MAX_TURN_SEEDS + group[0][0]
                made = self._generate([prompt for _, prompt in group], asked_set.max_new_tokens, temperature, first)
                for (number, _), ids in zip(group, made, strict=True):
                    answers[number].append(spoken(self._tokenizer, self._template, ids.tolist()).strip())
                    num_tokens += len(ids)
        return answers, num_tokens

    def _prompt(self, asked: Asked, given: list[str | None], max_new_tokens: int) -> np.ndarray | None:
        """The dialogue so far and the next turn, as token ids; None where no answer fits behind it."""
        if asked.dialogue is not None:
            ids = self._read(asked)
        else:
            messages = []
            for turn, text in zip(asked.question.turns, [*given, ""], strict=False):
                if text is None:
                    return None
                # A template may refuse an empty content; a model that said nothing is quoted as saying so.
                messages += [Message("user", turn), Message("assistant", text or "(no answer)")]
            ids = np.array(tokenize_prompt(self._tokenizer, self._template, messages[:-1]), np.int32)
        return ids if ids is not None and len(ids) + max_new_tokens <= self._positions else None

    def _read(self, asked: Asked) -> np.ndarray | None:
        """A held-out dialogue before its answer, as token ids; None where the model's template does not show it."""
        assert asked.dialogue is not None, "a question of a file"
        try:
            return np.array(tokenize_prompt(self._tokenizer, self._template, asked.dialogue), np.int32)
        except (DialogueError, ModelError):
            return None

    def _generate(self, prompts: list[np.ndarray], longest: int, temperature: float, seed: int) -> list[np.ndarray]:
        with self._running() as engine:
            return engine.generate(
                prompts, max_new_tokens=longest, temperature=temperature, stop_token_ids=self._stops, seed=seed
            )

    def _needed_positions(self) -> int:
        """Tokens that the longest dialogue may take, but no more than the model has positions for."""
        needed = 1
        for name, questions in self._questions.items():
            longest = self.inputs.sets[name].max_new_tokens + 8
            for asked in questions:
                if asked.dialogue is not None:
                    ids = self._read(asked)
                    needed = max(needed, 0 if ids is None else len(ids) + longest)
                    continue
                turns = [[Message("user", turn)] for turn in asked.question.turns]
                prompts = [tokenize_prompt(self._tokenizer, self._template, messages) for messages in turns]
                needed = max(needed, sum(map(len, prompts)) + len(prompts) * longest)
        return min(needed, position_limit(self._folder) or needed)
