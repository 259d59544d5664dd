"""The report as a terminal shows it: report.json's content in, rich renderables out."""

from collections.abc import Iterator
from typing import Any

from .. import ALL
from ..wording import SUPPORTS, number, with_interval
from .gained import gained, gained_title


def summary(document: dict[str, Any]) -> Iterator[Any]:
    """What `fusechat run` prints at the end: rich renderables, one after the other."""
    from rich.text import Text

    if gained(document):
        yield gained_table(document)
    yield table(document)
    labels = {model["id"]: model["label"] for model in document["models"]}
    for line in choice_lines(document):
        yield Text(line)
    for line in _difference_lines(document, labels):
        yield Text(line)
    for line in _judge_lines(document, labels):
        yield Text(line)
    for note in document["notes"]:
        yield Text(f"Note: {note}")
    if document["samples"]:
        yield Text("\nSample answers")
    for sample in document["samples"]:
        yield Text(f"  {sample['prompt']}", style="bold")
        for model_id, answer in sample["answers"].items():
            shown = "(no room for an answer)" if answer is None else " ".join(answer.split()) or "(empty)"
            yield Text(f"    {labels[model_id]:<18} {shown}")


def gained_table(document: dict[str, Any]) -> Any:
    """What was gained, one kind of dialogue below the other."""
    from rich.table import Table

    shown = Table(title=gained_title(document), title_justify="left", box=None, pad_edge=False)
    for name in ("", "right answers, points", "bits per byte"):
        shown.add_column(name, no_wrap=True)
    for kind, rows in gained(document):
        shown.add_row("all kinds" if kind == ALL else kind, style="bold")
        for row in rows:
            shown.add_row(f"{'    ' if row.is_difference else '  '}{row.name}", row.exact, row.bits)
    return shown


def table(document: dict[str, Any]) -> Any:
    """Models by kinds of dialogue: bits per byte, then the share of exact answers."""
    from rich.table import Table

    kinds = list(document["held_out"]["kinds"])
    exact_kinds = document["exact_match_kinds"]
    title = f"Held-out loss, bits per byte, {document['held_out']['dialogues']} dialogues (lower is better)"
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    shown.add_column("model", no_wrap=True)
    for name in (ALL, *kinds, *(f"{kind} exact" for kind in exact_kinds)):
        shown.add_column(name, justify="right")
    for model in document["models"]:
        losses = [number(model["loss"][name]["bits_per_byte"]) for name in (ALL, *kinds)]
        shares = [f"{entry['exact']}/{entry['asked']}" for entry in (model["accuracy"][kind] for kind in exact_kinds)]
        shown.add_row(model["label"], *losses, *shares)
    return shown


def choice_lines(document: dict[str, Any]) -> Iterator[str]:
    """Who taught which kind of dialogue, with what trust."""
    for record in document["choice"]:
        teacher = record["source"] or "nobody (plain SFT)"
        trust = "" if record["source"] is None else f", trust {record['trust']:.2f}"
        kind = record["kind"] or "dialogues"
        yield f"{kind}: taught by {teacher}: {record['dialogues']:,} dialogues, {record['tokens']:,} tokens{trust}"


def _judge_lines(document: dict[str, Any], labels: dict[str, str]) -> Iterator[str]:
    """Scores and win rates, each with its interval over questions and the judge's own noise."""
    judged = document["judge"]
    for name, modes in judged["sets"].items() if judged else ():
        for mode, key in (("single", "score"), ("pairwise", "win_rate")):
            for model_id, entry in modes.get(mode, {}).items():
                noise = "" if entry["judge_noise"] is None else f", judge's own noise {entry['judge_noise']:.2f}"
                what = "score" if mode == "single" else f"wins against {labels[judged['baseline']]}"
                yield f"{name}, {labels[model_id]}: {what} {with_interval(entry[key], entry, 2)}{noise}"


def _difference_lines(document: dict[str, Any], labels: dict[str, str]) -> Iterator[str]:
    """The fused model's differences, with what they support."""
    for entry in document["differences"]:
        loss = entry["loss"][ALL]
        if entry["model"] != "fused" or loss["difference"] is None or entry["against"].startswith("source."):
            continue
        shown = f"{with_interval(loss['difference'], loss, 4, True)} bits per byte: {SUPPORTS[loss['supports']]}"
        yield f"fused - {labels[entry['against']]}: {shown}"
