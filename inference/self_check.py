"""The self-check of an engine that scores, before it may write: does it say what the model says?

Goes in: an open engine and some dialogues. Comes out: a report of plain values, or EngineError saying what failed.
Three questions: are the rows well formed (finite, descending, mass at most 1, label consistent), does the company of
other dialogues change them, and does a plain transformers forward give the same numbers.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from fusechat.errors import EngineError
from fusechat.models.model_files import weight_files

from .capture.rows import TopKRows, concatenate_rows
from .engine.engine import Engine

MASS_SLACK = 1e-4
"""What a row's probabilities may sum to above 1: float32 rounding over k entries."""
LABEL_SLACK = 1e-4
"""Nats between the label's logprob and its entry among the k; both come from the same logits."""
REFERENCE_TARGETS = 128
"""Tokens behind the first target that the reference reads; enough to tell, and cheap."""
REFERENCE_BYTES_TIMES_TOKENS = 2e13
"""Most work of a reference: about 2e13 multiplications and additions, some minutes of one core."""
BLOCK_ROWS = 128
"""Rows of the reference's logits that are turned into float32 at a time."""


@dataclass(frozen=True)
class Tolerance:
    """Nats. `each` bounds every single logprob; `mean` bounds the mean over rows of sum(p * |difference|)."""

    each: float
    mean: float


TOLERANCES = {"float32": Tolerance(0.02, 1e-3), "bfloat16": Tolerance(4.0, 0.08), "float16": Tolerance(1.0, 0.02)}
"""By the engine's dtype. Around a logit of 20, bfloat16 values stand 0.125 apart, and improbable tokens differ by several
steps; a mistake (rows shifted by a token, a wrong mask, another checkpoint) moves the mean by whole nats."""


def check_engine(
    engine: Engine,
    token_ids: Sequence[np.ndarray],
    is_scored: Sequence[np.ndarray],
    *,
    model_folder: str | Path | None = None,
) -> dict[str, Any]:
    """Score the dialogues together, then alone and in reverse, and compare; then with a plain transformers forward.

    Args:
        token_ids: int32 [tokens] per dialogue.
        is_scored: bool [tokens] per dialogue; at least one token is a target.
        model_folder: of the model, for the forward on the CPU; without one, or where it does not fit, none is done.
    Returns:
        rows, nan_count, mass_max, label_difference, company_mean, company_max, reference (`transformers`, or why not) and,
        with a reference, reference_rows, reference_mean, reference_max; all differences in nats.
    Raises:
        EngineError: a check failed; the message names the number and its bound.
    """
    tolerance = TOLERANCES[engine.info["dtype"]]
    pairs = list(zip(token_ids, is_scored, strict=True))
    scored = engine.score(token_ids, is_scored)
    together = concatenate_rows(scored, engine.k)
    labels = np.concatenate([ids[marks] for ids, marks in pairs])
    report = check_form(together, labels, engine.vocab_size, engine.model)
    alone = concatenate_rows([engine.score([ids], [marks])[0] for ids, marks in reversed(pairs)][::-1], engine.k)
    compared = compare_rows(together, look_up(alone, together.topk_ids), alone.label_logprob)
    _check(report, "company", compared, tolerance, f"{engine.model}: a dialogue's rows depend on its batch")
    cut = [beginning(ids, marks) for ids, marks in pairs]
    report["reference"] = why_no_reference(model_folder, sum(len(ids) for ids, _ in cut)) or "transformers"
    if model_folder is not None and report["reference"] == "transformers":
        # What stands behind a row does not change it, so the rows of a cut dialogue are the first of the whole one's.
        kept = [first_rows(rows, int(marks.sum())) for rows, (_, marks) in zip(scored, cut, strict=True)]
        rows = concatenate_rows(kept, engine.k)
        expected = reference_logprobs(model_folder, engine.info["dtype"], cut, rows.topk_ids)
        report["reference_rows"] = len(rows)
        why = f"{engine.model}: the engine and a plain transformers forward disagree"
        _check(report, "reference", compare_rows(rows, *expected), tolerance, why)
    return report


def check_form(rows: TopKRows, labels: np.ndarray, vocab_size: int, place: str) -> dict[str, Any]:
    """What must hold for any rows: finite, descending, distinct ids, mass at most 1, label consistent with the k.

    Args:
        labels: int [rows], the tokens that stand there.
    Raises:
        EngineError: naming what does not hold.
    """
    logprobs, label = rows.topk_logprobs, rows.label_logprob
    nan_count = int(np.isnan(logprobs).sum() + np.isnan(label).sum())
    if nan_count:
        raise EngineError(f"{place}: found {nan_count} NaN in {len(rows)} rows, expected none; nothing is written")
    if not len(rows):
        raise EngineError(f"{place}: found no target token in the dialogues of the self-check, expected some to check")
    mass = np.exp(logprobs.astype(np.float64)).sum(axis=1)
    hit = rows.topk_ids == labels[:, None]
    kept = np.where(hit, logprobs, -np.inf).max(axis=1)
    label_difference = np.where(hit.any(axis=1), abs(kept - label), np.maximum(label - logprobs[:, -1], 0)).max()
    problems = {
        f"ids outside the vocabulary of {vocab_size}": (rows.topk_ids < 0).any() or (rows.topk_ids >= vocab_size).any(),
        "an id twice in one row": (np.diff(np.sort(rows.topk_ids, axis=1), axis=1) == 0).any(),
        "a row that does not descend": (np.diff(logprobs, axis=1) > 0).any(),
        f"a row with mass {mass.max():.6f}": mass.max() > 1 + MASS_SLACK,
        f"a label that differs from its entry by {label_difference:.2g} nats": label_difference > LABEL_SLACK,
    }
    if wrong := [name for name, holds in problems.items() if holds]:
        raise EngineError(f"{place}: found {' and '.join(wrong)}; nothing is written")
    return {
        "rows": len(rows),
        "nan_count": nan_count,
        "mass_max": float(mass.max()),
        "label_difference": float(label_difference),
    }


def look_up(rows: TopKRows, ids: np.ndarray) -> np.ndarray:
    """float32 [rows, k]: what `rows` says of the given ids [rows, k]; of an id it does not keep, its smallest logprob."""
    line = np.arange(len(ids), dtype=np.int64)[:, None] << 32  # one key per row and id, so that one search does for all
    keys = (line + rows.topk_ids).ravel()
    order = np.argsort(keys)
    wanted = line + ids
    places = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    return np.where(keys[places] == wanted, rows.topk_logprobs.ravel()[places], rows.topk_logprobs[:, -1:])


def compare_rows(rows: TopKRows, topk_logprobs: np.ndarray, label_logprob: np.ndarray) -> tuple[float, float]:
    """(mean over rows of sum(p * |difference|), largest |difference|) in nats, against other logprobs of the same ids."""
    difference = abs(topk_logprobs - rows.topk_logprobs)
    mean = (np.exp(rows.topk_logprobs) * difference).sum(axis=1).mean()
    return float(mean), float(max(difference.max(), abs(label_logprob - rows.label_logprob).max()))


def reference_logprobs(
    folder: str | Path,
    dtype: str,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    ids: np.ndarray,
    *,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """A plain transformers forward, on the CPU unless another device is named.

    Args:
        pairs: token ids and target marks per dialogue.
        ids: int [rows, k], the tokens asked for, rows of all dialogues one after the other.
    Returns:
        float32 [rows, k] of those ids and float32 [rows] of the labels, nats.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)
    topk, label, done = [], [], 0
    for token_ids, marks in pairs:
        if not marks.any():
            continue
        rows = torch.from_numpy(np.flatnonzero(marks))
        tokens = torch.from_numpy(token_ids.astype(np.int64)).to(device)
        with torch.inference_mode():
            logits = model(tokens[None], use_cache=False).logits[0]
        for part in rows.split(BLOCK_ROWS):
            logprobs = logits[part - 1].float().log_softmax(dim=-1)
            wanted = torch.from_numpy(ids[done : done + len(part)].astype(np.int64)).to(device)
            topk.append(logprobs.gather(1, wanted).cpu().numpy())
            label.append(logprobs.gather(1, tokens[part][:, None])[:, 0].cpu().numpy())
            done += len(part)
    del model
    gc.collect()
    return np.concatenate(topk), np.concatenate(label)


def beginning(token_ids: np.ndarray, is_scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The dialogue up to `REFERENCE_TARGETS` tokens behind its first target."""
    targets = np.flatnonzero(is_scored)
    end = int(targets[0]) + REFERENCE_TARGETS if len(targets) else 0
    return token_ids[:end], is_scored[:end]


def first_rows(rows: TopKRows, count: int) -> TopKRows:
    """The first rows of a dialogue."""
    return TopKRows(
        rows.topk_ids[:count], rows.topk_logprobs[:count], rows.label_logprob[:count], rows.logsumexp[:count]
    )


def why_no_reference(folder: str | Path | None, num_tokens: int) -> str | None:
    """None where a plain forward over so many tokens is within this machine's reach, else the reason why it is not."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if folder is None:
        return "not asked for"
    num_bytes = sum(path.stat().st_size for path in weight_files(Path(folder)) if path.is_file())
    config = AutoConfig.from_pretrained(folder)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"transformers has no {config.model_type}"
    if num_bytes > psutil.virtual_memory().available // 2:
        return f"{num_bytes / 2**30:.0f} GiB of weights do not fit in half of the free memory"
    if num_bytes * num_tokens > REFERENCE_BYTES_TIMES_TOKENS:
        return f"{num_bytes / 2**30:.0f} GiB of weights over {num_tokens} tokens would take the CPU too long"
    return None


def _check(report: dict[str, Any], name: str, compared: tuple[float, float], tolerance: Tolerance, why: str) -> None:
    report[f"{name}_mean"], report[f"{name}_max"] = compared
    for difference, bound, kind in zip(compared, (tolerance.mean, tolerance.each), ("mean", "max"), strict=True):
        if not difference <= bound:
            raise EngineError(
                f"{why}: found {name}_{kind} {difference:.4g} nats, expected at most {bound}; nothing is written"
            )
