"""What bench_scale puts in the place of users and engines: dialogues from a generator, rows without an engine, an epoch's reading.

The rows are made-up, but go through the real store; the label is the first of its row two times out of three, so that
alignment and the choice have something to do.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fusechat.config import RunConfig
from fusechat.models.resolved_model import resolve
from fusechat.storage.contracts import id_dtype
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import HERE, Place, Worker

TEXT = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or one had by word but not "
    "what all were we when your can said there use an each which she do how their if will up other about out many then them "
    "these so some her would make like him into time has look two more write go see number no way could people my than first "
    "water been call who oil its now find long down day did get come made may part 12 7 2026 def return x+1 naïve 蓝色"
)
WORDS = TEXT.split()
KINDS = ("arithmetic", "chat", "code", "prose")


def write_dialogues(path: Path, count: int, words: int, seed: int = 0) -> None:
    """A JSON Lines file of dialogues of one exchange; `words`: of a question, and half as many more of an answer."""
    draw, vocabulary = np.random.default_rng(seed), np.array(WORDS)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, count, 1000):
            block = min(1000, count - start)
            texts = vocabulary[draw.integers(0, len(WORDS), (block, words + words * 3 // 2))]
            for number, row in enumerate(texts.tolist(), start):
                messages = [
                    {"role": "user", "content": f"{number}: {' '.join(row[:words])}"},
                    {"role": "assistant", "content": " ".join(row[words:])},
                ]
                file.write(json.dumps({"kind": KINDS[number % 4], "messages": messages}, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class RowInputs:
    """What a worker of the simulated extraction is told."""

    tokens_url: str
    store_url: str
    k: int


class RowMaker:
    """Writes rows of one model's shards; no engine."""

    def __init__(self, inputs: RowInputs, place: Place = HERE) -> None:
        self._inputs = inputs

    def start(self) -> dict[str, Any]:
        self._tokens = TokensReader(self._inputs.tokens_url)
        self._store = RowStore.open(self._inputs.store_url, "logprobs", mode="r+")
        self._vocab_size = int(self._tokens.attributes["vocab_size"])
        return {}

    def run_unit(self, unit: int) -> dict[str, Any]:
        tokens = self._tokens.read(self._store.layout.dialogues(unit))
        labels = tokens.token_ids[tokens.is_scored]
        draw, k = np.random.default_rng(unit), self._inputs.k
        ids = draw.integers(0, self._vocab_size, (len(labels), k))
        ids[:, 0] = np.where(draw.random(len(labels)) < 2 / 3, labels, ids[:, 0])
        mass = -np.sort(-draw.random((len(labels), k + 1), np.float32), axis=1)
        mass /= mass.sum(axis=1, keepdims=True)
        logprobs = np.log(mass[:, :k])
        is_first = ids[:, 0] == labels
        arrays = {
            "topk_ids": ids.astype(id_dtype(self._vocab_size)),
            "topk_logprobs": logprobs,
            "label_logprob": np.where(is_first, logprobs[:, 0], logprobs[:, -1] - 1).astype(np.float32),
        }
        self._store.write_shard(unit, arrays)
        return {"rows": len(labels)}

    def close(self) -> None:
        del self._tokens, self._store


class EpochReader:
    """Reads one epoch as training does: the order of batches, each dialogue's tokens and rows, the batch's tensors."""

    def __init__(self, config: RunConfig, place: Place = HERE) -> None:
        self._config = config

    def start(self) -> dict[str, Any]:
        return {}

    def run_unit(self, unit: int) -> dict[str, Any]:
        from trainer import stage
        from trainer.batches import BatchOrder
        from trainer.collator import FusionCollator
        from trainer.fusion_dataset import FusionDataset
        from trainer.inputs import TrainingInputs
        from trainer.units import Units

        pivot = resolve(self._config.pivot, self._config.digests_path)
        data = stage.read_data(TrainingInputs.of(self._config), pivot, "joint")
        dataset = FusionDataset(
            data.tokens,
            choice=data.choice,
            max_tokens=self._config.dialogues.max_tokens,
            teachers=data.teachers,
            **data.stores,
        )
        units = Units(dataset.trainable())
        order = BatchOrder(
            units.lengths(dataset.lengths()), global_batch=8, seed=0, strategy="group_by_length", fill_to=8, drop_last=False,
            epoch=lambda: 0,
        )  # fmt: skip
        collate, batch, tokens = FusionCollator(dataset, units, pad_token_id=0), [], 0
        for number in order:
            batch.append({"unit": number})
            if len(batch) == 8:
                tokens += int(collate(batch)["attention_mask"].sum())  # type: ignore[union-attr]  # a tensor
                batch = []
        return {"dialogues": len(dataset), "tokens": tokens}

    def close(self) -> None:
        pass


class TimedWorker:
    """A worker that says in which process a unit was done, and how much CPU time this had taken before and after it.

    A process may do two units at once, so that what it takes during one is not the unit's own.
    """

    def __init__(self, make_worker: Callable[[Place], Worker], place: Place = HERE) -> None:
        self._worker = make_worker(place)

    def start(self) -> dict[str, Any]:
        return self._worker.start()

    def run_unit(self, unit: int) -> dict[str, Any]:
        before = time.process_time()
        result = self._worker.run_unit(unit)
        return {**result, "process": os.getpid(), "cpu_before": before, "cpu_after": time.process_time()}

    def close(self) -> None:
        self._worker.close()


def timed(make_worker: Callable[[Place], Worker]) -> Callable[[Place], Worker]:
    """The same workers, timed."""
    return partial(TimedWorker, make_worker)
