"""Memory that an engine takes, bytes: weights, KV cache, the blocks of logits, the step's activations.

Goes in: a model's section and size, and what the run asks of it. Comes out: numbers. Starts nothing and needs no Ray.
"""

from dataclasses import dataclass

from ..config import ModelSection
from .model_sizes import ModelSize

GIB = 2**30
POOLER_BLOCK_BYTES = 2**29
"""Logits of one block of the top-k pooler (`inference/capture/topk_pooler.py`)."""
POOLER_WORK = 1.25
"""All that the pooler holds of a block, over its logits."""
RUNTIME_BYTES = 2 * GIB
"""Of a GPU for the driver, NCCL and the workspace of kernels."""


@dataclass(frozen=True)
class EngineMemory:
    """What an engine of one model needs."""

    model: ModelSection
    size: ModelSize
    capture: str
    """`extraction.capture`."""
    max_tokens: int
    """Longest dialogue, tokens."""

    def gpu_bytes(self, width: int) -> float:
        """Memory that one of `width` GPUs must give the engine, bytes."""
        activations = self.model.engine.max_num_batched_tokens * self.size.hidden_size * 10 * 2
        shared = (self.size.weight_bytes + self.kv_bytes()) / width
        return shared + self.logits_bytes(width) + activations + RUNTIME_BYTES

    def kv_bytes(self) -> float:
        """KV cache that the engine needs at least, over all of its GPUs."""
        return self.size.kv_bytes_per_token * (self.model.engine.max_num_batched_tokens + self.max_tokens)

    def logits_bytes(self, width: int) -> float:
        """float32 logits and what reduces them; a GPU's product writes float32 from the weights as they are."""
        step = self.model.engine.max_num_batched_tokens * self.size.vocab_size * 4
        if self.capture == "prompt_logprobs":
            return 2 * step
        return POOLER_WORK * min(POOLER_BLOCK_BYTES, step / width)
