"""Where the figures come from: a run in; its artifacts, the course of training and the merge's own report out.

Reads records that other stages left, by file alone; what a run does not have is left out.
"""

import json
from pathlib import Path
from typing import Any

import fsspec

from fusechat.artifact import RECORD_FILE, read_json
from fusechat.config import CONTROL, RunConfig

CURVE_POINTS = 400
"""Points kept of a training curve."""
CURVES = ("loss", "sft_loss", "fusion_loss", "source_share", "grad_norm", "learning_rate")


def run_record(config: RunConfig) -> dict[str, Any]:
    """What was fused into what."""
    return {
        "output": str(config.run.output),
        "seed": config.run.seed,
        "pivot": {"name": config.pivot.name, "model": config.pivot.model},
        "sources": [{"name": source.name, "model": source.model} for source in config.sources],
        "merge": {"method": config.merge.method, "parameters": config.merge.parameters},
        "training": config.training.model_dump(mode="json"),
    }


def artifact_records(config: RunConfig) -> list[dict[str, Any]]:
    """One record for each finished artifact before the report, in the order of the stages."""
    found = []
    for stage, name, url in _places(config):
        record = read_json(f"{url}/{RECORD_FILE}")
        if record is not None:
            kept = {
                key: record.get(key)
                for key in ("kind", "fingerprint", "parents", "counts", "seconds", "finished", "versions")
            }
            found.append({"stage": stage, "name": name, "url": str(url), "bytes": _size(str(url)), **kept})
    return found


def training_curves(config: RunConfig) -> dict[str, list[dict[str, float]]]:
    """Target name (and the control's) -> step, losses and shares over the course of its training, thinned out."""
    found = {}
    for name in [*(source.name for source in config.sources), CONTROL]:
        path = config.target_path(name) / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) for line in lines if line.endswith("}")]
            stride = -(-len(records) // CURVE_POINTS) or 1
            # The last step is always among them.
            thinned = records[::-1][::stride][::-1]
            found[name] = [{key: record[key] for key in ("step", *CURVES) if key in record} for record in thinned]
    return found


def merge_report(config: RunConfig) -> dict[str, Any] | None:
    """What the merge says about itself."""
    return read_json(str(config.fused_path / "merge_report.json"))


def _places(config: RunConfig) -> list[tuple[str, str, str | Path]]:
    names = [model.name for model in config.models]
    sources = [source.name for source in config.sources]
    return [
        ("tokenize", "dialogues", config.dialogues_path),
        *(
            ("tokenize", f"{name} {split}", config.tokens_url(name, split))
            for name in names
            for split in ("train", "held_out")
        ),
        *(("extract", name, config.logprobs_url(name)) for name in names),
        *(("align", name, config.aligned_url(name)) for name in sources),
        *(("train", name, config.target_path(name)) for name in [*sources, CONTROL]),
        ("merge", "", config.fused_path),
    ]


def _size(url: str) -> int:
    filesystem, path = fsspec.core.url_to_fs(url)
    return int(filesystem.du(path))
