"""examples/reasoning.yaml over the tiny models: a pivot that thinks and calls tools, two templates that differ."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "reasoning.yaml"


def reasoning_run(output: Path, models: dict[str, Path]) -> dict[str, Any]:
    """The example as plain values, over the tiny models."""
    values: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    values["run"]["output"] = str(output)
    for model, folder in ((values["pivot"], models["llama"]), (values["sources"][0], models["mixtral"])):
        model |= {"model": str(folder), "template": str(ROOT / model["template"])}
    values["dialogues"]["train"] = [str(ROOT / path) for path in values["dialogues"]["train"]]
    values["extraction"] |= {"k": 5, "shard_tokens": 512}
    values["training"]["trl"] |= {"max_steps": 2, "learning_rate": 1e-3}
    values["evaluation"]["exact"]["max_new_tokens"] = 8
    values["evaluation"]["models"] = ["fused"]
    values["evaluation"]["questions"] = {"samples": ["What is 3 times 4?"]}
    values["cluster"] = {"num_cpus": 1, "engines": 1}
    return values
