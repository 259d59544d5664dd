"""One engine of the extraction benchmark, in a process of its own that works only when told to.

Commands come as lines on standard input, each answered by one JSON line: `prefill`, `extract`, `captured`, `peak`,
`device_peak`, `profile`, `quit`. The first line says how long the engine took to start. The engine is the product's own
ScoringWorker, or a plain transformers model in padded batches as the released script has it.
"""

import argparse
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# This file is called like a package of ours, which it would hide as long as its own folder is searched first.
import numpy as np

from benchmarks.peak_memory import peak_bytes
from fusechat.config import RunConfig
from fusechat.models.resolved_model import resolve
from fusechat.storage.tokens_reader import read_tokens

BATCH_DIALOGUES = 8
"""Dialogues of one padded batch of the transformers contender."""
NAME = "teacher"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=("topk_pooler", "prompt_logprobs", "transformers"))
    parser.add_argument("config", type=Path, help="a RunConfig as JSON")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    config = RunConfig.model_validate_json(arguments.config.read_text(encoding="utf-8"))
    contender = Plain(config) if arguments.engine == "transformers" else Engine(config)
    print(json.dumps(contender.started), file=answers, flush=True)
    for line in sys.stdin:
        command, *given = line.split()
        if command == "quit":
            break
        started = time.perf_counter()
        result = getattr(contender, command)(*given) or {}
        print(json.dumps({"seconds": time.perf_counter() - started, **result}), file=answers, flush=True)
    contender.close()


class Engine:
    """A teacher as the run has it: worker, engine, store."""

    def __init__(self, config: RunConfig) -> None:
        from inference import stage
        from inference.scoring_worker import ScoringWorker

        self.config, self.url, self._stage = config, config.logprobs_url(NAME), stage
        self.model = resolve(config.model_named(NAME), config.digests_path)
        self._fresh_store()
        self.worker = ScoringWorker(stage.scoring_inputs(config.layout, self.model, config.extraction, config.cluster))
        report = self.worker.start()
        self.started = {"seconds": report["seconds"], **self._teacher().info}
        self._ids, self._marks = self.worker._dialogues(range(self.worker.tokens.num_dialogues))

    def prefill(self) -> None:
        """The same prompts through the same engine, no row taken."""
        self._teacher().prefill(self._ids)

    def extract(self) -> dict[str, Any]:
        """Everything: engine, packing, compression, store, record."""
        claim, store = self._fresh_store()
        self.worker.store = store
        with ThreadPoolExecutor(self.config.cluster.units_in_flight) as pool:
            results = list(pool.map(self.worker.run_unit, range(store.layout.num_shards)))
        self._stage.finish(claim, store)
        return {key: sum(result[key] for result in results) for key in ("rows", "tokens")}

    def captured(self, path: str) -> None:
        """Keep the rows as they leave the engine, before any rounding, in an .npz file."""
        from inference.capture.rows import concatenate_rows

        rows = concatenate_rows(self._teacher().score(self._ids, self._marks), self.config.extraction.k)
        np.savez(path, **vars(rows))

    def peak(self) -> dict[str, int]:
        """Largest resident set of this process so far, bytes."""
        return {"peak": peak_bytes()}

    def device_peak(self) -> dict[str, int]:
        """Most memory that tensors took on the device since this was last asked, bytes; on a CPU as `peak`."""
        import torch

        if not torch.cuda.is_available():
            return self.peak()
        found = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return {"peak": found}

    def profile(self) -> dict[str, Any]:
        """Where the time of one shard goes: see `gpu/profile.py`."""
        from benchmarks.gpu.profile import profile

        _, self.worker.store = self._fresh_store()
        return {"profile": profile(lambda: self.worker.run_unit(0))}

    def close(self) -> None:
        self.worker.close()

    def _teacher(self) -> Any:
        return self.worker._engine

    def _fresh_store(self) -> Any:
        shutil.rmtree(self.url, ignore_errors=True)
        return self._stage.claim_store(self.config.layout, self.model, self.config.extraction)


class Plain:
    """A transformers forward over padded batches in the order of the file, with a top-k of every position; stores nothing."""

    def __init__(self, config: RunConfig) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch, self._k, self.started = torch, config.extraction.k, {"device": "plain"}
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = AutoModelForCausalLM.from_pretrained(config.pivot.model, dtype="auto")
        self._model = model.to(self._device).eval()
        self._tokens = read_tokens(config.tokens_url(NAME))

    def extract(self) -> None:
        torch, tokens = self._torch, self._tokens
        for first in range(0, tokens.num_dialogues, BATCH_DIALOGUES):
            numbers = range(first, min(first + BATCH_DIALOGUES, tokens.num_dialogues))
            parts = [torch.from_numpy(tokens.token_ids[tokens.tokens_of(number)]).long() for number in numbers]
            ids = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).to(self._device)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(part) for part in parts], batch_first=True)
            mask = mask.to(self._device)
            with torch.inference_mode():
                logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                torch.topk(logits, self._k, dim=-1).values.cpu()

    def close(self) -> None:
        pass


if __name__ == "__main__":
    main()
