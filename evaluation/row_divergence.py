"""Divergence from a teacher: a network and a teacher's stored rows in, KL(teacher || network) of each dialogue out.

A row keeps the k most probable ids; everything else of both distributions is one bucket, the tail, so that the figure is
a KL divergence of k + 1 outcomes: a lower bound of that over the whole vocabulary, and 0 where both agree. Rows that
say nothing of the teacher (empty, or one-hot on the label) are left out. Knows nothing about intervals or files.
"""

from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedModel

from fusechat.errors import ModelError
from fusechat.storage.contracts import RowKind
from fusechat.storage.row_store import RowStore
from fusechat.storage.tokens import Tokens

from .held_out_loss import length_batches, logit_blocks, max_positions, padded_batch
from .row_sample import RowSample

MIN_TAIL_MASS = 1e-6
"""Floor of a stored row's tail: rows are rounded when stored, so less is not known."""
REAL_KINDS = np.array([kind for kind in RowKind if kind.is_real], np.uint8)


@torch.inference_mode()
def dialogue_divergences(
    network: PreTrainedModel,
    sample: RowSample,
    *,
    label: str,
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda num_tokens: None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Measure one network against every teacher of the sample; each dialogue is read once.

    Args:
        network: a causal LM over the pivot's vocabulary.
        label: what the model is called in messages.
        batch_tokens: padded tokens of one batch.
    Returns:
        teacher -> (float64 [sampled], nats summed over the rows; int64 [sampled], those rows). NaN and 0 for a dialogue
        that is longer than the network's positions.
    Raises:
        ModelError: a divergence that is not a number.
    """
    tokens, count = sample.tokens, len(sample.dialogues)
    found = {name: (np.full(count, np.nan), np.zeros(count, np.int64)) for name in sample.stores}
    lengths = tokens.lengths[sample.dialogues]
    for batch in length_batches(lengths, np.flatnonzero(lengths <= max_positions(network)), batch_tokens):
        dialogues = sample.dialogues[batch]
        ids, is_scored = padded_batch(tokens, dialogues)
        places, positions = np.nonzero(is_scored[:, 1:])
        rows = {name: _batch_rows(store, tokens, dialogues) for name, store in sample.stores.items()}
        sums = {name: np.zeros(len(places)) for name in rows}
        for block, logits in logit_blocks(network, torch.from_numpy(ids), places, positions):
            for name, (topk_ids, topk_logprobs, _) in rows.items():
                sums[name][block] = row_divergence(
                    logits, torch.from_numpy(topk_ids[block]), torch.from_numpy(topk_logprobs[block])
                ).numpy()
        for name, (_, _, kept) in rows.items():
            nats, num_rows = found[name]
            nats[batch] = np.bincount(places, weights=np.where(kept, sums[name], 0.0), minlength=len(batch))
            num_rows[batch] = np.bincount(places[kept], minlength=len(batch))
            _check(nats[batch], label, name, dialogues)
        on_batch(int(lengths[batch].sum()))
    return found


def row_divergence(logits: torch.Tensor, topk_ids: torch.Tensor, topk_logprobs: torch.Tensor) -> torch.Tensor:
    """KL(row || softmax(logits)) over the listed ids and the tail.

    Args:
        logits: float32 [rows, vocabulary].
        topk_ids: int64 [rows, k]; topk_logprobs: float32 [rows, k], nats, -inf pads (at least one is listed, or the row's
            figure means nothing).
    Returns:
        float64 [rows] on the CPU, nats.
    """
    ids, logprobs = topk_ids.to(logits.device), topk_logprobs.to(logits.device)
    listed = torch.isfinite(logprobs)
    ids = torch.where(listed, ids, ids[:, :1])
    total = logits.logsumexp(1).double()
    log_q = logits.gather(1, ids).double() - total[:, None]
    log_q_tail = logits.scatter(1, ids, -torch.inf).logsumexp(1).double() - total
    p = torch.where(listed, logprobs.double().exp(), 0.0)
    p_tail = (1 - p.sum(1)).clamp_min(MIN_TAIL_MASS)
    parts = torch.where(listed, p * (logprobs.double() - log_q), 0.0).sum(1)
    # Rows whose listed ids are the whole vocabulary leave the network no tail, and the row has none either.
    tail = torch.where(torch.isfinite(log_q_tail), p_tail * (p_tail.log() - log_q_tail), 0.0)
    return (parts + tail).cpu()


def _batch_rows(store: RowStore, tokens: Tokens, dialogues: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """topk_ids int64 [rows, k], topk_logprobs float32 [rows, k] and which rows count, bool [rows], of a batch."""
    parts = []
    for dialogue in dialogues:
        arrays = store.read_dialogue(int(dialogue))
        predicted = np.flatnonzero(tokens.is_scored[tokens.tokens_of(int(dialogue))]) > 0
        kept = np.isfinite(arrays["topk_logprobs"]).any(axis=1)
        if "kind" in arrays:
            kept &= np.isin(arrays["kind"], REAL_KINDS)
        columns = (arrays["topk_ids"].astype(np.int64), arrays["topk_logprobs"].astype(np.float32), kept)
        parts.append(tuple(column[predicted] for column in columns))
    ids, logprobs, kept = (np.concatenate(column) for column in zip(*parts, strict=True))
    return ids, logprobs, kept


def _check(nats: np.ndarray, label: str, teacher: str, dialogues: np.ndarray) -> None:
    bad = ~np.isfinite(nats)
    if bad.any():
        raise ModelError(
            f"{label}: its divergence from {teacher} on training dialogue number {dialogues[bad][0]} is {nats[bad][0]}, "
            "expected a finite number of nats; its weights are damaged or its activations overflow: look at how it was "
            "trained or merged, or set evaluation.held_out.dtype: float32"
        )
