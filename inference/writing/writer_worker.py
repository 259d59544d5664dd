"""One engine that writes: prompts in, a file of all answers of a chunk out.

A chunk is the unit of work and of resumption: its file is written by rename when all its prompts are answered, every sample of
them. The seed of each sample is made of the run's, the writer, the prompt and the sample, so that it depends neither on the
chunk nor on who else is answered. `run_unit` may be called from two threads, so that an engine on an accelerator never drains
between two chunks.
"""

import contextlib
import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusechat.errors import DialogueError, ModelError
from fusechat.models import model_files
from fusechat.models.model_limits import position_limit
from fusechat.models.stop_ids import own_stop_ids
from fusechat.storage.files import write_json
from fusechat.storage.work import HERE, Place
from fusechat.text.answer_reading import AnswerReader
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import Message
from fusechat.text.prompts import Prompt, saved_prompts
from fusechat.text.rendered import ChatTemplate
from fusechat.text.tokenization import tokenize_prompt

from ..engine.engine_worker import EngineInputs, EngineWorker
from .answers import Answer

SHOWN_CHARACTERS = 400
"""Of an answer that could not be read."""


@dataclass(frozen=True, kw_only=True)
class WriterInputs(EngineInputs):
    """All that a writer's worker is told."""

    template: dict[str, Any]
    """How it is asked, as `ChatTemplate.from_attributes` reads it."""
    prompts_file: str
    folder: str
    """Of its answers."""
    chunk_prompts: int
    samples: int
    temperature: float
    max_new_tokens: int
    seed: int

    def chunk(self, unit: int) -> slice:
        """Numbers of the prompts of a unit."""
        return slice(unit * self.chunk_prompts, (unit + 1) * self.chunk_prompts)

    def chunk_file(self, unit: int) -> str:
        """Where the answers of a unit stand."""
        return f"{self.folder}/parts/{unit}.json"


@dataclass
class _Sample:
    """One answer as it grows, turn by turn."""

    prompt: Prompt
    number: int
    messages: list[Message] = field(default_factory=list)
    fault: str = ""
    shown: str = ""


class WriterWorker(EngineWorker):
    """Answers chunks of prompts with one model."""

    def __init__(self, inputs: WriterInputs, place: Place = HERE) -> None:
        super().__init__(inputs, place)
        self.inputs = inputs
        self._text_turn = threading.Lock()  # a tokenizer serves one thread at a time

    def longest(self) -> int:
        """Tokens of the longest prompt with its answers; opens tokenizer and prompts."""
        inputs = self.inputs
        folder = model_files.resolve_model(inputs.model)
        self._template = ChatTemplate.from_attributes(inputs.template)
        self._tokenizer, _ = load_tokenizer(str(folder), template=self._template.text)
        self._reader = AnswerReader(self._tokenizer, self._template)
        self._stops = sorted({*self._reader.stop_ids, *own_stop_ids(folder)})
        self._prompts = saved_prompts(inputs.prompts_file)
        self._positions = self._needed_positions(folder)
        return self._positions

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Answer one chunk and write its file.

        Returns:
            answers (of all samples), tokens (that were generated) and seconds.
        Raises:
            EngineError: the engine died.
        """
        started = time.monotonic()
        prompts = self._prompts[self.inputs.chunk(unit)]
        samples = [_Sample(prompt, number) for prompt in prompts for number in range(self.inputs.samples)]
        num_tokens = 0
        for turn in range(1 + max(len(prompt.turns) for prompt in prompts)):
            waiting = [one for one in samples if turn <= len(one.prompt.turns) and not one.fault]
            num_tokens += self._answer(waiting, turn)
        rows = [self._answer_of(one).to_row() for one in samples]
        grouped = [rows[start : start + self.inputs.samples] for start in range(0, len(rows), self.inputs.samples)]
        record = {"answers": grouped, "tokens": num_tokens}
        write_json(self.inputs.chunk_file(unit), record)
        return {"answers": len(rows), "tokens": num_tokens, "seconds": time.monotonic() - started}

    def _answer(self, samples: Sequence[_Sample], turn: int) -> int:
        """Answer one turn of some samples; gives the number of tokens that were generated."""
        with self._text_turn:
            asked = [(one, ids) for one in samples if (ids := self._prompt_ids(one)) is not None]
        if not asked:
            return 0
        seeds = [self._seed_of(one, turn) for one, _ in asked]
        with self._running() as engine:
            written = engine.generate(
                [ids for _, ids in asked], max_new_tokens=self.inputs.max_new_tokens, temperature=self.inputs.temperature,
                stop_token_ids=self._stops, seed=seeds,
            )  # fmt: skip
        with self._text_turn:
            for (one, _), ids in zip(asked, written, strict=True):
                self._take(one, ids)
        return sum(map(len, written))

    def _prompt_ids(self, sample: _Sample) -> np.ndarray | None:
        """What the writer reads; None, and a fault, where its template does not show it or no answer fits behind it."""
        try:
            dialogue = sample.prompt.answered(sample.messages)
            ids = np.array(tokenize_prompt(self._tokenizer, self._template, dialogue), np.int32)
        except (DialogueError, ModelError) as error:
            sample.fault, sample.shown = "its template does not show the prompt", str(error)[:SHOWN_CHARACTERS]
            return None
        if len(ids) + self.inputs.max_new_tokens > self._positions:
            sample.fault = "no room for an answer"
            return None
        return ids

    def _take(self, sample: _Sample, ids: np.ndarray) -> None:
        """Put what was written into its fields, or say why it is no whole answer."""
        try:
            if len(ids) >= self.inputs.max_new_tokens:
                raise DialogueError("cut off at max_new_tokens")
            message = self._reader.read(ids.tolist(), sample.prompt.answered(sample.messages))
            if message.tool_calls and len(sample.messages) < len(sample.prompt.turns):
                raise DialogueError("it calls a tool where the user goes on")
            sample.messages.append(message)
        except DialogueError as error:
            text = str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False))
            sample.fault, sample.shown = str(error), text[:SHOWN_CHARACTERS]

    def _answer_of(self, sample: _Sample) -> Answer:
        return Answer(self.inputs.model.name, sample.number, tuple(sample.messages), sample.fault, sample.shown)

    def _seed_of(self, sample: _Sample, turn: int) -> int:
        """31 bits that depend on the run's seed, the writer, the prompt, the turn and the sample, and on nothing else."""
        parts = [self.inputs.seed, self.inputs.model.name, sample.prompt.id, turn, sample.number]
        return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1

    def _needed_positions(self, folder: Path) -> int:
        """Tokens that the longest dialogue may take, but no more than the model has positions for."""
        needed = 1
        for prompt in self._prompts:
            with contextlib.suppress(DialogueError, ModelError):
                of_prompt = len(tokenize_prompt(self._tokenizer, self._template, prompt.dialogue))
                further = [Message("user", turn) for turn in prompt.turns]
                turns = [len(tokenize_prompt(self._tokenizer, self._template, [one])) for one in further]
                answers = (1 + len(turns)) * (self.inputs.max_new_tokens + 8)
                needed = max(needed, of_prompt + sum(turns) + answers)
        return min(needed, position_limit(folder) or needed)
