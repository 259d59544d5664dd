"""Exact top-k, log-sum-exp and label logprob of rows of logits, over a vocabulary that may be split between ranks.

Goes in: a block of logits [rows, columns] of one rank's part of the vocabulary. Comes out: packed int32 [rows, 2k+2]
(see `rows.py`). Each rank reduces its own columns to k + 2 numbers a row; only those are gathered, never the vocabulary.
Knows nothing about vLLM, engines or requests.

Order: descending value, then ascending id. On CPUs that order also decides which ids are kept when values tie at the
k-th place; on GPUs the kernel decides there, and only the order of what it kept is ours.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LOW_BITS = 2**31 - 1
TopK = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(values [rows, columns], k) -> (values [rows, k], columns [rows, k])."""


def reduce_block(logits: Tensor, labels: Tensor, k: int, *, first_id: int = 0, topk: TopK | None = None) -> Tensor:
    """One rank's share of a block of rows.

    Args:
        logits: [rows, columns], any float dtype; overwritten.
        labels: int64 [rows], ids in the whole vocabulary.
        k: entries kept; where the rank has fewer columns, the rest is -inf.
        first_id: id of the rank's first column.
        topk: the device's top-k kernel; without one, the compiled loops for CPUs.
    Returns:
        int32 [rows, 2k+2]: ids | logit bits | label logit bits (-inf if the label is another rank's) | log-sum-exp bits.
    """
    kept = min(k, logits.shape[1])
    if topk is None:
        from .topk_cpu import reduce_rows  # numba, which GPUs need not load

        wide = logits if logits.dtype == torch.bfloat16 else logits.float()
        values, ids, label, logsumexp = reduce_rows(wide, labels - first_id, kept)
    else:
        values, ids, label, logsumexp = _reduce(logits.float(), labels - first_id, kept, topk)
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
    values, ids = _split_keys(_keys(values, ids.long()).topk(k, dim=-1).values)
    logsumexp = floats[..., 2 * k + 1].logsumexp(dim=1, keepdim=True)
    label = floats[..., 2 * k].amax(dim=1, keepdim=True)
    # A logit may exceed its own log-sum-exp by a rounding; a logprob is never above 0.
    logprobs = torch.cat([values - logsumexp, label - logsumexp], dim=1).clamp_(max=0.0)
    return torch.cat([ids.int(), logprobs.view(torch.int32), logsumexp.view(torch.int32)], dim=1)


def _reduce(logits: Tensor, labels: Tensor, k: int, topk: TopK) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `topk_cpu.reduce_rows`, in PyTorch's operations; the logits are overwritten."""
    columns = logits.shape[1]
    values, ids = topk(logits, k)
    values, ids = _split_keys(_keys(values, ids.long()).sort(dim=-1, descending=True).values)
    label = logits.gather(1, labels.clamp(0, columns - 1)[:, None])
    label = label.masked_fill(((labels < 0) | (labels >= columns))[:, None], -math.inf)
    top = values[:, :1]
    return values, ids, label, top + logits.sub_(top).exp_().sum(dim=-1, keepdim=True).log_()


def _keys(values: Tensor, ids: Tensor) -> Tensor:
    """float32 values and int64 ids -> int64 keys; a larger key is a larger value or, of equal values, a smaller id."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0.0 and 0.0 one value
    ordered = bits ^ ((bits >> 31) & LOW_BITS)
    return (ordered.long() << 32) + (LOW_BITS - ids)


def _split_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The values and ids of `_keys`."""
    ids = LOW_BITS - (keys & 0xFFFFFFFF)
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & LOW_BITS)).view(torch.float32), ids
