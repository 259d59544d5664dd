"""Charts and page: what plotly draws, escaped, true to their numbers, and there while the run still goes on."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import plotly.graph_objects
import pytest
from report_documents import EVIL, merge_report, minimal_document

from evaluation import provenance
from evaluation.inputs import ReportInputs
from evaluation.report import live, page, page_charts
from evaluation.report.charts import IntervalRow, bar_chart, heat_map, interval_chart, line_chart
from fusechat.config import RunConfig, load_config


def drawn(figure: dict[str, Any] | None) -> plotly.graph_objects.Figure:
    """The figure as plotly reads it; raises if it is none of its own."""
    assert figure is not None
    return plotly.graph_objects.Figure({"data": figure["data"], "layout": figure["layout"]})


def test_interval_chart_has_a_dot_and_whisker_per_row_in_order_and_says_so_in_words() -> None:
    rows = [
        IntervalRow("a", 1.0, 0.5, 2.0, "fused"),
        IntervalRow(EVIL, 1.5, None, None, "sft"),
        IntervalRow("c", 0.7, 0.6, 0.8, "target"),
    ]
    figure = drawn(interval_chart(rows, title="t"))
    found = {trace.y[0]: (trace.x[0], trace.error_x.arrayminus[0], trace.error_x.array[0]) for trace in figure.data}
    assert found["a"] == (1.0, 0.5, 1.0) and found["c"] == (0.7, pytest.approx(0.1), pytest.approx(0.1))
    assert list(figure.layout.yaxis.categoryarray)[::-1][0] == "a"
    assert all("<script" not in str(trace.y) + str(trace.text) for trace in figure.data)
    chart = interval_chart(rows, title="t")
    assert chart is not None and "a 1.000 [0.500, 2.000]" in chart["text"]


def test_interval_chart_does_not_let_a_far_source_squeeze_the_rest() -> None:
    rows = [IntervalRow("a", 1.0, 0.9, 1.1, "fused"), IntervalRow("far", 50.0, 45.0, 55.0, "source")]
    figure = drawn(interval_chart(rows, title="t"))
    assert figure.layout.xaxis.range[1] < 2 and len(figure.data) == 1
    assert [note.text for note in figure.layout.annotations] == ["50.000 \u2192"]


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 4.2])
def test_interval_chart_of_one_value_is_drawn(value: float) -> None:
    figure = drawn(interval_chart([IntervalRow("a", value, None, None, "fused")], title="t", zero=True))
    low, high = figure.layout.xaxis.range
    assert low <= min(value, 0) and high >= max(value, 0) and low < high


def test_charts_of_nothing_are_nothing() -> None:
    assert interval_chart([], title="t") is None and bar_chart({}, title="t", unit="s") is None
    assert line_chart({}, title="t", unit="") is None and heat_map([], [], [], title="t", low=0, high=1) is None
    assert line_chart({"a": [(1, float("nan"))]}, title="t", unit="") is None


def test_line_chart_leaves_out_what_is_no_number() -> None:
    lines: Any = {"a": [(1, 4.0), (2, 3.0), (3, 1.0)], EVIL: [(1, 2.0), (2, float("nan")), (3, None), (4, 2.5)]}
    first, second = drawn(line_chart(lines, title="t", unit="nats")).data
    assert list(first.y) == [4.0, 3.0, 1.0] and list(second.x) == [1, 4] and "<" not in second.name


def test_line_chart_of_very_different_values_has_a_logarithmic_axis() -> None:
    far = drawn(line_chart({"a": [(1, 200.0), (2, 210.0)], "b": [(1, 20_000.0)]}, title="t", unit="rows per second"))
    near = drawn(line_chart({"a": [(1, 200.0), (2, 210.0)]}, title="t", unit="rows per second"))
    assert far.layout.yaxis.type == "log" and near.layout.yaxis.type is None


def test_heat_map_and_bars_hold_their_values() -> None:
    found = drawn(heat_map(["0", "1"], ["q", "k"], [[0.2, 0.8], [0.5, None]], title="t", low=0.2, high=0.8)).data[0]
    assert found.z[0][1] == 0.8 and found.zmin == 0.2 and found.zmax == 0.8
    bars = drawn(bar_chart({"exact": {"x": 90.0}, "mapped": {"x": 10.0}}, title="t", unit="%", stacked=True))
    assert [bar.x[0] for bar in bars.data] == [90.0, 10.0] and bars.layout.barmode == "stack"


def test_coefficients_have_a_heat_map_of_matrices_by_targets_and_one_per_target() -> None:
    found = page_charts.coefficients(merge_report())
    assert [title.split(" by")[0].split(",")[0] for title, _ in found] == [
        "Mean coefficient over the layers", "Coefficients of x", "Coefficients of y",
    ]  # fmt: skip
    whole, first = (drawn(figure).data[0] for _, figure in found[:2])
    assert list(whole.x) == ["x", "y"] and list(whole.z[0]) == [0.25, 0.75]
    assert list(first.x) == ["0", "1"] and list(first.y) == ["mlp.up_proj"], "the embedding is in no layer"
    without = merge_report()
    for record in without["tensors"].values():
        del record["coefficients"]
    assert page_charts.coefficients(without) == page_charts.coefficients(None) == []


def test_page_shows_hostile_texts_as_text_and_may_ask_for_nothing(run_file: Path, tmp_path: Path) -> None:
    page.write(minimal_document(load_config(run_file)), tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    own = text.replace(str(page.plotly_script()), "")
    assert own.count("<script") == 3 and "<script>alert" not in own and "&lt;script&gt;" in own
    assert not re.search(r"""(src|href)=["'](?!#|data:,)""", own) and "@import" not in own and "url(" not in own
    assert "default-src 'none'" in own and 'http-equiv="refresh"' not in own
    assert "1,234" in own and "1:15" in own and "2.0 KiB" in own and "Share of rows" not in own
    figures = json.loads(own.split('id="figures">')[1].split("</script>")[0])
    assert own.count('class="chart"') == len(figures) - 1 >= 8, "the only kind's chart would repeat that of all"


def test_page_links_lead_to_its_sections(run_file: Path) -> None:
    text = page.render(minimal_document(load_config(run_file)))
    links = set(re.findall(r'<a href="#(\w+)"', text))
    assert links == set(re.findall(r'<section id="(\w+)"', text)) and len(links) == 16


def test_choice_is_drawn_as_shares_of_each_kind(run_file: Path) -> None:
    document = minimal_document(load_config(run_file))
    document["choice"][0]["source"] = "teacher"
    shares = {
        title: {bar["name"]: bar["x"] for bar in chart["data"]}
        for title, chart in page_charts.choice_charts(document)
        if chart
    }
    assert list(shares.values()) == [{"teacher": [75.0], "nobody (plain SFT)": [25.0]}] * 2
    assert page_charts.choice_charts({**document, "choice": []}) == []


def test_coefficients_that_are_no_numbers_do_not_lose_the_report(run_file: Path) -> None:
    document = minimal_document(load_config(run_file))
    document["merge"]["tensors"]["model.layers.0.mlp.up_proj.weight"]["coefficients"][0] = float("nan")
    figures = page.render(document).split('id="figures">')[1].split("</script>")[0]
    assert "NaN" not in figures and json.loads(figures)


def test_answers_are_marked_where_they_differ_and_stay_text() -> None:
    assert page.marked("the sky is blue", "the sea is blue") == "the <mark>sky</mark> is blue"
    assert page.marked("same <b>", "same <b>") == "same &lt;b&gt;"
    assert page.marked("a <i> b", "a b") == "a <mark>&lt;i&gt; </mark>b"
    assert "no room" in page.marked(None, "x") and "empty" in page.marked("", "x")


def test_page_of_a_run_that_goes_on_shows_what_is_there_and_renews_itself(run_file: Path) -> None:
    config = load_config(run_file)
    (config.run.output / "logs").mkdir(parents=True)
    lines = [
        {"model": "llama", "time": 3.0, "event": "done", "shard": 0, "rows": 30, "tokens": 60, "seconds": 1.0},
        {"model": "llama", "time": 4.0, "event": "retried", "shard": 1, "error": "the engine died"},
        {"model": "llama", "time": 5.0, "event": "retried", "shard": 1, "error": "the engine died"},
    ]
    (config.run.output / "logs" / "extract.llama.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    live.write(ReportInputs.of(config), "align mixtral")
    text = (config.report_path / "index.html").read_text(encoding="utf-8")
    assert "The run goes on: align mixtral." in text and 'http-equiv="refresh"' in text
    assert set(re.findall(r'<section id="(\w+)"', text)) == {"extraction", "again"}
    found = json.loads((config.report_path / "report.json").read_text(encoding="utf-8"))
    assert found["state"] == "running" and found["extraction"]["llama"]["retries"] == 2


def test_watched_step_renews_the_page_leaves_a_finished_report_alone_and_survives_a_page_that_fails(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, written, said = load_config(run_file), threading.Event(), []
    plain = live.write

    def write(config: RunConfig, now: str) -> None:
        plain(config, now)
        written.set()

    monkeypatch.setattr(live, "write", write)
    with live.watched(ReportInputs.of(config), "train", say=said.append, seconds=0.01):
        assert written.wait(30)
    assert (config.report_path / "index.html").exists() and not said
    (config.report_path / "artifact.json").write_text("{}")
    (config.report_path / "report.json").write_text("finished")
    live.write(ReportInputs.of(config), "train")
    assert (config.report_path / "report.json").read_text() == "finished"
    monkeypatch.setattr(live, "write", lambda config, now: 1 / 0)
    assert not live.try_write(ReportInputs.of(config), "train", say=said.append)
    assert said == ["report: the page cannot be written: ZeroDivisionError: division by zero"]


def test_extraction_rate_leaves_out_the_engines_start_and_follows_a_resumed_run() -> None:
    first = [{"time": 12.0 + n, "rows": 100, "seconds": 2.0} for n in range(3)]
    again = [{"time": 9.0 + 2 * n, "rows": 100, "seconds": 2.0} for n in range(2)]
    points = provenance.extraction_rate(first + again)
    assert points == [[12.0, 50.0], [13.0, 100.0], [14.0, 100.0], [23.0, 50.0], [25.0, 50.0]]
    many = provenance.extraction_rate([{"time": 1.0 + n, "rows": 7, "seconds": 1.0} for n in range(1000)])
    assert len(many) <= provenance.RATE_POINTS and {rate for _, rate in many} == {7.0}


def test_metrics_that_are_no_numbers_are_null_and_named(run_file: Path) -> None:
    config = load_config(run_file)
    config.target_path("sft").mkdir(parents=True)
    lines = ['{"step": 1, "sft_loss": 1.0}', '{"step": 2, "sft_loss": NaN, "grad_norm": Infinity}']
    (config.target_path("sft") / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    curves = provenance.training_curves(ReportInputs.of(config))
    assert curves["sft"][1] == {"step": 2, "sft_loss": None, "grad_norm": None}
    assert provenance.bad_metrics(curves) == [
        "Training of sft logged values of grad_norm, sft_loss that are no numbers, first at step 2."
    ]


def test_training_curves_keep_the_last_step_and_at_most_their_number(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "CURVE_POINTS", 10)
    config = load_config(run_file)
    config.target_path("sft").mkdir(parents=True)
    lines = [json.dumps({"step": step, "sft_loss": 1 / step, "noise": 3}) for step in range(1, 36)]
    (config.target_path("sft") / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 36, "sf', encoding="utf-8")
    curve = provenance.training_curves(ReportInputs.of(config))["sft"]
    assert len(curve) <= 10 and curve[-1] == {"step": 35, "sft_loss": 1 / 35}
    assert list(provenance.training_curves(ReportInputs.of(config))) == ["sft"]
