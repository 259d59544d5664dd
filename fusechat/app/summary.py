"""What `fusechat run` and `fusechat ablate` end with: tables, sample answers, where the artifacts lie, seconds per stage."""

from pathlib import Path
from typing import Any

from evaluation.report import ablation_tables, terminal

from ..config import JOINT, RunConfig
from ..config.artifacts import artifact_entries
from ..config.round_run import round_runs
from ..progress import format_seconds
from ..storage.files import read_json


def show_summary(config: RunConfig, seconds: dict[str, float]) -> None:
    """Print the result of a finished run on standard output."""
    from rich.console import Console

    console = Console(highlight=False)
    report: Any = read_json(str(config.report_path / "report.json"))
    console.print()
    for part in terminal.summary(report):
        console.print(part)
    console.print("\nArtifacts")
    for label, place in artifact_places(config).items():
        console.print(f"  {label:<14}{place}", soft_wrap=True)
    console.print("\nSeconds per stage (skipped: done before)")
    for label, value in seconds.items():
        console.print(f"  {label:<24}{f'{value:,.1f}' if value else 'skipped'}")
    console.print(f"  {'all':<24}{format_seconds(sum(seconds.values()))}")
    if config.training.fusion == "pairwise" and config.training.row_choice == "trusted":
        console.print(
            "\nOne more training tries a target that learns from all sources (rows and pairs are kept, the report is made "
            "anew): --set training.fusion=both --set run.if_changed=restart",
            soft_wrap=True,
        )
    rounds = round_runs(config)
    last = rounds[-1].target_path(JOINT) if rounds else config.fused_path
    console.print(f"\nTalk to it: fusechat chat {last}", soft_wrap=True)


def artifact_places(config: RunConfig) -> dict[str, str]:
    """What people look for after a run, and where it lies: a folder, where there are several of a kind."""
    urls: dict[str, list[str]] = {}
    for entry in artifact_entries(config):
        if not entry.step or entry.stage == "align":
            urls.setdefault(entry.stage, []).append(entry.url)
    return {
        "fused model": urls["merge"][0],
        "targets": _folder(urls["train"]),
        "rows": _folder(urls["extract"]),
        "aligned rows": _folder(urls["align"]),
        **{f"round {number}": str(one.target_path(JOINT)) for number, one in enumerate(round_runs(config), 1)},
        "report": f"{urls['evaluate'][0]}/index.html",
    }


def _folder(urls: list[str]) -> str:
    """The folder in which they lie beside each other."""
    return urls[0].rsplit("/", 1)[0]


def show_tables(output: Path, tables: list[dict[str, Any]]) -> None:
    """Print the tables of an ablation on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for table in tables:
        heads, rows = ablation_tables.cells(table)
        shown = Table(title=table["title"], title_justify="left", box=None, pad_edge=False)
        for head in heads:
            shown.add_column(head, justify="left" if head == "" else "right")
        for row in rows:
            shown.add_row(*row)
        console.print()
        console.print(shown)
    console.print(f"\nTables: {output / 'ablation.md'}, {output / 'ablation.json'}", soft_wrap=True)
