"""In the place of an engine: the same calls, answered by a plain transformers forward in float32.

For tests of what is done with engines. What engines themselves say is held to such a forward in tests/inference.
"""

import contextlib
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

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
from inference.capture.rows import TopKRows


class PlainEngine:
    """`inference.engine.engine.Engine` without vLLM."""

    opened: ClassVar[list[str]] = []
    """Folders, in the order in which they were opened."""

    def __init__(
        self, model: str, *, k: int = 1, capture: str = "topk_pooler", max_tokens: int, section: Any = None,
        face: str = "score", reads_text: bool = False, is_wide_on_cpus: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.k, self.max_tokens = model, k, max_tokens
        self.network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.info = {"device": "cpu", "dtype": "float32"}
        self.alive = True
        PlainEngine.opened.append(f"{face} {model}")

    def score(
        self, token_ids: Sequence[np.ndarray], is_scored: Sequence[np.ndarray], chosen_ids: Sequence[np.ndarray] | None = None
    ) -> list[TopKRows]:  # fmt: skip
        chosen = chosen_ids or [None] * len(token_ids)
        return [self._rows(*one) for one in zip(token_ids, is_scored, chosen, strict=True)]

    @torch.inference_mode()
    def _rows(self, ids: np.ndarray, marks: np.ndarray, chosen: np.ndarray | None) -> TopKRows:
        if not marks.any():
            return TopKRows.empty(self.k, None if chosen is None else chosen.shape[1])
        assert len(ids) <= self.max_tokens
        tokens = torch.from_numpy(ids.astype(np.int64))
        rows = np.flatnonzero(marks)
        logprobs = self.network(tokens[None]).logits[0, rows - 1].float().log_softmax(-1)
        values, kept = logprobs.topk(self.k)
        label = logprobs.gather(1, tokens[rows][:, None])[:, 0].numpy()
        of_chosen = rest = None
        if chosen is not None:
            padded = torch.nn.functional.pad(logprobs, (0, 1), value=-torch.inf)  # the last column stands for padding
            places = torch.from_numpy(np.where(chosen < 0, logprobs.shape[1], chosen))
            of_chosen, rest = (
                padded.gather(1, places).numpy(),
                padded.scatter(1, places, -torch.inf).logsumexp(1).numpy(),
            )
        return TopKRows(kept.int().numpy(), values.numpy(), label, label, of_chosen, rest)

    def generate(
        self, prompts: Sequence[np.ndarray], *, max_new_tokens: int, temperature: float = 0.0,
        stop_token_ids: Sequence[int] = (), stop: Sequence[str] = (), seed: int | Sequence[int] = 0, sampling: Any = None,
    ) -> list[np.ndarray]:  # fmt: skip
        """Ends at no text: whoever asks cuts there."""
        assert not sampling, "plain sampling alone"
        seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
        return [
            self._answer(prompt.tolist(), max_new_tokens, temperature, stop_token_ids, own)
            for prompt, own in zip(prompts, seeds, strict=True)
        ]

    @torch.inference_mode()
    def _answer(
        self, prompt: list[int], max_new_tokens: int, temperature: float, stops: Sequence[int], seed: int
    ) -> np.ndarray:
        generator, ids, cache = torch.Generator().manual_seed(seed), list(prompt), None
        while len(ids) < len(prompt) + max_new_tokens:
            unread = torch.tensor([ids if cache is None else ids[-1:]])
            passed = self.network(unread, past_key_values=cache, use_cache=True)
            logits, cache = passed.logits[0, -1].float(), passed.past_key_values
            probs = (logits / temperature).softmax(-1) if temperature else None
            token = int(logits.argmax() if probs is None else torch.multinomial(probs, 1, generator=generator))
            if token in stops:
                break
            ids.append(token)
        return np.array(ids[len(prompt) :], np.int32)

    def close(self) -> None:
        self.alive = False


@contextlib.contextmanager
def plain_engines() -> Iterator[list[str]]:
    """Measured models do their works in this process by plain engines; gives what was opened: `score FOLDER`, `generate FOLDER`."""
    from cluster import answering

    with pytest.MonkeyPatch.context() as patch:
        _put_in_place(patch)
        patch.setattr(answering.Passes, "do_own", lambda self, works: run_here(works, self._progress))
        patch.setattr(PlainEngine, "opened", [])
        yield PlainEngine.opened


def use_plain_engines(patch: pytest.MonkeyPatch) -> None:
    """Extraction by plain forwards, writing by plain engines, both in this process."""
    import cluster.extraction
    import cluster.writing

    def extract(config: RunConfig, names: list[str], *, progress: Progress) -> dict[str, Artifact]:
        for name in names:
            write_rows(config, name)
        return {name: artifact.load(config.logprobs_url(name), "logprobs") for name in names}

    def work_here(works: Sequence[Work], *_: Any, progress: Progress, **__: Any) -> list[Artifact]:
        return run_here(list(works), progress)

    _put_in_place(patch)
    patch.setattr(cluster.extraction, "run", extract)
    patch.setattr(cluster.writing, "run_on_ray", work_here)
    patch.setattr(cluster.writing, "ray_session", lambda section: contextlib.nullcontext())
    patch.setattr(cluster.writing, "check_cluster", lambda *_: None)


def _put_in_place(patch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("inference.engine.engine")  # the real one imports vLLM: seconds
    module.Engine = PlainEngine  # type: ignore[attr-defined]  # all that a worker takes from it
    patch.setitem(sys.modules, "inference.engine.engine", module)
