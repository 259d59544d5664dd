"""The deployments that hold an engine: what Ray Serve starts, asks for its health, and replaces. Importing this imports Ray's."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fusechat.errors import EngineError
from inference.serving.faces import Face
from inference.serving.score_face import Reply, ScoreFace

log = logging.getLogger(__name__)


class _Replica:
    """What Serve asks of each: what its engine is, and whether it is still of use."""

    _face: Any

    def about(self) -> dict[str, Any]:
        """What the engine is."""
        about: dict[str, Any] = self._face.about()
        return about

    async def check_health(self) -> None:
        """Raises where the engine is of no further use."""
        if not self._face.alive:
            raise EngineError(f"{self._face.face.name}: the engine died")


class ScoreReplica(_Replica):
    """An engine that gives rows."""

    def __init__(self, face: Face, executor_backend: str | None) -> None:
        keep_logs()
        self._face = ScoreFace(face, executor_backend)
        self._threads = ThreadPoolExecutor(face.at_once, thread_name_prefix="score")

    async def answer(self, body: bytes, content_type: str, accept: str) -> Reply:
        """Score the dialogues of one request; a dead engine takes this process along, and Serve starts another."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._face.answer, body, content_type, accept)
        except EngineError as error:
            log.error("%s", error)
            os._exit(1)


class GenerateReplica(_Replica):
    """An engine that gives answers in OpenAI's protocol."""

    async def __init__(self, face: Face, executor_backend: str | None) -> None:  # type: ignore[misc]  # Serve awaits it
        keep_logs()
        from inference.serving.generate_face import GenerateFace

        self._face = GenerateFace(face, executor_backend)
        await self._face.start()

    async def answer(self, path: str, body: bytes) -> AsyncIterator[Any]:
        """Answer one request: a head, then its body as it is written."""
        async for part in self._face.answer(path, body):
            yield part


def keep_logs() -> None:
    """Keep vLLM, which this process imports next, from setting up logs: that closes the handlers of all others.

    Serve's controller asks each replica for the file of its log when it comes back from a death; one whose handler is closed
    raises there, and the controller ends it and starts its engine anew.
    """
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    os.environ.pop("VLLM_LOGGING_CONFIG_PATH", None)
    logging.getLogger("vllm").setLevel(logging.ERROR)
