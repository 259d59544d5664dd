"""Where the figures come from: a run's places in; its steps, artifacts, extraction, alignment, training and merge out.

Reads records that other stages left, by file alone, also while they still work; what a run does not have is left out.
"""

import math
from datetime import UTC, datetime
from typing import Any

import fsspec

from fusechat.config import CONTROL
from fusechat.progress import read_json_lines
from fusechat.storage.artifact import RECORD_FILE
from fusechat.storage.files import read_json

from .inputs import ReportInputs

FORMAT = 3
"""Number of report.json's form; another number, another form."""
CURVE_POINTS = 400
"""Points kept of a training curve."""
RATE_POINTS = 60
"""Points kept of an extraction's rate."""
CURVES = ("loss", "sft_loss", "fusion_loss", "source_share", "row_weight", "grad_norm", "learning_rate")


def course(inputs: ReportInputs) -> dict[str, Any]:
    """The part of the report that the stages before evaluation give; whole or not, it can be read at any time."""
    artifacts = artifact_records(inputs)
    return {
        "format": FORMAT,
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run_record(inputs),
        "steps": step_records(inputs),
        "artifacts": artifacts,
        "writing": writing_record(inputs),
        "extraction": extraction_records(inputs),
        "alignment": {item["name"]: item["counts"] for item in artifacts if item["stage"] == "align"},
        "choice": choice_table(inputs),
        "training": training_curves(inputs),
        "merge": merge_report(inputs),
        "config": inputs.run,
    }


def run_record(inputs: ReportInputs) -> dict[str, Any]:
    """What was fused into what."""
    return {
        "output": str(inputs.layout.run_folder),
        "seed": inputs.seed,
        "pivot": {"name": inputs.pivot.name, "model": inputs.pivot.model},
        "sources": [{"name": source.name, "model": source.model} for source in inputs.sources],
        "merge": {"method": inputs.merge.method, "parameters": inputs.merge.parameters},
        "training": inputs.training.model_dump(mode="json"),
    }


def step_records(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Each step that worked in this folder: its label, the seconds it took in all, and how often it was begun and ended."""
    steps: dict[str, dict[str, Any]] = {}
    for record in read_json_lines(inputs.layout.log_path("run")):
        entry = steps.setdefault(record["step"], {"step": record["step"], "seconds": 0.0, "times": 0})
        entry["seconds"] += record["seconds"]
        entry["times"] += 1
    return list(steps.values())


def artifact_records(inputs: ReportInputs) -> list[dict[str, Any]]:
    """One record for each finished artifact before the report, in the order of the stages."""
    artifacts = []
    for entry in inputs.entries:
        record = read_json(f"{entry.url}/{RECORD_FILE}") if entry.stage != "evaluate" else None
        if record is not None:
            kept = {
                key: record.get(key)
                for key in ("kind", "fingerprint", "parents", "counts", "seconds", "finished", "versions")
            }
            size = _size(entry.url, record)
            artifacts.append({"stage": entry.stage, "name": entry.name, "url": entry.url, "bytes": size, **kept})
    return artifacts


def writing_record(inputs: ReportInputs) -> dict[str, Any] | None:
    """What became of the answers to the run's prompts, per writer and kind (`inference.writing.selection`); None: it has none."""
    record = read_json(f"{inputs.layout.written_path}/{RECORD_FILE}") if inputs.has_prompts else None
    return None if record is None else {"rule": record["settings"]["keep"], **record["counts"]}


def extraction_records(inputs: ReportInputs) -> dict[str, dict[str, Any]]:
    """Teacher -> shards, rows, tokens, rate (`[seconds, rows per second]` pairs), shards tried again and set aside."""
    by_teacher = {}
    for model in inputs.models:
        lines = read_json_lines(inputs.layout.log_path(f"extract.{model.name}"))
        shards = [line for line in lines if line["event"] == "done"]
        if shards:
            by_teacher[model.name] = {
                "shards": len(shards),
                "rows": sum(line["rows"] for line in shards),
                "tokens": sum(line["tokens"] for line in shards),
                "rate": extraction_rate(shards),
                "retries": sum(line["event"] == "retried" for line in lines),
                "set_aside": sum(line["event"] == "set_aside" for line in lines),
            }
    return by_teacher


def extraction_rate(shards: list[dict[str, Any]]) -> list[list[float]]:
    """[seconds, rows per second] over groups of shards; times of a resumed extraction follow those of the first.

    Args:
        shards: records in the order in which the shards ended: `time` (seconds since the start), `rows`, `seconds`.
    """
    size = -(-len(shards) // RATE_POINTS)
    points, begin, last, rows, offset = [], None, 0.0, 0, 0.0
    for number, record in enumerate(shards, 1):
        if record["time"] < last:  # another process went on, with a clock of its own
            offset, begin, rows = offset + last, None, 0
        last = record["time"]
        if begin is None:  # the engine's start does not count
            begin = max(record["time"] - record["seconds"], 0.0)
        rows += record["rows"]
        if (number % size == 0 or number == len(shards)) and record["time"] > begin:
            points.append([round(offset + record["time"], 3), round(rows / (record["time"] - begin), 3)])
            begin, rows = record["time"], 0
    return points


def training_curves(inputs: ReportInputs) -> dict[str, list[dict[str, float | None]]]:
    """Target name (and the control's) -> step, losses and shares over the course of its training, thinned out."""
    curves = {}
    for name in [*inputs.target_names, CONTROL]:
        records = read_json_lines(inputs.layout.target_path(name) / "metrics.jsonl")
        if records:
            stride = -(-len(records) // CURVE_POINTS) or 1
            # The last step is always among them.
            thinned = records[::-1][::stride][::-1]
            curves[name] = [
                {key: _finite(record[key]) for key in ("step", *CURVES) if key in record} for record in thinned
            ]
    return curves


def bad_metrics(curves: dict[str, list[dict[str, float | None]]]) -> list[str]:
    """A sentence for each training that logged what is no number."""
    notes = []
    for name, records in curves.items():
        keys = sorted({key for record in records for key, value in record.items() if value is None})
        if keys:
            steps = [int(record["step"] or 0) for record in records if None in record.values()]
            notes.append(
                f"Training of {name} logged values of {', '.join(keys)} that are no numbers, first at step {steps[0]}."
            )
    return notes


def choice_table(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Who teaches what, a record per kind and source (`trainer.choice_stage.summary`); empty where nothing is chosen."""
    record = read_json(f"{inputs.layout.choice_url}/{RECORD_FILE}") if inputs.training.row_choice == "trusted" else None
    return record["counts"]["table"] if record else []


def merge_report(inputs: ReportInputs) -> dict[str, Any] | None:
    """What the merge says about itself."""
    return read_json(str(inputs.layout.fused_path / "merge_report.json"))


def _finite(value: float) -> float | None:
    """A number as JSON can hold it."""
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _size(url: str, record: dict[str, Any]) -> int:
    """Bytes of an artifact: as its stage counted them, because listing a large store takes long."""
    counted = record["counts"].get("bytes")
    if counted is not None:
        return int(counted)
    filesystem, path = fsspec.core.url_to_fs(url)
    return int(filesystem.du(path))
