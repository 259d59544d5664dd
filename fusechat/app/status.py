"""`fusechat status`: what a run has, read from its folder, its stores and its logs alone."""

import time
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..config.artifacts import ArtifactEntry
from ..errors import ArtifactError
from ..progress import format_seconds, read_json_lines
from ..storage.artifact import RECIPE_FILE, RECORD_FILE, read_record
from ..storage.files import read_json
from ..storage.row_store import RowStore
from .pipeline import steps

WATCH_SECONDS = 5.0
LOGGED = ("extract", "align")
"""Stages that log the shards of each store under its name."""
ERROR_WIDTH = 100
"""Characters shown of an error; the log has all of it."""


def watch_status(config: RunConfig) -> None:
    """Show the status anew every few seconds, until the run is finished or the user ends it."""
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            live.update(status_table(config), refresh=True)
            if all(all(step.records()) for step in steps(config)):
                return
            time.sleep(WATCH_SECONDS)


def show_status(config: RunConfig) -> None:
    """Print one line per step: finished, part of the shards, begun, or not begun."""
    from rich.console import Console

    Console(highlight=False).print(status_table(config))


def status_table(config: RunConfig) -> Any:
    """A rich table of all steps and their outputs."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{config.run.output}"), title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "name", "state", "what is there"):
        table.add_column(column)
    for step in steps(config):
        for artifact in step.artifacts:
            state, shown = artifact_state(artifact)
            if state == "part" and step.stage in LOGGED:  # a round's logs lie in its own folder
                shown = "\n".join([shown, *shard_news(config, artifact)])
            if state == "begun" and step.stage == "write":
                shown = writing_news(artifact)
            if state == "begun" and step.stage == "train":
                shown = training_news(config, artifact.name)
            table.add_row(step.stage, artifact.name or artifact.url.rsplit("/", 1)[-1], state, escape(shown))
    return table


def shard_news(config: RunConfig, artifact: ArtifactEntry) -> list[str]:
    """Lines about an unfinished store: rate and time left of its last driver, shards set aside, the last error."""
    records = read_json_lines(config.log_path(f"{artifact.stage}.{artifact.name}"))
    store = RowStore.open(artifact.url, artifact.store)
    missing = store.missing_shards()
    own = [record for record in _of_last_process(records, "time") if record["event"] == "done"]
    news = []
    if len(own) > 1 and own[-1]["time"] > own[0]["time"]:
        rate = sum(record["rows"] for record in own[1:]) / (own[-1]["time"] - own[0]["time"])
        left = format_seconds(store.layout.num_rows_of(missing) / rate)
        news.append(f"{rate:,.0f} rows/s since its first shard, {left} left at that rate")
    last = {record["shard"]: record for record in records}
    aside = [shard for shard in missing if last.get(shard, {}).get("event") == "set_aside"]
    if aside:
        news.append(f"set aside: shards {', '.join(map(str, aside))}")
    errors = [record for shard, record in last.items() if shard in missing and "error" in record]
    if errors:
        news.append(f"last error: {' '.join(str(errors[-1]['error']).split())[:ERROR_WIDTH]}")
    return news


def writing_news(artifact: ArtifactEntry) -> str:
    """How many chunks of prompts a writer has answered."""
    chunks = len(list(Path(artifact.url, "parts").glob("*.json")))
    return f"{chunks:,} chunks" if chunks else ""


def training_news(config: RunConfig, name: str) -> str:
    """How far a target is, from what its trainer has logged; the rate is that of the process that logged last."""
    logged = read_json_lines(config.target_path(name) / "metrics.jsonl")
    records = [record for record in logged if "seconds" in record]
    if not records:
        return ""
    own, last = _of_last_process(records, "seconds"), records[-1]
    shown = f"step {last['step']:,}/{last['steps']:,}  loss {last['loss']:.4f}"
    steps_done, seconds = last["step"] - own[0]["step"], last["seconds"] - own[0]["seconds"]
    if steps_done and seconds > 0:
        left = format_seconds((last["steps"] - last["step"]) * seconds / steps_done)
        shown += f"  {seconds / steps_done:,.1f} s a step, {left} left at that rate"
    return shown


def _of_last_process(records: list[dict[str, Any]], clock: str) -> list[dict[str, Any]]:
    """The records of the process that wrote last: clocks count from a process's start, so where one falls another began."""
    starts = [i for i in range(1, len(records)) if records[i][clock] < records[i - 1][clock]]
    return records[starts[-1] if starts else 0 :]


def artifact_state(artifact: ArtifactEntry) -> tuple[str, str]:
    """State of one artifact and a short description.

    Returns:
        (`done` | `part` | `begun` | `damaged` | `-`, description).
    """
    try:
        record = read_record(f"{artifact.url}/{RECORD_FILE}")
    except ArtifactError as error:
        return "damaged", str(error)
    if record is not None:
        counts = {key: value for key, value in record["counts"].items() if isinstance(value, int | float) and value}
        shown = "  ".join(f"{key} {value:,}" for key, value in list(counts.items())[:5])
        return "done", f"{shown}  {record['seconds']:.0f} s"
    if artifact.store:
        try:
            store = RowStore.open(artifact.url, artifact.store)
        except ArtifactError:
            return "-", ""
        present = store.present_shards()
        rows = store.layout.num_rows_of(present)
        return "part", f"{len(present)}/{store.layout.num_shards} shards  {rows:,}/{store.layout.num_rows:,} rows"
    return ("begun", "") if read_json(f"{artifact.url}/{RECIPE_FILE}") is not None else ("-", "")
