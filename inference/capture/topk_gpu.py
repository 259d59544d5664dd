"""Top-k and log-sum-exp of rows of logits on GPUs, in one walk over the vocabulary.

A Triton kernel reads each logit once: it keeps the largest of every `GROUP` columns and the running log-sum-exp. The k
best columns of a row lie in the k groups whose largest come first, so that only k * GROUP candidates are sorted; a plain
top-k would read the vocabulary many times over. Ties go to the smaller id, in the groups as in the candidates, which
makes the choice exact: a group that is left out has k groups before it, each with an entry before all of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .topk_keys import keys_of, split_keys

GROUP = 64
"""Columns of which the kernel keeps the largest."""
TILE = 32
"""Groups that one step of the kernel loads."""
TILES = 8
"""Steps of one program: a row of 152,064 logits is shared by ten programs."""


@triton.jit  # type: ignore[untyped-decorator]  # Triton gives it no types
def _summarise(
    logits: tl.tensor, stride: tl.tensor, columns: tl.tensor, group_maxima: tl.tensor, groups: tl.tensor,
    chunk_maxima: tl.tensor, chunk_sums: tl.tensor, chunks: tl.tensor,
    GROUP: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
) -> None:  # fmt: skip
    """One program: `TILES * TILE` groups of one row."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    largest, total = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    for tile in range(TILES):
        group = (chunk * TILES + tile) * TILE + tl.arange(0, TILE)
        column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        values = tl.load(logits + row * stride + column, mask=column < columns, other=float("-inf")).to(tl.float32)
        maxima = tl.max(values, axis=1)
        tl.store(group_maxima + row * groups + group, maxima, mask=group < groups)
        previous, largest = largest, tl.maximum(largest, tl.max(maxima, axis=0))
        shift = tl.where(largest == float("-inf"), 0.0, largest)  # of columns that are all -inf
        total = total * tl.exp(previous - shift) + tl.sum(tl.sum(tl.exp(values - shift), axis=1), axis=0)
    tl.store(chunk_maxima + row * chunks + chunk, largest)
    tl.store(chunk_sums + row * chunks + chunk, total)


def reduce_rows(logits: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `topk_cpu.reduce_rows`.

    Args:
        logits: [rows, columns], any float dtype, the columns of a row side by side.
        labels: int64 [rows], columns; those outside of 0..columns-1 are another rank's.
        k: entries kept, at most `columns`.
    Returns:
        values float32 [rows, k] and columns int64 [rows, k], by descending value, then ascending column; label logit
        float32 [rows, 1], -inf where it is another rank's; log-sum-exp float32 [rows, 1].
    """
    rows, columns = logits.shape
    groups = triton.cdiv(columns, GROUP)
    chunks = triton.cdiv(groups, TILE * TILES)
    group_maxima = torch.empty((rows, groups), dtype=torch.float32, device=logits.device)
    chunk_maxima, chunk_sums = torch.empty((2, rows, chunks), dtype=torch.float32, device=logits.device)
    _summarise[(rows, chunks)](
        logits, logits.stride(0), columns, group_maxima, groups, chunk_maxima, chunk_sums, chunks,
        GROUP=GROUP, TILE=TILE, TILES=TILES,
    )  # fmt: skip
    values, ids = _best_columns(logits, group_maxima, k)
    label = logits.gather(1, labels.clamp(0, columns - 1)[:, None]).float()
    label = label.masked_fill(((labels < 0) | (labels >= columns))[:, None], float("-inf"))
    top = values[:, :1]
    logsumexp = top + (chunk_sums * (chunk_maxima - top).exp()).sum(dim=1, keepdim=True).log()
    return values, ids, label, logsumexp


def _best_columns(logits: Tensor, group_maxima: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of the candidates: the columns of the k best groups."""
    columns, groups = logits.shape[1], group_maxima.shape[1]
    group_ids = torch.arange(groups, device=logits.device)
    _, best = split_keys(keys_of(group_maxima, group_ids).topk(min(k, groups), dim=1, sorted=False).values)
    candidates = (best[:, :, None] * GROUP + torch.arange(GROUP, device=logits.device)).flatten(1)
    values = logits.gather(1, candidates.clamp(max=columns - 1)).float()
    # Columns that do not exist come behind all others, those of value -inf included.
    keys = keys_of(values, candidates).masked_fill_(candidates >= columns, torch.iinfo(torch.int64).min)
    return split_keys(keys.topk(k, dim=1).values)
