"""`fusechat plan`: the plan as tables on a terminal, as Markdown, or as JSON."""

import dataclasses
import json
from typing import Any

from ...config import RunConfig
from ...errors import ConfigError
from ...models.engine_memory import GIB
from .run import RunPlan, TeacherPlan, make_plan

SIZE_COLUMNS = ("model", "parameters", "active", "weights", "TP", "KV", "logits", "per GPU", "engines")
WORK_COLUMNS = ("model", "tokens", "GFLOP/token", "hours", "GPU-hours", "store")
SERVICE_COLUMNS = ("model", "face", "TP", "per GPU", "engines", "GPUs")
STAGE_COLUMNS = ("stage", "hours", "GPU-hours", "written", "reckoned from")


def show_plan(config: RunConfig, *, as_json: bool = False) -> None:
    """Print a run's plan on standard output.

    Raises:
        ConfigError: a model that the fleet cannot hold, after the plan was shown.
        ModelError: a model's config is not at hand.
    """
    plan = make_plan(config)
    if as_json:
        print(json.dumps(to_json(plan), indent=1))
    else:
        _print_tables(plan)
    if plan.problems:
        raise ConfigError("\n".join(plan.problems))


def size_cells(teacher: TeacherPlan) -> list[str]:
    """One row of the table of sizes: what an engine takes."""
    size = teacher.size
    return [
        teacher.name, count(size.parameters), count(size.active_parameters) if size.is_moe else "all",
        count(size.weight_bytes, "B"), str(teacher.tensor_parallel_size), f"{teacher.kv_bytes / GIB:.2f}",
        f"{teacher.logits_bytes / GIB:.2f}", f"{teacher.bytes_per_gpu / GIB:.1f}", str(teacher.engines or "none fits"),
    ]  # fmt: skip


def work_cells(teacher: TeacherPlan) -> list[str]:
    """One row of the table of work: what scoring takes; hours are those of its engines alone on the fleet."""
    volume, gpus = teacher.volume, teacher.engines * teacher.tensor_parallel_size
    per_token = teacher.size.flops_per_token(volume.mean_context, head_share=volume.rows / max(1, volume.tokens))
    return [
        teacher.name, count(volume.tokens), f"{per_token / 1e9:,.3g}", hours(teacher.gpu_hours / gpus) if gpus else "-",
        hours(teacher.gpu_hours), count(teacher.store_bytes, "B"),
    ]  # fmt: skip


def service_rows(plan: RunPlan) -> list[list[str]]:
    """The table of engines that `fusechat serve` would keep, with the GPUs of all."""
    rows = [
        [
            face.model, face.face, str(face.tensor_parallel_size), f"{face.bytes_per_gpu / GIB:.1f}",
            str(face.fewest) if face.most == face.fewest else f"{face.fewest} to {face.most}", str(face.gpus),
        ]
        for face in plan.service
    ]  # fmt: skip
    return [*rows, ["total", "", "", "", "", str(sum(face.gpus for face in plan.service))]]


def stage_rows(plan: RunPlan) -> list[list[str]]:
    """The table of stages, with the total and its price."""
    rows = [
        [stage.stage, hours(stage.hours), hours(stage.gpu_hours), count(stage.bytes, "B"), stage.basis]
        for stage in plan.stages
    ]
    price = plan.section.price_per_gpu_hour
    cost = "" if price is None else f"{plan.gpu_hours * price:,.2f} at {price:g} per GPU-hour"
    return [*rows, ["total", hours(plan.hours), hours(plan.gpu_hours), count(plan.bytes, "B"), cost]]


def to_json(plan: RunPlan) -> dict[str, Any]:
    """All figures as plain values."""
    price = plan.section.price_per_gpu_hour
    total = {"hours": plan.hours, "gpu_hours": plan.gpu_hours, "bytes": plan.bytes}
    return {
        "models": [dataclasses.asdict(teacher) for teacher in plan.teachers],
        "stages": [dataclasses.asdict(stage) for stage in plan.stages],
        "service": [{**dataclasses.asdict(face), "gpus": face.gpus} for face in plan.service],
        "total": {**total, "price": None if price is None else plan.gpu_hours * price},
        "problems": plan.problems,
    }


def count(number: float, unit: str = "") -> str:
    """7241748480 -> '7.24 G'; with unit B '7.24 GB'."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.{1 if number >= 99.95 * size else 2}f} {prefix}{unit}"
    return f"{number:.0f} {unit}".strip() if number else "-"


def hours(value: float) -> str:
    """Three digits; '<0.01' for less than half a minute."""
    return "-" if value == 0 else "<0.01" if value < 0.01 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _print_tables(plan: RunPlan) -> None:
    from rich.console import Console
    from rich.table import Table

    section = plan.section
    console = Console(highlight=False)
    title = f"Teachers on {section.gpus} GPUs of {section.gpu_memory_gib:g} GiB and {section.tflops:g} TFLOP/s (memory in GiB)"
    for heading, columns, rows in (
        (title, SIZE_COLUMNS, [size_cells(teacher) for teacher in plan.teachers]),
        ("Scoring", WORK_COLUMNS, [work_cells(teacher) for teacher in plan.teachers]),
        ("Stages", STAGE_COLUMNS, stage_rows(plan)),
        ("As engines that stay (fusechat serve)", SERVICE_COLUMNS, service_rows(plan)),
    ):
        table = Table(title=heading, title_justify="left", box=None, pad_edge=False)
        for number, column in enumerate(columns):
            text = number == 0 or column in ("reckoned from", "face")
            table.add_column(column, justify="left" if text else "right", no_wrap=column != "reckoned from")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    first = plan.teachers[0].volume
    console.print(f"Tokens: {first.basis}. Nothing was started or downloaded.", soft_wrap=True)
    for teacher in plan.teachers:
        if teacher.note and teacher.engines:
            console.print(teacher.note, soft_wrap=True)
