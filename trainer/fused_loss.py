"""The fusion loss through the lm_head, without ever holding [tokens, V].

In: hidden states of the tokens that are scored, the lm_head's weight, labels and top-k rows. Out: the same number as
`losses.fusion_loss`, and its gradients. Knows nothing about models, dialogues or the trainer.

Both terms of the loss need one log-sum-exp and k+1 gathered logits. The gradient with respect to the logits z is, for
every divergence, the model's distribution q scaled by one number per token, but for k+1 entries:

    dL/dz_j = a q_j                       j outside the row            (a = 1 for ce and kl without a tail bucket)
    dL/dz_j = (1 - w) q_j + w F_j      j in the row  (w: the row's weight, F: `_row_gradient`)
    dL/dz_label -= 1 - w

With label weights l the SFT term's factor is l in place of 1 - w, and a = l + w.

So the logits are made in chunks of tokens, turned into their gradient in place, and multiplied at once into the
gradients of hidden states and weight: three matrix products, nothing is made twice. A chunk is what passes over it
should find in the cache; on CPUs several make a block that is multiplied together, because every product into the
weight's gradient costs a pass over [V, H] in float32, as long as multiplying 350 tokens in bfloat16.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .losses import (
    IGNORED_LABEL,
    PUBLISHED_DIVERGENCE,
    PUBLISHED_SFT_WEIGHT,
    PUBLISHED_TAIL,
    PUBLISHED_TEMPERATURE,
    Divergence,
    Tail,
    check_options,
    checked_weights,
    row_log_probabilities,
    weights_of_rows,
)
from .precision import cpu_has_bfloat16_products

CHUNK_BYTES = {"cpu": 24 << 20, "cuda": 256 << 20}
"""float32 bytes of one chunk of logits. CPU: measured best where a chunk fits the cache; GPU: keeps the products large."""
BLOCK_BYTES = 96 << 20
"""CPU: bytes of one block of logits, in the dtype of the products; a block is several chunks."""
MAX_CHUNK_TOKENS = 4096
VOCABULARY_TILE = 4096
"""Entries of the vocabulary whose gradient is rounded and added while it is in the cache."""


@dataclass(frozen=True)
class LossOptions:
    """Options of the loss; `fusion_loss` explains them."""

    sft_weight: float = PUBLISHED_SFT_WEIGHT
    divergence: Divergence = PUBLISHED_DIVERGENCE
    temperature: float = PUBLISHED_TEMPERATURE
    tail: Tail = PUBLISHED_TAIL

    def __post_init__(self) -> None:
        check_options(self.sft_weight, self.divergence, self.temperature, self.tail)


@dataclass(frozen=True)
class HeadTransform:
    """What a model does to `hidden @ weight.T` before the softmax."""

    scale: float = 1.0
    """Multiplies the logits."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""


class FusionSums(NamedTuple):
    """Sums over the scored tokens; only `loss` carries a gradient."""

    loss: Tensor
    sft: Tensor
    """nats, over all tokens."""
    fusion: Tensor
    """nats, over the tokens that have a row."""
    correct: Tensor
    """Tokens whose label is the model's most probable token; one that shares the first place counts half."""
    rows: Tensor
    """Tokens that have a row."""
    row_entropy: Tensor
    """nats, entropy of the rows, over the tokens that have one."""


def fused_linear_fusion_loss(
    hidden: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    topk_ids: Tensor,
    topk_logprobs: Tensor,
    sft_weight: float = PUBLISHED_SFT_WEIGHT,
    divergence: Divergence = PUBLISHED_DIVERGENCE,
    *,
    temperature: float = PUBLISHED_TEMPERATURE,
    tail: Tail = PUBLISHED_TAIL,
    row_weights: Tensor | None = None,
    label_weights: Tensor | None = None,
    bias: Tensor | None = None,
    head: HeadTransform | None = None,
) -> Tensor:
    """Mean fusion loss over the labelled tokens, nats; equals `fusion_loss(hidden @ lm_head_weight.T, ...)`.

    Args:
        hidden: float [tokens, H]; hidden state t scores the token whose label is `labels[t]`.
        lm_head_weight: float [V, H]; may differ from `hidden` in dtype.
        labels: int [tokens]; tokens labelled -100 are never multiplied.
        topk_ids, topk_logprobs: [tokens, k] ids and nats, -inf pads.
        row_weights: float [tokens], weight of each token's row in place of `1 - sft_weight`.
        label_weights: float [tokens], weight of each token's SFT loss in place of what its row leaves.
        bias: float [V] of the lm_head.
        head: what the model does to its logits.
    """
    options = LossOptions(sft_weight, divergence, temperature, tail)
    kept = (labels != IGNORED_LABEL).nonzero().squeeze(1)
    of_labels = (
        None if label_weights is None else checked_weights("label_weights", label_weights, labels, torch.float32)
    )
    sums = fused_linear_fusion_sums(
        hidden[kept], lm_head_weight, labels[kept], topk_ids[kept], topk_logprobs[kept], options,
        row_weights=weights_of_rows(row_weights, labels, sft_weight, torch.float32)[kept],
        label_weights=None if of_labels is None else of_labels[kept], bias=bias, head=head,
    )  # fmt: skip
    return sums.loss / max(len(kept), 1)


def fused_linear_fusion_sums(
    hidden: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    topk_ids: Tensor,
    topk_logprobs: Tensor,
    options: LossOptions,
    *,
    row_weights: Tensor | None = None,
    label_weights: Tensor | None = None,
    scale: float | Tensor = 1.0,
    bias: Tensor | None = None,
    head: HeadTransform | None = None,
) -> FusionSums:
    """The loss summed over tokens that all have a label, times `scale`, and its parts (not scaled).

    Under autocast the products run in autocast's dtype; sums and gradients accumulate in float32 (float64 if the
    inputs are). A scale given here costs no memory; one multiplied in later costs the backward pass a copy of [V, H].
    On CPUs without instructions for bfloat16 the products run in float32 whatever the model's dtype: it is faster there.
    """
    accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    listed = torch.isfinite(topk_logprobs)
    log_p = row_log_probabilities(topk_logprobs.to(accumulate), options.temperature, options.tail)
    p = log_p.exp()
    row_entropy = -torch.where(p > 0, p * log_p, 0).sum()
    # A padded entry stands on its row's first id, with nothing to add there.
    ids = torch.where(listed, topk_ids.long(), torch.where(listed[:, :1], topk_ids[:, :1].long(), 0))
    weights = weights_of_rows(row_weights, labels, options.sft_weight, accumulate)
    of_labels = None if label_weights is None else checked_weights("label_weights", label_weights, labels, accumulate)
    loss, sft, fusion, correct = _FusedLoss.apply(  # type: ignore[no-untyped-call]  # torch gives `apply` no types
        hidden, lm_head_weight, bias, labels.long(), ids, log_p, weights, of_labels, options,
        head or HeadTransform(), scale,
    )  # fmt: skip
    return FusionSums(loss, sft, fusion, correct, listed.any(dim=1).sum(), row_entropy)


class _FusedLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass; backward only hands them on."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ids: Tensor, log_p: Tensor,
        row_weights: Tensor, label_weights: Tensor | None, options: LossOptions, head: HeadTransform, scale: float | Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        dtype = _product_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            product = _HeadProduct(weight.to(dtype), None if bias is None else bias.to(dtype), head)
            gradients = _Gradients.like(hidden, weight, bias, ctx.needs_input_grad, log_p.dtype)
            block_tokens, chunk_tokens = _block_and_chunk(hidden, weight, dtype)
            logits_buffer = torch.empty(block_tokens, len(weight), dtype=dtype, device=hidden.device)
            q_buffer = torch.empty(chunk_tokens, len(weight), dtype=log_p.dtype, device=hidden.device)
            sums = torch.zeros(4, dtype=log_p.dtype, device=hidden.device)
            for first in range(0, len(hidden), block_tokens):
                block = slice(first, min(first + block_tokens, len(hidden)))
                rows = hidden[block].to(dtype)
                for start in range(0, len(rows), chunk_tokens):
                    part = slice(start, min(start + chunk_tokens, len(rows)))
                    tokens = slice(first + part.start, first + part.stop)
                    logits, slope = product.logits(rows[part], logits_buffer[part])
                    q = q_buffer[: len(logits)]
                    of_labels = None if label_weights is None else label_weights[tokens]
                    rest = (labels[tokens], ids[tokens], log_p[tokens], row_weights[tokens], of_labels)
                    sums += _score(logits, q, *rest, options)
                    if gradients.wanted:
                        gradients.add_bias(q if slope is None else q.mul_(slope))
                        logits.copy_(q)
                gradients.add(block, logits_buffer[: len(rows)], rows, product.weight)
        ctx.save_for_backward(*gradients.finish(hidden, weight, bias, scale))
        total, sft, fusion, correct = sums.unbind()
        ctx.mark_non_differentiable(sft, fusion, correct)
        return total * scale, sft, fusion, correct

    @staticmethod
    def backward(ctx: Any, factor: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # A pass over [V, H] only where somebody scaled the loss.
        unscaled = bool(factor == 1)
        grads = [grad if grad is None or unscaled else grad * factor.to(grad.dtype) for grad in ctx.saved_tensors]
        return *grads, *([None] * 8)


@dataclass(frozen=True)
class _HeadProduct:
    """hidden -> logits."""

    weight: Tensor
    bias: Tensor | None
    transform: HeadTransform

    def logits(self, rows: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor | float | None]:
        """Logits of some tokens, in the buffer, and their slope by the plain product (None: 1)."""
        logits = torch.mm(rows, self.weight.t(), out=buffer)
        if self.bias is not None:
            logits.add_(self.bias)
        scale, softcap = self.transform.scale, self.transform.softcap
        if scale != 1:
            logits.mul_(scale)
        if softcap is None:
            return logits, None if scale == 1 else scale
        capped = torch.tanh(logits.float() / softcap) if logits.dtype != torch.float64 else torch.tanh(logits / softcap)
        logits.copy_(capped * softcap)
        return logits, scale * (1 - capped.square())


def _score(
    logits: Tensor, q: Tensor, labels: Tensor, ids: Tensor, log_p: Tensor, row_weights: Tensor,
    label_weights: Tensor | None, options: LossOptions,
) -> Tensor:  # fmt: skip
    """Sums (loss, SFT, fusion, correct) of a chunk; leaves the loss's gradient by the logits in `q`."""
    torch.softmax(logits, dim=-1, dtype=q.dtype, out=q)
    label_logits = logits.gather(1, labels[:, None])
    # Without the label for a moment, so that one pass finds the largest logit and, common in bfloat16, a tie for it.
    others = logits.scatter_(1, labels[:, None], -torch.inf).amax(dim=-1, keepdim=True)
    logits.scatter_(1, labels[:, None], label_logits)
    correct = (label_logits > others).sum() + 0.5 * (label_logits == others).sum()
    best, label_logits = torch.maximum(label_logits, others).to(q.dtype), label_logits.to(q.dtype)
    # The largest probability is never tiny, so this log-sum-exp is as exact as a pass of its own.
    log_sum_exp = best - q.amax(dim=-1, keepdim=True).log()
    sft = (log_sum_exp - label_logits).squeeze(1)

    listed = torch.isfinite(log_p[:, : ids.shape[1]])
    has_row = torch.isfinite(log_p).any(dim=1)
    log_q = (logits.gather(1, ids).to(q.dtype) - log_sum_exp).masked_fill(~listed, -torch.inf)
    q_row = q.gather(1, ids)
    q.scatter_(1, ids, 0.0)
    if options.tail == "bucket":
        # Summing what is left is exact where 1 - sum(listed) would cancel.
        log_q_tail = q.sum(dim=1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny).log()
        log_q = torch.cat([log_q, log_q_tail], dim=1)
    fusion, row_gradient, outside = _row_gradient(log_q, log_p, options)
    of_row = (row_weights * has_row)[:, None]
    weight = 1 - of_row if label_weights is None else label_weights[:, None]  # of SFT
    if outside is not None:
        q.mul_(weight + of_row * outside)
    elif label_weights is not None:
        q.mul_(weight + of_row)
    back = weight * q_row + of_row * row_gradient[:, : ids.shape[1]]
    # Every id once: the row's listed entries, or the first where there is no row.
    once = listed.clone()
    once[:, 0] |= ~has_row
    q.scatter_add_(1, ids, torch.where(once, back, 0.0))
    q.scatter_add_(1, labels[:, None], -weight)
    loss = weight.squeeze(1) * sft + of_row.squeeze(1) * fusion
    return torch.stack([loss.sum(), sft.sum(), fusion.sum(), correct.to(q.dtype)])


def _row_gradient(log_q: Tensor, log_p: Tensor, options: LossOptions) -> tuple[Tensor, Tensor, Tensor | None]:
    """The fusion term and its gradient by the logits, for tokens with outcomes [tokens, outcomes] in nats.

    Returns:
        Value [tokens]; gradient of the listed logits [tokens, outcomes]; the factor [tokens, 1] by which q is multiplied
        outside the row (None: 1 everywhere). All zero for a token without a row.
    """
    possible = torch.isfinite(log_p)
    bucket = options.tail == "bucket"
    if options.divergence == "reverse_kl" and not bucket:
        log_q = torch.log_softmax(torch.where(possible.any(dim=1, keepdim=True), log_q, 0.0), dim=1)
    log_p, log_q = log_p.masked_fill(~possible, 0.0), log_q.masked_fill(~possible, 0.0)
    p, q = possible * log_p.exp(), possible * log_q.exp()
    if options.divergence == "reverse_kl":
        value = (q * (log_q - log_p)).sum(dim=1, keepdim=True)
        outside = (log_q - log_p - value)[:, -1:] if bucket else torch.zeros_like(value)
        return value.squeeze(1), q * (log_q - log_p - value), outside
    value = (p * (log_p - log_q if options.divergence == "kl" else -log_q)).sum(dim=1)
    return value, q - p, 1 - torch.exp(log_p - log_q)[:, -1:] if bucket else None


class _Gradients:
    """Gradients of hidden states, weight and bias, gathered chunk by chunk; weight and bias in float32 or wider."""

    def __init__(self, hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias

    @classmethod
    def like(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...], accumulate: torch.dtype
    ) -> "_Gradients":
        """Room for those that are needed."""
        return cls(
            torch.empty_like(hidden, memory_format=torch.contiguous_format) if needed[0] else None,
            torch.zeros(weight.shape, dtype=accumulate, device=weight.device) if needed[1] else None,
            torch.zeros(bias.shape, dtype=accumulate, device=bias.device) if bias is not None and needed[2] else None,
        )

    @property
    def wanted(self) -> bool:
        return not (self.hidden is None and self.weight is None and self.bias is None)

    def add(self, block: slice, gradient: Tensor, rows: Tensor, weight: Tensor) -> None:
        """Add one block's share of hidden states and weight.

        Args:
            gradient: [tokens, V] by the plain product, in the dtype of the products.
            rows, weight: the factors of the product.
        """
        if self.hidden is not None:
            self.hidden[block] = gradient @ weight
        if self.weight is None:
            return
        if gradient.dtype == self.weight.dtype:
            self.weight.addmm_(gradient.t(), rows)
        elif gradient.is_cuda:
            torch.addmm(self.weight, gradient.t(), rows, out_dtype=self.weight.dtype, out=self.weight)
        else:
            for start in range(0, len(self.weight), VOCABULARY_TILE):
                tile = slice(start, start + VOCABULARY_TILE)
                self.weight[tile] += gradient[:, tile].t() @ rows

    def add_bias(self, gradient: Tensor) -> None:
        """Add one chunk's share of the bias; `gradient` is [tokens, V] in the accumulation dtype."""
        if self.bias is not None:
            self.bias += gradient.sum(dim=0)

    def finish(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float | Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradients times `scale`, in the dtypes of their tensors."""
        for gradient in (self.hidden, self.weight, self.bias):
            if gradient is not None:
                gradient.mul_(scale)
        return (
            self.hidden,
            None if self.weight is None else self.weight.to(weight.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        )


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if device != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    # float16 needs instructions of its own, which hardly any CPU has.
    return dtype if dtype == torch.bfloat16 and cpu_has_bfloat16_products() else torch.float32


def _block_and_chunk(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[int, int]:
    """Tokens of a block and of a chunk; the block's logits take no more than half the weight's gradient, or BLOCK_BYTES."""
    device, vocab_size, width = hidden.device.type, *weight.shape
    limit = min(MAX_CHUNK_TOKENS, max(1, len(hidden)))
    chunk = max(1, min(limit, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocab_size)))
    if device != "cpu":
        return chunk, chunk
    block = max(chunk, BLOCK_BYTES // (dtype.itemsize * vocab_size), 2 * width // dtype.itemsize)
    return min(limit, block // chunk * chunk), chunk
