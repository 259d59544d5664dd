"""What the workers that hold an engine share: what they are told, whose engine it is, who has it, how it ends with its process."""

import contextlib
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from fusechat.config import Capture, ModelSection
from fusechat.errors import EngineError
from fusechat.models import model_files
from fusechat.models.process_memory import give_memory_back
from fusechat.storage.work import Place

from ..serving.remote_engine import RemoteEngine, ServedBy
from .engine_settings import with_backend

if TYPE_CHECKING:
    from .engine import Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineInputs:
    """What every worker that holds an engine is told."""

    model: ModelSection
    """The model that the engine has; its folder is looked up where the worker stands."""
    is_wide_on_cpus: bool = False
    """An engine on CPUs whose dtype is `auto` computes in float32, whatever the checkpoint says."""
    served: ServedBy | None = None
    """An engine of a service; None: the worker starts its own."""

    def served_by(self, served: ServedBy) -> Self:
        """The same work by an engine of a service."""
        return replace(self, served=served)


class EngineWorker(ABC):
    """Base of a worker that holds one engine: its own, or one of a service.

    On CPUs one unit at a time is on an engine of one's own: that keeps its batches, and so what it says to the bit, independent of
    what else is in flight.
    """

    def __init__(self, inputs: EngineInputs, place: Place) -> None:
        """Cheap: nothing heavy is imported and nothing is read before `start`."""
        self._told, self._place = inputs, place
        self._engine: Engine | RemoteEngine | None = None
        self._engine_turn: contextlib.AbstractContextManager[object] = threading.Lock()
        self._on_cpu = True  # until the engine says otherwise

    def start(self) -> dict[str, Any]:
        """Open what the units need, and an engine that gives answers.

        Returns:
            the seconds the start took, and the engine's positions.
        Raises:
            ModelError, EngineError: the model cannot be opened.
        """
        started = time.monotonic()
        positions = self.longest()
        self._open_engine(positions, face="generate")
        return {"seconds": time.monotonic() - started, "positions": positions}

    @abstractmethod
    def longest(self) -> int:
        """Tokens of the longest dialogue, or prompt and answer together, that the engine must read; opens what says so."""

    def close(self) -> None:
        """End the engine and free its memory; the process may start another one."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            give_memory_back()

    def _open_engine(
        self,
        max_tokens: int,
        *,
        face: Literal["score", "generate"],
        k: int = 1,
        capture: Capture = "topk_pooler",
        reads_text: bool = False,
    ) -> "Engine | RemoteEngine":
        """An engine that reads so many tokens: that of the service, or one that is started here."""
        told = self._told
        if told.served is not None:
            self._engine = remote = RemoteEngine(told.served, k=k, max_tokens=max_tokens)
            self._engine_turn = contextlib.nullcontext()  # the service gives the turns
            return remote
        from .engine import Engine

        self._engine = engine = Engine(
            str(model_files.resolve_model(told.model)), k=k, capture=capture, max_tokens=max_tokens,
            section=with_backend(told.model.engine, self._place.executor_backend), face=face,
            reads_text=reads_text, is_wide_on_cpus=told.is_wide_on_cpus,
        )  # fmt: skip
        self._on_cpu = engine.info["device"] == "cpu"
        if not self._on_cpu:
            self._engine_turn = contextlib.nullcontext()
        return engine

    @contextlib.contextmanager
    def _running(self) -> "Iterator[Engine | RemoteEngine]":
        """The engine, for the time of a `with` block in which it is this unit's turn.

        Raises:
            EngineError: it is not running, or it died and the process goes on.
        """
        with self._engine_turn:
            if self._engine is None:
                raise EngineError("the engine is not running; call start first")
            try:
                yield self._engine
            except EngineError as error:
                if self._place.owns_process and not self._engine.alive:
                    log.error("%s", error)
                    os._exit(1)
                raise
