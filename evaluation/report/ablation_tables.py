"""Tables of an ablation: the reports of its runs in; figures with intervals over seeds, as values, Markdown and text, out.

An interval over seeds is Student's, of the mean over the seeds; two seeds tell too little to give one. Differences are
to a table's first row, seed by seed, so that what a seed does to both rows cancels out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from fusechat.markdown import markdown_table

from .. import ALL
from ..figures import bounds, supported
from ..intervals import LEVEL
from ..wording import with_interval

MIN_SEEDS = 3

Rows = Sequence[tuple[str, str, dict[int, str]]]
"""(row's name, model id, seed -> name of its run)."""


def make_table(title: str, rows: Rows, reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One table.

    Args:
        reports: run's name -> its report.json; a run that is not finished is missing.
    Returns:
        `title` and `rows`: name, model, seeds, and `figures`: figure -> mean, low, high (null for fewer than three seeds),
        by_seed, and `difference` from the first row: mean, low, high, supports.
    """
    values = [_values(model, runs, reports) for _, model, runs in rows]
    made = []
    for (name, model, _), of_row in zip(rows, values, strict=True):
        figures = {}
        for figure, by_seed in of_row.items():
            first = values[0].get(figure, {})
            shared = sorted(by_seed.keys() & first.keys())
            differences = [by_seed[seed] - first[seed] for seed in shared]
            figures[figure] = {
                **_mean(list(by_seed.values())),
                "by_seed": {str(seed): value for seed, value in by_seed.items()},
                "difference": None if of_row is values[0] or not shared else _difference(differences),
            }
        made.append({"name": name, "model": model, "seeds": _num_seeds(of_row), "figures": figures})
    return {"title": title, "rows": made}


def _num_seeds(of_row: dict[str, dict[int, float]]) -> int:
    return max((len(by_seed) for by_seed in of_row.values()), default=0)


def _values(model_id: str, runs: dict[int, str], reports: dict[str, dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Figure -> seed -> value, of one model."""
    by_figure: dict[str, dict[int, float]] = {}
    for seed, name in runs.items():
        report = reports.get(name)
        model = next((entry for entry in report["models"] if entry["id"] == model_id), None) if report else None
        if report is None or model is None:
            continue
        figures = {f"bits per byte, {kind}": entry["bits_per_byte"] for kind, entry in model["loss"].items()}
        exact = {kind: entry for kind, entry in model["accuracy"].items() if kind != ALL}
        figures |= {f"exact, {kind}": entry["accuracy"] for kind, entry in exact.items()}
        judged = report["judge"]["sets"] if report["judge"] else {}
        figures |= {
            f"score, {name}": modes["single"][model_id]["score"]
            for name, modes in judged.items()
            if model_id in modes.get("single", {})
        }
        for figure, value in figures.items():
            if value is not None:
                by_figure.setdefault(figure, {})[seed] = value
    return by_figure


def _mean(values: list[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), **bounds(_interval(values))}


def _difference(values: list[float]) -> dict[str, Any]:
    return {**_mean(values), "supports": supported(_interval(values)) if len(values) >= MIN_SEEDS else "too few"}


def _interval(values: list[float]) -> tuple[float, float] | None:
    """Student's interval of the mean; None for fewer than MIN_SEEDS values."""
    if len(values) < MIN_SEEDS:
        return None
    middle = float(np.mean(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return middle - half, middle + half


def cells(table: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table as text."""
    figures = list(dict.fromkeys(figure for row in table["rows"] for figure in row["figures"]))
    main = next(iter(figures), None)
    heads = ["", *figures, *([f"{main}, less the first row"] if main else []), "seeds"]
    lines = []
    for row in table["rows"]:
        shown = [_shown(row["figures"].get(figure)) for figure in figures]
        difference = (row["figures"].get(main) or {}).get("difference") if main else None
        verdict = "" if difference is None else f"{_shown(difference, signed=True)} {difference['supports']}"
        lines.append([row["name"], *shown, *([verdict] if main else []), str(row["seeds"])])
    return heads, lines


def _shown(entry: dict[str, Any] | None, signed: bool = False) -> str:
    return "-" if entry is None else with_interval(entry["mean"], entry, 4, signed)


def to_markdown(document: dict[str, Any]) -> str:
    """ablation.md."""
    lines = [
        "# Ablation",
        "",
        f"Base run `{document['ablation']['base']}`, seeds {document['ablation']['seeds']}; {document['finished_runs']} of "
        f"{document['runs']} runs finished. Bits per byte on held-out dialogues: lower is better. Brackets: {LEVEL:.0%} "
        f"intervals over seeds (Student's, from {MIN_SEEDS} seeds on); differences are taken seed by seed.",
    ]
    for table in document["tables"]:
        heads, rows = cells(table)
        lines += ["", f"## {table['title']}", "", *markdown_table(heads, rows)]
    return "\n".join(lines) + "\n"
