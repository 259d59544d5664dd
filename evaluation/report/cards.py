"""Model cards that carry their evaluation: a finished report in; each made model's README.md with a table and a model-index out.

The rest of a card is left as the stage that made the model wrote it. Cards of models that several runs share are left
alone: which run's figures would they carry?
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fusechat.storage.artifact import storage_errors

from .. import ALL
from ..wording import SUPPORTS, with_interval

BEGIN, END = "<!-- evaluation: begin -->", "<!-- evaluation: end -->"
MADE_ROLES = ("target", "sft", "fused")


def write_cards(document: dict[str, Any]) -> list[Path]:
    """Put a report's figures into the cards of targets, control and fused model.

    Returns:
        the cards that were written; a model folder without one gets none.
    """
    written: list[Path] = []
    if document["config"]["run"]["places"]:
        return written
    for model in document["models"]:
        path = Path(model["folder"]) / "README.md"
        if model["role"] in MADE_ROLES and path.is_file():
            text = with_evaluation(path.read_text(encoding="utf-8"), document, model)
            with storage_errors(path):
                path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def with_evaluation(card: str, document: dict[str, Any], model: dict[str, Any]) -> str:
    """A card's text with the evaluation of its model; an earlier evaluation is replaced."""
    front, body = _split(card)
    front["model-index"] = [{"name": Path(model["folder"]).name, "results": list(_results(document, model))}]
    if BEGIN in body and END in body:
        body = body[: body.index(BEGIN)].rstrip() + "\n" + body[body.index(END) + len(END) :]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n{body.rstrip()}\n\n{BEGIN}\n{_table(document, model)}\n{END}\n"


def _split(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and the text behind it."""
    if card.startswith("---\n") and "\n---\n" in card[3:]:
        head, body = card[4:].split("\n---\n", 1)
        return yaml.safe_load(head) or {}, body
    return {}, card


def _results(document: dict[str, Any], model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Entries of the hub's model-index."""
    metrics = [
        {"type": "bits_per_byte", "name": f"bits per byte, {kind}", "value": round(entry["bits_per_byte"], 6)}
        for kind, entry in model["loss"].items()
        if entry["bits_per_byte"] is not None
    ]
    metrics += [
        {"type": "exact_match", "name": f"exact answers, {kind}", "value": round(entry["accuracy"], 6)}
        for kind, entry in model["accuracy"].items()
        if kind != ALL and entry["accuracy"] is not None
    ]
    if metrics:
        held_out = document["held_out"]
        name = f"{held_out['dialogues']} held-out dialogues"
        yield _result("held-out-dialogues", name, metrics)
    by_task: dict[str, list[dict[str, Any]]] = {}
    for figure, entry in ((document["harness"] or {"models": {}})["models"].get(model["id"]) or {}).items():
        task, metric = figure.split(", ", 1)
        if entry["value"] is not None:
            by_task.setdefault(task, []).append({"type": metric, "name": metric, "value": round(entry["value"], 6)})
    for task, found in by_task.items():
        yield _result(task, task, found)


def _result(kind: str, name: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    return {"task": {"type": "text-generation"}, "dataset": {"type": kind, "name": name}, "metrics": metrics}


def _table(document: dict[str, Any], model: dict[str, Any]) -> str:
    """The model beside the pivot and the control, and what its difference to them supports."""
    kinds = [ALL, *document["held_out"]["kinds"]]
    shown = [entry for entry in document["models"] if entry["id"] in ("pivot", "sft", model["id"])]
    lines = [
        "## Evaluation",
        "",
        f"Bits per byte on {document['held_out']['dialogues']} held-out dialogues, with 95 % intervals over dialogues; lower "
        "is better.",
        "",
        "| model | " + " | ".join(kinds) + " |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for entry in shown:
        cells = [with_interval(found["bits_per_byte"], found) for found in map(entry["loss"].get, kinds)]
        lines.append(f"| {entry['label']} | " + " | ".join(cells) + " |")
    labels = {entry["id"]: entry["label"] for entry in document["models"]}
    for difference in document["differences"]:
        loss = difference["loss"][ALL]
        if (
            difference["model"] == model["id"]
            and difference["against"] in ("pivot", "sft")
            and loss["difference"] is not None
        ):
            found = f"{with_interval(loss['difference'], loss, 4, True)} bits per byte: {SUPPORTS[loss['supports']]}"
            lines += ["", f"Against {labels[difference['against']]}: {found}."]
    return "\n".join(lines)
