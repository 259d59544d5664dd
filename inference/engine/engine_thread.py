"""One vLLM engine and the one thread that drives it.

Goes in: lists of prompts with their parameters, from any thread. Comes out: a future per list, outputs in the order of
the prompts. Lists share the engine's batches, so that a second one keeps it busy while the first drains. The engine is
built and stepped in its own thread because CUDA's current device and OpenMP's thread team belong to a thread.
Knows nothing about rows or stores. Importing this module imports vLLM: call `prepare_environment` first.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from vllm import PoolingParams, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.v1.engine.llm_engine import LLMEngine

from fusechat.errors import EngineError

from .vllm_internals import imports_stay_frozen, shut_down

Request = tuple[list[int], PoolingParams | SamplingParams]

_engine_here = threading.Lock()
"""Held while this process has an engine: vLLM's parallel groups are global in it."""


@dataclass
class _Job:
    number: int
    requests: list[Request]
    future: Future[list[Any]] = field(default_factory=Future)
    outputs: dict[int, Any] = field(default_factory=dict)


class EngineThread:
    """Runs until `close`, or until the engine fails; then every call raises EngineError."""

    def __init__(self, build: Callable[[], LLMEngine], *, name: str) -> None:
        """Start the thread and wait for the engine.

        Raises:
            EngineError: this process holds an engine already.
            Exception: whatever `build` raises.
        """
        if not _engine_here.acquire(blocking=False):
            raise EngineError(
                f"{name}: this process holds an engine already; close it first, or open this one elsewhere"
            )
        self.name = name
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._jobs: dict[int, _Job] = {}
        self._lock = threading.Lock()
        self._submitted = 0
        self._failure: EngineError | None = None
        started: Future[LLMEngine] = Future()
        self._thread = threading.Thread(target=self._run, args=(build, started), name=f"engine-{name}", daemon=True)
        self._thread.start()
        if started.exception() is not None:
            self._thread.join()  # only then is the process free for the next engine
        self.engine = started.result()

    @property
    def alive(self) -> bool:
        return self._failure is None

    def submit(self, requests: list[Request]) -> Future[list[Any]]:
        """Queue prompts; the future gives their outputs (vLLM's pooling or request outputs), or an EngineError."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._submitted += 1
            job = _Job(self._submitted, requests)
            if requests:
                self._inbox.put(job)
            else:
                job.future.set_result([])
        return job.future

    def close(self) -> None:
        """Stop the thread and the engine; unfinished jobs fail. May be called twice."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self, build: Callable[[], LLMEngine], started: Future[LLMEngine]) -> None:
        engine = None
        try:
            try:
                engine = build()
            except Exception as error:
                self._fail(EngineError(f"{self.name}: the engine did not start"))
                started.set_exception(error)
                return
            started.set_result(engine)
            self._serve(engine)
        finally:
            self._shut_down(engine)

    def _serve(self, engine: LLMEngine) -> None:
        try:
            while True:
                idle = not engine.has_unfinished_requests()
                while idle or not self._inbox.empty():
                    job = self._inbox.get()
                    if job is None:
                        self._fail(EngineError(f"{self.name}: the engine was closed"))
                        return
                    self._admit(engine, job)
                    idle = False
                for output in engine.step():
                    self._deliver(output)
        except Exception as error:
            # Whatever raised, requests are half done and their state is unknown: the engine is of no further use.
            failure = EngineError(f"{self.name}: the engine died: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._fail(failure)

    def _admit(self, engine: LLMEngine, job: _Job) -> None:
        admitted: list[str] = []
        self._jobs[job.number] = job
        try:
            for place, (token_ids, params) in enumerate(job.requests):
                admitted.append(engine.add_request(f"{job.number}-{place}", tokens_input(token_ids), params))
        except (ValueError, VLLMClientError) as error:  # vLLM refuses the request; the engine is sound
            engine.abort_request(admitted, internal=True)
            del self._jobs[job.number]
            job.future.set_exception(EngineError(f"{self.name}: the engine refused dialogue {len(admitted)}: {error}"))

    def _deliver(self, output: Any) -> None:
        number, place = map(int, output.request_id.split("-")[:2])
        job = self._jobs.get(number)
        if job is None or not output.finished:
            return
        job.outputs[place] = output
        if len(job.outputs) == len(job.requests):
            del self._jobs[number]
            job.future.set_result([job.outputs[place] for place in range(len(job.requests))])

    def _fail(self, failure: EngineError) -> None:
        with self._lock:
            self._failure = failure
            waiting = list(self._jobs.values())
            self._jobs.clear()
            while not self._inbox.empty():
                job = self._inbox.get()
                waiting += [job] if job is not None else []
        for job in waiting:
            job.future.set_exception(failure)

    def _shut_down(self, engine: LLMEngine | None) -> None:
        with imports_stay_frozen():
            if engine is not None:
                shut_down(engine)
            self.engine = engine = None  # type: ignore[assignment]  # whoever still asks is told by `_failure`
            # Vital also after `shutdown`, which does it too: only now can the engine's own cycles be freed, and the weights with them.
            cleanup_dist_env_and_memory()
        _engine_here.release()
