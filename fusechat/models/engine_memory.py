"""Memory that an engine takes, bytes: weights, KV cache, the blocks of logits, the step's activations.

Goes in: a run file and a model's size. Comes out: numbers. Starts nothing and needs no Ray.
"""

from ..config import ModelSection, RunConfig
from .model_sizes import ModelSize

GIB = 2**30
POOLER_BLOCK_BYTES = 2**29
"""Logits of one block of the top-k pooler (`inference/capture/topk_pooler.py`)."""
POOLER_WORK = 1.25
"""All that the pooler holds of a block, over its logits."""
RUNTIME_BYTES = 2 * GIB
"""Of a GPU for the driver, NCCL and the workspace of kernels."""


def gpu_bytes(config: RunConfig, model: ModelSection, size: ModelSize, width: int) -> float:
    """Memory that one of `width` GPUs must give an engine, bytes."""
    activations = model.engine.max_num_batched_tokens * size.hidden_size * 10 * 2
    shared = (size.weight_bytes + kv_bytes(config, model, size)) / width
    return shared + logits_bytes(config, model, size, width) + activations + RUNTIME_BYTES


def kv_bytes(config: RunConfig, model: ModelSection, size: ModelSize) -> float:
    """KV cache that one engine needs at least, over all of its GPUs."""
    return size.kv_bytes_per_token * (model.engine.max_num_batched_tokens + config.dialogues.max_tokens)


def logits_bytes(config: RunConfig, model: ModelSection, size: ModelSize, width: int) -> float:
    """float32 logits and what reduces them; a GPU's product writes float32 from the weights as they are."""
    step = model.engine.max_num_batched_tokens * size.vocab_size * 4
    if config.extraction.capture == "prompt_logprobs":
        return 2 * step
    return POOLER_WORK * min(POOLER_BLOCK_BYTES, step / width)
