"""InternLM2's config class. transformers ships none and the hub's is code of its own, which need not run.

vLLM has the model itself; it only needs the config read. The fields are Llama's, but for `bias`.
"""

from transformers import AutoConfig, LlamaConfig


class InternLM2Config(LlamaConfig):
    """Config of InternLM2ForCausalLM; `bias`: biases on the attention projections."""

    model_type = "internlm2"
    bias: bool = False


def register_config() -> None:
    """Make `model_type: internlm2` known to transformers; what is known already stays."""
    AutoConfig.register("internlm2", InternLM2Config, exist_ok=True)
