"""Dialogues for tiny engines, and a plain transformers forward to hold their rows against."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from inference.capture.rows import TopKRows
from inference.engine.engine import Engine

K = 6
MAX_TOKENS = 300
CHUNK = 64
"""Tokens of one engine step: the longest dialogue takes four prefill chunks."""
ENGINE = {"max_num_batched_tokens": CHUNK, "kv_cache_gib": 0.05}
TOLERANCE = 1e-3
"""Nats, between two float32 implementations of one model."""


def make_dialogues(
    vocab_size: int, lengths: tuple[int, ...] = (7, 250, 2, 90)
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random ids; several separate runs of targets, some across chunk borders."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, vocab_size, length).astype(np.int32) for length in lengths]
    marks = [(np.arange(length) // 9) % 2 == 1 for length in lengths]
    for of_one in marks:
        of_one[-1] = True
    return ids, marks


def forward(folder: Path, ids: list[np.ndarray], marks: list[np.ndarray]) -> list[np.ndarray]:
    """float32 [rows, V] logprobs of a plain transformers forward, per dialogue."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [
            model(torch.from_numpy(of_one.astype(np.int64))[None])
            .logits[0][np.flatnonzero(targets) - 1]
            .log_softmax(-1)
            .numpy()
            for of_one, targets in zip(ids, marks, strict=True)
        ]


def assert_rows_match(
    rows: list[TopKRows],
    expected: list[np.ndarray],
    ids: list[np.ndarray],
    marks: list[np.ndarray],
    *,
    tolerance: float = TOLERANCE,
) -> None:
    for found, logprobs, of_one, targets in zip(rows, expected, ids, marks, strict=True):
        assert len(found) == targets.sum()
        best = np.sort(logprobs, axis=1)[:, ::-1][:, :K]
        np.testing.assert_allclose(found.topk_logprobs, best, atol=tolerance)
        np.testing.assert_allclose(
            np.take_along_axis(logprobs, found.topk_ids, axis=1), found.topk_logprobs, atol=tolerance
        )
        np.testing.assert_allclose(
            found.label_logprob, logprobs[np.arange(len(found)), of_one[targets]], atol=tolerance
        )


def make_chosen(vocab_size: int, marks: list[np.ndarray], num_chosen: int = 4) -> list[np.ndarray]:
    """Random ids for every target, -1 for a few."""
    rng = np.random.default_rng(1)
    chosen = [rng.integers(0, vocab_size, (int(of_one.sum()), num_chosen)) for of_one in marks]
    for ids in chosen:
        ids[::5, -2:] = -1
    return chosen


def assert_chosen_match(
    rows: list[TopKRows], expected: list[np.ndarray], chosen: list[np.ndarray], *, tolerance: float = TOLERANCE
) -> None:
    for found, logprobs, ids in zip(rows, expected, chosen, strict=True):
        wanted = np.where(ids >= 0, np.take_along_axis(logprobs, ids.clip(0), axis=1), -np.inf)
        np.testing.assert_allclose(found.chosen_logprobs, wanted, atol=tolerance)
        others = [
            np.delete(line, of_row[of_row >= 0]) for line, of_row in zip(logprobs.astype(np.float64), ids, strict=True)
        ]
        rest = [np.log(np.exp(line).sum()) for line in others]
        np.testing.assert_allclose(found.rest_logprob, rest, atol=tolerance)


def open_engine(folder: Path, capture: str = "topk_pooler", **engine: object) -> Engine:
    return Engine(str(folder), k=K, capture=capture, max_tokens=MAX_TOKENS, section={**ENGINE, **engine})
