"""Top-k logprobs as integers on a grid, and back.

Entry 0 of a coded row holds -log(tail mass)/step, entry j the distance of logprob j to logprob j-1. The tail fixes the
level of the row, so that rounding can neither lift its mass above 1 nor swallow a small tail.
"""

import numpy as np

from .errors import ContractError

GAP_PADDING = 65_535
NO_TAIL = 65_534
MIN_TAIL = 1e-7
"""Tail mass that float32 cannot tell from none."""
MASS_SLACK = 1e-3
"""Mass above 1 that is put down to rounding in the softmax."""


def encode_gaps(logprobs: np.ndarray, step: float) -> np.ndarray:
    """float32 [rows, k] descending logprobs, nats -> uint16 [rows, k]: the tail, then the gaps, on a grid of `step` nats.

    Raises:
        ContractError: NaN, a mass above 1, or values that do not descend.
    """
    padding = ~np.isfinite(logprobs)
    tail = 1 - np.exp(logprobs).sum(axis=1, dtype=np.float64)
    if np.isnan(logprobs).any() or (tail < -MASS_SLACK).any():
        raise ContractError(
            "topk_logprobs: found NaN or a row whose mass is above 1, expected logprobs of a distribution"
        )
    below_best = np.where(padding, 0, logprobs[:, :1] - np.where(padding, 0, logprobs))
    gaps = np.diff(np.rint(below_best * np.float32(1 / step)).astype(np.int32), axis=1, prepend=0)
    if ((gaps < 0) & ~padding).any():
        raise ContractError("topk_logprobs: found an ascending row, expected each row to descend")
    codes = np.where(padding, GAP_PADDING, np.minimum(gaps, NO_TAIL - 1))
    grid = np.minimum(np.rint(-np.log(np.maximum(tail, MIN_TAIL)) / step), NO_TAIL - 1)
    codes[:, 0] = np.where(padding[:, 0], GAP_PADDING, np.where(tail < MIN_TAIL, NO_TAIL, np.maximum(grid, 1)))
    return codes.astype(np.uint16)


def decode_gaps(codes: np.ndarray, step: float) -> np.ndarray:
    """uint16 [rows, k] as of `encode_gaps` -> float32 [rows, k] logprobs, nats, of mass 1 - tail."""
    padding = codes == GAP_PADDING
    gaps = np.where(padding, 0, codes).astype(np.int32)
    first = gaps[:, 0].copy()
    gaps[:, 0] = 0
    logprobs = np.cumsum(gaps, axis=1, dtype=np.int32) * np.float32(-step)
    logprobs[padding] = -np.inf
    tail = np.where(first == NO_TAIL, 0, np.exp(first * np.float32(-step)))
    mass = np.exp(logprobs).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.log1p(-tail) - np.log(mass)
    np.add(logprobs, level[:, None].astype(np.float32), out=logprobs, where=~padding)
    return logprobs
