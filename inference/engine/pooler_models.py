"""Classes that score, one per architecture: vLLM's own model with a top-k pooler instead of a sampler.

`getattr(module, "LlamaForCausalLM@0.32.0")` makes the class; that is how vLLM's registry asks (see `plugin.py`). The
subclass keeps everything of its base (forward, weights, quantization, parallelism). Any model whose `compute_logits`
goes through vLLM's LogitsProcessor works; soft caps, scales, biases and tied or oddly named heads are the model's own
business, because the pooler calls that `compute_logits`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.interfaces_base import is_text_generation_model

from fusechat.errors import ModelError

from ..capture.topk_pooler import TopKPooler
from .plugin import PREFIX
from .vllm_internals import known_class, replace_logits_processors


class ShardLogits(nn.Module):
    """Stands in for a LogitsProcessor: gives this rank's columns only, and remembers which head made them."""

    def __init__(self, processor: LogitsProcessor) -> None:
        super().__init__()
        self.processor = processor
        self.shard: tuple[Any, int] | None = None
        """Of the head that ran last: vLLM's `shard_indices` (which columns are ours) and the number of ranks."""
        self._wide: WideHead | None = None

    def forward(self, lm_head: Any, hidden_states: Tensor, embedding_bias: Tensor | None = None) -> Tensor:
        """[rows, hidden] -> [rows, columns of this rank, padding included], soft cap and scale applied."""
        self.shard = (lm_head.shard_indices, lm_head.tp_size)
        head: Any = lm_head
        if hidden_states.device.type == "cpu" and self.processor.head_dtype == torch.float32 != hidden_states.dtype:
            self._wide = self._wide or WideHead(lm_head)
            head, hidden_states = self._wide, hidden_states.float()
            embedding_bias = None if embedding_bias is None else embedding_bias.float()
        logits: Tensor = self.processor(head, hidden_states, embedding_bias, skip_gather=True)
        return logits


class WideHead:
    """A float32 copy of a head, for CPUs: vLLM would cast the whole weight again at every call.

    Stands in for both the head and its `quant_method`. Costs 4 bytes per weight of the head.
    """

    def __init__(self, lm_head: Any) -> None:
        self.weight = lm_head.weight.detach().float()
        self.quant_method, self.tp_size = self, lm_head.tp_size

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[rows, hidden] -> [rows, columns], all float32."""
        return nn.functional.linear(x, self.weight, bias)


def __getattr__(name: str) -> type[nn.Module]:
    architecture, separator, _ = name.partition("@")
    if not separator:
        raise AttributeError(name)
    return make_pooler_class(architecture)


def register_here(architecture: str) -> str:
    """Make an architecture's class now and register it in this process; gives the name it has there.

    vLLM asks about a class that it knows by name only in a process of its own, which takes ten seconds.
    """
    name = PREFIX + architecture
    ModelRegistry.register_model(name, make_pooler_class(architecture))
    return name


def make_pooler_class(architecture: str) -> type[nn.Module]:
    """The scoring class of an architecture that vLLM knows by this name.

    Raises:
        ModelError: vLLM does not know it, or it is no text generator.
    """
    base: Any = known_class(architecture)
    if base is None or not is_text_generation_model(base):
        raise ModelError(f"{architecture}: vLLM has no text generator of that name, so it cannot score")

    def __init__(self: Any, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        base.__init__(self, vllm_config=vllm_config, prefix=prefix, **kwargs)
        heads = replace_logits_processors(self, ShardLogits)
        ranks = vllm_config.parallel_config.tensor_parallel_size
        columns = -(-vllm_config.model_config.get_vocab_size() // ranks)
        options: Any = vllm_config.additional_config
        self.pooler = TopKPooler(self.compute_logits, heads, k=options.k, columns=columns)

    body = {"__init__": __init__, "is_pooling_model": True, "__module__": __name__}
    return type(PREFIX + architecture, (base,), body)
