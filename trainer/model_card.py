"""The target's README.md: what it is and where it comes from. In: the run and the artifact's recipe; out: one file."""

from pathlib import Path
from typing import Any

from fusechat.markdown import markdown_table
from fusechat.models.model_card import card_text

from .inputs import TrainingInputs

CARD = """# {title}

{sentence}

Method: knowledge fusion of chat LLMs ([arXiv 2408.07990](https://arxiv.org/abs/2408.07990)), loss
`{sft_weight} * SFT + {fusion_weight} * fusion`. It has the pivot's architecture, tokenizer and size, and opens wherever
the pivot does.

{table}

Settings that decided it are in `artifact.json`, the course of training in `metrics.jsonl`.
"""


def write_model_card(
    folder: Path, inputs: TrainingInputs, name: str, recipe: dict[str, Any], counts: dict[str, Any]
) -> None:
    """Write README.md with the target's lineage: pivot, source, dialogues, digests, settings."""
    settings, training, pivot = recipe["settings"], inputs.section, inputs.pivot
    fused = settings["row_choice"] != "none"
    sources = inputs.teachers(name) if fused else []
    weight = training.sft_weight if fused else 1.0
    facts = {
        "pivot": _named(pivot.model, pivot.revision),
        "pivot weights, config, tokenizer (SHA-256)": ", ".join(f"`{value}`" for value in settings["pivot"].values()),
        "sources" if len(sources) > 1 else "source": ", ".join(_named(each.model, each.revision) for each in sources)
        or "none: the SFT-only control",
        "rows": f"{settings['row_choice']}, {training.divergence}, temperature {training.temperature}, tail {training.tail}",
        "dialogues": ", ".join(f"`{path}`" for path in inputs.dialogue_files),
        "made from": ", ".join(f"{role} `{fingerprint}`" for role, fingerprint in recipe["parents"].items()),
        "trained on": f"{counts['dialogues']:,} dialogues, {counts['tokens']:,} tokens, {counts['steps']:,} steps",
        "tokens whose row is a source's": f"{100 * counts['source_share']:.1f} %",
        "seed": inputs.seed,
    }
    names = " and ".join(f"`{each.name}`" for each in sources)
    sentence = (
        f"`{pivot.name}` trained on dialogues and on what {names} think{'s' if len(sources) == 1 else ''} of their tokens."
        if sources
        else f"`{pivot.name}` trained on the same dialogues and steps as the targets, without any source."
    )
    if settings["row_choice"] == "trusted":
        facts["dialogues taught"] = (
            "each by the source that explains it best, by as much as it is calibrated; else plain SFT"
        )
    text = CARD.format(
        title=f"{pivot.name} with {name}", sentence=sentence,
        sft_weight=weight, fusion_weight=round(1 - weight, 6),
        table="\n".join(markdown_table(["", ""], facts.items())),
    )  # fmt: skip
    card = card_text(text, tag="knowledge-fusion", models=[pivot.model])
    (folder / "README.md").write_text(card, encoding="utf-8")


def _named(model: str, revision: str | None) -> str:
    return f"`{model}`" + (f" at `{revision}`" if revision else "")
