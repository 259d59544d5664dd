"""What was gained, as a table: report.json's content in; the fused model, the joint target and the rounds' students beside
control and best source.

Knows nothing about networks, terminals or HTML.
"""

from typing import Any, NamedTuple

from .. import ALL
from ..wording import number, with_interval

CONTROL, FUSED, JOINT = "sft", "fused", "target.joint"
PERCENT = 100
TITLE = "What was gained over {control}, which saw the same dialogues for as many steps [95 % intervals]"


class GainedRow(NamedTuple):
    """A model's figures, or what sets it apart from the control or a source."""

    name: str
    exact: str
    """Right answers of those asked, or the difference in points; empty for all kinds."""
    bits: str
    """Bits per byte, or the difference."""
    is_difference: bool


class GainedKind(NamedTuple):
    """The rows of one kind of dialogue, or of all."""

    kind: str
    rows: list[GainedRow]


def gained_title(document: dict[str, Any]) -> str:
    """The heading of the table; needs a control."""
    return TITLE.format(control=_models(document)[CONTROL]["label"])


def gained(document: dict[str, Any]) -> list[GainedKind]:
    """For each kind that has exact answers, and for all kinds, what was measured; nothing without a control."""
    models = _models(document)
    if CONTROL not in models or not (models.keys() & {FUSED, JOINT}):
        return []
    return [GainedKind(kind, _rows(document, kind)) for kind in (*document["exact_match_kinds"], ALL)]


def _models(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {model["id"]: model for model in document["models"]}


def _rows(document: dict[str, Any], kind: str) -> list[GainedRow]:
    """Each fused model with its differences, then what it is compared with."""
    models = _models(document)
    made = [name for name in (JOINT, FUSED) if name in models] + [name for name in models if name.startswith("round.")]
    source = _best_source(list(models.values()), kind)
    others = [models[CONTROL], *([source] if source else [])]
    differences = {(entry["model"], entry["against"]): entry for entry in document["differences"]}
    rows = []
    for name in made:
        rows.append(_measured(models[name], kind))
        compared = [(other, differences.get((name, other["id"]))) for other in others]
        rows += [_difference(other["label"], entry, kind) for other, entry in compared if entry is not None]
    return rows + [_measured(other, kind) for other in others]


def _best_source(models: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """The source of least loss on a kind."""
    sources = [model for model in models if model["id"].startswith("source.")]
    scored = [model for model in sources if _loss(model, kind) is not None]
    return min(scored, key=lambda model: _loss(model, kind) or 0.0, default=None)


def _loss(model: dict[str, Any], kind: str) -> float | None:
    value = model["loss"].get(kind, {}).get("bits_per_byte")
    return None if value is None else float(value)


def _measured(model: dict[str, Any], kind: str) -> GainedRow:
    exact = "" if kind == ALL else "{exact}/{asked}".format(**model["accuracy"][kind])
    return GainedRow(model["label"], exact, number(_loss(model, kind)), is_difference=False)


def _difference(other: str, entry: dict[str, Any], kind: str) -> GainedRow:
    loss, points = entry["loss"][kind], ""
    if kind != ALL:
        accuracy = entry["accuracy"][kind]
        scaled = {
            key: None if accuracy[key] is None else PERCENT * accuracy[key] for key in ("difference", "low", "high")
        }
        points = with_interval(scaled["difference"], scaled, 0, True)
    return GainedRow(f"minus {other}", points, with_interval(loss["difference"], loss, signed=True), is_difference=True)
