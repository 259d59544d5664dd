"""Tables of an ablation, with intervals that are known."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from evaluation.report.ablation_tables import cells, make_table, to_markdown


def report(bits: float, exact: float = 0.5) -> dict[str, Any]:
    model = {
        "id": "fused", "loss": {"all": {"bits_per_byte": bits}}, "accuracy": {"all": {}, "skill": {"accuracy": exact}},
    }  # fmt: skip
    return {"models": [model], "judge": None}


def test_table_has_students_intervals_over_seeds_and_paired_differences() -> None:
    ones, twos = [1.0, 1.2, 1.1, 1.3], [0.9, 1.11, 1.0, 1.19]
    reports = {
        f"{name}{seed}": report(bits) for name, row in (("a", ones), ("b", twos)) for seed, bits in enumerate(row)
    }
    rows = [(name, "fused", {seed: f"{name}{seed}" for seed in range(4)}) for name in "ab"]
    table = make_table("methods", rows, reports)
    figure = table["rows"][1]["figures"]["bits per byte, all"]
    low, high = stats.t.interval(0.95, 3, np.mean(twos), stats.sem(twos))
    assert (figure["low"], figure["high"]) == (pytest.approx(low), pytest.approx(high))
    low, high = stats.t.interval(0.95, 3, -0.1, stats.sem(np.subtract(twos, ones)))
    difference = figure["difference"]
    assert (difference["low"], difference["high"]) == (pytest.approx(low), pytest.approx(high))
    assert difference["supports"] == "lower" and table["rows"][0]["figures"]["bits per byte, all"]["difference"] is None


def test_table_of_few_seeds_invents_no_interval_and_one_of_unfinished_runs_says_so() -> None:
    rows = [("a", "fused", {0: "a0", 1: "a1"}), ("b", "fused", {0: "b0", 1: "b1"})]
    table = make_table("t", rows, {"a0": report(1.0), "a1": report(1.1), "b0": report(0.9)})
    one, other = table["rows"]
    assert one["figures"]["bits per byte, all"]["low"] is None and (one["seeds"], other["seeds"]) == (2, 1)
    assert other["figures"]["bits per byte, all"]["difference"]["supports"] == "too few"
    heads, lines = cells(make_table("t", rows, {}))
    assert heads == ["", "seeds"] and [line[-1] for line in lines] == ["0", "0"]
    document = {"ablation": {"base": "b", "seeds": [0, 1]}, "runs": 4, "finished_runs": 3, "tables": [table]}
    assert "| a | 1.0500 |" in to_markdown(document) and "3 of 4 runs finished" in to_markdown(document)
