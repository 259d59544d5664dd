"""Top-k logprobs as integers on a grid, and back.

Entry 0 of a coded row holds log(tail/(1 - tail))/step + 8192, where tail is the mass outside the row, entry j the
distance of logprob j to logprob j-1. The tail fixes the level of the row, so that rounding can neither lift its mass
above 1 nor swallow a small tail; the logit keeps the relative precision of both.
"""

import numpy as np

from ..errors import ContractError

GAP_PADDING = 65_535
NO_TAIL = 65_534
TAIL_ZERO = 8192
"""Code of a tail of one half."""
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
    mass = np.exp(logprobs.astype(np.float64)).sum(axis=1)
    if np.isnan(logprobs).any() or (mass > 1 + MASS_SLACK).any():
        raise ContractError(
            "topk_logprobs: found NaN or a row whose mass is above 1, expected logprobs of a distribution"
        )
    below_best = np.where(padding, 0, logprobs[:, :1] - np.where(padding, 0, logprobs))
    gaps = np.diff(np.rint(below_best * np.float32(1 / step)).astype(np.int32), axis=1, prepend=0)
    if ((gaps < 0) & ~padding).any():
        raise ContractError("topk_logprobs: found an ascending row, expected each row to descend")
    codes = np.where(padding, GAP_PADDING, np.minimum(gaps, NO_TAIL - 1))
    tail = 1 - mass
    with np.errstate(divide="ignore"):
        logit = np.log(np.maximum(tail, MIN_TAIL)) - np.log(mass)
    grid = np.clip(np.rint(logit / step) + TAIL_ZERO, 0, 2 * TAIL_ZERO)
    codes[:, 0] = np.where(padding[:, 0], GAP_PADDING, np.where(tail < MIN_TAIL, NO_TAIL, grid))
    return codes.astype(np.uint16)


def decode_gaps(codes: np.ndarray, step: float) -> np.ndarray:
    """uint16 [rows, k] as of `encode_gaps` -> float32 [rows, k] logprobs, nats, of mass 1 - tail."""
    padding = codes == GAP_PADDING
    gaps = np.where(padding, 0, codes).astype(np.int32)
    first = gaps[:, 0].copy()
    gaps[:, 0] = 0
    logprobs = (np.cumsum(gaps, axis=1, dtype=np.int32) * -step).astype(np.float32)
    logprobs[padding] = -np.inf
    # log(1 - tail), from the tail's logit
    level = np.where(first == NO_TAIL, 0, -np.logaddexp(0, (first - TAIL_ZERO) * step))
    with np.errstate(divide="ignore"):
        level -= np.log(np.exp(logprobs).sum(axis=1))
    np.add(logprobs, level[:, None].astype(np.float32), out=logprobs, where=~padding)
    return logprobs
