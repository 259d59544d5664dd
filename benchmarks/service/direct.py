"""The same engine without a service: a process of its own that scores when it is told to, and is idle else."""

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

Dialogues = tuple[list[np.ndarray], list[np.ndarray]]
"""int32 token ids and bool target marks, per dialogue."""


class DirectEngine:
    """Holds an engine in a child process until `close`."""

    def __init__(self, model: str, *, k: int, max_tokens: int, engine: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, model, k, max_tokens, engine), daemon=True)
        self._process.start()
        self._ask(None)

    @property
    def pid(self) -> int:
        """Of the child process."""
        return int(self._process.pid or 0)

    def score_all(self, dialogues: Dialogues) -> tuple[float, int]:
        """Score them together; gives seconds and rows."""
        seconds, rows = self._ask(("all", dialogues))
        return float(seconds), int(rows)

    def score_each(self, dialogues: Dialogues) -> list[float]:
        """Score them one after the other; gives the seconds of each."""
        return list(self._ask(("each", dialogues)))

    def close(self) -> None:
        """End the engine."""
        self._pipe.send("end")
        self._process.join()

    def _ask(self, question: Any) -> Any:
        self._pipe.send(question)
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Connection, model: str, k: int, max_tokens: int, engine: dict[str, Any]) -> None:
    from inference.engine.engine import Engine

    with Engine(model, k=k, max_tokens=max_tokens, section=engine) as opened:
        while (question := pipe.recv()) != "end":
            if question is None:
                pipe.send(None)
                continue
            kind, (ids, marks) = question
            if kind == "all":
                started = time.perf_counter()
                rows = sum(map(len, opened.score(ids, marks)))
                pipe.send((time.perf_counter() - started, rows))
                continue
            seconds = []
            for one, of_one in zip(ids, marks, strict=True):
                started = time.perf_counter()
                opened.score([one], [of_one])
                seconds.append(time.perf_counter() - started)
            pipe.send(seconds)
