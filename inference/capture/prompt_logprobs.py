"""The reference capture: vLLM's public prompt logprobs, read into the same rows. Slower, and without log-sum-exp.

Goes in: a finished request. Comes out: `TopKRows`. vLLM gives per prompt position the label's entry, then the k best;
position 0 has none.
"""

from typing import Any

import numpy as np
from vllm import SamplingParams

from .rows import TopKRows


def sampling_params(k: int) -> SamplingParams:
    """One sampled token (vLLM wants one; it costs no further step) and flat prompt logprobs."""
    return SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=k, flat_logprobs=True, detokenize=False)


def read_rows(output: Any, is_scored: np.ndarray, k: int) -> TopKRows:
    """A finished request with flat prompt logprobs -> the rows of its target tokens."""
    flat = output.prompt_logprobs
    begin = flat.start_indices[1] if len(flat) > 1 else 0
    ids = _matrix(flat.token_ids, begin, k + 1, np.int32)
    logprobs = _matrix(flat.logprobs, begin, k + 1, np.float32)
    rows = np.flatnonzero(is_scored) - 1  # row t stands in line t - 1, because token 0 has none
    ids, logprobs = ids[rows], logprobs[rows]
    order = np.lexsort((ids[:, 1:], -logprobs[:, 1:]), axis=1)
    return TopKRows(
        np.take_along_axis(ids[:, 1:], order, axis=1),
        np.take_along_axis(logprobs[:, 1:], order, axis=1),
        np.ascontiguousarray(logprobs[:, 0]),
        np.full(len(rows), np.nan, dtype=np.float32),
    )


def _matrix(
    values: list[int] | list[float], begin: int, width: int, dtype: type[np.int32] | type[np.float32]
) -> np.ndarray:
    return np.fromiter(values[begin:], dtype=dtype, count=len(values) - begin).reshape(-1, width)
