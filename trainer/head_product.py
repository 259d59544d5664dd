"""The lm_head's three products: hidden states to logits, and a gradient by the logits to those of hidden states and weight.

Knows nothing about losses. Logits are made in blocks and chunks, see `fused_loss`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .precision import cpu_has_bfloat16_products

CHUNK_BYTES = {"cpu": 24 << 20, "cuda": 256 << 20}
"""float32 bytes of one chunk of logits. CPU: measured best where a chunk fits the cache; GPU: keeps the products large."""
BLOCK_BYTES = 96 << 20
"""CPU: bytes of one block of logits, in the dtype of the products; a block is several chunks."""
MAX_CHUNK_TOKENS = 4096
VOCABULARY_TILE = 4096
"""Entries of the vocabulary whose gradient is rounded and added while it is in the cache."""


@dataclass(frozen=True)
class HeadTransform:
    """What a model does to `hidden @ weight.T` before the softmax."""

    scale: float = 1.0
    """Multiplies the logits."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""


@dataclass(frozen=True)
class HeadProduct:
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


class Gradients:
    """Gradients of hidden states, weight and bias, gathered chunk by chunk; weight and bias in float32 or wider."""

    def __init__(self, hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias

    @classmethod
    def like(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...], accumulate: torch.dtype
    ) -> "Gradients":
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


def product_dtype(hidden: Tensor) -> torch.dtype:
    """What the products run in: autocast's dtype or the model's own, where the device multiplies it fast."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if device != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    # float16 needs instructions of its own, which hardly any CPU has.
    return dtype if dtype == torch.bfloat16 and cpu_has_bfloat16_products() else torch.float32


def block_and_chunk(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[int, int]:
    """Tokens of a block and of a chunk; the block's logits take no more than half the weight's gradient, or BLOCK_BYTES."""
    device, vocab_size, width = hidden.device.type, *weight.shape
    limit = min(MAX_CHUNK_TOKENS, max(1, len(hidden)))
    chunk = max(1, min(limit, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocab_size)))
    if device != "cpu":
        return chunk, chunk
    block = max(chunk, BLOCK_BYTES // (dtype.itemsize * vocab_size), 2 * width // dtype.itemsize)
    return min(limit, block // chunk * chunk), chunk
