"""The charts of the page: report.json's content in, figures with their titles out. Knows no HTML."""

import re
from pathlib import Path
from typing import Any

from fusechat.config import CONTROL

from .. import ALL
from .charts import Figure, IntervalRow, bar_chart, heat_map, interval_chart, line_chart

COURSES = {
    "sft_loss": ("SFT loss", "nats per token"),
    "fusion_loss": ("Fusion loss", "nats per row"),
    "source_share": ("Share of rows the source won", "0 to 1"),
    "row_weight": ("Weight of a row", "0 to 1"),
    "grad_norm": ("Gradient norm", ""),
}
FUSION_COURSES = ("fusion_loss", "source_share", "row_weight")
"""Figures that the control has only as zeros."""
LAYER = re.compile(r"^(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.(.+?)(?:\.weight)?$")


def loss_charts(document: dict[str, Any]) -> dict[str, Figure | None]:
    """`all` and each kind -> chart of bits per byte."""
    charts = {}
    for kind in (ALL, *document["held_out"]["kinds"]) if document["held_out"] else ():
        rows = [
            IntervalRow(model["label"], entry["bits_per_byte"], entry["low"], entry["high"], model["role"])
            for model in document["models"]
            if (entry := model["loss"][kind])["bits_per_byte"] is not None
        ]
        charts[kind] = interval_chart(rows, title=f"Bits per byte, {kind}")
    return charts


def difference_charts(document: dict[str, Any]) -> list[tuple[str, Figure | None]]:
    """(title, chart) of the differences of bits per byte between models of the pivot's shape.

    Those to the untrained pivot are often a hundred times as large as the others: they have an axis of their own.
    """
    labels = {model["id"]: model["label"] for model in document["models"]}
    rows: dict[bool, list[IntervalRow]] = {False: [], True: []}
    for entry in document["differences"]:
        loss, against = entry["loss"][ALL], entry["against"]
        if loss["difference"] is not None and not against.startswith("source."):
            name = f"{_short(labels[entry['model']])} - {_short(labels[against])}"
            row = IntervalRow(name, loss["difference"], loss["low"], loss["high"], loss["supports"])
            rows[against == "pivot"].append(row)
    titles = {False: "Between trained models, bits per byte", True: "To the pivot as it was, bits per byte"}
    return [
        (titles[pivot], interval_chart(of_kind, title=titles[pivot], digits=4, zero=True))
        for pivot, of_kind in rows.items()
        if of_kind
    ]


def divergence_charts(document: dict[str, Any]) -> dict[str, Figure | None]:
    """Teacher -> chart of each model's divergence from it."""
    charts = {}
    for teacher in (document["divergence"] or {"teachers": []})["teachers"]:
        rows = [
            IntervalRow(model["label"], entry["nats_per_row"], entry["low"], entry["high"], model["role"])
            for model in document["models"]
            if (entry := model["divergence"].get(teacher)) and entry["nats_per_row"] is not None
        ]
        charts[teacher] = interval_chart(rows, title=f"Divergence from {teacher}, nats per row")
    return charts


def judge_charts(document: dict[str, Any]) -> list[tuple[str, Figure | None]]:
    """(title, chart) of scores and of win rates for each set."""
    labels = {model["id"]: (model["label"], model["role"]) for model in document["models"]}
    charts = []
    for name, modes in document["judge"]["sets"].items() if document["judge"] else ():
        for mode, key in (("single", "score"), ("pairwise", "win_rate")):
            rows = [
                IntervalRow(labels[model_id][0], entry[key], entry["low"], entry["high"], labels[model_id][1])
                for model_id, entry in modes.get(mode, {}).items()
                if entry[key] is not None
            ]
            title = f"{name}: " + ("scores, 1 to 10" if mode == "single" else "share of wins, a tie counts half")
            if rows:
                charts.append((title, interval_chart(rows, title=title, digits=2)))
    return charts


def seconds_chart(document: dict[str, Any]) -> Figure | None:
    """Working seconds of each artifact."""
    bars = {f"{item['stage']} {item['name']}".strip(): item["seconds"] for item in document["artifacts"]}
    return bar_chart({"seconds": bars}, title="Working time of each artifact", unit="seconds") if bars else None


def rate_chart(document: dict[str, Any]) -> Figure | None:
    """Rows per second over the time of extraction, one line per teacher."""
    series = {name: [(x, y) for x, y in entry["rate"]] for name, entry in document["extraction"].items()}
    return line_chart(series, title="Rate of extraction", unit="rows per second", across="seconds since the start")


def kinds_chart(document: dict[str, Any]) -> Figure | None:
    """Share of each kind of row, per source."""
    bars: dict[str, dict[str, float]] = {}
    for source, counts in document["alignment"].items():
        for kind, rows in counts["kinds"].items():
            bars.setdefault(kind.replace("_", " "), {})[source] = 100 * rows / counts["rows"]
    return bar_chart(bars, title="How the rows were obtained", unit="% of rows", stacked=True) if bars else None


def lost_chart(document: dict[str, Any]) -> Figure | None:
    """Share of the label's bits per byte that alignment loses, per source and kind of text."""
    bars = {
        source: {
            kind.replace("_", " "): 100 * entry["label_bits_per_byte_lost_share"]
            for kind, entry in {ALL: counts, **counts["by_text"]}.items()
            if entry["label_bits_per_byte_lost_share"] is not None
        }
        for source, counts in document["alignment"].items()
    }
    return bar_chart(bars, title="Bits per byte of the labels that alignment lost", unit="% of the source's")


def choice_charts(document: dict[str, Any]) -> list[tuple[str, Figure | None]]:
    """(title, chart): share of each kind's dialogues, and of its tokens, that each source teaches."""
    if not document["choice"]:
        return []
    charts = []
    for unit in ("dialogues", "tokens"):
        totals: dict[str, int] = {}
        for record in document["choice"]:
            totals[record["kind"]] = totals.get(record["kind"], 0) + record[unit]
        bars: dict[str, dict[str, float]] = {}
        for record in document["choice"]:
            teacher = record["source"] or "nobody (plain SFT)"
            bars.setdefault(teacher, {})[record["kind"] or "all"] = 100 * record[unit] / totals[record["kind"]]
        title = f"Who teaches which {unit}"
        charts.append((f"{title}, % of each kind's", bar_chart(bars, title=title, unit=f"% of {unit}", stacked=True)))
    return charts


def courses(document: dict[str, Any]) -> list[tuple[str, Figure | None]]:
    """(title, chart) of each figure that training logged."""
    charts: list[tuple[str, dict[str, Any] | None]] = []
    for key, (title, unit) in COURSES.items():
        series = {
            name: [(record["step"], record[key]) for record in records if key in record]
            for name, records in document["training"].items()
            if name != CONTROL or key not in FUSION_COURSES
        }
        chart = line_chart({name: line for name, line in series.items() if line}, title=title, unit=unit)
        if chart:
            charts.append((f"{title}{f', {unit}' if unit else ''}", chart))
    return charts


def coefficients(merge: dict[str, Any] | None) -> list[tuple[str, Figure | None]]:
    """(title, heat map): matrices by targets over all layers, then each target's layers by matrices; empty without any."""
    cells = {
        name: (match, record["coefficients"])
        for name, record in (merge or {}).get("tensors", {}).items()
        if "coefficients" in record and (match := LAYER.match(name))
    }
    if not merge or not cells:
        return []
    values = [value for _, of_tensor in cells.values() for value in of_tensor]
    low, high = min(values), max(values)
    targets = [target_name(target) for target in merge["targets"]]
    matrices = list(dict.fromkeys(match[2] for match, _ in cells.values()))
    layers = sorted({int(match[1]) for match, _ in cells.values()})
    means = []
    for matrix in matrices:
        of_matrix = [of_tensor for match, of_tensor in cells.values() if match[2] == matrix]
        means.append([sum(column) / len(of_matrix) for column in zip(*of_matrix, strict=True)])
    title = "Mean coefficient over the layers, matrices by targets"
    charts: list[tuple[str, Figure | None]] = [
        (title, heat_map(targets, matrices, means, title=title, low=low, high=high))
    ]
    for place, target in enumerate(targets):
        grid = {(match[2], int(match[1])): of_tensor[place] for match, of_tensor in cells.values()}
        lines = [[grid.get((matrix, layer)) for layer in layers] for matrix in matrices]
        title = f"Coefficients of {target} by layer"
        charts.append((title, heat_map([str(n) for n in layers], matrices, lines, title=title, low=low, high=high)))
    return charts


def target_name(target: Any) -> str:
    """A target as the merge report names it: a name, or a folder."""
    return Path(str(target)).name


def _short(label: str) -> str:
    return label.removesuffix(" (sft)").removeprefix("target ").removeprefix("pivot ")
