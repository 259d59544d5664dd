"""Divergence from a teacher: the teacher's rows and a model's logprobs of their ids in, KL(teacher || model) of each dialogue out.

A row keeps the k most probable ids; everything else of both distributions is one bucket, the tail, so that the figure is
a KL divergence of k + 1 outcomes: a lower bound of that over the whole vocabulary, and 0 where both agree. Rows that
say nothing of the teacher (empty, or one-hot on the label) are left out. Knows nothing about intervals or models.
"""

import numpy as np

from fusechat.errors import ArtifactError
from fusechat.storage.chosen_rows import ChosenRows
from fusechat.storage.contracts import MIN_TAIL_MASS, says_something
from fusechat.storage.row_store import RowStore

from .finite import refuse_no_numbers


def dialogue_divergences(
    chosen: ChosenRows, store: RowStore, *, label: str, teacher: str
) -> tuple[np.ndarray, np.ndarray]:
    """Measure one model against one teacher.

    Args:
        chosen: what the model says of the ids of the teacher's rows.
        store: these rows.
        label: what the model is called in messages; teacher: likewise.
    Returns:
        float64 [sampled], nats summed over the rows; int64 [sampled], those rows.
    Raises:
        ModelError: a divergence that is not a number.
        ArtifactError: the teacher has other rows than those that were scored.
    """
    nats, num_rows = np.zeros(len(chosen.dialogues)), np.zeros(len(chosen.dialogues), np.int64)
    for place, dialogue in enumerate(chosen.dialogues):
        rows, arrays = slice(*chosen.offsets[place : place + 2]), store.read_dialogue(int(dialogue))
        if len(arrays["topk_logprobs"]) != rows.stop - rows.start:
            raise ArtifactError(
                f"{store.url}: dialogue {dialogue} has {len(arrays['topk_logprobs'])} rows, {label} scored "
                f"{rows.stop - rows.start}; run `fusechat answer` again"
            )
        kept = np.isfinite(arrays["topk_logprobs"]).any(axis=1)
        if "kind" in arrays:
            kept &= says_something(arrays["kind"])
        of_rows = row_divergence(arrays["topk_logprobs"], chosen.chosen_logprobs[rows], chosen.rest_logprob[rows])
        nats[place], num_rows[place] = of_rows[kept].sum(), kept.sum()
    refuse_no_numbers(
        nats, lambda place: f"{label}: its divergence from {teacher} on dialogue number {chosen.dialogues[place]}"
    )
    return nats, num_rows


def row_divergence(topk_logprobs: np.ndarray, chosen_logprobs: np.ndarray, rest_logprob: np.ndarray) -> np.ndarray:
    """KL(row || model) over the listed ids and the tail.

    Args:
        topk_logprobs: float32 [rows, k], nats, -inf pads (at least one is listed, or the row's figure means nothing).
        chosen_logprobs: float32 [rows, k], the model's, of the same ids.
        rest_logprob: float32 [rows], the model's, of all other ids together; -inf where there are none.
    Returns:
        float64 [rows], nats.
    """
    listed = np.isfinite(topk_logprobs)
    log_p = np.where(listed, topk_logprobs, 0.0).astype(np.float64)
    log_q = np.where(listed, chosen_logprobs, 0.0).astype(np.float64)
    p = np.where(listed, np.exp(log_p), 0.0)
    p_tail = np.maximum(1 - p.sum(axis=1), MIN_TAIL_MASS)
    # Rows whose listed ids are the whole vocabulary leave the model no tail, and the row has none either.
    has_tail = ~np.isneginf(rest_logprob)
    log_q_tail = np.where(has_tail, rest_logprob, 0.0).astype(np.float64)
    tail = np.where(has_tail, p_tail * (np.log(p_tail) - log_q_tail), 0.0)
    divergence: np.ndarray = (p * (log_p - log_q)).sum(axis=1) + tail
    return divergence
