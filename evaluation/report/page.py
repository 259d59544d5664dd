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

from fusechat.progress import format_seconds
from fusechat.storage.files import write_bytes

from ..wording import interval, number
from .charts import SERIES_COLOURS, Figure
from .gained import gained, gained_title
from .page_charts import (  # fmt: skip
    choice_charts,
    coefficients,
    courses,
    difference_charts,
    divergence_charts,
    judge_charts,
    kinds_chart,
    loss_charts,
    lost_chart,
    rate_chart,
    seconds_chart,
    target_name,
)


def write(document: dict[str, Any], path: Path) -> None:
    """Write the page of a report."""
    write_bytes(str(path), render(document).encode())


@cache
def page_template() -> jinja2.Template:
    """The page, ready to render: compiling it takes longer than all else, and a running run writes it every few seconds."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "interval": interval, "duration": format_seconds, "size": size, "target_name": target_name,
        "marked": marked, "verdict": lambda supports: supports.replace(" ", "-"),
    }  # fmt: skip
    return environment.get_template("page.html.jinja")


def render(document: dict[str, Any]) -> str:
    """The page's HTML."""
    figures = Figures()
    charts = {
        "loss": {kind: figures.add(chart) for kind, chart in loss_charts(document).items()},
        "differences": [(title, figures.add(chart)) for title, chart in difference_charts(document)],
        "divergence": [(name, figures.add(chart)) for name, chart in divergence_charts(document).items()],
        "seconds": figures.add(seconds_chart(document)),
        "rates": figures.add(rate_chart(document)),
        "kinds": figures.add(kinds_chart(document)),
        "lost": figures.add(lost_chart(document)),
        "choice": [(title, figures.add(chart)) for title, chart in choice_charts(document)],
        "courses": [(title, figures.add(chart)) for title, chart in courses(document)],
        "coefficients": [(title, figures.add(chart)) for title, chart in coefficients(document["merge"])],
        "judge": [(title, figures.add(chart)) for title, chart in judge_charts(document)],
    }
    return page_template().render(
        report=document,
        labels={model["id"]: model["label"] for model in document["models"]},
        charts=charts,
        gained=gained(document),
        gained_title=gained_title,
        figures=figures.as_json(),
        colours=SERIES_COLOURS,
        plotly=plotly_script() if figures.figures else "",
        run_file=yaml.safe_dump(document["config"], sort_keys=False, allow_unicode=True),
    )


class Figures:
    """The figures of one page, by number."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def add(self, figure: Figure | None) -> Markup:
        """The place of a figure in the page; nothing where there is none."""
        if figure is None:
            return Markup()
        self.figures.append(figure)
        height = figure["layout"]["height"]
        return Markup(
            f'<div class="chart" data-figure="{len(self.figures) - 1}" role="img" aria-label="{escape(figure["text"])}" '
            f'style="min-height:{height}px"></div>'
        )

    def as_json(self) -> Markup:
        """All of them for a script element: no character in it can end the element."""
        plain = [_finite({"data": figure["data"], "layout": figure["layout"]}) for figure in self.figures]
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
def plotly_script() -> Markup:
    """plotly.js, as the Python package ships it."""
    text = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return Markup(text.replace("</script", "<\\/script"))


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
