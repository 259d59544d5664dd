"""Charts as plotly figures: numbers in; a figure's data and layout, and a sentence that says what it shows, out.

Plain values, not plotly's objects, so that a page can be written every minute of a run without loading the library; the
page draws them with plotly.js, and a test holds them against plotly's schema. Backgrounds are transparent, texts and
grids take the page's colours. Knows nothing about models or runs.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..wording import with_interval

ROLE_COLOURS = {
    "pivot": "#7c8594", "sft": "#d08722", "target": "#16a394", "fused": "#3b7cf0", "round": "#1f9fc0", "source": "#a58be0",
    "lower": "#2fa35b", "higher": "#e0605f", "undecided": "#7c8594", "too few": "#7c8594",
}  # fmt: skip
SERIES_COLOURS = ("#3b7cf0", "#d08722", "#16a394", "#c05fd0", "#e0605f", "#7f9f2f")
ROW_HEIGHT = 30
LABEL_CHARACTERS = 26
LOG_RATIO = 30
"""Largest ratio of two values that one linear axis still shows."""
SHADES = [[0, "rgba(59,124,240,0.06)"], [1, "rgba(59,124,240,1)"]]

Figure = dict[str, Any]


@dataclass(frozen=True)
class IntervalRow:
    """A figure with its interval; `colour` a key of ROLE_COLOURS."""

    label: str
    value: float
    low: float | None
    high: float | None
    colour: str


def interval_chart(rows: Sequence[IntervalRow], *, title: str, digits: int = 3, zero: bool = False) -> Figure | None:
    """Dots with whiskers, one row each, on a common axis; None for no rows.

    Rows of colour `source` do not stretch the axis: a source may be far worse at a template and still be worth fusing.
    One that lies outside stands at the edge, with its value.

    Args:
        zero: draw a line at 0 and show signs.
    """
    if not rows:
        return None
    low, high = _range([row for row in rows if row.colour != "source"] or rows, zero)
    labels = [_label(row.label) for row in rows]
    data, notes = [], []
    for colour in dict.fromkeys(row.colour for row in rows):
        shown = [(row, label) for row, label in zip(rows, labels, strict=True) if row.colour == colour]
        inside = [(row, label) for row, label in shown if low <= row.value <= high]
        notes += [
            _edge_note(row, label, row.value > high, digits) for row, label in shown if (row, label) not in inside
        ]
        if inside:
            data.append(_dots(inside, colour, digits, zero))
    axis = {
        "range": [low, high],
        "zeroline": zero,
        "tickformat": f"+.{digits}~f" if zero else "",
        "nticks": 5,
        "tickangle": 0,
    }
    layout = _layout(height=ROW_HEIGHT * len(rows) + 60, xaxis=axis, annotations=notes)
    layout["yaxis"] = {"categoryorder": "array", "categoryarray": labels[::-1], "automargin": True, "showgrid": False,
                       "range": [-0.6, len(rows) - 0.4]}  # fmt: skip
    text = "; ".join(f"{row.label} {_with_interval(row, digits, zero)}" for row in rows)
    return {"data": data, "layout": layout, "text": f"{title}: {text}"}


def line_chart(
    series: dict[str, list[tuple[float, float]]], *, title: str, unit: str, across: str = "step"
) -> Figure | None:
    """One line per name; None where there is nothing to draw.

    Args:
        series: name -> (x, value) pairs in order; names keep their colour by position.
        across: what x counts.
    """
    drawn = {
        name: [point for point in line if point[1] is not None and math.isfinite(point[1])]
        for name, line in series.items()
    }
    if not any(drawn.values()):
        return None
    data = [
        {
            "type": "scatter", "mode": "lines" if len(line) > 2 else "lines+markers", "name": _label(name),
            "x": [x for x, _ in line], "y": [y for _, y in line],
            "line": {"color": SERIES_COLOURS[number % len(SERIES_COLOURS)], "width": 2},
        }
        for number, (name, line) in enumerate(drawn.items()) if line
    ]  # fmt: skip
    axes = {
        "xaxis": {"title": {"text": across}, "zeroline": False},
        "yaxis": {"title": {"text": unit}, "zeroline": False},
    }
    layout = _layout(height=250, showlegend=len(data) > 1, **axes)
    layout["yaxis"]["automargin"] = True
    values = [value for line in drawn.values() for _, value in line]
    if min(values) > 0 and max(values) / min(values) > LOG_RATIO:
        layout["yaxis"] |= {"type": "log", "dtick": 1}
    layout["legend"] = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    ends = "; ".join(f"{name} ends at {line[-1][1]:.4g}" for name, line in drawn.items() if line)
    return {"data": data, "layout": layout, "text": f"{title}{f', {unit}' if unit else ''}: {ends}"}


def bar_chart(bars: dict[str, dict[str, float]], *, title: str, unit: str, stacked: bool = False) -> Figure | None:
    """Horizontal bars.

    Args:
        bars: group (its colour and name in the legend) -> row's name -> value.
    """
    names = list(dict.fromkeys(name for values in bars.values() for name in values))
    if not names:
        return None
    data = [
        {
            "type": "bar", "orientation": "h", "name": _label(group), "x": [values.get(name, 0) for name in names],
            "y": [_label(name) for name in names],
            "marker": {"color": SERIES_COLOURS[number % len(SERIES_COLOURS)]},
        }
        for number, (group, values) in enumerate(bars.items())
    ]  # fmt: skip
    per_row = 1 if stacked else len(bars)
    layout = _layout(
        height=(14 + 14 * per_row) * len(names) + 90, showlegend=len(bars) > 1, xaxis={"title": {"text": unit}},
        barmode="stack" if stacked else "group",
    )  # fmt: skip
    layout["yaxis"] = {"autorange": "reversed", "automargin": True, "showgrid": False, "ticksuffix": " "}
    layout["legend"] = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    text = "; ".join(f"{name} {', '.join(_named(bars, name))}" for name in names)
    return {"data": data, "layout": layout, "text": f"{title}, {unit}: {text}"}


def heat_map(
    columns: Sequence[str], rows: Sequence[str], values: Sequence[Sequence[float | None]], *, title: str, low: float,
    high: float,
) -> Figure | None:  # fmt: skip
    """Darker where the value is larger.

    Args:
        values: [rows][columns]; None where there is none.
        low, high: values of the lightest and the darkest cell.
    """
    if not rows or not columns:
        return None
    data = [
        {
            "type": "heatmap", "x": [_label(name) for name in columns], "y": [_label(name) for name in rows],
            "z": [list(line) for line in values], "zmin": low, "zmax": high if high > low else low + 1e-9,
            "colorscale": SHADES, "xgap": 1, "ygap": 1, "colorbar": {"thickness": 10, "outlinewidth": 0},
            "hovertemplate": "%{y}, %{x}: %{z:.4f}<extra></extra>",
        }
    ]  # fmt: skip
    layout = _layout(height=20 * len(rows) + 90, xaxis={"type": "category", "showgrid": False, "nticks": 12})
    layout["yaxis"] = {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False}
    return {"data": data, "layout": layout, "text": f"{title}: from {low:.4f} to {high:.4f}"}


def _dots(shown: list[tuple[IntervalRow, str]], colour: str, digits: int, signed: bool) -> dict[str, Any]:
    rows = [row for row, _ in shown]
    return {
        "type": "scatter", "mode": "markers", "x": [row.value for row in rows], "y": [label for _, label in shown],
        "marker": {"color": ROLE_COLOURS[colour], "size": 10},
        "text": [html.escape(f"{row.label}: {_with_interval(row, digits, signed)}") for row in rows],
        "hovertemplate": "%{text}<extra></extra>",
        "error_x": {
            "type": "data", "symmetric": False, "color": ROLE_COLOURS[colour], "thickness": 2.5, "width": 0,
            "array": [0 if row.high is None else row.high - row.value for row in rows],
            "arrayminus": [0 if row.low is None else row.value - row.low for row in rows],
        },
    }  # fmt: skip


def _edge_note(row: IntervalRow, label: str, to_right: bool, digits: int) -> dict[str, Any]:
    """The value of a row that lies outside the axis, at the edge where it would be."""
    text = f"{row.value:.{digits}f} \u2192" if to_right else f"\u2190 {row.value:.{digits}f}"
    return {
        "x": 1 if to_right else 0, "xref": "paper", "xanchor": "right" if to_right else "left", "y": label, "yref": "y",
        "showarrow": False, "text": text, "font": {"color": ROLE_COLOURS[row.colour]},
    }  # fmt: skip


def _layout(*, height: int, xaxis: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "height": height, "margin": {"l": 8, "r": 12, "t": 8, "b": 40}, "showlegend": False, "xaxis": {**xaxis, "automargin": True},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12}, "dragmode": False, "hovermode": "closest", **more,
    }  # fmt: skip


def _range(rows: Sequence[IntervalRow], zero: bool) -> tuple[float, float]:
    edges = [edge for row in rows for edge in (row.value, row.low, row.high) if edge is not None] + [0.0] * zero
    low, high = min(edges), max(edges)
    pad = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    return low - pad, high + pad


def _with_interval(row: IntervalRow, digits: int, signed: bool) -> str:
    return with_interval(row.value, {"low": row.low, "high": row.high}, digits, signed)


def _named(bars: dict[str, dict[str, float]], name: str) -> list[str]:
    return [f"{group} {values[name]:.4g}" for group, values in bars.items() if name in values]


def _label(text: str) -> str:
    """At most LABEL_CHARACTERS, and no markup: plotly reads some tags in its texts."""
    short = text if len(text) <= LABEL_CHARACTERS else text[: LABEL_CHARACTERS - 3] + "..."
    return html.escape(short, quote=False)
