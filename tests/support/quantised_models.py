"""Tiny models whose layers are quantised as the checkpoints of large ones are: FP8 with a scale per weight, AWQ in 4 bits.

Each comes with a twin that holds the same numbers in plain weights, for a forward to hold a teacher's rows against.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

SHAPE: dict[str, Any] = {
    "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512, "initializer_range": 0.1,
    "tie_word_embeddings": False,
}  # fmt: skip
GROUP = 128
"""AWQ: input features that share a scale and a zero."""
LARGEST_FP8 = 448.0
NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ: which of eight neighbouring outputs stands in each nibble of an int32, the lowest first."""
CONFIGS: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
}


def save_quantised(folder: Path, method: str, seed: int = 0) -> tuple[Path, Path]:
    """(quantised model, its plain twin), both with embeddings and head in bfloat16."""
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).to(torch.bfloat16)
    plain, quantised = folder / "plain", folder / method
    model.save_pretrained(plain)
    weights = load_file(plain / "model.safetensors")
    small: dict[str, Tensor] = {}
    for name, weight in list(weights.items()):
        if not name.endswith("_proj.weight"):
            small[name] = weight
            continue
        parts, weights[name] = (_fp8 if method == "fp8" else _awq)(weight.float())
        small |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    quantised.mkdir()
    save_file(small, quantised / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIGS[method]}))
    return quantised, plain


def _fp8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """float32 [outputs, inputs] -> the tensors of a checkpoint, and the weight that they stand for."""
    scale = weight.abs().max() / LARGEST_FP8
    narrow = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": narrow, "weight_scale": scale}, (narrow.float() * scale).bfloat16()


def _awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """As `_fp8`: [inputs, outputs] in nibbles, a scale and a zero for every group of inputs of an output."""
    outputs, inputs = weight.shape
    groups = weight.t().reshape(inputs // GROUP, GROUP, outputs)
    low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
    scales = ((high - low) / 15).bfloat16().float()
    zeros = (-low / scales).round().clamp(0, 15)
    numbers = ((groups / scales).round() + zeros).clamp(0, 15)
    meant = ((numbers - zeros) * scales).reshape(inputs, outputs).t()
    parts = {
        "qweight": _packed(numbers.reshape(inputs, outputs)),
        "qzeros": _packed(zeros[:, 0]),
        "scales": scales[:, 0].bfloat16(),
    }
    return {name: part.contiguous() for name, part in parts.items()}, meant.bfloat16().contiguous()


def _packed(numbers: Tensor) -> Tensor:
    """[rows, columns] of 0..15 -> int32 [rows, columns / 8]."""
    eights = numbers.long().reshape(len(numbers), -1, 8)
    words = sum(eights[:, :, column] << (4 * place) for place, column in enumerate(NIBBLES))
    assert isinstance(words, Tensor)
    return torch.where(words >= 2**31, words - 2**32, words).int()
