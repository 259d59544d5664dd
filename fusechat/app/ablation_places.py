"""Where the runs of an ablation keep what they share: a run in; a place for each artifact, named by what decides it, out.

Two runs that agree in everything an artifact is made from get one folder for it: rows are extracted once, and merges of
the same targets train nothing. Should a name leave something out, the stage's own plan refuses the folder with the
difference: nothing is ever mixed.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..config import CONTROL, FUSION_FIELDS, JOINT, ModelSection, RunConfig


def shared_places(config: RunConfig, root: Path) -> dict[str, str]:
    """What stands elsewhere than in the folder of one run: artifact -> folder or URL.

    Args:
        root: folder of the shared artifacts; stores go below `run.store` if the run has one.
    """
    keys = _keys(config)
    places = {key: f"{_base(config, root, key)}/{key}-{digest}" for key, digest in keys.items()}
    # What lies there bears keys of its own.
    return {**places, "measured": f"{root}/measured", "verdicts.jsonl": f"{root}/verdicts.jsonl"}


def _base(config: RunConfig, root: Path, key: str) -> str:
    on_store = key.startswith(("tokens/", "logprobs/", "aligned/")) and config.run.store
    return str(config.run.store).rstrip("/") if on_store else str(root)


def _keys(config: RunConfig) -> dict[str, str]:
    """Artifact -> digest of all that decides it."""
    pivot, identity = config.pivot, {"model", "revision", "template"}
    written = _writing_keys(config, identity)
    dialogues = _digest(
        config.dialogues.model_dump(mode="json"), pivot.model_dump(mode="json", include=identity),
        *(key for name, key in written.items() if name == "writing/dialogues"),
    )  # fmt: skip
    keys = {**written, "dialogues": dialogues}
    for model in config.models:
        tokens = _digest(dialogues, model.model_dump(mode="json", include=identity))
        keys[f"tokens/{model.name}"] = keys[f"tokens/{model.name}.held_out"] = tokens
        extraction = config.extraction.model_dump(mode="json", include={"k", "capture", "logprob_step", "shard_tokens"})
        engine = model.engine.model_dump(mode="json", include={"dtype", "head_dtype", "extra"})
        keys[f"logprobs/{model.name}"] = _digest(tokens, extraction, engine)
    tokens, training = keys[f"tokens/{pivot.name}"], config.training
    for source in config.sources:
        name, own = source.name, keys[f"logprobs/{source.name}"]
        aligned = _digest(tokens, own, config.alignment.model_dump(mode="json"))
        keys[f"aligned/{name}"] = aligned
    own_rows = keys[f"logprobs/{pivot.name}"]
    keys["choice"] = _digest(own_rows, [[source.name, keys[f"aligned/{source.name}"]] for source in config.sources])
    settings = training.model_dump(mode="json", exclude={"train_control", "fusion"})
    for name in config.target_names:
        # Who teaches what depends on every source; a published choice is between the pivot and the target's own.
        rows = keys["choice"] if training.row_choice == "trusted" else own_rows
        aligned_rows = [] if name == JOINT else [keys[f"aligned/{name}"]]
        keys[f"targets/{name}"] = _digest(name, *aligned_rows, rows, settings, config.run.seed)
    control = training.model_dump(mode="json", exclude={"train_control", "fusion", *FUSION_FIELDS})
    keys[f"targets/{CONTROL}"] = _digest(tokens, control, config.run.seed)
    targets = [[name, keys[f"targets/{name}"]] for name in config.merged_names]
    merge = config.merge.model_dump(mode="json", exclude={"threads"})
    keys["fused"] = _digest(targets, merge, config.run.seed)
    return {**keys, **_answer_keys(config, keys)}


def _writing_keys(config: RunConfig, identity: set[str]) -> dict[str, str]:
    """Prompts, answers by writer, and what is kept of them; nothing where there are no prompts."""
    if not config.dialogues.prompts:
        return {}
    section, seed = config.writing, config.run.seed

    def asked(models: list[ModelSection]) -> list[Any]:
        return [model.model_dump(mode="json", include={*identity, "template_arguments", "engine"}) for model in models]

    prompts = _digest(config.dialogues.prompts, config.dialogues.on_bad)
    sampling = section.model_dump(
        mode="json", include={"samples", "temperature", "max_new_tokens", "chunk_prompts", "seed"}
    )
    keys = {"writing/prompts": prompts}
    for writer in config.writers:
        keys[f"writing/answers/{writer.name}"] = _digest(prompts, asked([writer]), sampling, seed)
    rule = section.model_dump(mode="json", exclude={"writers", "scorers"})
    keys["writing/dialogues"] = _digest(keys, asked(config.scorers), rule, seed)
    return keys


def _answer_keys(config: RunConfig, keys: dict[str, str]) -> dict[str, str]:
    """Answers by set and model: the model, what it reads under, and how the set is asked."""
    found = {}
    for model_id in config.measured_ids:
        role, _, name = model_id.partition(".")
        of_model = {"pivot": f"tokens/{config.pivot.name}", "source": f"tokens/{name}", "fused": "fused"}
        model = keys[of_model.get(role, f"targets/{name or CONTROL}")]
        dtype = config.model_named(name if role == "source" else config.pivot.name).engine.dtype
        for section in config.evaluation.questions.sets:
            asked = section.model_dump(mode="json")
            found[f"answers/{section.name}/{model_id}"] = _digest(model, asked, dtype, config.run.seed)
    return found


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
