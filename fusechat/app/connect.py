"""`fusechat.connect`: the calls of the Python API, answered by a service."""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from inference.serving.client import Connection
from inference.serving.scoring_records import ScoreRequest

from ..config.serve import ServeSection
from .open_rows import Rows

REQUESTS_AT_ONCE = 16
"""Answers that are asked for side by side."""


class Service:
    """A service at an address; a context manager. Calls may come from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(
        self,
        model: str,
        rows: Iterable[Mapping[str, Any]],
        *,
        k: int | None = None,
        chosen_ids: Sequence[np.ndarray] | None = None,
    ) -> list[Rows]:
        """Rows of a teacher on given dialogues, as `fusechat.score` gives them.

        Args:
            model: as the service calls it.
            rows: as dialogue files hold them; the service reads them under the model's template there.
            k: entries per row; None: all that the service keeps.
            chosen_ids: int [rows, m] per training example, ids whose logprobs are wanted beside the k best; -1 pads.
        Raises:
            UserError: what the service refuses, in its words.
            ServiceError: it does not answer.
        """
        given = tuple(dict(row) for row in rows)
        if not given:
            return []
        chosen = None if chosen_ids is None else tuple(chosen_ids)
        reply = self._connection.score(ScoreRequest(model, messages=given, k=k, chosen_ids=chosen))
        return [Rows.of_engine(*one) for one in zip(reply.token_ids, reply.is_scored, reply.rows, strict=True)]

    def generate(
        self,
        model: str,
        rows: Iterable[Mapping[str, Any]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Answers of a model, as `fusechat.generate` gives them.

        Args:
            model: as the service calls it.
            rows: what stands before each answer, such as `{"messages": [{"role": "user", "content": "Hi"}]}`.
            max_new_tokens, temperature, seed: as for `fusechat.generate`.
        Raises:
            UserError, ServiceError: as `score`.
        """

        def ask(number: int, row: Mapping[str, Any]) -> str:
            fields = {
                "model": model, **row, "max_tokens": max_new_tokens, "temperature": temperature, "seed": seed + number,
            }  # fmt: skip
            reply = self._connection.complete("/v1/chat/completions", fields)
            return str(reply["choices"][0]["message"]["content"] or "")

        given = list(rows)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            return list(threads.map(ask, range(len(given)), given))

    def status(self) -> dict[str, Any]:
        """State of the service, and its engines with their processes, as plain values."""
        return self._connection.status()

    def close(self) -> None:
        """Let go of the connections; the service goes on."""
        self._connection.close()


def connect(address: str, *, token: str | None = None, patience: float = 120.0) -> Service:
    """A running service: `score`, `generate`, `status` and `close`.

    Args:
        address: as `fusechat serve` prints it, such as `http://127.0.0.1:8000`.
        token: None: what the environment variable FUSECHAT_TOKEN holds, if anything.
        patience: how long a service that does not answer is asked again, seconds.
    Raises:
        ConfigError: no such address.
    """
    variable = ServeSection.model_fields["token_variable"].default
    return Service(Connection(address, token=token or os.environ.get(variable) or None, patience=patience))
