"""The report as a page: report.json's content in, one self-contained HTML file out.

No script, no font, no request: it opens from a disk without a network. What models and dialogues say is escaped text.
"""

import re
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from fusechat.artifact import storage_errors
from fusechat.logs import format_seconds

from .charts import IntervalRow, heat_map, interval_chart, line_chart
from .figures import ALL

COURSES = {
    "sft_loss": ("SFT loss", "nats per token"),
    "fusion_loss": ("Fusion loss", "nats per row"),
    "source_share": ("Share of rows the source won", "0 to 1"),
    "grad_norm": ("Gradient norm", ""),
}
LAYER = re.compile(r"^(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.(.+?)(?:\.weight)?$")


def write(document: dict[str, Any], path: Path) -> None:
    """Write the page of a report."""
    with storage_errors(path):
        path.write_text(render(document), encoding="utf-8")


def render(document: dict[str, Any]) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "interval": interval, "duration": format_seconds, "size": size, "target_name": target_name,
    }  # fmt: skip
    return environment.get_template("page.html.jinja").render(
        report=document,
        labels={model["id"]: model["label"] for model in document["models"]},
        loss_charts=loss_charts(document),
        difference_chart=difference_chart(document),
        courses=courses(document),
        coefficients=coefficients(document["merge"]),
        run_file=yaml.safe_dump(document["config"], sort_keys=False, allow_unicode=True),
    )


def loss_charts(document: dict[str, Any]) -> dict[str, Markup]:
    """`all` and each kind -> chart of bits per byte."""
    found = {}
    for kind in (ALL, *document["held_out"]["kinds"]):
        rows = [
            IntervalRow(model["label"], entry["bits_per_byte"], entry["low"], entry["high"], model["role"])
            for model in document["models"]
            if (entry := model["loss"][kind])["bits_per_byte"] is not None
        ]
        found[kind] = interval_chart(rows, title=f"Bits per byte, {kind}")
    return found


def difference_chart(document: dict[str, Any]) -> Markup:
    """Differences of bits per byte between the models that share the pivot's shape."""
    labels = {model["id"]: model["label"] for model in document["models"]}
    rows = [
        IntervalRow(
            f"{_short(labels[entry['model']])} - {_short(labels[entry['against']])}", loss["difference"], loss["low"],
            loss["high"], loss["supports"].replace(" ", "-"),
        )
        for entry in document["differences"]
        if (loss := entry["loss"][ALL])["difference"] is not None and not entry["against"].startswith("source.")
    ]  # fmt: skip
    return interval_chart(rows, title="Differences of bits per byte", digits=4, zero=True)


def courses(document: dict[str, Any]) -> list[tuple[str, Markup]]:
    """(title, chart) of each figure that training logged."""
    found = []
    for key, (title, unit) in COURSES.items():
        series = {
            name: [(record["step"], record[key]) for record in records if key in record]
            for name, records in document["training"].items()
        }
        chart = line_chart({name: line for name, line in series.items() if line}, title=title, unit=unit)
        if chart:
            found.append((f"{title}{f', {unit}' if unit else ''}", chart))
    return found


def coefficients(merge: dict[str, Any] | None) -> list[tuple[str, Markup]]:
    """(target, heat map of its coefficients by layer and matrix); empty where the method has none."""
    tensors = {
        name: record["coefficients"]
        for name, record in (merge or {}).get("tensors", {}).items()
        if "coefficients" in record
    }
    if not merge or not tensors:
        return []
    low, high = min(map(min, tensors.values())), max(map(max, tensors.values()))
    found = []
    for place, target in enumerate(merge["targets"]):
        cells = {
            (int(match[1]), match[2]): values[place] for name, values in tensors.items() if (match := LAYER.match(name))
        }
        title = f"Coefficients of {target_name(target)}: {low:.3f} (lightest) to {high:.3f} (darkest)"
        found.append((title, heat_map(cells, title=title, low=low, high=high)))
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


def _short(label: str) -> str:
    return label.removesuffix(" (sft)").removeprefix("target ").removeprefix("pivot ")
