"""A run folder whose stages before evaluation are done: real tokens, tiny random targets and fused model, random rows."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tiny_models
from plain_engine import plain_engines
from stages_here import tokenize_run, write_report
from trainer_runs import write_rows

from alignment.rows.shard_alignment import count_dialogues
from alignment.stage import alignment_inputs, map_vocabularies
from cluster import answering
from fusechat.config import RunConfig
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.files import read_json, write_json
from fusechat.storage.seals import sealed
from fusechat.storage.tokens_reader import read_tokens

_FINISHED: dict[str, tempfile.TemporaryDirectory] = {}
"""What decides the earlier stages -> a run folder in which they are done."""


def finish_earlier_stages(config: RunConfig) -> None:
    """Tokenize for real; save a tiny model for each target, the control and the fused model. Runs that agree in all that decides
    this get copies of one folder.
    """
    values = config.dump()
    decides = json.dumps(
        [values["pivot"], values["sources"], values["dialogues"], values["extraction"], values["run"]["seed"]]
    )
    if decides in _FINISHED and not config.run.output.exists():
        shutil.copytree(_FINISHED[decides].name, config.run.output)
        return
    _finish_earlier_stages(config)
    if decides not in _FINISHED:
        _FINISHED[decides] = tempfile.TemporaryDirectory()
        shutil.copytree(config.run.output, _FINISHED[decides].name, dirs_exist_ok=True)


def _finish_earlier_stages(config: RunConfig) -> None:
    tokenize_run(config)
    folders = {config.target_path(source.name): "target" for source in config.sources}
    folders |= {config.target_path("sft"): "target", config.fused_path: "fused"}
    for seed, (folder, kind) in enumerate(folders.items(), 10):
        finish_model(folder, kind, seed)


def finish_measuring(config: RunConfig) -> list[str]:
    """Let the measured models do what the run asks, by plain engines in this process; gives what was opened."""
    with plain_engines() as opened:
        answering.run(config, progress=Progress(quiet=True))
        return list(opened)


def evaluate(config: RunConfig) -> artifact.Artifact:
    """Measure, then write the report."""
    finish_measuring(config)
    return write_report(config)


def finish_rows(config: RunConfig) -> None:
    """Random rows: each model's own, and each source's on the pivot's tokens, beside vocabularies that are mapped for real."""
    for model in config.models:
        finish_rows_of(config, model.name)
    made = artifact.load(config.tokens_url(config.pivot.name), "tokens")
    for seed, source in enumerate(config.sources, 20):
        url = config.aligned_url(source.name)
        write_rows(url, "aligned", read_tokens(made.url), {"pivot_tokens": made}, seed)
        record = read_json(f"{url}/artifact.json")
        write_json(f"{url}/artifact.json", sealed({**record, "counts": aligned()}))
        map_for_real(config, source.name)


def map_for_real(config: RunConfig, source: str) -> None:
    """The vocabularies of a source's aligned store, by what the training dialogues count."""
    inputs = alignment_inputs(config.layout, config.pivot, config.model_named(source), config.alignment)
    pivot, other = read_tokens(inputs.pivot_tokens), read_tokens(inputs.source_tokens)
    shape = int(other.attributes["vocab_size"]), int(pivot.attributes["vocab_size"])
    counts = count_dialogues(pivot, other, range(pivot.num_dialogues), shape)
    map_vocabularies(inputs, counts, inputs.open_tokenizers())


def finish_rows_of(config: RunConfig, name: str) -> None:
    """Random rows of one model on its own tokens."""
    made = artifact.load(config.tokens_url(name), "tokens")
    write_rows(config.logprobs_url(name), "logprobs", read_tokens(made.url), {"tokens": made}, len(name))


def finish_model(folder: Path, kind: str, seed: int) -> None:
    """A tiny model as a finished artifact of its kind."""
    claim = artifact.claim(folder, kind, settings={"seed": seed}, parents={}, if_changed="restart")
    tiny_models.save_llama(folder, seed=seed)
    claim.finish({"steps": 3})


def aligned() -> dict[str, Any]:
    """What alignment counts."""
    figures = {"rows": 9, "coverage": 1.0, "mass_home": 0.9, "bits_per_byte_source": 2.0, "bits_per_byte_lost": 0.1,
               "label_bits_per_byte_lost_share": 0.01}  # fmt: skip
    end = {**figures, "bits_per_byte_source": None, "bits_per_byte_lost": None, "label_bits_per_byte_lost_share": None}
    return {**figures, "kinds": {"exact": 8, "inside": 1}, "by_text": {"prose": figures, "end_of_turn": end}}
