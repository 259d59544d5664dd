"""What an engine is asked for a dialogue's rows, and the rows in what it answers, for both ways to take them.

Imports vLLM inside its functions: the environment must be set before.
"""

from typing import Any

import numpy as np

from fusechat.config import Capture
from fusechat.errors import EngineError

from .rows import TopKRows, encode_chosen, encode_targets, unpack_rows


def params_of(
    token_ids: np.ndarray, is_scored: np.ndarray, chosen_ids: np.ndarray | None, *, capture: Capture, k: int
) -> Any:
    """vLLM's parameters of a request.

    Args:
        token_ids: int32 [tokens].
        is_scored: bool [tokens]; no target: the engine only reads the dialogue.
        chosen_ids: int [targets, m]; the pooler's alone.
    """
    if capture == "prompt_logprobs":
        from vllm import SamplingParams

        from .prompt_logprobs import sampling_params

        plain = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
        return sampling_params(k) if is_scored.any() else plain
    from vllm import PoolingParams

    from .topk_pooler import CHOSEN, TARGETS, TASK

    options = {TARGETS: encode_targets(token_ids, is_scored)}
    if chosen_ids is not None:
        options[CHOSEN] = encode_chosen(chosen_ids)
    return PoolingParams(task=TASK, extra_kwargs=options)


def rows_of(
    output: Any, is_scored: np.ndarray, num_chosen: int | None, *, capture: Capture, k: int, place: str
) -> TopKRows:
    """The rows in vLLM's output of a request.

    Args:
        num_chosen: ids that were chosen per row.
        place: names the dialogue.
    Raises:
        EngineError: rows are missing.
    """
    if capture == "prompt_logprobs":
        from .prompt_logprobs import read_rows

        return read_rows(output, is_scored, k)
    rows = unpack_rows(output.outputs.data.numpy(), num_chosen)
    if len(rows) != is_scored.sum():
        raise EngineError(f"{place}: the engine gave {len(rows)} rows for {is_scored.sum()} target tokens")
    return rows
