"""Charts as inline SVG: numbers in, markup out that needs no script and no network.

Colours are CSS classes and variables of the page, so that charts follow its light and dark form; every chart carries a
text that says what it shows. Knows nothing about models or runs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

ROW_HEIGHT = 26
LABEL_WIDTH = 170
LABEL_CHARACTERS = 24
VALUE_WIDTH = 200
WIDTH = 720
TICKS = 5


@dataclass(frozen=True)
class IntervalRow:
    """A figure with its interval; `colour` a CSS class of the page."""

    label: str
    value: float
    low: float | None
    high: float | None
    colour: str


def interval_chart(rows: Sequence[IntervalRow], *, title: str, digits: int = 3, zero: bool = False) -> Markup:
    """Dots with whiskers, one row each, on a common axis.

    Rows of colour `source` do not stretch the axis: a source may be far worse at a template and still be worth fusing.

    Args:
        zero: draw a line at 0 and show signs.
    """
    if not rows:
        return Markup()
    low, high = _range([row for row in rows if row.colour != "source"] or rows, zero)
    left, right = LABEL_WIDTH, WIDTH - VALUE_WIDTH
    height = ROW_HEIGHT * len(rows) + 30

    def place(value: float) -> float:
        return left + (right - left) * (min(max(value, low), high) - low) / (high - low)

    parts = [_axis(low, high, place, height, zero, digits)]
    for number, row in enumerate(rows):
        middle = ROW_HEIGHT * number + ROW_HEIGHT / 2
        shown = _interval_text(row, digits, zero)
        parts.append(_label(left - 10, middle, _shortened(row.label), "end"))
        parts.append(_label(right + 10, middle, shown, "start", "number"))
        if row.low is not None and row.high is not None and row.low <= high and row.high >= low:
            parts.append(
                f'<line class="whisker {row.colour}" x1="{place(row.low):.1f}" x2="{place(row.high):.1f}" '
                f'y1="{middle:.1f}" y2="{middle:.1f}"/>'
            )
        if low <= row.value <= high:
            parts.append(f'<circle class="dot {row.colour}" cx="{place(row.value):.1f}" cy="{middle:.1f}" r="4.5"/>')
        else:
            parts.append(_arrow(right if row.value > high else left, middle, row.value > high, row.colour))
    return _svg(WIDTH, height, title + ": " + "; ".join(f"{row.label} {row.value:.{digits}f}" for row in rows), parts)


def line_chart(series: dict[str, list[tuple[float, float]]], *, title: str, unit: str) -> Markup:
    """One line per name over steps.

    Args:
        series: name -> (step, value) pairs in order of steps; names keep their colour by position.
    """
    points = [point for line in series.values() for point in line if math.isfinite(point[1])]
    if not points:
        return Markup()
    width, height, left, bottom = 350, 200, 52, 28
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high = _padded(min(y for _, y in points), max(y for _, y in points))

    def at(x: float, y: float) -> str:
        across = (x - first) / ((last - first) or 1)
        return f"{left + (width - left - 12) * across:.1f},{8 + (height - bottom - 8) * (high - y) / (high - low):.1f}"

    parts = []
    for tick in _ticks(low, high):
        y = float(at(first, tick).split(",")[1])
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 12}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_label(left - 6, y, f"{tick:.4g}", "end", "tick"))
    parts.append(_label(left, height - 10, f"step {first:.0f}", "start", "tick"))
    parts.append(_label(width - 12, height - 10, f"{last:.0f}", "end", "tick"))
    for number, (name, line) in enumerate(series.items()):
        path = " ".join(at(x, y) for x, y in line if math.isfinite(y))
        parts.append(f'<polyline class="series s{number % 6}" points="{path}"><title>{escape(name)}</title></polyline>')
    ends = "; ".join(f"{name} ends at {line[-1][1]:.4g}" for name, line in series.items() if line)
    return _svg(width, height, f"{title}, {unit}: {ends}", parts)


def heat_map(cells: dict[tuple[int, str], float], *, title: str, low: float, high: float) -> Markup:
    """Layers across, matrices down, darker where the value is larger.

    Args:
        cells: (layer, matrix) -> value.
        low, high: values of the lightest and the darkest cell.
    """
    if not cells:
        return Markup()
    matrices = list(dict.fromkeys(matrix for _, matrix in cells))
    layers = sorted({layer for layer, _ in cells})
    size = max(6, min(18, (WIDTH - LABEL_WIDTH) // len(layers)))
    parts = [_label(LABEL_WIDTH - 8, 16 * row + 8, matrix, "end", "tick") for row, matrix in enumerate(matrices)]
    for (layer, matrix), value in cells.items():
        x, y = LABEL_WIDTH + size * layers.index(layer), 16 * matrices.index(matrix)
        share = min(max((value - low) / ((high - low) or 1), 0), 1)
        parts.append(
            f'<rect class="cell" x="{x}" y="{y}" width="{size - 1}" height="15" style="--share:{share:.3f}">'
            f"<title>{escape(matrix)}, layer {layer}: {value:.4f}</title></rect>"
        )
    height = 16 * len(matrices) + 20
    parts.append(_label(LABEL_WIDTH, height - 8, f"layer {layers[0]}", "start", "tick"))
    parts.append(_label(LABEL_WIDTH + size * len(layers), height - 8, str(layers[-1]), "end", "tick"))
    return _svg(LABEL_WIDTH + size * len(layers), height, title, parts)


def _range(rows: Sequence[IntervalRow], zero: bool) -> tuple[float, float]:
    edges = [edge for row in rows for edge in (row.value, row.low, row.high) if edge is not None]
    return _padded(*(min([*edges, 0]), max([*edges, 0])) if zero else (min(edges), max(edges)))


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    """Round values within the range, about TICKS of them."""
    rough = (high - low) / TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _axis(low: float, high: float, place: Callable[[float], float], height: float, zero: bool, digits: int) -> str:
    parts = []
    for tick in _ticks(low, high):
        x = place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 26}"/>')
        parts.append(_label(x, height - 14, f"{tick:+.{digits}f}" if zero else f"{tick:.{digits}f}", "middle", "tick"))
    if zero:
        parts.append(f'<line class="zero" x1="{place(0):.1f}" x2="{place(0):.1f}" y1="0" y2="{height - 26}"/>')
    return "".join(parts)


def _interval_text(row: IntervalRow, digits: int, signed: bool) -> str:
    form = f"{'+' if signed else ''}.{digits}f"
    interval = "" if row.low is None or row.high is None else f"  [{row.low:{form}}, {row.high:{form}}]"
    return f"{row.value:{form}}{interval}"


def _shortened(text: str) -> str:
    """At most LABEL_CHARACTERS: what fits beside a chart."""
    return text if len(text) <= LABEL_CHARACTERS else text[: LABEL_CHARACTERS - 3] + "..."


def _label(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" dy="0.35em">{escape(text)}</text>'


def _arrow(x: float, y: float, to_right: bool, colour: str) -> str:
    tip, back = (x, x - 8) if to_right else (x, x + 8)
    return f'<path class="dot {colour}" d="M{tip:.1f},{y:.1f} L{back:.1f},{y - 4:.1f} L{back:.1f},{y + 4:.1f} Z"/>'


def _svg(width: float, height: float, text: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(text)}" style="max-width:{width}px">'
        + "".join(parts) + "</svg>"
    )  # fmt: skip
