"""An engine of a service in the place of one's own: the same calls, the same rows.

Imports neither vLLM nor torch, so that a run which finds a service begins at once.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, Self

import numpy as np

from fusechat.errors import ConfigError, ServiceError
from fusechat.storage.work import HERE, Needs, Work

from ..capture.rows import TopKRows
from .client import Connection
from .faces import FaceName
from .scoring_records import ScoreRequest

PROMPTS_AT_ONCE = 32


@dataclass(frozen=True)
class ServedBy:
    """An engine of a running service, as a worker is told of it; holds no secret."""

    service: str
    """Name of the service, for people."""
    address: str
    token_variable: str | None
    """Environment variable that holds its token; None: it asks for none."""
    model: str
    """As the service calls it."""
    face: FaceName
    recipe: str
    k: int
    max_tokens: int
    patience: float
    """How long a service that does not answer is asked again, seconds."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """What the service says of the engine: its `device`, its `dtype` and so on."""

    def connect(self) -> Connection:
        """A connection of the worker's own."""
        token = os.environ.get(self.token_variable) if self.token_variable else None
        return Connection(self.address, token=token, patience=self.patience)


class RemoteEngine:
    """Scores or answers as `inference.engine.engine.Engine` does; calls may come from several threads."""

    def __init__(self, served: ServedBy, *, k: int | None = None, max_tokens: int = 0) -> None:
        """Connects to nothing yet.

        Args:
            k: entries per row; None: all that the engine keeps.
            max_tokens: longest dialogue, or prompt and answer together, that it will be asked.
        Raises:
            ConfigError: the engine reads no so long ones.
        """
        if max_tokens > served.max_tokens:
            raise ConfigError(
                f"the service {served.service} reads {served.max_tokens} tokens of {served.model}, {max_tokens} are needed; serve "
                "it with a larger serve.max_tokens, or set cluster.service: off"
            )
        self.served, self.k, self.max_tokens = served, k or served.k, served.max_tokens
        self._connection = served.connect()

    @property
    def alive(self) -> bool:
        """A service replaces its engines itself."""
        return True

    @property
    def info(self) -> dict[str, Any]:
        """As `Engine.info`, and whose engine it is."""
        return {**self.served.engine, "service": self.served.service}

    def score(
        self,
        token_ids: Sequence[np.ndarray],
        is_scored: Sequence[np.ndarray],
        chosen_ids: Sequence[np.ndarray] | None = None,
    ) -> list[TopKRows]:
        """As `Engine.score`; on CPUs the engine reads nothing else meanwhile, so that rows are the same to the bit.

        Raises:
            ContractError, ConfigError: as `Engine.score`.
            UserError: the service refuses: another recipe, a wrong token.
            ServiceError: it does not answer.
        """
        self._expect("score")
        if not len(token_ids):
            return []
        chosen = None if chosen_ids is None else tuple(chosen_ids)
        request = ScoreRequest(
            self.served.model, token_ids=tuple(token_ids), is_scored=tuple(is_scored), chosen_ids=chosen, k=self.k,
            recipe=self.served.recipe, alone=True,
        )  # fmt: skip
        return list(self._connection.score(request).rows)

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        stop_token_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        seed: int | Sequence[int] = 0,
        sampling: Mapping[str, float] | None = None,
    ) -> list[np.ndarray]:
        """As `Engine.generate`.

        Raises:
            ContractError: a prompt that with its answer exceeds `max_tokens`, or settings that vLLM does not allow.
            UserError, ServiceError: as `score`.
        """
        self._expect("generate")
        stops = list(stop_token_ids)
        seeds = [seed + number for number in range(len(prompts))] if isinstance(seed, int) else list(seed)

        def ask(number: int) -> np.ndarray:
            reply = self._connection.complete("/v1/completions", {
                "model": self.served.model, "prompt": prompts[number].tolist(), "max_tokens": max_new_tokens,
                "temperature": temperature, "stop_token_ids": stops, "stop": list(stop), "ignore_eos": True,
                "seed": seeds[number], "return_token_ids": True, **(sampling or {}),
            }, recipe=self.served.recipe)  # fmt: skip
            return self._ids(reply, stops)

        with ThreadPoolExecutor(PROMPTS_AT_ONCE) as threads:
            return list(threads.map(ask, range(len(prompts))))

    def close(self) -> None:
        """Let go of the connections; the engine stays."""
        self._connection.close()

    def _ids(self, reply: dict[str, Any], stops: list[int]) -> np.ndarray:
        """int32 ids of an answer, without the stop token that ended it."""
        ids = reply["choices"][0].get("token_ids")
        if ids is None:
            raise ServiceError(f"{self.served.address}: the reply has no token ids; is it a service of FuseChat?")
        answer = np.asarray(ids, np.int32)
        return answer[:-1] if len(answer) and answer[-1] in stops else answer

    def _expect(self, face: str) -> None:
        if self.served.face != face:
            raise ConfigError(
                f"{self.served.model}: this engine of the service has the face {self.served.face!r}, not {face!r}"
            )


class ServableInputs(Protocol):
    """What a worker is told that can let an engine of a service do its work."""

    def served_by(self, served: ServedBy) -> Self:
        """The same inputs with that engine."""
        ...


class ServableWorker(Protocol):
    """A worker whose engine may be one of a service."""

    def longest(self) -> int:
        """Tokens of the longest dialogue, or prompt and answer together, that its engine must read."""
        ...


def served_work(work: Work, served: ServedBy) -> Work:
    """The same work with an engine of a service: its worker holds none, and may stand in the driver's own process.

    Args:
        work: as a stage's `prepare` makes it: a worker's class, and its `ServableInputs`.
    """
    make: partial[Any] = work.make_worker  # type: ignore[assignment]
    inputs: ServableInputs
    (inputs,) = make.args
    needs = Needs(units_in_flight=work.needs.units_in_flight)
    return replace(work, make_worker=partial(make.func, inputs.served_by(served)), needs=needs)


def longest_of(work: Work) -> int:
    """Tokens that an engine must read for a work."""
    worker: ServableWorker = work.make_worker(HERE)  # type: ignore[assignment]
    return worker.longest()
