"""Stages that need engines, on plain transformers forwards in this process: for tests of what stands around them."""

import contextlib
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.fusion.corpus import write_rows
from fusechat.config import RunConfig
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import Work, run_here


class PlainEngine:
    """Generates as `inference.engine.engine.Engine` does, token by token."""

    alive = True

    def __init__(self, folder: str, **options: Any) -> None:
        self.info = {"device": "cpu"}
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()

    def close(self) -> None:
        """Nothing runs."""

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[np.ndarray], *, max_new_tokens: int, temperature: float, stop_token_ids: Sequence[int],
        seed: Sequence[int],
    ) -> list[np.ndarray]:  # fmt: skip
        """Answers without the stop token that ended them."""
        answers = []
        for prompt, own_seed in zip(prompts, seed, strict=True):
            generator, ids = torch.Generator().manual_seed(own_seed), prompt.tolist()
            for _ in range(max_new_tokens):
                logits = self._model(torch.tensor([ids])).logits[0, -1].float()
                drawn = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
                if drawn in stop_token_ids:
                    break
                ids.append(drawn)
            answers.append(np.array(ids[len(prompt) :], np.int32))
        return answers


def use_plain_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extraction and writing without Ray and vLLM."""
    import cluster.extraction
    import cluster.writing

    def extract(config: RunConfig, names: list[str], *, progress: Progress) -> dict[str, Artifact]:
        for name in names:
            write_rows(config, name)
        return {name: artifact.load(config.logprobs_url(name), "logprobs") for name in names}

    def work_here(works: Sequence[Work], *_: Any, progress: Progress, **__: Any) -> list[Artifact]:
        return run_here(list(works), progress)

    module = types.ModuleType("inference.engine.engine")
    module.Engine = PlainEngine  # type: ignore[attr-defined]  # all that a worker takes from it
    monkeypatch.setitem(sys.modules, "inference.engine.engine", module)
    monkeypatch.setattr(cluster.extraction, "run", extract)
    monkeypatch.setattr(cluster.writing, "run_on_ray", work_here)
    monkeypatch.setattr(cluster.writing, "ray_session", lambda section: contextlib.nullcontext())
    monkeypatch.setattr(cluster.writing, "check_engines", lambda *_: None)
