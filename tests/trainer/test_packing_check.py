"""Packing is refused for models in which one dialogue of a pack reaches the next."""

from typing import Any

import pytest
import torch
import transformers

from fusechat.errors import ConfigError
from trainer.packing_check import check_packing

SHAPE: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
APART: dict[str, dict[str, Any]] = {
    "Llama": {}, "Mistral": {"sliding_window": 8}, "Qwen3": {"head_dim": 8}, "Granite": {},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
}  # fmt: skip
MIXED: dict[str, dict[str, Any]] = {
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "RecurrentGemma": {"lru_width": 32, "head_dim": 8, "num_hidden_layers": 3},
    "FalconH1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "head_dim": 8},
    "MiniMax": {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2, "head_dim": 8},
    "Qwen3Next": {
        "layer_types": ["linear_attention", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "linear_num_value_heads": 2,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "Falcon": {},
}  # fmt: skip


def tiny(name: str, values: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **values})
    return getattr(transformers, f"{name}ForCausalLM")(config)


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_keep_dialogues_apart_may_pack(name: str, dtype: torch.dtype) -> None:
    model = tiny(name, APART[name]).to(dtype).train()
    check_packing(model)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_mix_dialogues_are_refused(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=rf"training.trl.packing: {name}ForCausalLM carries one dialogue of a pack"):
        check_packing(tiny(name, MIXED[name]).to(dtype))


def test_flash_attention_which_needs_a_gpu_is_replaced_while_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny("Llama", {}), []

    def ask(attention: str) -> None:
        asked.append(attention)
        model.config._attn_implementation_internal = attention

    model.config._attn_implementation_internal = "flash_attention_2"
    monkeypatch.setattr(model, "set_attn_implementation", ask)
    check_packing(model)
    assert asked == ["eager", "flash_attention_2"]
