"""One small random model per architecture, with the vocabulary size and head layout of the real one. No tokenizers."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "max_position_embeddings": 512, "initializer_range": 0.1, "tie_word_embeddings": False,
}  # fmt: skip

GROUPED: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 2}

# Name -> model class, config class, and what makes it that model.
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"vocab_size": 32_000, "hidden_size": 128}),
    # OpenChat-3.5 and Starling: four query heads to a key-value head, two tokens behind Mistral's.
    "mistral": ("MistralForCausalLM", "MistralConfig", {"vocab_size": 32_002, **GROUPED, "sliding_window": 32}),
    # Nous-Hermes-2-SOLAR: Llama's layers with Mistral's grouping and ChatML's two tokens.
    "solar": ("LlamaForCausalLM", "LlamaConfig", {"vocab_size": 32_002, **GROUPED}),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig",
        {"vocab_size": 32_000, **GROUPED, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    # Qwen1.5-72B-Chat: as many key-value heads as query heads, biases on query, key and value, a padded vocabulary.
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"vocab_size": 152_064, "hidden_size": 128, "num_key_value_heads": 4}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"vocab_size": 151_936, "tie_word_embeddings": True}),
    "gemma3": (
        "Gemma3ForCausalLM", "Gemma3TextConfig",
        {"vocab_size": 262_144, "tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 32,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gemma2": (  # a soft cap on the logits
        "Gemma2ForCausalLM", "Gemma2Config",
        {"vocab_size": 1_000, "tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 32,
         "layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 5.0},
    ),
    "granite": ("GraniteForCausalLM", "GraniteConfig", {"vocab_size": 1_000, "logits_scaling": 3.0}),
}  # fmt: skip


INTERNLM2_TWIN = "internlm2 twin"
"""A Llama in the shape of InternLM2-20B (six query heads to a key-value head), for `save_internlm2`."""
TWINS: dict[str, tuple[str, str, dict[str, Any]]] = {
    INTERNLM2_TWIN: (
        "LlamaForCausalLM", "LlamaConfig",
        {"vocab_size": 92_544, "hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 1, "rope_theta": 1e6},
    ),
}  # fmt: skip
SOURCES = {
    "openchat/openchat_3.5": "mistral",
    "berkeley-nest/Starling-LM-7B-alpha": "mistral",
    "NousResearch/Nous-Hermes-2-SOLAR-10.7B": "solar",
    "internlm/internlm2-chat-20b": "internlm2",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mixtral",
    "Qwen/Qwen1.5-72B-Chat": "qwen2",
}
"""The paper's six sources -> the architecture here that has their vocabulary size, head layout and biases."""


def save_architecture(folder: Path, name: str, seed: int = 0) -> Path:
    """A float32 model folder; random, but with logits spread enough to tell tokens apart."""
    model_class, config_class, own = (ARCHITECTURES | TWINS)[name]
    shape = {key: value for key, value in SHAPE.items() if key not in own}
    if name == "granite":
        del shape["head_dim"]
        shape["hidden_size"] = 128
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**shape, **own))
    for module in model.modules():  # biases and norms start at 0 and 1; random ones are told apart from missing ones
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    model.save_pretrained(folder)
    return folder


def save_internlm2(folder: Path, llama: Path) -> Path:
    """The weights of a Llama folder under InternLM2's names: wqkv grouped by key-value head, head called `output`.

    The config is as on the hub, remote code and all; there is none here, so nothing can run it.
    """
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    config = model.config
    groups, width = config.num_key_value_heads, config.hidden_size
    weights = {}
    for name, tensor in model.state_dict().items():
        for old, new in INTERNLM2_NAMES.items():
            name = name.replace(old, new)
        weights[name] = tensor.contiguous()
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}.attention."
        parts = [weights.pop(f"{prefix}{part}").reshape(groups, -1, config.head_dim, width) for part in ("q", "k", "v")]
        weights[f"{prefix}wqkv.weight"] = torch.cat(parts, dim=1).reshape(-1, width).contiguous()
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    values = {
        "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False, "hidden_act": "silu",
        "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"}, "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"], "rope_scaling": None, "torch_dtype": "float32",
        **{key: getattr(config, key) for key in (*SHAPE, "vocab_size")},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    return folder


INTERNLM2_NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    "self_attn.q_proj.weight": "attention.q",
    "self_attn.k_proj.weight": "attention.k",
    "self_attn.v_proj.weight": "attention.v",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "lm_head": "output",
}
