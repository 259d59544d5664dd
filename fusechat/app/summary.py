"""What `fusechat run` and `fusechat ablate` end with: tables, sample answers, where the artifacts lie, seconds per stage."""

from pathlib import Path
from typing import Any

from evaluation.report import ablation_tables, terminal

from ..config import RunConfig
from ..progress import format_seconds
from ..storage.artifact import read_json


def show_summary(config: RunConfig, seconds: dict[str, float]) -> None:
    """Print the result of a finished run on standard output."""
    from rich.console import Console

    console = Console(highlight=False)
    found: Any = read_json(str(config.report_path / "report.json"))
    console.print()
    for part in terminal.summary(found):
        console.print(part)
    console.print("\nArtifacts")
    for label, place in (
        ("fused model", config.fused_path),
        ("targets", config.run.output / "targets"),
        ("rows", f"{config.store_url}/logprobs"),
        ("aligned rows", f"{config.store_url}/aligned"),
        ("report", config.report_path / "index.html"),
    ):
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
    console.print(f"\nTalk to it: fusechat chat {config.fused_path}", soft_wrap=True)


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
