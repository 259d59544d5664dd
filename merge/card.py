"""The fused model's README.md: what was merged how, with a YAML block that others can run again."""

from collections.abc import Callable
from typing import Any

import yaml

from fusechat.markdown import markdown_table
from fusechat.models.model_card import card_text

from .recipe import MergeRecipe

CARD = """# Fused model: {count} targets by {method}

`{base}` and {count} models trained from it, merged in parameter space. It has the base's architecture, tokenizer and
size, and opens wherever the base does.

{table}

What each matrix got is in `merge_report.json`.

## Run it again

{explanation}

```yaml
{block}```
"""


def model_card(recipe: MergeRecipe, report: dict[str, Any]) -> str:
    """The text of README.md."""
    total = report["total"]
    heads = ["target", "folder", "root mean square of its update", "mean coefficient", "erased by sign"]
    rows = [
        (
            name,
            f"`{folder}`",
            f"{total['update_rms'][j]:.3e}",
            _cell(total, "coefficients", j),
            _cell(total, "erased_share", j),
        )
        for j, (name, folder) in enumerate(recipe.targets.items())
    ]
    block = mergekit_form(recipe)
    explanation = (
        "In mergekit's form:"
        if block
        else "mergekit cannot express this method as it is done here; this is the `merge` section of a FuseChat run:"
    )
    text = CARD.format(
        count=len(recipe.targets), method=recipe.method_name, base=recipe.base,
        table="\n".join(markdown_table(heads, rows)), explanation=explanation,
        block=yaml.safe_dump(block or _fusechat_form(recipe), sort_keys=False),
    )  # fmt: skip
    return card_text(text, tag="merge", models=[recipe.base, *recipe.targets.values()])


def mergekit_form(recipe: MergeRecipe) -> dict[str, Any] | None:
    """The merge as a mergekit configuration; None where mergekit would compute something else."""
    write = _MERGEKIT.get(recipe.method_name)
    form = write(recipe) if write else None
    if form is None:
        return None
    out = {} if recipe.dtype == "auto" else {"out_dtype": recipe.dtype}
    return {**form, "dtype": "float32", **out}


def _per_target(recipe: MergeRecipe, name: str, default: float) -> list[float]:
    value = recipe.parameters[name]
    if value is None or isinstance(value, int | float):
        return [default if value is None else value] * len(recipe.targets)
    return list(value) if isinstance(value, list) else [value[target] for target in recipe.targets]


def _linear(recipe: MergeRecipe) -> dict[str, Any]:
    weights = _per_target(recipe, "weights", 1.0)
    models = [
        {"model": folder, "parameters": {"weight": weight}}
        for folder, weight in zip(recipe.targets.values(), weights, strict=True)
    ]
    return {"merge_method": "linear", "models": models, "parameters": {"normalize": recipe.parameters["normalize"]}}


def _arithmetic(recipe: MergeRecipe) -> dict[str, Any]:
    weights = _per_target(recipe, "weights", 1 / len(recipe.targets))
    densities = _per_target(recipe, "density", 1.0) if "density" in recipe.parameters else None
    models = []
    for j, folder in enumerate(recipe.targets.values()):
        parameters = {"weight": weights[j]} | ({"density": densities[j]} if densities else {})
        models.append({"model": folder, "parameters": parameters})
    shared = {"normalize": recipe.parameters["normalize"], "lambda": recipe.parameters["scale"]}
    return {"merge_method": recipe.method_name, "base_model": recipe.base, "models": models, "parameters": shared}


def _slerp(recipe: MergeRecipe) -> dict[str, Any]:
    first, *others = (
        [recipe.base, *recipe.targets.values()] if len(recipe.targets) == 1 else list(recipe.targets.values())
    )
    models = [{"model": folder} for folder in (first, *others)]
    return {"merge_method": "slerp", "base_model": first, "models": models, "parameters": {"t": recipe.parameters["t"]}}


def _sce(recipe: MergeRecipe) -> dict[str, Any] | None:
    if recipe.parameters["variant"] != "mergekit":
        return None
    models = [{"model": folder} for folder in recipe.targets.values()]
    shared = {"select_topk": recipe.parameters["select_topk"]}
    return {"merge_method": "sce", "base_model": recipe.base, "models": models, "parameters": shared}


def _fusechat_form(recipe: MergeRecipe) -> dict[str, Any]:
    return {"merge": {"method": recipe.method_name, "parameters": recipe.parameters, "dtype": recipe.dtype}}


_MERGEKIT: dict[str, Callable[[MergeRecipe], dict[str, Any] | None]] = {
    "linear": _linear, "task_arithmetic": _arithmetic, "ties": _arithmetic, "slerp": _slerp, "sce": _sce,
}  # fmt: skip


def _cell(total: dict[str, Any], key: str, j: int) -> str:
    return f"{total[key][j]:.4f}" if key in total else ""
