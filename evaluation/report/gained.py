"""What was gained, in lines of text: report.json's content in; the fused model, the joint target and the rounds' students beside
control and sources.

Knows nothing about networks, terminals or HTML.
"""

from collections.abc import Iterator
from typing import Any

from .. import ALL
from ..wording import number, with_interval

CONTROL, FUSED, JOINT = "sft", "fused", "target.joint"
PERCENT = 100


def gained_lines(document: dict[str, Any]) -> Iterator[str]:
    """A heading, then for each kind that has exact answers, and for all kinds, what was measured; nothing without a control."""
    models = {model["id"]: model for model in document["models"]}
    if CONTROL not in models or not (models.keys() & {FUSED, JOINT}):
        return
    yield "What was gained over the control, which saw the same dialogues for as many steps [95 % intervals]"
    fused = [name for name in (FUSED, JOINT) if name in models] + [name for name in models if name.startswith("round.")]
    differences = {(entry["model"], entry["against"]): entry for entry in document["differences"]}
    for kind in [*document["exact_match_kinds"], ALL]:
        best = _best_source(list(models.values()), kind)
        others = [models[CONTROL], *([best] if best else [])]
        yield f"{'all kinds' if kind == ALL else kind}: " + "; ".join(
            f"{model['label']} {_measured(model, kind)}" for model in others
        )
        for model in (models[name] for name in fused):
            against = [
                f"{_difference(entry, kind)} against {other['label']}"
                for other in others
                if (entry := differences.get((model["id"], other["id"]))) is not None
            ]
            yield f"  {model['label']} {_measured(model, kind)}; " + "; ".join(against)


def _best_source(models: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """The source of least loss on a kind."""
    sources = [model for model in models if model["id"].startswith("source.")]
    scored = [model for model in sources if _loss(model, kind) is not None]
    return min(scored, key=lambda model: _loss(model, kind) or 0.0, default=None)


def _loss(model: dict[str, Any], kind: str) -> float | None:
    value = model["loss"].get(kind, {}).get("bits_per_byte")
    return None if value is None else float(value)


def _measured(model: dict[str, Any], kind: str) -> str:
    exact = "" if kind == ALL else f"{model['accuracy'][kind]['exact']}/{model['accuracy'][kind]['asked']} exact, "
    return f"{exact}{number(_loss(model, kind))} bits per byte"


def _difference(entry: dict[str, Any], kind: str) -> str:
    loss = entry["loss"][kind]
    bits = f"{with_interval(loss['difference'], loss, signed=True)} bits"
    if kind == ALL:
        return bits
    accuracy = entry["accuracy"][kind]
    points = {key: None if accuracy[key] is None else PERCENT * accuracy[key] for key in ("difference", "low", "high")}
    return f"{with_interval(points['difference'], points, 0, True)} points, {bits}"
