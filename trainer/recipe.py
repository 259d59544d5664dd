"""What decides the choice and the targets: names and the run's settings in, recipes out."""

from collections.abc import Sequence

from fusechat.config import CONTROL, FUSION_FIELDS, JOINT, TrainingSection
from fusechat.config.recipe import Recipe

from .fusion_targets import RowChoice

ORDER_VERSION = 2
"""Goes up when the same settings give batches of another order, so that targets of different orders are not taken for the same."""


def choice_recipe(pivot: str, sources: Sequence[str], *, is_round: bool = False) -> Recipe:
    """Of the choice of teachers; `pivot` and `sources` are names.

    Args:
        is_round: who teaches was decided where the round's prompts were.
    """
    rows = {f"rows.{name}": f"aligned/{name}" for name in sources}
    return Recipe(
        {"rule": "asked" if is_round else "trusted", "sources": list(sources)},
        {"tokens": f"tokens/{pivot}", "pivot_rows": f"logprobs/{pivot}", **rows, **({"asked": "asked"} if is_round else {})},
    )  # fmt: skip


def row_choice(section: TrainingSection, target_name: str) -> RowChoice:
    """Whose rows supervise a target: the control has none."""
    return section.row_choice if target_name != CONTROL else "none"


def target_recipe(
    target_name: str, section: TrainingSection, pivot: str, sources: Sequence[str], *, seed: int, max_tokens: int
) -> Recipe:
    """Of one target.

    Args:
        target_name: a source's name, `joint`, or `sft` for the control.
        pivot, sources: names of the models.
        max_tokens: longest dialogue, tokens of the pivot.
    """
    choice = row_choice(section, target_name)
    # Without rows the loss is plain SFT, whatever the fusion's settings: one control serves runs that differ in them.
    unused = {"train_control", "fusion", *(FUSION_FIELDS if choice == "none" else ())}
    if choice != "trusted":
        unused.add("fading")
    settings = {
        "training": section.model_dump(mode="json", exclude=unused),
        "seed": seed,
        "max_tokens": max_tokens,
        "row_choice": choice,
        "batch_order": ORDER_VERSION,
    }
    parents = {"tokens": f"tokens/{pivot}"}
    if choice == "trusted":
        teachers = sources if target_name == JOINT else [target_name]
        return Recipe(
            settings, {**parents, "choice": "choice", **{f"rows.{name}": f"aligned/{name}" for name in teachers}}
        )
    if choice not in ("none", "source"):
        parents["pivot_rows"] = f"logprobs/{pivot}"
    if choice not in ("none", "pivot"):
        parents["source_rows"] = f"aligned/{target_name}"
    if choice == "min_ce_released":
        parents["source_own_rows"] = f"logprobs/{target_name}"
    return Recipe(settings, parents)
