"""A round is a run of its own: the run that it belongs to in, the run of one round out. Knows nothing about what stages do.

Its pivot is the student of the round before; it answers prompts, as writers do, and its answers and some of the given
dialogues are the training dialogues. So every stage works in a round as it does anywhere, in the folder `rounds/NUMBER`.
"""

from typing import Any

from .run import RunConfig

ROUND_STAGES = ("write", "tokenize", "extract", "align", "train")
"""Stages of a run that are also those of its rounds."""


def round_runs(config: RunConfig) -> list[RunConfig]:
    """The rounds of a run, in order."""
    return [_round_run(config, number) for number in range(1, config.rounds.count + 1)]


def _round_run(config: RunConfig, number: int) -> RunConfig:
    section = config.rounds
    student = config.layout.round_student_path(number - 1) if number > 1 else config.fused_path
    folder = config.layout.round_path(number)
    run: dict[str, Any] = config.dump()
    run["run"] |= {"output": str(folder), "seed": config.run.seed + number}
    if config.run.store:
        run["run"]["store"] = f"{config.store_url}/rounds/{number}"
    run["pivot"] |= {"model": str(student), "revision": None}
    asked = folder / "asked"
    run["dialogues"] |= {
        "train": [str(asked / "given.jsonl")] if section.given_share else [], "prompts": [str(asked / "prompts.jsonl")],
        "held_out": [], "held_out_share": 0.0,
    }  # fmt: skip
    run["writing"] = {
        "writers": [config.pivot.name], "samples": section.samples, "temperature": section.temperature,
        "max_new_tokens": section.max_new_tokens, "keep": "all", "per_prompt": None,
    }  # fmt: skip
    run["training"] |= {
        "fusion": "joint", "train_control": False, "divergence": section.divergence,
        "trl": {**config.training.trl, **section.trl},
    }  # fmt: skip
    run["evaluation"] = {}
    run["rounds"] = {"number": number, "least_probability": section.least_probability}
    return RunConfig.model_validate(run)
