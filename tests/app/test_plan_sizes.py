"""Sizes of models: those that are published, and for every family those that transformers makes."""

import pytest
import torch
import transformers
from paper_sources import CONFIGS, PUBLISHED, PUBLISHED_ACTIVE
from tiny_architectures import ARCHITECTURES, SHAPE

from fusechat.errors import ModelError
from fusechat.models.model_sizes import FAMILIES, size_of_config


@pytest.mark.parametrize("name", CONFIGS)
def test_size_of_a_source_of_the_paper_is_the_published_one(name: str) -> None:
    size = size_of_config(CONFIGS[name])
    assert round(size.parameters / 1e9, 2) == pytest.approx(PUBLISHED[name], rel=3e-3)
    active = PUBLISHED_ACTIVE.get(name, PUBLISHED[name])
    assert size.active_parameters / 1e9 == pytest.approx(active, rel=3e-3)
    assert size.weight_bytes == 2 * size.parameters


def test_flops_of_a_token_are_two_per_parameter_that_multiplies() -> None:
    size = size_of_config(CONFIGS["qwen"])
    assert size.flops_per_token(0) / 1e9 == pytest.approx(142.3, rel=0.01)
    assert size.flops_per_token(0) - size.flops_per_token(0, head_share=0) == 2 * 152_064 * 8192
    assert size.flops_per_token(1024) - size.flops_per_token(0) == 4 * 80 * 8192 * 1024


MORE = {
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", {
        "vocab_size": 500, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 80, "decoder_sparse_step": 2,
    }),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {
        "vocab_size": 500, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "mlp_only_layers": [1],
    }),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {"vocab_size": 500, "pad_token_id": 0, "hidden_size": 128}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {"vocab_size": 500, "tie_word_embeddings": True}),
    "llama with biases": ("LlamaForCausalLM", "LlamaConfig", {"vocab_size": 500, "attention_bias": True, "mlp_bias": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
def test_counted_parameters_are_those_that_transformers_makes(name: str) -> None:
    model_class, config_class, own = {**ARCHITECTURES, **MORE}[name]
    config = getattr(transformers, config_class)(**{**SHAPE, **own})
    with torch.device("meta"):
        model = getattr(transformers, model_class)(config)
    size = size_of_config(config.to_dict())
    assert config.model_type in FAMILIES
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    experts = sum(value.numel() for key, value in model.named_parameters() if ".experts." in key)
    if experts:
        num_experts = getattr(config, "num_experts", None) or config.num_local_experts
        assert size.parameters - size.active_parameters == experts * (num_experts - 2) // num_experts


def test_family_that_is_not_listed_is_counted_by_transformers() -> None:
    config = transformers.OlmoeConfig(
        vocab_size=500, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=1,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.OlmoeForCausalLM(config)
    size = size_of_config(config.to_dict())
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert size.parameters - size.active_parameters == 2 * 3 * 3 * 64 * 32


def test_size_of_an_unknown_model_type_says_what_is_expected() -> None:
    with pytest.raises(ModelError, match=r"mine: .*model_type 'velox'.* expected one of .*mixtral"):
        size_of_config({**CONFIGS["solar"], "model_type": "velox"}, name="mine")


def test_quantized_weights_take_their_bits() -> None:
    quantized = {**CONFIGS["qwen"], "quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert size_of_config(quantized).weight_bytes == size_of_config(CONFIGS["qwen"]).parameters / 2
    assert size_of_config(CONFIGS["qwen"], extra={"quantization": "fp8"}).bytes_per_weight == 1
