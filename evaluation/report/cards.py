"""Model cards that carry their evaluation: a finished report in; each made model's README.md with a table and a model-index out.

The rest of a card is left as the stage that made the model wrote it. Cards of models that several runs share are left
alone: which run's figures would they carry?
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusechat.markdown import markdown_table
from fusechat.storage.files import write_bytes

from .. import ALL
from ..wording import SUPPORTS, with_interval

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BEGIN, END = "<!-- evaluation: begin -->", "<!-- evaluation: end -->"
MADE_ROLES = ("target", "sft", "fused", "round")


def write_cards(document: dict[str, Any]) -> list[Path]:
    """Put a report's figures into the cards of targets, control and fused model.

    Returns:
        the cards that changed; a model folder without one gets none.
    """
    written: list[Path] = []
    for model in document["models"]:
        path = Path(model["folder"]) / "README.md"
        if model["role"] in MADE_ROLES and path.is_file():
            before = path.read_text(encoding="utf-8")
            text = with_evaluation(before, document, model)
            if text != before:
                write_bytes(str(path), text.encode())
                written.append(path)
    return written


def with_evaluation(text: str, document: dict[str, Any], model: dict[str, Any]) -> str:
    """A card's text with the evaluation of its model; an earlier evaluation is replaced."""
    from huggingface_hub import ModelCard, ModelCardData

    card = ModelCard(text, ignore_metadata_errors=True)
    assert isinstance(card.data, ModelCardData)  # a ModelCard's own kind; its base says less
    card.data.model_name = Path(model["folder"]).name
    card.data.eval_results = list(_results(document, model)) or None
    body = card.text
    if BEGIN in body and END in body:
        body = body[: body.index(BEGIN)].rstrip() + "\n" + body[body.index(END) + len(END) :]
    card.text = f"\n{body.strip()}\n\n{BEGIN}\n{_table(document, model)}\n{END}\n"
    return str(card)


def _results(document: dict[str, Any], model: dict[str, Any]) -> Iterator["EvalResult"]:
    """Entries of the hub's model-index."""
    held_out = ("held-out-dialogues", f"{document['held_out']['dialogues']} held-out dialogues")
    for kind, entry in model["loss"].items():
        yield from _result(*held_out, "bits_per_byte", f"bits per byte, {kind}", entry["bits_per_byte"])
    for kind, entry in model["accuracy"].items():
        if kind != ALL:
            yield from _result(*held_out, "exact_match", f"exact answers, {kind}", entry["accuracy"])
    for figure, entry in ((document["harness"] or {"models": {}})["models"].get(model["id"]) or {}).items():
        task, metric = figure.split(", ", 1)
        yield from _result(task, task, metric, metric, entry["value"])


def _result(kind: str, dataset: str, metric: str, name: str, value: float | None) -> Iterator["EvalResult"]:
    from huggingface_hub import EvalResult

    if value is not None:
        yield EvalResult("text-generation", kind, dataset, metric, round(value, 6), metric_name=name)


def _table(document: dict[str, Any], model: dict[str, Any]) -> str:
    """The model beside the pivot and the control, and what its difference to them supports."""
    kinds = [ALL, *document["held_out"]["kinds"]]
    shown = [entry for entry in document["models"] if entry["id"] in ("pivot", "sft", model["id"])]
    rows = [
        [entry["label"], *(with_interval(loss["bits_per_byte"], loss) for loss in map(entry["loss"].get, kinds))]
        for entry in shown
    ]
    lines = [
        "## Evaluation",
        "",
        f"Bits per byte on {document['held_out']['dialogues']} held-out dialogues, with 95 % intervals over dialogues; lower "
        "is better.",
        "",
        *markdown_table(["model", *kinds], rows),
    ]
    labels = {entry["id"]: entry["label"] for entry in document["models"]}
    for difference in document["differences"]:
        loss = difference["loss"][ALL]
        if (
            difference["model"] == model["id"]
            and difference["against"] in ("pivot", "sft")
            and loss["difference"] is not None
        ):
            measured = f"{with_interval(loss['difference'], loss, 4, True)} bits per byte: {SUPPORTS[loss['supports']]}"
            lines += ["", f"Against {labels[difference['against']]}: {measured}."]
    return "\n".join(lines)
