"""`fusechat ablate`: a grid of runs that share what they have in common, and the tables that come of them.

Each run is an ordinary one with its own folder and report below `runs/`; what several need stands below `shared/`.
Killed and started again, it goes on with the run it was in. The tables are written anew after every run.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..config.ablation import AblationConfig
from ..config.evaluation import EVALUATION_MEANS
from ..errors import ConfigError
from ..progress import Progress
from ..storage.artifact import fingerprint
from ..storage.files import read_json, write_json
from ..storage.run_lock import run_lock
from . import pipeline
from .ablation_places import shared_places

DIGESTS = "digests.json"


@dataclass(frozen=True)
class Row:
    """A row of a table: a model of one variant; `runs`: seed -> run folder's name."""

    name: str
    model: str
    runs: dict[int, str]


def run(ablation: AblationConfig, *, progress: Progress) -> list[dict[str, Any]]:
    """Run what is missing and write `ablation.json` and `ablation.md`.

    Returns:
        the tables, as in `ablation.json`.
    Raises:
        UserError: a variant that is no valid run, or that a later stage would refuse; found before anything runs.
        BusyError: another process works on this ablation.
    """
    tables, configs = list_runs(ablation)
    for config in configs.values():
        pipeline.check(config)
    with run_lock(ablation.output):
        for number, (name, config) in enumerate(configs.items(), 1):
            progress.say(f"ablate: run {number} of {len(configs)}, {name}")
            _share_digests(ablation.output, config.run.output)
            pipeline.run(config, progress=progress)
            _share_digests(config.run.output, ablation.output)
            written = _write_tables(ablation, tables, list(configs))
    return written


def list_runs(ablation: AblationConfig) -> tuple[dict[str, list[Row]], dict[str, RunConfig]]:
    """Table -> rows, and run folder's name -> run; the first seed of all variants comes first.

    Raises:
        ConfigError: a variant that is no valid run, a row of a model that its run does not measure, or two rows of a
            table that are the same model of the same run.
    """
    tables: dict[str, list[Row]] = {}
    configs: dict[str, RunConfig] = {}
    for seed in ablation.seeds:
        for table in ablation.tables:
            for row_name, overrides in table.rows().items():
                config = _placed(ablation, ablation.run_config({**overrides, "run.seed": seed}))
                configs.setdefault(config.run.output.name, config)
                for model in table.measured(config):
                    row = _row(tables.setdefault(table.title, []), row_name or model, model)
                    row.runs[seed] = config.run.output.name
    for title, rows in tables.items():
        _refuse_equal(title, rows)
    return tables, configs


def _refuse_equal(title: str, rows: list[Row]) -> None:
    """A row that repeats another would show no difference, with a narrow interval, where nothing was compared."""
    seen: dict[tuple[str, tuple[str, ...]], str] = {}
    for row in rows:
        other = seen.setdefault((row.model, tuple(row.runs.values())), row.name)
        if other != row.name:
            raise ConfigError(
                f"tables: {title!r}: rows {other!r} and {row.name!r} are the same run: the base has these values already; "
                "write every field that the table varies into each of its rows"
            )


def _row(rows: list[Row], name: str, model: str) -> Row:
    known = next((row for row in rows if row.name == name), None)
    if known is None:
        known = Row(name, model, {})
        rows.append(known)
    return known


def _placed(ablation: AblationConfig, config: RunConfig) -> RunConfig:
    """The run in its own folder, named by all that decides its figures, with the places that it shares."""
    means: Any = {"run": True, "cluster": True, "plan": True, "evaluation": EVALUATION_MEANS}
    settings = config.model_dump(mode="json", exclude=means)
    output = ablation.output / "runs" / f"{fingerprint(settings)[:10]}-seed-{config.run.seed}"
    places = shared_places(config, ablation.output / "shared")
    section = config.run.model_copy(update={"output": output, "if_changed": "refuse"})
    return config.model_copy(update={"run": section}).with_places(places)


def _share_digests(source: Path, target: Path) -> None:
    """Models' digests are taken once for all runs: hashing large weights takes minutes."""
    if (source / DIGESTS).is_file():
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / DIGESTS, target / DIGESTS)


def _write_tables(ablation: AblationConfig, tables: dict[str, list[Row]], runs: list[str]) -> list[dict[str, Any]]:
    from evaluation.report import ablation_tables

    reports = {name: read_json(str(ablation.output / "runs" / name / "report" / "report.json")) for name in runs}
    finished = {name: report for name, report in reports.items() if report and report["state"] == "finished"}
    made = [
        ablation_tables.make_table(title, [(row.name, row.model, row.runs) for row in rows], finished)
        for title, rows in tables.items()
    ]
    document = {
        "ablation": ablation.model_dump(mode="json"),
        "runs": len(runs),
        "finished_runs": len(finished),
        "tables": made,
    }
    write_json(str(ablation.output / "ablation.json"), document)
    (ablation.output / "ablation.md").write_text(ablation_tables.to_markdown(document), encoding="utf-8")
    return made
