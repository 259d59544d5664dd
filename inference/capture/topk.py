"""Exact top-k, log-sum-exp and label logprob of rows of logits, over a vocabulary that may be split between ranks.

Goes in: a block of logits [rows, columns] of one rank's part of the vocabulary. Comes out: packed int32 [rows, 2k+2]
(see `rows.py`). Each rank reduces its own columns to k + 2 numbers a row; only those are gathered, never the vocabulary.
Where ids are chosen, m + 1 more: the logprob of each, and that of all other ids together.
Knows nothing about vLLM, engines or requests.

Order: descending value, then ascending id, which also decides which ids are kept when values tie at the k-th place.
"""

import math

import torch
from torch import Tensor

from .topk_keys import keys_of, split_keys


def reduce_block(logits: Tensor, labels: Tensor, k: int, *, first_id: int = 0) -> Tensor:
    """One rank's share of a block of rows.

    Args:
        logits: [rows, columns], any float dtype, on the CPU or a GPU.
        labels: int64 [rows], ids in the whole vocabulary.
        k: entries kept; where the rank has fewer columns, the rest is -inf.
        first_id: id of the rank's first column.
    Returns:
        int32 [rows, 2k+2]: ids | logit bits | label logit bits (-inf if the label is another rank's) | log-sum-exp bits.
    """
    kept = min(k, logits.shape[1])
    if logits.device.type == "cpu":
        from .topk_cpu import reduce_rows  # numba, which GPUs need not load

        logits = logits if logits.dtype == torch.bfloat16 else logits.float()
    else:
        from .topk_gpu import reduce_rows  # Triton, which CPUs need not have
    values, ids, label, logsumexp = reduce_rows(logits, labels - first_id, kept)
    ids = ids + first_id
    if kept < k:
        values = torch.nn.functional.pad(values, (0, k - kept), value=-math.inf)
        ids = torch.nn.functional.pad(ids, (0, k - kept), value=first_id)
    return torch.cat([ids.int(), torch.cat([values, label, logsumexp], dim=1).view(torch.int32)], dim=1)


def merge_ranks(gathered: Tensor) -> Tensor:
    """int32 [rows, ranks, 2k+2] from `reduce_block` -> packed int32 [rows, 2k+2] with logprobs (nats) over the whole vocabulary."""
    rows, _, width = gathered.shape
    k = width // 2 - 1
    floats = gathered.view(torch.float32)
    values, ids = floats[..., k : 2 * k].reshape(rows, -1), gathered[..., :k].reshape(rows, -1)
    values, ids = split_keys(keys_of(values, ids.long()).topk(k, dim=-1).values)
    logsumexp = floats[..., 2 * k + 1].logsumexp(dim=1, keepdim=True)
    label = floats[..., 2 * k].amax(dim=1, keepdim=True)
    # A logit may exceed its own log-sum-exp by a rounding; a logprob is never above 0.
    logprobs = torch.cat([values - logsumexp, label - logsumexp], dim=1).clamp_(max=0.0)
    return torch.cat([ids.int(), logprobs.view(torch.int32), logsumexp.view(torch.int32)], dim=1)


def reduce_chosen(logits: Tensor, chosen_ids: Tensor, *, first_id: int = 0) -> Tensor:
    """One rank's share of the chosen ids of a block of rows.

    Args:
        logits: as for `reduce_block`.
        chosen_ids: int64 [rows, m], ids in the whole vocabulary; -1 pads.
    Returns:
        float32 [rows, 1+m]: log-sum-exp of the rank's columns that are not chosen | logits (-inf where the id is padding or
        another rank's).
    """
    columns = chosen_ids - first_id
    # One column of -inf behind the rank's own stands for whatever is none of them.
    nowhere = logits.shape[1]
    columns = torch.where((columns >= 0) & (columns < nowhere), columns, nowhere)
    values = torch.nn.functional.pad(logits.float(), (0, 1), value=-math.inf)
    chosen = values.gather(1, columns)
    rest = values.scatter_(1, columns, -math.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([rest, chosen], dim=1)


def merge_chosen(gathered: Tensor, logsumexp: Tensor) -> Tensor:
    """float32 [rows, ranks, 1+m] from `reduce_chosen` and the whole vocabulary's log-sum-exp, [rows, 1] -> logprobs, [rows, 1+m]."""
    rest = gathered[..., 0].logsumexp(dim=1, keepdim=True)
    chosen = gathered[..., 1:].amax(dim=1)
    return (torch.cat([rest, chosen], dim=1) - logsumexp).clamp_(max=0.0)
