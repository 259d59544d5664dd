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

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .head_product import Gradients, HeadProduct, HeadTransform, block_and_chunk, product_dtype
from .losses import (
    IGNORED_LABEL,
    PUBLISHED_DIVERGENCE,
    PUBLISHED_SFT_WEIGHT,
    PUBLISHED_TAIL,
    PUBLISHED_TEMPERATURE,
    Divergence,
    LossOptions,
    Tail,
    checked_weights,
    row_log_probabilities,
    weights_of_rows,
)


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
    label_losses: Tensor
    """[tokens], nats: the SFT loss of each."""


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
    loss, sft, fusion, correct, label_losses = _FusedLoss.apply(  # type: ignore[no-untyped-call]  # torch gives `apply` no types
        hidden, lm_head_weight, bias, labels.long(), ids, log_p, weights, of_labels, options,
        head or HeadTransform(), scale,
    )  # fmt: skip
    return FusionSums(loss, sft, fusion, correct, listed.any(dim=1).sum(), row_entropy, label_losses)


class _FusedLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass; backward only hands them on."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ids: Tensor, log_p: Tensor,
        row_weights: Tensor, label_weights: Tensor | None, options: LossOptions, head: HeadTransform, scale: float | Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        dtype = product_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            product = HeadProduct(weight.to(dtype), None if bias is None else bias.to(dtype), head)
            gradients = Gradients.like(hidden, weight, bias, ctx.needs_input_grad, log_p.dtype)
            block_tokens, chunk_tokens = block_and_chunk(hidden, weight, dtype)
            logits_buffer = torch.empty(block_tokens, len(weight), dtype=dtype, device=hidden.device)
            q_buffer = torch.empty(chunk_tokens, len(weight), dtype=log_p.dtype, device=hidden.device)
            sums = torch.zeros(4, dtype=log_p.dtype, device=hidden.device)
            label_losses = torch.empty(len(hidden), dtype=log_p.dtype, device=hidden.device)
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
                    parts, label_losses[tokens] = _score(logits, q, *rest, options)
                    sums += parts
                    if gradients.wanted:
                        gradients.add_bias(q if slope is None else q.mul_(slope))
                        logits.copy_(q)
                gradients.add(block, logits_buffer[: len(rows)], rows, product.weight)
        ctx.save_for_backward(*gradients.finish(hidden, weight, bias, scale))
        total, sft, fusion, correct = sums.unbind()
        ctx.mark_non_differentiable(sft, fusion, correct, label_losses)
        return total * scale, sft, fusion, correct, label_losses

    @staticmethod
    def backward(ctx: Any, factor: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # A pass over [V, H] only where somebody scaled the loss.
        unscaled = bool(factor == 1)
        grads = [grad if grad is None or unscaled else grad * factor.to(grad.dtype) for grad in ctx.saved_tensors]
        return *grads, *([None] * 8)


def _score(
    logits: Tensor, q: Tensor, labels: Tensor, ids: Tensor, log_p: Tensor, row_weights: Tensor,
    label_weights: Tensor | None, options: LossOptions,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sums (loss, SFT, fusion, correct) of a chunk and the SFT loss of each token; leaves the gradient by the logits in `q`."""
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
    return torch.stack([loss.sum(), sft.sum(), fusion.sum(), correct.to(q.dtype)]), sft


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
