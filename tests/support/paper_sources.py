"""The six sources of arXiv 2408.07990 as their config.json describes them, and their published parameter counts."""

import json
from pathlib import Path
from typing import Any

_SHAPE_7B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "openchat": {**_SHAPE_7B, "model_type": "mistral", "vocab_size": 32_002},
    "starling": {**_SHAPE_7B, "model_type": "mistral", "vocab_size": 32_002},
    "solar": {**_SHAPE_7B, "model_type": "llama", "vocab_size": 32_000, "num_hidden_layers": 48},
    "internlm2": {
        **_SHAPE_7B, "model_type": "internlm2", "vocab_size": 92_544, "hidden_size": 6144, "intermediate_size": 16384,
        "num_hidden_layers": 48, "num_attention_heads": 48, "bias": False,
    },
    "mixtral": {
        **_SHAPE_7B, "model_type": "mixtral", "vocab_size": 32_000, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "qwen": {
        **_SHAPE_7B, "model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 8192, "intermediate_size": 24576,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 64,
    },
}  # fmt: skip

PUBLISHED = {"openchat": 7.24, "starling": 7.24, "solar": 10.7, "internlm2": 19.86, "mixtral": 46.7, "qwen": 72.3}
"""Parameters, 1e9."""
PUBLISHED_ACTIVE = {"mixtral": 12.9}
ON_80_GB = {"openchat": 1, "starling": 1, "solar": 1, "internlm2": 1, "mixtral": 2, "qwen": 4}
"""Fewest 80 GB cards that hold one engine in 16 bits."""


def paper_run(folder: Path, **plan: Any) -> dict[str, Any]:
    """A run file over folders that hold nothing but each source's config.json."""
    models = []
    for name, config in CONFIGS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        engine = {"max_num_batched_tokens": 8192, "tensor_parallel_size": ON_80_GB[name]}
        models.append({"name": name, "model": str(folder / name), "engine": engine})
    return {
        "run": {"output": str(folder / "out")},
        "pivot": models[0],
        "sources": models[1:],
        "dialogues": {"train": [str(folder / "none.jsonl")]},
        "cluster": {"training_workers": 8},
        "plan": {"tokens": 95_000_000, "tokens_per_dialogue": 1000, **plan},
    }
