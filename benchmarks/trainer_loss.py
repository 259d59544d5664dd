"""What the loss alone costs, forward and backward: ours, TRL's chunked log-probabilities, and dense logits."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from benchmarks.trainer_contenders import DEVICE
from trainer.fused_loss import fused_linear_fusion_sums
from trainer.losses import LossOptions


def now() -> float:
    """Seconds, after all that was asked of the device is done."""
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


class _Flops(TorchDispatchMode):
    """Floating point operations of matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"):
            left, right = [value for value in args if isinstance(value, Tensor)][-2:]
            self.total += 2 * left.numel() * right.shape[-1]
        return result


def measure_loss(vocab_size: int, hidden_size: int, tokens: int, k: int) -> dict[str, float]:
    """The loss alone, forward and backward: seconds and FLOPs, ours against TRL's chunked log-probabilities and dense.

    `products_seconds` is what the head's three products take alone: logits, gradient of the hidden states, of the weight.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, generator=generator).to(DEVICE, torch.bfloat16).requires_grad_()
    weight = (
        (torch.randn(vocab_size, hidden_size, generator=generator) * 0.02).to(DEVICE, torch.bfloat16).requires_grad_()
    )
    labels = torch.randint(0, vocab_size, (tokens,), generator=generator).to(DEVICE)
    ids = torch.randint(0, vocab_size, (tokens, k), generator=generator).to(DEVICE)
    rows = torch.log_softmax(torch.randn(tokens, k, generator=generator), 1).to(DEVICE)

    def ours() -> Tensor:
        return fused_linear_fusion_sums(hidden, weight, labels, ids, rows, LossOptions(), scale=1 / tokens).loss

    def trl_sft() -> Tensor:
        outputs = ("log_probs", "entropy", "is_top1")
        log_probs: Tensor = ChunkedLogProbFunction.apply(hidden, weight, None, labels, 1.0, 32_768, None, 1.0, outputs)[
            0
        ]
        return -log_probs.mean()

    def dense() -> Tensor:
        log_q = torch.log_softmax((hidden @ weight.t()).float(), dim=-1)
        target = torch.zeros_like(log_q, dtype=torch.bfloat16).scatter_add_(1, ids, rows.exp().bfloat16())
        return -0.9 * log_q.gather(1, labels[:, None]).mean() - 0.1 * (target * log_q).sum(-1).mean()

    def gradients(loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(), (hidden, weight))

    found: dict[str, float] = {}
    for name, loss in (("fusion", ours), ("sft", trl_sft), ("dense", dense)):
        with _Flops() as flops:
            gradients(loss)
        found[f"{name}_gflops"] = flops.total / 1e9
    for name, loss in (("fusion", ours), ("sft", trl_sft), ("dense", dense)):
        found[f"{name}_seconds"] = _median_seconds(partial(gradients, loss))
    logits = torch.randn(tokens, vocab_size, device=DEVICE, dtype=torch.bfloat16)
    plain, head = hidden.detach(), weight.detach()
    found["products_seconds"] = _median_seconds(lambda: (plain @ head.t(), logits @ head, logits.t() @ plain))
    return found


def _median_seconds(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(3):
        began = now()
        work()
        seconds.append(now() - began)
    return float(np.median(seconds))
