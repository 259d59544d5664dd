"""A run with rounds, over models whose answers are known."""

import json
from pathlib import Path
from typing import Any

from word_models import save_word_model

SHARES = {"pivot": {"Blue": 0.4, "Green": 0.3, "Red": 0.3}, "sure": {"Blue": 0.9, "Green": 0.1}}
"""Model -> what it answers to anything."""


def rounds_run(base: Path, **rounds: Any) -> dict[str, Any]:
    """A run over ten dialogues, which the source explains better than the pivot; `rounds`: fields of its section.

    It has one CPU, so that what can be done in one process is.
    """
    base.mkdir(parents=True, exist_ok=True)
    for name, shares in SHARES.items():
        if not (base / name).exists():
            save_word_model(base / name, shares)
    for split, numbers in (("train", range(10)), ("held_out", range(10, 14))):
        rows = [
            {"id": f"{split}-{n}", "kind": "colour", "messages": [
                {"role": "user", "content": f"What colour has thing {n}?"},
                {"role": "assistant", "content": "Green" if n % 5 == 4 else "Blue"},
            ]}
            for n in numbers
        ]  # fmt: skip
        (base / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trl = {
        "num_train_epochs": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
        "gradient_checkpointing": False, "bf16": False, "save_steps": 1,
    }  # fmt: skip
    return {
        "run": {"output": str(base / "out")},
        "pivot": {"name": "pivot", "model": str(base / "pivot"), "engine": {"kv_cache_gib": 0.05}},
        "sources": [{"name": "sure", "model": str(base / "sure"), "engine": {"kv_cache_gib": 0.05}}],
        "dialogues": {
            "train": [str(base / "train.jsonl")], "held_out": [str(base / "held_out.jsonl")], "max_tokens": 128,
        },
        "extraction": {"k": 5, "shard_tokens": 4096, "self_check_dialogues": 0},
        "training": {"fusion": "joint", "train_control": False, "trl": trl},
        "rounds": {"count": 2, "samples": 2, "max_new_tokens": 4, **rounds},
        "evaluation": {"sources": False, "models": ["pivot", "fused", "round.1", "round.2"]},
        "cluster": {"engines": 1, "num_cpus": 1},
    }  # fmt: skip
