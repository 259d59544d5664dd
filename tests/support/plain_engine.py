"""In the place of an engine: the same calls, answered by a plain transformers forward in float32.

For tests of what is done with engines. What engines themselves say is held to such a forward in tests/inference.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from inference.capture.rows import TopKRows


class PlainEngine:
    """`inference.engine.engine.Engine` without vLLM."""

    opened: ClassVar[list[str]] = []
    """Folders, in the order in which they were opened."""

    def __init__(
        self, model: str, *, k: int = 1, capture: str = "topk_pooler", max_tokens: int, section: Any = None,
        face: str = "score", is_wide_on_cpus: bool = False,
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
        stop_token_ids: Sequence[int] = (), seed: int = 0,
    ) -> list[np.ndarray]:  # fmt: skip
        stops = list(stop_token_ids)
        self.network.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops or None, pad_token_id=0
        )
        answers = []
        for prompt in prompts:
            tokens = torch.from_numpy(prompt.astype(np.int64))[None]
            with torch.inference_mode():
                answer = self.network.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens))[
                    0, len(prompt) :
                ]
            answers.append(np.array(answer.tolist(), np.int32))
        return [answer[:-1] if len(answer) and answer[-1] in stops else answer for answer in answers]

    def close(self) -> None:
        self.alive = False


@contextmanager
def plain_engines() -> Iterator[list[str]]:
    """Works are done in this process by plain engines; gives what was opened: `score FOLDER`, `generate FOLDER`."""
    from cluster import answering
    from fusechat.storage.work import run_here

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.engine.engine.Engine", PlainEngine)
        patch.setattr(answering._Rounds, "_do", lambda self, works: run_here(works, self._progress))
        patch.setattr(PlainEngine, "opened", [])
        yield PlainEngine.opened
