"""Teachers that tests can hold, kill and poison: the real one, and one without an engine.

`gated` puts one into each work that extraction prepares. Files in `run.output/"gate"` steer them: `hold.N` keeps shard N in
flight (after scoring, before writing) until the file is gone, `held.N` says that it is; `poison.N` makes the engine raise in
shard N; `nan.N` makes its rows NaN. `tried.N` gets a line for each try, with the process and, in a Ray actor, the node.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import cloudpickle

from fusechat.config import ClusterSection, ExtractionSection, RunConfig
from fusechat.config.layout import Places, RunLayout
from fusechat.models.resolved_model import ResolvedModel
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import HERE, Place, Work
from inference.capture.rows import TopKRows
from inference.scoring_worker import ScoringInputs, ScoringWorker
from inference.stage import prepare, scoring_inputs

# Workers do not have the folder of the tests on their path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class GatedTeacher(ScoringWorker):
    """The real one."""

    def __init__(self, gate: Path, inputs: ScoringInputs, place: Place = HERE) -> None:
        super().__init__(inputs, place)
        self.gate = gate
        self.shard = threading.local()

    def run_unit(self, shard: int) -> dict[str, Any]:
        self.shard.number = shard
        with (self.gate / f"tried.{shard}").open("a") as file:
            file.write(f"{os.getpid()} {ray.get_runtime_context().get_node_id()}\n")
        return super().run_unit(shard)

    def _score(self, ids: list[np.ndarray], targets: list[np.ndarray]) -> list[TopKRows]:
        shard = self.shard.number
        if (self.gate / f"poison.{shard}").exists():
            self._break_engine(ids[0])
        rows = self._score_now(ids, targets)
        with self._engine_turn:  # one shard at a time is on an engine, so a worker holds one
            while (self.gate / f"hold.{shard}").exists():
                (self.gate / f"held.{shard}").touch()
                time.sleep(0.02)
        if (self.gate / f"nan.{shard}").exists():
            rows[0].topk_logprobs[:] = np.nan
        return rows

    def _score_now(self, ids: list[np.ndarray], targets: list[np.ndarray]) -> list[TopKRows]:
        return super()._score(ids, targets)

    def _break_engine(self, ids: np.ndarray) -> None:
        """Ranges that end nowhere: the pooler raises inside the engine's step."""
        import inference.engine.engine as engine  # vLLM: seconds

        engine.params_of = lambda *_, **__: _broken_params()
        super()._score([ids], [np.arange(len(ids)) > 0])


class SimulatedTeacher(GatedTeacher):
    """Rows drawn from the token ids; no engine."""

    def start(self) -> dict[str, Any]:
        self.tokens = TokensReader(self.inputs.tokens_url)
        self.store = RowStore.open(self.inputs.store_url, "logprobs", mode="r+")
        (self.gate / f"start.{os.getpid()}").write_text(ray.get_runtime_context().get_node_id())
        return {}

    def _score_now(self, ids: list[np.ndarray], targets: list[np.ndarray]) -> list[TopKRows]:
        return [drawn_rows(of_one, int(marks.sum()), self.store.k) for of_one, marks in zip(ids, targets, strict=True)]


def gated(teacher: type[GatedTeacher]) -> Callable[..., list[Work]]:
    """What stands for `inference.stage.prepare`: the same works, done by such teachers."""

    def prepare_gated(
        layout: RunLayout, model: ResolvedModel, section: ExtractionSection, cluster: ClusterSection
    ) -> list[Work]:
        works, inputs = prepare(layout, model, section, cluster), scoring_inputs(layout, model, section, cluster)
        return [replace(work, make_worker=partial(teacher, gate_of(layout), inputs)) for work in works]

    return prepare_gated


def drawn_rows(ids: np.ndarray, num_rows: int, k: int) -> TopKRows:
    rng = np.random.default_rng(ids.astype(np.int64))
    logits = rng.normal(0, 3, (num_rows, 50)).astype(np.float32)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    best = np.argsort(-logprobs, axis=1)[:, :k].astype(np.int32)
    kept = np.take_along_axis(logprobs, best, axis=1)
    return TopKRows(best, kept, logprobs[:, 0].copy(), np.zeros(num_rows, np.float32))


def _broken_params() -> Any:
    from vllm import PoolingParams

    from inference.capture.topk_pooler import TARGETS, TASK

    return PoolingParams(task=TASK, extra_kwargs={TARGETS: b"five!"})


def gate_of(run: Places) -> Path:
    folder = run.run_folder / "gate"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tries(config: RunConfig) -> dict[int, int]:
    """shard -> how often it was begun."""
    return {int(path.suffix[1:]): len(path.read_text().splitlines()) for path in gate_of(config).glob("tried.*")}


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """The first true value of a condition; what is waited for is sure to come, the limit only ends a broken test."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store but its two records, which hold times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("artifact.json", "plan.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
