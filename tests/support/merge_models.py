"""Small checkpoints for the merge tests: a base and targets in Llama's tensor names, written as safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HIDDEN, VOCABULARY, LAYERS = 32, 80, 2


def llama_config(**changes: Any) -> dict[str, Any]:
    """A config.json that transformers and mergekit open."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 48,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "vocab_size": VOCABULARY, "tie_word_embeddings": False, "dtype": "float32", "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "hidden_act": "silu",
    } | changes  # fmt: skip


def llama_weights(*, seed: int = 0, tied: bool = False, layers: int = LAYERS) -> dict[str, Tensor]:
    """Random weights under Llama's names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    shapes |= {} if tied else {"lm_head.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (16, HIDDEN), "self_attn.v_proj": (16, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (48, HIDDEN), "mlp.up_proj": (48, HIDDEN),
            "mlp.down_proj": (HIDDEN, 48), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


def updated(weights: dict[str, Tensor], *, seed: int, size: float = 1e-2) -> dict[str, Tensor]:
    """The weights of a target: each one moved at random."""
    generator = torch.Generator().manual_seed(seed)
    return {name: w + (torch.randn(w.shape, generator=generator) * size).to(w.dtype) for name, w in weights.items()}


def save_model(folder: Path, weights: dict[str, Tensor], *, shards: int = 1, **config: Any) -> Path:
    """Write a folder with one or several safetensors files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(llama_config(**config)), encoding="utf-8")
    names = list(weights)
    if shards == 1:
        save_file({name: weights[name].contiguous() for name in names}, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: weights[name].contiguous() for name in names[shard::shards]}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names[shard::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def save_tokenizer(folder: Path, tokens: list[str], *, added: dict[str, int] | None = None) -> None:
    """Write a tokenizer.json with these tokens in this order, and added tokens."""
    document = {
        "model": {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(tokens)}, "unk_token": tokens[0]},
        "added_tokens": [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for token, i in (added or {}).items()
        ],
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")


def load_model(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def base_and_targets(
    shape: tuple[int, ...], *, count: int = 3, seed: int = 0, unchanged: float = 0.3
) -> tuple[Tensor, list[Tensor]]:
    """A base and targets whose updates differ in size; a share of the elements is unchanged."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator) * 0.05
    targets = []
    for j in range(count):
        update = torch.randn(shape, generator=generator) * 1e-3 * 2.0**j
        targets.append(base + update * (torch.rand(shape, generator=generator) > unchanged))
    return base, targets


def checkpoint_folders(folder: Path) -> dict[str, Any]:
    """A base with a tokenizer, and three targets; the first in bfloat16 shards."""
    weights = llama_weights()
    base = save_model(folder / "base", weights)
    save_tokenizer(base, [f"w{i}" for i in range(80)])
    (base / "generation_config.json").write_text('{"eos_token_id": 2}')
    (base / "chat_template.jinja").write_text("{{ messages }}")
    first = {name: tensor.bfloat16() for name, tensor in updated(weights, seed=1).items()}
    targets = {"first": save_model(folder / "first", first, shards=2)}
    for seed, name in enumerate(("second", "third"), 2):
        targets[name] = save_model(folder / name, updated(weights, seed=seed, size=3e-2))
    return {"base": base, "targets": targets, "out": folder / "out"}
