"""The fusion loss, written plainly over dense logits: the reference for `fused_loss`.

In: logits, labels and one top-k row per token. Out: one number, differentiable. Knows nothing about files, dialogues
or where a row came from.

    loss = sft_weight * SFT + (1 - sft_weight) * fusion                  (FuseChat, arXiv 2408.07990, eq. 3 and 4)

SFT is -log q(label), q the model's distribution. fusion compares q with a row p over its outcomes: the k listed tokens,
and with tail="bucket" one more for all the others.

    ce          -sum p log q          cross-entropy, as released
    kl          sum p log(p / q)      the same gradient; its value lacks the row's entropy
    reverse_kl  sum q log(q / p)      mode-seeking; with tail="renormalise" q is renormalised over the k tokens too

temperature divides the row's logprobs before they are normalised again (as released); the model's are left alone.
row_weights gives every row a weight of its own in place of 1 - sft_weight. A token without a row, all its logprobs -inf,
is plain SFT with weight 1, whatever its weight says. label_weights gives the SFT term of every token a weight of its own:
0 where the label is only what the student said itself.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fusechat.storage.contracts import MIN_TAIL_MASS

Divergence = Literal["ce", "kl", "reverse_kl"]
Tail = Literal["renormalise", "bucket"]

PUBLISHED_SFT_WEIGHT = 0.9
PUBLISHED_DIVERGENCE: Divergence = "ce"
PUBLISHED_TEMPERATURE = 1.0
PUBLISHED_TAIL: Tail = "renormalise"
"""What the functions take where nothing is given: FuseChat's own loss. A run's defaults stand in the run file's section."""
IGNORED_LABEL = -100


@dataclass(frozen=True)
class LossOptions:
    """Options of the loss; `fusion_loss` explains them."""

    sft_weight: float = PUBLISHED_SFT_WEIGHT
    divergence: Divergence = PUBLISHED_DIVERGENCE
    temperature: float = PUBLISHED_TEMPERATURE
    tail: Tail = PUBLISHED_TAIL

    def __post_init__(self) -> None:
        check_options(self.sft_weight, self.divergence, self.temperature, self.tail)


def fusion_loss(
    logits: Tensor,
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
) -> Tensor:
    """Mean fusion loss over the labelled tokens, nats.

    Args:
        logits: float [tokens, V], row t scores the token whose label is `labels[t]`; computed in float32 or wider.
        labels: int [tokens], token ids; -100 leaves the token out of the mean.
        topk_ids: int [tokens, k], tokens of the row; an id whose logprob is -inf is ignored.
        topk_logprobs: float [tokens, k], nats; -inf pads a short row.
        sft_weight: weight of the SFT loss, in [0, 1].
        row_weights: float [tokens] in [0, 1], weight of the fusion loss of each token, in place of `1 - sft_weight`; SFT
            gets the rest. A constant: no gradient flows into it.
        label_weights: float [tokens] in [0, 1], weight of the SFT loss of each token, in place of that rest, whether the
            token has a row or not. A constant too.
    Raises:
        ValueError: shapes that do not fit, or an unknown divergence or tail.
    """
    check_options(sft_weight, divergence, temperature, tail)
    if logits.shape[:1] != labels.shape or topk_ids.shape != topk_logprobs.shape or len(topk_ids) != len(labels):
        raise ValueError(
            f"found logits {tuple(logits.shape)}, labels {tuple(labels.shape)}, topk_ids {tuple(topk_ids.shape)}, "
            f"topk_logprobs {tuple(topk_logprobs.shape)}; expected [tokens, V], [tokens], [tokens, k] and [tokens, k]"
        )
    weights = weights_of_rows(row_weights, labels, sft_weight, torch.promote_types(logits.dtype, torch.float32))
    kept = labels != IGNORED_LABEL
    logits = logits[kept].to(torch.promote_types(logits.dtype, torch.float32))
    labels, ids, rows = labels[kept].long(), topk_ids[kept].long(), topk_logprobs[kept].to(logits.dtype)
    weights = weights[kept]
    of_labels = None if label_weights is None else checked_weights("label_weights", label_weights, kept, weights.dtype)

    log_q = torch.log_softmax(logits, dim=-1)
    sft = -log_q.gather(1, labels[:, None]).squeeze(1)

    has_row = torch.isfinite(rows).any(dim=1)
    fusion = torch.zeros_like(sft)
    fusion[has_row] = _fusion(log_q[has_row], ids[has_row], rows[has_row], divergence, temperature, tail)
    if of_labels is None:
        loss = torch.where(has_row, (1 - weights) * sft + weights * fusion, sft)
    else:
        loss = of_labels[kept] * sft + torch.where(has_row, weights * fusion, 0.0)
    return loss.sum() / max(len(loss), 1)


def _fusion(log_q: Tensor, ids: Tensor, rows: Tensor, divergence: Divergence, temperature: float, tail: Tail) -> Tensor:
    """float [tokens], nats; `log_q` float [tokens, V], every token has a row."""
    listed = torch.isfinite(rows)
    ids = torch.where(listed, ids, 0)
    log_p = row_log_probabilities(rows, temperature, tail)
    log_q_outcomes = log_q.gather(1, ids).masked_fill(~listed, -torch.inf)
    if tail == "bucket":
        outside = torch.ones_like(log_q, dtype=torch.bool)
        for token in range(len(ids)):
            outside[token, ids[token, listed[token]]] = False
        log_q_tail = log_q.masked_fill(~outside, -torch.inf).logsumexp(dim=1)
        log_q_outcomes = torch.cat([log_q_outcomes, log_q_tail[:, None]], dim=1)
    elif divergence == "reverse_kl":
        log_q_outcomes = torch.log_softmax(log_q_outcomes, dim=1)

    possible = torch.isfinite(log_p)
    log_p, log_q_outcomes = log_p.masked_fill(~possible, 0), log_q_outcomes.masked_fill(~possible, 0)
    p, q = possible * log_p.exp(), possible * log_q_outcomes.exp()
    if divergence == "ce":
        return -(p * log_q_outcomes).sum(dim=1)
    if divergence == "kl":
        return (p * (log_p - log_q_outcomes)).sum(dim=1)
    return (q * (log_q_outcomes - log_p)).sum(dim=1)


def weights_of_rows(row_weights: Tensor | None, labels: Tensor, sft_weight: float, dtype: torch.dtype) -> Tensor:
    """float [tokens]: the weight of each token's row; `1 - sft_weight` where none is given.

    Raises:
        ValueError: weights that are not one for each label.
    """
    if row_weights is None:
        return torch.full(labels.shape, 1 - sft_weight, dtype=dtype, device=labels.device)
    return checked_weights("row_weights", row_weights, labels, dtype)


def checked_weights(name: str, weights: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """float [tokens], cut off from any gradient.

    Raises:
        ValueError: weights that are not one for each label.
    """
    if weights.shape != labels.shape:
        raise ValueError(f"{name}: found {tuple(weights.shape)}, expected {tuple(labels.shape)}, one per label")
    return weights.detach().to(dtype)


def row_log_probabilities(rows: Tensor, temperature: float, tail: Tail) -> Tensor:
    """[tokens, k] logprobs -> [tokens, outcomes], nats: k outcomes, or k + 1 with the tail bucket last.

    -inf stays -inf; a row that is -inf throughout comes back so.
    """
    has_row = torch.isfinite(rows).any(dim=1, keepdim=True)
    if tail == "bucket":
        mass = rows.exp().sum(dim=1, keepdim=True)
        rows = torch.cat([rows, torch.log((1 - mass).clamp_min(MIN_TAIL_MASS))], dim=1)
    rows = torch.where(has_row, rows, 0.0)
    return torch.where(has_row, torch.log_softmax(rows / temperature, dim=1), -torch.inf)


def check_options(sft_weight: float, divergence: str, temperature: float, tail: str) -> None:
    """Refuse options that mean nothing.

    Raises:
        ValueError: naming the option, what was found and what is valid.
    """
    if not 0 <= sft_weight <= 1:
        raise ValueError(f"sft_weight: found {sft_weight}, expected a value in [0, 1]")
    if divergence not in get_args(Divergence):
        raise ValueError(f"divergence: found {divergence!r}, expected one of {get_args(Divergence)}")
    if not temperature > 0:
        raise ValueError(f"temperature: found {temperature}, expected a value above 0")
    if tail not in get_args(Tail):
        raise ValueError(f"tail: found {tail!r}, expected one of {get_args(Tail)}")
