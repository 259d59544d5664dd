"""What decides the prompts, the dialogues and the tokens of a run: sections of the run file in, recipes out."""

from collections.abc import Sequence
from pathlib import Path

from ..config import DialoguesSection, ModelSection
from ..config.recipe import Recipe
from .dialogue_files import file_digest
from .dialogues import file_names
from .table_rows import HUB


def positions_behind(capture: str) -> int:
    """Positions that a dialogue leaves free: vLLM's prompt logprobs come with one sampled token, which takes one."""
    return 1 if capture == "prompt_logprobs" else 0


def without_places(paths: Sequence[str]) -> list[str]:
    """Name and digest of each file, in order, in place of where it lies: it may move, and work on it goes on.

    The name is part of it, because rows without an id are called after it. A dataset of the hub is named by its address.

    Raises:
        DialogueError: a file that is not there, or cannot be read.
    """
    names = (
        "/".join([*name.split("/")[:-1], Path(path).name]) for path, name in zip(paths, file_names(paths), strict=True)
    )
    return [
        f"{path if path.startswith(HUB) else name} {file_digest(path)}" for path, name in zip(paths, names, strict=True)
    ]


def dialogues_recipe(section: DialoguesSection, pivot: ModelSection, capture: str) -> Recipe:
    """Of the checked dialogues, but for what their files hold."""
    behind = positions_behind(capture)
    settings = {
        **section.model_dump(mode="json", exclude={"prompts"}),
        "pivot": pivot.model_dump(mode="json", include={"model", "revision", "template", "template_arguments"}),
        **({} if section.held_out else {"held_out_by": "messages"}),
        **({"positions_behind": behind} if behind else {}),
    }
    return Recipe(settings, {"written": "writing/dialogues"} if section.prompts else {})


def prompts_recipe(section: DialoguesSection) -> Recipe:
    """Of the checked prompts, but for what their files hold."""
    return Recipe({"on_bad": section.on_bad, "prompts": section.prompts}, {})


def tokens_recipe(model: ModelSection, capture: str) -> Recipe:
    """Of a model's tokens of both splits, but for the files of its tokenizer and template."""
    behind = positions_behind(capture)
    settings = {
        "model": model.model,
        "revision": model.revision,
        "template": model.template,
        "template_arguments": model.template_arguments,
        **({"positions_behind": behind} if behind else {}),
    }
    return Recipe(settings, {"dialogues": "dialogues"})
