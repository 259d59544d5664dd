"""What decides the prompts, the dialogues and the tokens of a run: sections of the run file in, recipes out."""

from ..config import DialoguesSection, ModelSection
from ..config.recipe import Recipe


def positions_behind(capture: str) -> int:
    """Positions that a dialogue leaves free: vLLM's prompt logprobs come with one sampled token, which takes one."""
    return 1 if capture == "prompt_logprobs" else 0


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
