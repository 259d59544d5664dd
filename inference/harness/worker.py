"""One measured model at the harness: a task in, its figures out, in a file that the driver joins with the others.

An engine has one face, and a task may ask for both: the worker has one engine at a time, of the face that is asked now.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fusechat.config import Capture, ModelSection
from fusechat.models import model_files
from fusechat.models.model_limits import position_limit
from fusechat.models.stop_ids import own_stop_ids
from fusechat.storage.files import write_json
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import HERE, Place
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.recipes import positions_behind
from fusechat.text.rendered import ChatTemplate

from ..capture.rows import TopKRows
from ..engine.engine_worker import EngineInputs, EngineWorker

POSITIONS = 2048
"""Tokens that a model reads whose config does not say: the harness's own default."""


@dataclass(frozen=True, kw_only=True)
class HarnessInputs(EngineInputs):
    """All that the worker of one measured model is told."""

    reader: ModelSection
    """The model of the run whose tokenizer and template it reads with."""
    tokens_url: str
    """The reader's tokens, which say what template they were made under."""
    capture: Capture
    folder: str
    """Where the figures go."""
    tasks: tuple[str, ...]
    """The number of a unit is that of a task."""
    task_folder: str | None
    limit: int | None
    seed: int
    unsafe_code: bool

    def path(self, unit: int) -> str:
        """Where a task's figures stand."""
        return f"{self.folder}/parts/{unit}.json"


class HarnessWorker(EngineWorker):
    """Runs tasks with one model."""

    def __init__(self, inputs: HarnessInputs, place: Place = HERE) -> None:
        super().__init__(inputs, place)
        self.inputs = inputs
        self._opened: tuple[str, bool, int] = (
            "",
            False,
            0,
        )  # the open engine's face, whether it reads text, its positions

    def start(self) -> dict[str, Any]:
        """Open the tokenizer; the engine waits for what the tasks ask."""
        started = time.monotonic()
        return {"positions": self.longest(), "seconds": time.monotonic() - started}

    def longest(self) -> int:
        """Tokens that the model reads at most; opens the tokenizer."""
        inputs = self.inputs
        tokens = TokensReader(inputs.tokens_url)
        self._template = ChatTemplate.from_attributes(tokens.attributes)
        self._tokenizer, _ = load_tokenizer(str(model_files.resolve_model(inputs.reader)), template=self._template.text)
        folder = model_files.resolve_model(inputs.model)
        self._stops = sorted({*tokens.turn_end_ids(), *own_stop_ids(folder)})
        self._positions = (position_limit(folder) or POSITIONS) - positions_behind(inputs.capture)
        return self._positions

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Run one task and write its figures.

        Returns:
            units (1) and seconds.
        Raises:
            ModelError, EngineError: the model cannot be opened, or its engine died.
            ConfigError: a task that asks for what engines do not have.
        """
        from .engine_model import EngineModel
        from .tasks import run_tasks

        started, inputs = time.monotonic(), self.inputs
        model = EngineModel(self, self._tokenizer, self._template, max_length=self._positions, seed=inputs.seed)
        figures = run_tasks(
            model, tasks=[inputs.tasks[unit]], folder=None if inputs.task_folder is None else Path(inputs.task_folder),
            limit=inputs.limit, seed=inputs.seed, unsafe_code=inputs.unsafe_code,
        )  # fmt: skip
        write_json(inputs.path(unit), figures)
        return {"units": 1, "seconds": time.monotonic() - started}

    @property
    def gives_chosen_ids(self) -> bool:
        """Whether `score` takes chosen ids."""
        return self.inputs.capture == "topk_pooler"

    def score(
        self, token_ids: Sequence[np.ndarray], is_scored: Sequence[np.ndarray], chosen_ids: Sequence[np.ndarray] | None
    ) -> list[TopKRows]:
        """As `Engine.score`, by an engine that reads the longest of the dialogues."""
        self._need("score", max(map(len, token_ids), default=1))
        with self._running() as engine:
            return engine.score(token_ids, is_scored, chosen_ids)

    def generate(
        self, prompts: Sequence[np.ndarray], *, max_new_tokens: int, temperature: float, stop: Sequence[str], seed: Sequence[int],
        sampling: Mapping[str, float],
    ) -> list[np.ndarray]:  # fmt: skip
        """As `Engine.generate`, by an engine that reads the longest of the prompts with its answer; ends of turn are the model's."""
        self._need("generate", max(map(len, prompts), default=1) + max_new_tokens, reads_text=bool(stop))
        with self._running() as engine:
            return engine.generate(
                prompts, max_new_tokens=max_new_tokens, temperature=temperature, stop_token_ids=self._stops, stop=stop, seed=seed,
                sampling=sampling,
            )  # fmt: skip

    def _need(self, face: Literal["score", "generate"], tokens: int, *, reads_text: bool = False) -> None:
        """Have an engine open with a face, for so many tokens."""
        has_face, has_text, positions = self._opened
        if self._engine is not None and has_face == face and has_text >= reads_text and positions >= tokens:
            return
        self.close()
        self._open_engine(tokens, face=face, capture=self.inputs.capture, reads_text=reads_text)
        self._opened = face, reads_text, tokens
