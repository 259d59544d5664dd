"""Ablation: what variants share and what they do not, tables with known intervals, and a small grid end to end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ablations import ASKED, ablation_of

from fusechat.app import ablation, pipeline
from fusechat.config import CONTROL, RunConfig
from fusechat.config.ablation import load_ablation
from fusechat.errors import ConfigError
from fusechat.progress import Progress

ROOT = Path(__file__).parents[2]


def test_run_keeps_its_folder_when_only_means_change(run_file: Path, tmp_path: Path) -> None:
    judge = {"url": "http://host/v1", "model": "examiner"}
    folders = set()
    for means, cluster in (({}, 1), ({"concurrency": 2, "key_variable": "KEY"}, 3)):
        changed = {
            **ASKED, "evaluation.judge": {**judge, **means}, "cluster.num_cpus": cluster, "cluster.engines": cluster,
            "plan.gpus": cluster, "evaluation.lm_eval.unsafe_code": cluster == 3,
        }  # fmt: skip
        folders.add(tuple(ablation.list_runs(ablation_of(run_file, tmp_path, set=changed))[1]))
    assert len(folders) == 1


def test_runs_are_planned_once_each_first_seed_first(run_file: Path, tmp_path: Path) -> None:
    tables = [
        {"title": "models", "models": ["pivot", CONTROL, "target.*", "fused"]},
        {"title": "methods", "variants": {"as in the base": {}}, "grid": {"merge.method": ["linear", "ties"]}},
    ]
    made = ablation_of(run_file, tmp_path, tables=tables, seeds=[0, 1], set={"evaluation.questions.samples": []})
    tables_of_rows, configs = ablation.list_runs(made)
    assert len(configs) == 6 and [config.run.seed for config in configs.values()] == [0, 0, 0, 1, 1, 1]
    assert [row.name for row in tables_of_rows["models"]] == ["pivot", "sft", "target.mixtral", "fused"]
    assert [row.name for row in tables_of_rows["methods"]] == ["as in the base", "method linear", "method ties"]
    assert tables_of_rows["models"][0].runs == tables_of_rows["methods"][0].runs
    assert all(config.evaluation.questions.samples == [] for config in configs.values())
    targets = {config.target_path("mixtral") for config in configs.values()}
    assert len(targets) == 2, "merges of the same targets train nothing"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"title": "t", "grid": {"merge.methd": ["ties"]}}, "did you mean 'method'"),
        ({"title": "t", "variants": {"one": {"sources": ["nobody"]}}}, r"\['nobody'\], expected names out of"),
        (
            {"title": "t", "grid": {"evaluation.samples": [[]]}},
            r"moved to evaluation\.questions\.samples, write it there",
        ),
        ({"title": "t", "variants": {"one": {"extraction.replicas": 2}}}, r"moved to cluster\.engines, write it there"),
        ({"title": "t", "grid": {"extraction.k": [0]}}, "greater than or equal to 1"),
        (
            {"title": "t", "variants": {"one": {}, "two": {"merge.method": "sce"}}},
            "'t': rows 'one' and 'two' are the same run",
        ),
        ({"title": "t", "grid": {"merge.method": ["sce", "sec"]}}, "found 'sec'; did you mean 'sce'"),
        ({"title": "t", "models": ["pivot", "targets.*"]}, r"'t': found 'targets\.\*', the run measures pivot, sft"),
        (
            {"title": "t", "variants": {"one": {"evaluation.models": ["pivot"]}}},
            "found 'fused', the run measures pivot",
        ),
    ],
)
def test_variant_that_is_no_run_is_refused_before_anything_runs(
    run_file: Path, tmp_path: Path, table: dict, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        ablation.run(ablation_of(run_file, tmp_path, tables=[table]), progress=Progress(quiet=True))
    assert not (tmp_path / "ablation").exists()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tables": [{"title": "t", "variants": {"k 5": {}}, "grid": {"extraction.k": [5, 6]}}]}, "two rows are called 'k 5'"),
        ({"tables": [{"title": "t", "grid": {"extraction.k": [5, 5]}}]}, "two rows are called 'k 5'"),
        ({"tables": [{"title": "t", "grid": {"extraction.k": []}, "variants": {"a": {}}}]}, "extraction.k has no value"),
        ({"tables": [{"title": "t", "models": ["fused"]}, {"title": "t", "models": ["sft"]}]}, "two are called 't'"),
        ({"seeds": [0, 1, 0]}, r"found \[0, 1, 0\], expected each once"),
    ],
)  # fmt: skip
def test_table_that_would_lose_a_row_is_refused(run_file: Path, tmp_path: Path, fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ablation_of(run_file, tmp_path, **fields)


def test_value_of_a_variant_reaches_the_run_as_it_stands(run_file: Path, tmp_path: Path) -> None:
    shared = {"learning_rate": 5e-6}
    made = ablation_of(run_file, tmp_path, set={"training.trl": shared})
    trl = made.run_config({"training.trl.max_steps": 3, "training.trl.weight_decay": 1e-5}).training.trl
    assert trl == {"learning_rate": 5e-6, "max_steps": 3, "weight_decay": 1e-5}
    assert made.set == {"training.trl": {"learning_rate": 5e-6}}


def test_ablation_file_with_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump({"base": "b", "tables": [{"title": "t", "grids": {}}]}))
    with pytest.raises(ConfigError, match="did you mean 'grid'"):
        load_ablation(path)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*ablation.yaml")), ids=lambda path: path.name)
def test_shipped_ablation_is_one_whose_every_run_is_valid(path: Path) -> None:
    tables, configs = ablation.list_runs(load_ablation(path))
    assert len(tables) >= 3 and configs and all(isinstance(config, RunConfig) for config in configs.values())


def test_the_shipped_table_of_fusion_rules_shows_the_papers_way_beside_the_others() -> None:
    shipped = load_ablation(ROOT / "examples" / "ablation.yaml")
    table = next(table for table in shipped.tables if table.title == "Fusion rules")
    training = [shipped.run_config(overrides).training for overrides in table.rows().values()]
    assert len({shipped.run_config(overrides).model_dump_json() for overrides in table.rows().values()}) == len(
        training
    )
    published = {"fusion": "pairwise", "row_choice": "min_ce", "sft_weight": 0.9, "tail": "renormalise"}
    assert any({name: getattr(section, name) for name in published} == published for section in training)
    assert {section.fusion for section in training if section.row_choice == "trusted"} == {"pairwise", "joint"}
    merged = {shipped.run_config(overrides).merge.method for overrides in table.rows().values()}
    assert merged >= {"sce", "varm", "linear"}


@pytest.fixture
def engines() -> Iterator[list[str]]:
    """Plain engines in this process, and what was opened."""
    from plain_engine import plain_engines

    with plain_engines() as opened:
        yield opened


def test_the_shipped_table_of_fusion_rules_runs_on_tiny_models(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: list[str]
) -> None:
    from evaluation_runs import finish_rows_of

    def extract(config: RunConfig, names: list[str], *, progress: Progress) -> None:
        for name in names:
            if not (Path(config.logprobs_url(name)) / "artifact.json").exists():
                finish_rows_of(config, name)

    monkeypatch.setattr("cluster.extraction.run", extract)
    shipped = load_ablation(ROOT / "examples" / "ablation.yaml")
    table = next(table for table in shipped.tables if table.title == "Fusion rules")
    settings = {name: value for name, value in shipped.set.items() if not name.startswith("training.trl")}
    made = ablation_of(
        run_file, tmp_path,
        set={**settings, "training.trl.max_steps": 2, "evaluation.held_out.divergence_dialogues": 0}, tables=[table.model_dump()],
    )  # fmt: skip
    rows = ablation.run(made, progress=Progress(quiet=True))[0]["rows"]
    assert [row["name"] for row in rows] == list(table.variants)
    assert all(row["figures"]["bits per byte, all"]["mean"] > 0 for row in rows)
    assert engines and all(line.startswith("score ") for line in engines), "nothing is asked"


def test_small_grid_shares_its_artifacts_resumes_and_ends_in_tables(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: list[str]
) -> None:
    from evaluation_runs import finish_rows_of

    extracted: list[str] = []

    def extract(config: RunConfig, names: list[str], *, progress: Progress) -> None:
        """Random rows in place of engines, as the extraction leaves them."""
        for name in names:
            if not (Path(config.logprobs_url(name)) / "artifact.json").exists():
                extracted.append(name)
                finish_rows_of(config, name)

    monkeypatch.setattr("cluster.extraction.run", extract)
    made = ablation_of(
        run_file, tmp_path,
        set={
            "training.trl.max_steps": 2, "evaluation.sources": False, "evaluation.questions.samples": [],
            "evaluation.held_out.divergence_dialogues": 3,
        },
        tables=[
            {"title": "pairwise and fused", "models": ["pivot", "sft", "target.*", "fused"]},
            {"title": "rules and methods", "grid": {
                "alignment.vocabulary_rule": ["frequency", "exact"], "merge.method": ["sce", "linear"]}},
        ],
    )  # fmt: skip
    done: list[str] = []
    plain = pipeline.run

    def stops_in_the_third(config: RunConfig, **options: Any) -> dict[str, float]:
        if len(done) == 2:
            raise KeyboardInterrupt
        seconds = plain(config, **options)
        done.append(config.run.output.name)
        return seconds

    monkeypatch.setattr(pipeline, "run", stops_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        ablation.run(made, progress=Progress(quiet=True))
    assert json.loads((made.output / "ablation.json").read_text())["finished_runs"] == 2
    monkeypatch.setattr(pipeline, "run", plain)
    tables = ablation.run(made, progress=Progress(quiet=True))
    assert extracted == ["llama", "mixtral"]
    assert len({line for line in engines if line.startswith("score ")}) == 1 + 1 + 2 + 4, "each model is scored once"
    counts = {kind: len(list((made.output / "shared").glob(f"{kind}*"))) for kind in ("targets/", "aligned/", "fused")}
    assert counts == {"targets/": 3, "aligned/": 2, "fused": 4}
    assert all(row["seeds"] == 1 for table in tables for row in table["rows"])
    names = [row["name"] for row in tables[1]["rows"]]
    assert names[1] == "vocabulary_rule frequency, method linear" and len(set(names)) == 4
    text = (made.output / "ablation.md").read_text()
    assert "4 of 4 runs finished" in text or "5 of 5 runs finished" in text
