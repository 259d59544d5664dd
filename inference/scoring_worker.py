"""One engine at work on shards: tokens in, rows into the store.

`run_unit` may be called from two threads, so that one shard is written while the next is on the engine. On accelerators
their dialogues share the engine's batches, and it never drains between two; on CPUs one shard at a time is on it.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fusechat.config import Capture
from fusechat.models.process_memory import give_memory_back
from fusechat.storage.contracts import id_dtype
from fusechat.storage.retry import retried
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import HERE, Place

from .engine.engine_worker import EngineInputs, EngineWorker
from .serving.remote_engine import RemoteEngine

if TYPE_CHECKING:
    from .capture.rows import TopKRows
    from .engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class ScoringInputs(EngineInputs):
    """All that a scoring worker is told."""

    tokens_url: str
    store_url: str
    """The logprobs store, which the driver has made."""
    k: int
    capture: Capture
    self_check_dialogues: int
    storage_patience_seconds: float


class ScoringWorker(EngineWorker):
    """Scores shards of one model's tokens."""

    def __init__(self, inputs: ScoringInputs, place: Place = HERE) -> None:
        super().__init__(inputs, place)
        self.inputs = inputs

    def start(self) -> dict[str, Any]:
        """Open tokens, store and engine, and let the engine prove itself; that of a service has done so.

        Returns:
            the self-check's report and the seconds the start took.
        Raises:
            EngineError: the engine does not start or fails its self-check.
        """
        started = time.monotonic()
        self._open_store()
        engine = self._open_scorer()
        report = {} if isinstance(engine, RemoteEngine) else self._check(engine)
        return {"self_check": report, "seconds": time.monotonic() - started}

    def longest(self) -> int:
        """Tokens of the longest dialogue."""
        return TokensReader(self.inputs.tokens_url).longest()

    def _open_store(self) -> None:
        self.tokens = TokensReader(self.inputs.tokens_url)
        self.store = RowStore.open(self.inputs.store_url, "logprobs", mode="r+")

    def _check(self, engine: "Engine") -> dict[str, Any]:
        """Let an engine of one's own prove itself; gives its report."""
        from .self_check import check_engine

        if not self.inputs.self_check_dialogues:
            return {}
        ids, targets = self._checked(self.inputs.self_check_dialogues)
        return check_engine(engine, ids, targets, model_folder=engine.model)

    def _open_scorer(self) -> "Engine | RemoteEngine":
        return self._open_engine(self.longest(), face="score", k=self.inputs.k, capture=self.inputs.capture)

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Score one shard and write it; the commit mark is written last.

        Returns:
            rows, tokens and seconds.
        Raises:
            EngineError: the engine refused a dialogue of the shard, or died.
            ArtifactError: the tokens are damaged.
            StorageError: the store cannot be written, or did not answer for `storage_patience_seconds`.
        """
        started = time.monotonic()
        patience = self.inputs.storage_patience_seconds
        ids, targets = retried(lambda: self._dialogues(self.store.layout.dialogues(unit)), seconds=patience)
        rows = self._score(ids, targets)
        arrays = pack_rows(rows, self.store.k, int(self.store.attributes["vocab_size"]))
        retried(lambda: self.store.write_shard(unit, arrays), seconds=patience)
        if self._on_cpu:
            give_memory_back()
        return {
            "rows": sum(len(part.label_logprob) for part in rows),
            "tokens": sum(len(part) for part in ids),
            "seconds": time.monotonic() - started,
        }

    def _score(
        self, ids: list[np.ndarray], targets: list[np.ndarray], chosen: list[np.ndarray] | None = None
    ) -> "list[TopKRows]":
        with self._running() as engine:
            return engine.score(ids, targets, chosen)

    def _checked(self, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The first dialogues that were not set aside for this model."""
        numbers: list[int] = []
        for part in self.tokens.parts():
            lengths = np.diff(self.tokens.offsets_of(part))
            numbers += (part.start + np.flatnonzero(lengths > 0)[: count - len(numbers)]).tolist()
            if len(numbers) == count:
                break
        parts = [self._dialogues(range(number, number + 1)) for number in numbers]
        return [ids[0] for ids, _ in parts], [targets[0] for _, targets in parts]

    def _dialogues(self, dialogues: range) -> tuple[list[np.ndarray], list[np.ndarray]]:
        tokens = self.tokens.read(dialogues)
        places = [tokens.tokens_of(number) for number in range(tokens.num_dialogues)]
        return [tokens.token_ids[place] for place in places], [tokens.is_scored[place] for place in places]


def pack_rows(parts: "list[TopKRows]", k: int, vocab_size: int) -> dict[str, np.ndarray]:
    """The logprobs contract's arrays of a shard, from the rows of its dialogues in order."""
    dtype = id_dtype(vocab_size)
    return {
        "topk_ids": np.concatenate([part.topk_ids for part in parts] or [np.empty((0, k))]).astype(dtype),
        "topk_logprobs": np.concatenate([part.topk_logprobs for part in parts] or [np.empty((0, k), np.float32)]),
        "label_logprob": np.concatenate([part.label_logprob for part in parts] or [np.empty(0, np.float32)]),
    }
