"""The report as a page: report.json's content in, one self-contained HTML file out.

plotly.js stands in the file, and the page's own policy forbids it every request: it opens from a disk without a network.
What models and dialogues say is escaped text. Sections of what is not there yet are left out, so that a running run has
a page too.
"""

import difflib
import json
import math
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from fusechat.artifact import storage_errors
from fusechat.config import CONTROL
from fusechat.logs import format_seconds

from . import ALL
from .charts import SERIES_COLOURS, Figure, IntervalRow, bar_chart, heat_map, interval_chart, line_chart

COURSES = {
    "sft_loss": ("SFT loss", "nats per token"),
    "fusion_loss": ("Fusion loss", "nats per row"),
    "source_share": ("Share of rows the source won", "0 to 1"),
    "grad_norm": ("Gradient norm", ""),
}
FUSION_COURSES = ("fusion_loss", "source_share")
"""Figures that the control has only as zeros."""
LAYER = re.compile(r"^(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.(.+?)(?:\.weight)?$")
MAX_PLAIN_COLUMNS = 12
"""Targets whose coefficients stand side by side in one heat map of matrices; the layers are averaged there."""


def write(document: dict[str, Any], path: Path) -> None:
    """Write the page of a report."""
    text = render(document)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def render(document: dict[str, Any]) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "interval": interval, "duration": format_seconds, "size": size, "target_name": target_name,
        "marked": marked, "verdict": lambda supports: supports.replace(" ", "-"),
    }  # fmt: skip
    figures = Figures()
    charts = {
        "loss": {kind: figures.add(chart) for kind, chart in loss_charts(document).items()},
        "differences": [(title, figures.add(chart)) for title, chart in difference_charts(document)],
        "divergence": [(name, figures.add(chart)) for name, chart in divergence_charts(document).items()],
        "seconds": figures.add(seconds_chart(document)),
        "rates": figures.add(rate_chart(document)),
        "kinds": figures.add(kinds_chart(document)),
        "lost": figures.add(lost_chart(document)),
        "courses": [(title, figures.add(chart)) for title, chart in courses(document)],
        "coefficients": [(title, figures.add(chart)) for title, chart in coefficients(document["merge"])],
        "judge": [(title, figures.add(chart)) for title, chart in judge_charts(document)],
    }
    return environment.get_template("page.html.jinja").render(
        report=document,
        labels={model["id"]: model["label"] for model in document["models"]},
        charts=charts,
        figures=figures.as_json(),
        colours=SERIES_COLOURS,
        plotly=_plotly_script() if figures.found else "",
        run_file=yaml.safe_dump(document["config"], sort_keys=False, allow_unicode=True),
    )


class Figures:
    """The figures of one page, by number."""

    def __init__(self) -> None:
        self.found: list[Figure] = []

    def add(self, figure: Figure | None) -> Markup:
        """The place of a figure in the page; nothing where there is none."""
        if figure is None:
            return Markup()
        self.found.append(figure)
        height = figure["layout"]["height"]
        return Markup(
            f'<div class="chart" data-figure="{len(self.found) - 1}" role="img" aria-label="{escape(figure["text"])}" '
            f'style="min-height:{height}px"></div>'
        )

    def as_json(self) -> Markup:
        """All of them for a script element: no character in it can end the element."""
        plain = [_finite({"data": figure["data"], "layout": figure["layout"]}) for figure in self.found]
        text = json.dumps(plain, allow_nan=False)
        return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _finite(value: Any) -> Any:
    """The same values, with null for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _plotly_script() -> Markup:
    """plotly.js, as the Python package ships it."""
    text = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return Markup(text.replace("</script", "<\\/script"))


def loss_charts(document: dict[str, Any]) -> dict[str, Figure | None]:
    """`all` and each kind -> chart of bits per byte."""
    found = {}
    for kind in (ALL, *document["held_out"]["kinds"]) if document["held_out"] else ():
        rows = [
            IntervalRow(model["label"], entry["bits_per_byte"], entry["low"], entry["high"], model["role"])
            for model in document["models"]
            if (entry := model["loss"][kind])["bits_per_byte"] is not None
        ]
        found[kind] = interval_chart(rows, title=f"Bits per byte, {kind}")
    return found


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
    found = {}
    for teacher in (document["divergence"] or {"teachers": []})["teachers"]:
        rows = [
            IntervalRow(model["label"], entry["nats_per_row"], entry["low"], entry["high"], model["role"])
            for model in document["models"]
            if (entry := model["divergence"].get(teacher)) and entry["nats_per_row"] is not None
        ]
        found[teacher] = interval_chart(rows, title=f"Divergence from {teacher}, nats per row")
    return found


def judge_charts(document: dict[str, Any]) -> list[tuple[str, Figure | None]]:
    """(title, chart) of scores and of win rates for each set."""
    labels = {model["id"]: (model["label"], model["role"]) for model in document["models"]}
    found = []
    for name, modes in document["judge"]["sets"].items() if document["judge"] else ():
        for mode, key in (("single", "score"), ("pairwise", "win_rate")):
            rows = [
                IntervalRow(labels[model_id][0], entry[key], entry["low"], entry["high"], labels[model_id][1])
                for model_id, entry in modes.get(mode, {}).items()
                if entry[key] is not None
            ]
            title = f"{name}: " + ("scores, 1 to 10" if mode == "single" else "share of wins, a tie counts half")
            found.append((title, interval_chart(rows, title=title, digits=2)))
    return found


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


def courses(document: dict[str, Any]) -> list[tuple[str, Figure | None]]:
    """(title, chart) of each figure that training logged."""
    found = []
    for key, (title, unit) in COURSES.items():
        series = {
            name: [(record["step"], record[key]) for record in records if key in record]
            for name, records in document["training"].items()
            if name != CONTROL or key not in FUSION_COURSES
        }
        chart = line_chart({name: line for name, line in series.items() if line}, title=title, unit=unit)
        if chart:
            found.append((f"{title}{f', {unit}' if unit else ''}", chart))
    return found


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
    found: list[tuple[str, Figure | None]] = [
        (title, heat_map(targets[:MAX_PLAIN_COLUMNS], matrices, means, title=title, low=low, high=high))
    ]
    for place, target in enumerate(targets):
        grid = {(match[2], int(match[1])): of_tensor[place] for match, of_tensor in cells.values()}
        lines = [[grid.get((matrix, layer)) for layer in layers] for matrix in matrices]
        title = f"Coefficients of {target} by layer"
        found.append((title, heat_map([str(n) for n in layers], matrices, lines, title=title, low=low, high=high)))
    return found


def target_name(target: Any) -> str:
    """A target as the merge report names it: a name, or a folder."""
    return Path(str(target)).name


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def interval(entry: dict[str, Any], digits: int = 3, signed: bool = False) -> str:
    """`[low, high]`, or nothing where there is none."""
    if entry["low"] is None:
        return ""
    return f"[{number(entry['low'], digits, signed)}, {number(entry['high'], digits, signed)}]"


def size(num_bytes: float) -> str:
    """`1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} TiB"


def marked(text: str | None, other: str | None) -> Markup:
    """An answer as text, the words that the other answer does not have in its place marked."""
    if text is None:
        return Markup('<span class="soft">(no room for an answer)</span>')
    if not text:
        return Markup('<span class="soft">(empty)</span>')
    if other is None or other == text:
        return escape(text)
    words, others = re.split(r"(\s+)", text), re.split(r"(\s+)", other)
    parts = []
    matcher = difflib.SequenceMatcher(None, others, words, autojunk=False)
    for operation, _, _, first, last in matcher.get_opcodes():
        piece = escape("".join(words[first:last]))
        parts.append(piece if operation == "equal" or not piece.strip() else Markup("<mark>{}</mark>").format(piece))
    return Markup("").join(parts)


def _short(label: str) -> str:
    return label.removesuffix(" (sft)").removeprefix("target ").removeprefix("pivot ")
