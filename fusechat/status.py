"""`fusechat status`: what a run has, read from its folder and stores alone."""

from .artifact import RECORD_FILE, read_json
from .config import RunConfig
from .errors import ArtifactError
from .pipeline import Step, steps
from .store import RowStore


def show_status(config: RunConfig) -> None:
    """Print one line per step: finished, part of the shards, begun, or not begun."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{config.run.output}", title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "name", "state", "what is there"):
        table.add_column(column)
    for step in steps(config):
        for output in step.outputs:
            table.add_row(step.stage, _name(step, output), *step_state(step, output))
    Console(highlight=False).print(table)


def _name(step: Step, output: str) -> str:
    return step.name if step.name and step.stage != "tokenize" else output.rstrip("/").rsplit("/", 1)[-1]


def step_state(step: Step, output: str) -> tuple[str, str]:
    """State of one artifact and a short description.

    Returns:
        (`done` | `part` | `begun` | `-`, description).
    """
    record = read_json(f"{output}/{RECORD_FILE}")
    if record is not None:
        counts = {key: value for key, value in record["counts"].items() if isinstance(value, int | float) and value}
        shown = "  ".join(f"{key} {value:,}" for key, value in list(counts.items())[:5])
        return "done", f"{shown}  {record['seconds']:.0f} s"
    if step.stage in ("extract", "align"):
        try:
            store = RowStore.open(output, {"extract": "logprobs", "align": "aligned"}[step.stage])
        except ArtifactError:
            return "-", ""
        present = store.present_shards()
        rows = store.plan.num_rows_of(present)
        return "part", f"{len(present)}/{store.plan.num_shards} shards  {rows:,}/{store.plan.num_rows:,} rows"
    return ("begun", "") if read_json(f"{output}/plan.json") is not None else ("-", "")
