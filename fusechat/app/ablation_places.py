"""Where the runs of an ablation keep what they share: a run in; a place for each artifact, named by what decides it, out.

Two runs that agree in everything an artifact is made from get one folder for it: rows are extracted once, and merges of
the same targets train nothing. A name is a digest of the recipe as the stage says it, and of what it is made from; what
lies in files (weights, dialogues) is not read for it: where that changed, the stage refuses the folder with the difference.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import CONTROL, ModelSection, RunConfig
from ..config.layout import ON_STORE, teacher_key
from ..config.recipe import Recipe
from ..text.recipes import dialogues_recipe, prompts_recipe, tokens_recipe

if TYPE_CHECKING:
    from inference.measuring import MeasuringSettings


def shared_places(config: RunConfig, root: Path) -> dict[str, str]:
    """What stands elsewhere than in the folder of one run: artifact -> folder or URL.

    Args:
        root: folder of the shared artifacts; stores go below `run.store` if the run has one.
    """
    keys = _keys(config)
    places = {key: f"{_base(config, root, key)}/{key}-{digest}" for key, digest in keys.items()}
    return {**places, "verdicts.jsonl": f"{root}/verdicts.jsonl"}  # each verdict bears a key of its own


def _base(config: RunConfig, root: Path, key: str) -> str:
    on_store = key.split("/")[0] in ON_STORE and config.run.store
    return str(config.run.store).rstrip("/") if on_store else str(root)


def _keys(config: RunConfig) -> dict[str, str]:
    """Artifact -> digest of all that decides it: its recipe, and the digests of what it is made from."""
    recipes = _recipes(config)
    digests: dict[str, str] = {}

    def digest(key: str) -> str:
        if key not in digests:
            parents = {role: digest(parent) for role, parent in recipes[key].parents.items()}
            digests[key] = _digest(recipes[key].settings, parents)
        return digests[key]

    return {key: digest(key) for key in recipes}


def _recipes(config: RunConfig) -> dict[str, Recipe]:
    """Artifact -> its recipe, as its stage says it."""
    from alignment.recipe import recipe as aligned_recipe
    from inference.stage import recipe as rows_recipe
    from merge.stage import recipe as fused_recipe
    from trainer.recipe import choice_recipe, target_recipe

    pivot, capture, seed = config.pivot.name, config.extraction.capture, config.run.seed
    sources = [source.name for source in config.sources]
    recipes = {**_writing_recipes(config), "dialogues": dialogues_recipe(config.dialogues, config.pivot, capture)}
    for model in config.models:
        tokens = tokens_recipe(model, capture)
        recipes |= {f"tokens/{model.name}": tokens, f"tokens/{model.name}.held_out": tokens}
        recipes[f"logprobs/{model.name}"] = rows_recipe(model, config.extraction)
    for name in sources:
        recipes[f"aligned/{name}"] = aligned_recipe(pivot, name, config.alignment, config.extraction)
    recipes["choice"] = choice_recipe(pivot, sources)
    for name in [*config.target_names, CONTROL]:
        recipes[f"targets/{name}"] = target_recipe(
            name, config.training, pivot, sources, seed=seed, max_tokens=config.dialogues.max_tokens
        )
    recipes["fused"] = fused_recipe(config.merge, config.merged_names, seed=seed)
    return {**recipes, **_measured_recipes(config)}


def _writing_recipes(config: RunConfig) -> dict[str, Recipe]:
    """Of prompts, answers by writer, and what is kept of them; nothing where there are no prompts."""
    from inference.writing.selection import recipe as written_recipe
    from inference.writing.stage import recipe as answers_recipe

    if not config.dialogues.prompts:
        return {}
    section = config.writing
    seed = config.run.seed if section.seed is None else section.seed
    recipes = {"writing/prompts": prompts_recipe(config.dialogues)}
    for writer in config.writers:
        recipes[f"writing/answers/{writer.name}"] = answers_recipe(writer, section, seed)
    judge, names = section.judge or config.evaluation.judge, [writer.name for writer in config.writers]
    recipes["writing/dialogues"] = written_recipe(section, names, config.scorers, judge, seed)
    return recipes


def _measured_recipes(config: RunConfig) -> dict[str, Recipe]:
    """Of what measured models leave: beside what they are asked, the model itself."""
    from alignment.held_out import recipe as held_out_aligned_recipe
    from inference.held_out.stage import rows_recipe
    from inference.measuring import MeasuringSettings

    recipes: dict[str, Recipe] = {}
    settings = MeasuringSettings(config.evaluation.held_out, config.extraction, config.cluster)
    for model_id in config.measured_ids:
        role, _, name = model_id.partition(".")
        reader = config.model_named(name if role == "source" else config.pivot.name)
        asked = {
            f"held_out/{model_id}": rows_recipe(reader, settings),
            **_asked_recipes(config, model_id, reader, settings),
        }
        is_given = role in ("pivot", "source")
        trained = {} if is_given else {"model": "fused" if role in ("fused", "round") else f"targets/{name or CONTROL}"}
        # What a round leaves stands in the variant's own folder; what its student leaves is shared by what decides that.
        rounds = {"round": name, "rounds": config.rounds.model_dump(mode="json")} if role == "round" else {}
        trained |= {"choice": "choice"} if rounds else {}
        recipes |= {key: Recipe({**one.settings, **rounds}, {**one.parents, **trained}) for key, one in asked.items()}
    for source in config.sources:
        if f"source.{source.name}" in config.measured_ids:
            recipes[f"held_out_aligned/{source.name}"] = held_out_aligned_recipe(
                config.pivot.name, source.name, config.alignment, config.extraction
            )
    return recipes


def _asked_recipes(
    config: RunConfig, model_id: str, reader: ModelSection, settings: "MeasuringSettings"
) -> dict[str, Recipe]:
    """Of one model's answers, its figures of lm-eval and its logprobs of teachers' ids."""
    from inference.answering.asked import asked_sets
    from inference.answering.stage import recipe as answers_recipe
    from inference.harness.stage import recipe as harness_recipe
    from inference.held_out.stage import chosen_recipe

    section, seed, role = config.evaluation, config.run.seed, model_id.partition(".")[0]
    recipes = {f"harness/{model_id}": harness_recipe(section.lm_eval, reader, settings, seed=seed)}
    for one in asked_sets(section, "", role):
        recipes[f"answers/{one.name}/{model_id}"] = answers_recipe(one, reader, settings, seed=seed)
    if role != "source":
        for teacher in config.models:
            is_pivot = teacher == config.pivot
            is_measured = ("pivot" if is_pivot else f"source.{teacher.name}") in config.measured_ids
            for split in ("train", "held_out") if is_measured else ("train",):
                rows = teacher_key(teacher.name, split, is_pivot=is_pivot)
                key = f"chosen/{model_id}/{split}.{teacher.name}"
                recipes[key] = chosen_recipe(reader, settings, rows, split, seed=seed)
    return recipes


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
