"""Charts and page: well-formed, escaped, and true to their numbers."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from evaluation import page, provenance
from evaluation.charts import IntervalRow, heat_map, interval_chart, line_chart
from fusechat.config import RunConfig, load_config

EVIL = '<script>alert("x")</script>&'


def shapes(svg: str, tag: str) -> list[ElementTree.Element]:
    """Elements of a chart; raises if it is not well-formed."""
    return ElementTree.fromstring(str(svg)).findall(f".//{tag}")


def test_interval_chart_puts_values_in_order_on_one_axis() -> None:
    rows = [
        IntervalRow("a", 1.0, 0.5, 2.0, "fused"),
        IntervalRow(EVIL, 1.5, None, None, "sft"),
        IntervalRow("c", 0.7, 0.6, 0.8, "target"),
    ]
    svg = interval_chart(rows, title="t")
    dots = {dot.get("class"): float(dot.get("cx", "nan")) for dot in shapes(svg, "circle")}
    assert dots["dot target"] < dots["dot fused"] < dots["dot sft"]
    whiskers = [line for line in shapes(svg, "line") if "whisker" in line.get("class", "")]
    assert len(whiskers) == 2
    ticks = [
        (float(text.text or "nan"), float(text.get("x", "nan")))
        for text in shapes(svg, "text")
        if text.get("class") == "tick"
    ]
    (one, at_one), (other, at_other) = ticks[0], ticks[-1]
    expected = at_one + (1.5 - one) / (other - one) * (at_other - at_one)
    assert dots["dot sft"] == pytest.approx(expected, abs=0.2)
    assert "<script>" not in svg


def test_interval_chart_does_not_let_a_far_source_squeeze_the_rest() -> None:
    rows = [IntervalRow("a", 1.0, 0.9, 1.1, "fused"), IntervalRow("far", 50.0, 45.0, 55.0, "source")]
    svg = interval_chart(rows, title="t")
    assert len(shapes(svg, "circle")) == 1 and len(shapes(svg, "path")) == 1
    assert any("50.000" in (text.text or "") for text in shapes(svg, "text"))


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 4.2])
def test_interval_chart_of_one_value_is_drawn(value: float) -> None:
    assert (
        len(shapes(interval_chart([IntervalRow("a", value, None, None, "fused")], title="t", zero=True), "circle")) == 1
    )


def test_charts_of_nothing_are_nothing() -> None:
    assert (
        interval_chart([], title="t")
        == line_chart({}, title="t", unit="")
        == heat_map({}, title="t", low=0, high=1)
        == ""
    )
    assert line_chart({"a": [(1, float("nan"))]}, title="t", unit="") == ""


def test_line_chart_has_a_line_per_name_that_falls_where_values_fall() -> None:
    svg = line_chart(
        {"a": [(1, 4.0), (2, 3.0), (3, 1.0)], EVIL: [(1, 2.0), (2, float("nan")), (3, 2.5)]}, title="t", unit="nats"
    )
    first, second = shapes(svg, "polyline")
    heights = [float(point.split(",")[1]) for point in first.get("points", "").split()]
    assert heights == sorted(heights) and len(heights) == 3, "y grows downwards"
    assert len(second.get("points", "").split()) == 2, "what is no number is not drawn"


def test_heat_map_is_darkest_where_the_value_is_largest() -> None:
    svg = heat_map({(0, "q"): 0.2, (1, "q"): 0.8, (0, "k"): 0.5}, title="t", low=0.2, high=0.8)
    shares = {(cell.findtext("title") or "").split(":")[0]: cell.get("style") for cell in shapes(svg, "rect")}
    assert shares == {"q, layer 0": "--share:0.000", "q, layer 1": "--share:1.000", "k, layer 0": "--share:0.500"}


def merge_report() -> dict[str, Any]:
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    return {
        "method": "sce", "parameters": {"select_topk": 0.1}, "targets": ["x", "y"],
        "total": {"elements": 9, "update_norm": [1.0, 2.0], "update_rms": [0.1, 0.2], "coefficients": [0.25, 0.75]},
        "tensors": {name: {"update_norm": [1.0, 2.0], "coefficients": [0.25, 0.75]} for name in names},
    }  # fmt: skip


def test_coefficients_have_a_heat_map_per_target_over_layers() -> None:
    found = page.coefficients(merge_report())
    assert [title.split(":")[0] for title, _ in found] == ["Coefficients of x", "Coefficients of y"]
    assert len(shapes(found[0][1], "rect")) == 2, "the embedding is in no layer"
    without = merge_report()
    for record in without["tensors"].values():
        del record["coefficients"]
    assert page.coefficients(without) == page.coefficients(None) == []


def minimal_document(config: RunConfig) -> dict[str, Any]:
    """A report of one model, whose texts are hostile."""
    loss = {"bits_per_byte": 1.234, "low": 1.1, "high": 1.3, "dialogues": 6, "bytes": 60, "nats": 50.0}
    accuracy = {"accuracy": 0.5, "low": 0.2, "high": 0.8, "exact": 3, "asked": 6}
    model = {
        "id": "pivot", "label": EVIL, "role": "pivot", "name": "p", "folder": EVIL, "fingerprint": "ab", "parameters": 5,
        "dtype": "float32", "device": "cpu", "seconds": 1.0, "tokens": 9, "rows": 5, "loss": {"all": loss, EVIL: loss},
        "accuracy": {"all": accuracy, EVIL: accuracy}, "nats": [1.0],
    }  # fmt: skip
    return {
        "format": 1, "finished": "2026-01-01T00:00:00+00:00", "run": provenance.run_record(config),
        "held_out": {"dialogues": 6, "bytes": 60, "kinds": {EVIL: {"dialogues": 6, "bytes": 60}}, "items": []},
        "interval": {"level": 0.95, "min_dialogues": 5}, "notes": [EVIL], "exact_match_kinds": [EVIL], "models": [model],
        "differences": [],
        "answers": [
            {"dialogue": "d", "kind": EVIL, "question": EVIL, "reference": EVIL,
             "answers": {"pivot": {"text": EVIL, "exact": True}}},
        ],
        "samples": [{"prompt": EVIL, "answers": {"pivot": EVIL}}, {"prompt": "p", "answers": {"pivot": None}}],
        "artifacts": [{"stage": "merge", "name": EVIL, "url": EVIL, "bytes": 2048, "fingerprint": "cd", "seconds": 75.0,
                       "counts": {"rows": 1234, "share": 0.5, EVIL: 7, "nested": {"a": 1}, "flag": True}}],
        "training": {EVIL: [{"step": 1, "sft_loss": 2.0}, {"step": 2, "sft_loss": 1.0}]}, "merge": merge_report(),
        "config": {"evaluation": {"samples": [EVIL]}},
    }  # fmt: skip


def test_page_shows_hostile_texts_as_text_and_asks_for_nothing(run_file: Path, tmp_path: Path) -> None:
    page.write(minimal_document(load_config(run_file)), tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r"""(src|href)=["'](?!#|data:,)""", text) and "@import" not in text and "url(" not in text
    assert "1,234" in text and "1:15" in text and "2.0 KiB" in text and "Share of rows" not in text


def test_page_links_lead_to_its_sections(run_file: Path) -> None:
    text = page.render(minimal_document(load_config(run_file)))
    assert set(re.findall(r'href="#(\w+)"', text)) == set(re.findall(r'<section id="(\w+)"', text))


def test_training_curves_keep_the_last_step_and_at_most_their_number(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "CURVE_POINTS", 10)
    config = load_config(run_file)
    config.target_path("sft").mkdir(parents=True)
    lines = [json.dumps({"step": step, "sft_loss": 1 / step, "noise": 3}) for step in range(1, 36)]
    (config.target_path("sft") / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 36, "sf', encoding="utf-8")
    curve = provenance.training_curves(config)["sft"]
    assert len(curve) <= 10 and curve[-1] == {"step": 35, "sft_loss": 1 / 35}
    assert list(provenance.training_curves(config)) == ["sft"]
