"""Which row supervises a token: the pivot's own, the source's, a mixture, or none.

In: the rows of one dialogue from the pivot's logprobs store and from the source's aligned store. Out: one row per
target token. Knows nothing about files, batches or the loss.

MinCE (FuseLLM, arXiv 2401.10491, section 3.2; kept by FuseChat): the model with the smaller cross-entropy on a dialogue
supervises it. The released code compares means over each model's own tokens, which are not one unit; here both are
summed over the same rows, hence the same bytes, so that the comparison is one of nats per byte.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fusechat.storage.contracts import says_something

RowChoice = Literal["trusted", "min_ce", "min_ce_released", "min_ce_token", "average", "source", "pivot", "none"]


@dataclass(frozen=True)
class Rows:
    """Top-k rows of one dialogue: `topk_ids` [rows, k], `topk_logprobs` float32 [rows, k] and `label_logprob` [rows], nats."""

    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    label_logprob: np.ndarray


@dataclass(frozen=True)
class Supervision:
    """What supervises the target tokens of one dialogue.

    `topk_ids` int64 [rows, k], `topk_logprobs` float32 [rows, k] (nats; a row of -inf: the label alone),
    `source_share` float32 [rows], the source's part in each row.
    """

    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    source_share: np.ndarray
    without_source: bool = False
    """No source teaches this dialogue, although the choice asks for one: plain SFT."""
    trust: float = 1.0
    """Of the source on dialogues of this kind, in [0, 1]; multiplies the weight of its rows."""


def choose_rows(
    choice: RowChoice,
    pivot: Rows | None,
    source: Rows | None,
    kind: np.ndarray | None,
    *,
    num_rows: int,
    source_token_loss: float = np.nan,
) -> Supervision:
    """The rows that supervise one dialogue.

    Args:
        choice: `none` needs neither model, `pivot` no source, `source` no pivot; `trusted` is decided over all dialogues
            (`choice.py`) and then is `source` or `none`.
        kind: uint8 [rows], how each source row was obtained (`RowKind`).
        num_rows: target tokens of the dialogue.
        source_token_loss: `min_ce_released` only: the source's mean loss over its own tokens, nats per token.
    """
    if choice == "none":
        return without_rows(num_rows)
    if choice == "pivot":
        assert pivot is not None
        return _from(pivot, np.zeros(num_rows, np.float32))
    assert source is not None and kind is not None
    listed = np.isfinite(source.topk_logprobs).any(axis=1)
    if not listed.any():
        return without_rows(num_rows, without_source=True)
    if choice == "source":
        return _from(source, listed.astype(np.float32))
    assert pivot is not None
    if choice == "average":
        return _average(pivot, source, listed, kind)
    wins = _source_wins(choice, pivot, source, kind, source_token_loss) & listed
    ids = np.where(wins[:, None], *_same_width(source.topk_ids, pivot.topk_ids, 0))
    logprobs = np.where(wins[:, None], *_same_width(source.topk_logprobs, pivot.topk_logprobs, -np.inf))
    return Supervision(ids, logprobs.astype(np.float32), wins.astype(np.float32))


def dialogue_losses(pivot: Rows, source: Rows, kind: np.ndarray) -> tuple[float, float, int]:
    """Losses of pivot and source on one dialogue, nats, both over the rows that say what the source said, and their number."""
    compared = says_something(kind) & np.isfinite(source.label_logprob) & np.isfinite(pivot.label_logprob)
    pivot_loss = -pivot.label_logprob[compared].sum(dtype=np.float64)
    source_loss = -source.label_logprob[compared].sum(dtype=np.float64)
    return float(pivot_loss), float(source_loss), int(compared.sum())


def without_rows(num_rows: int, *, without_source: bool = False) -> Supervision:
    """No row anywhere: plain SFT."""
    logprobs = np.full((num_rows, 1), -np.inf, np.float32)
    return Supervision(np.zeros((num_rows, 1), np.int64), logprobs, np.zeros(num_rows, np.float32), without_source)


def until_strayed(chosen: Supervision, label_logprob: np.ndarray, least_probability: float) -> Supervision:
    """No rows behind the first token that its teacher finds less probable: there it speaks of words it would not say.

    Args:
        label_logprob: float [rows], nats, of the teacher; NaN where it said nothing.
    """
    strayed = (label_logprob < np.log(least_probability)).astype(np.int64)
    is_behind = np.cumsum(strayed) > strayed
    return replace(
        chosen,
        topk_logprobs=np.where(is_behind[:, None], -np.inf, chosen.topk_logprobs).astype(np.float32),
        source_share=np.where(is_behind, 0, chosen.source_share).astype(np.float32),
    )


def _from(rows: Rows, source_share: np.ndarray) -> Supervision:
    return Supervision(rows.topk_ids.astype(np.int64), rows.topk_logprobs, source_share)


def _source_wins(
    choice: RowChoice, pivot: Rows, source: Rows, kind: np.ndarray, source_token_loss: float
) -> np.ndarray | np.bool_:
    """Where the source supervises: bool [rows], or one for the dialogue. A tie goes to the pivot."""
    if choice == "min_ce_token":
        return says_something(kind) & (source.label_logprob > pivot.label_logprob)
    if choice == "min_ce_released":
        pivot_token_loss = -float(pivot.label_logprob.mean(dtype=np.float64))
        return np.bool_(released_reward(source_token_loss) > released_reward(pivot_token_loss))
    pivot_loss, source_loss, compared = dialogue_losses(pivot, source, kind)
    return np.bool_(compared > 0 and source_loss < pivot_loss)


def released_reward(token_loss: float) -> np.float32:
    """exp(-loss) rounded to bfloat16, by which the released code compares two models."""
    bits = np.array([np.exp(-token_loss)], np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    reward: np.float32 = rounded.astype(np.uint32).view(np.float32)[0]
    return reward


def _average(pivot: Rows, source: Rows, listed: np.ndarray, kind: np.ndarray) -> Supervision:
    """Both rows, weighted by exp(-mean loss of the dialogue), nats per row; where the source has no row, the pivot's alone."""
    pivot_loss, source_loss, compared = dialogue_losses(pivot, source, kind)
    difference = (source_loss - pivot_loss) / max(compared, 1)
    weight = np.where(listed, 1 / (1 + np.exp(np.clip(difference, -60, 60))), 0.0)[:, None]
    ids = np.concatenate([pivot.topk_ids.astype(np.int64), source.topk_ids.astype(np.int64)], axis=1)
    with np.errstate(divide="ignore"):
        shares = [pivot.topk_logprobs + np.log(1 - weight), source.topk_logprobs + np.log(weight)]
    mass = np.exp(np.concatenate(shares, axis=1, dtype=np.float64))
    ids, mass = _merge_equal_ids(ids, mass)
    with np.errstate(divide="ignore"):
        return Supervision(ids, np.log(mass).astype(np.float32), weight[:, 0].astype(np.float32))


def _merge_equal_ids(ids: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add the mass of equal ids of a row, [rows, entries] each; entries come out in descending mass, merged ones with 0."""
    order = np.argsort(ids, axis=1, kind="stable")
    ids, mass = np.take_along_axis(ids, order, 1), np.take_along_axis(mass, order, 1)
    starts = np.concatenate([np.ones((len(ids), 1), bool), ids[:, 1:] != ids[:, :-1]], axis=1)
    group = np.cumsum(starts, axis=1) - 1 + np.arange(len(ids))[:, None] * ids.shape[1]
    totals = np.bincount(group.ravel(), weights=mass.ravel(), minlength=ids.size)
    mass = np.where(starts, totals[group], 0.0)
    order = np.argsort(-mass, axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(mass, order, 1)


def _same_width(left: np.ndarray, right: np.ndarray, fill: float) -> tuple[np.ndarray, np.ndarray]:
    k = max(left.shape[1], right.shape[1])
    wide = [np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=fill) for rows in (left, right)]
    dtype = np.int64 if fill == 0 else np.float32
    return wide[0].astype(dtype), wide[1].astype(dtype)
