"""A run that has prompts and no dialogues, over models whose answers are known; and prompts of its own as an artifact."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from word_models import save_word_model

from fusechat.config.layout import RunLayout
from fusechat.storage import artifact
from fusechat.text.prompt_stage import PROMPTS_FILE
from fusechat.text.prompts import Prompt, write_prompts

SHARES = {
    "pivot": {"Blue": 0.5, "Green": 0.5},
    "sure": {"Blue": 0.94, "Green": 0.05, "Red": 0.01},
    "doubtful": {"Red": 0.6, "Green": 0.4},
}
"""Model -> what it answers to anything."""


def write_prompts_artifact(layout: RunLayout, prompts: Sequence[Prompt]) -> None:
    """The artifact of some prompts, as writing leaves it."""
    settings = {"test": [prompt.to_row() for prompt in prompts]}
    claim = artifact.claim(layout.prompts_path, "prompts", settings=settings, parents={})
    if claim.artifact is None:
        write_prompts(layout.prompts_path / PROMPTS_FILE, prompts)
        claim.finish({"prompts": len(prompts)})


def save_writers(base: Path) -> dict[str, Path]:
    """Name -> folder of each model of SHARES."""
    return {name: save_word_model(base / name, shares) for name, shares in SHARES.items()}


def writing_run(base: Path, models: dict[str, Path], **writing: Any) -> dict[str, Any]:
    """A run over ten prompts, one of them also a held-out question; `writing`: fields of its section."""
    rows = [{"prompt": f"What colour has thing {n}?", "reference": "blue", "kind": "colour"} for n in range(10)]
    (base / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Blue"}], "kind": "colour"}
        for text in ("what colour has THING 3", "Which colour is the sea, and which the wood?")
    ]
    (base / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    return {
        "run": {"output": str(base / "out")},
        "pivot": {"name": "pivot", "model": str(models["pivot"]), "engine": {"kv_cache_gib": 0.05}},
        "sources": [
            {"name": name, "model": str(models[name]), "engine": {"kv_cache_gib": 0.05}}
            for name in ("sure", "doubtful")
        ],
        "dialogues": {
            "prompts": [str(base / "prompts.jsonl")], "held_out": [str(base / "held_out.jsonl")], "max_tokens": 128
        },
        "writing": {"samples": 3, "temperature": 1.0, "max_new_tokens": 8, **writing},
        "extraction": {"k": 5, "shard_tokens": 512, "self_check_dialogues": 0},
        "training": {"trl": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
                             "learning_rate": 1e-3}},
        "evaluation": {"exact": {"kinds": ["colour"], "max_new_tokens": 8}},
        "cluster": {"engines": 1, "num_cpus": 2},
    }  # fmt: skip
