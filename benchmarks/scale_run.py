"""One run of bench_scale in a process of its own: the stages on a local Ray, one after the other.

    python -m benchmarks.scale_run CONFIG.json

Before each stage it prints a line `STAGE name`, so that whoever watches the processes knows what they do; last `DONE`.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.scale_rows import EpochReader, RowInputs, RowMaker
from cluster import alignment, tokenizing
from cluster.pool.run_on_ray import run_on_ray
from cluster.pool.session import ray_session
from fusechat.config import ClusterSection, RunConfig
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage.work import Needs, Work, run_here
from inference import stage as extraction

SHARD_TOKENS = 16_384
"""A worker's memory grows with its shards, up to their size: the smallest run fills some of these, so that only dialogues grow."""
QUIET = Progress(quiet=True)
ONE_CPU = Needs(cpus=1, units_in_flight=2)


def make_config(folder: Path, dialogues: Path, arguments: argparse.Namespace, num_cpus: int) -> RunConfig:
    """A run over two models, everything below `folder`."""
    return RunConfig.model_validate(
        {
            "run": {"output": str(folder)},
            "pivot": {"name": "pivot", "model": str(arguments.pivot)},
            "sources": [{"name": "source", "model": str(arguments.source)}],
            "dialogues": {"train": [str(dialogues)], "held_out_share": 0.01, "max_tokens": 2048},
            "extraction": {"shard_tokens": SHARD_TOKENS},
            "training": {"fusion": "joint", "row_choice": "trusted"},
            "cluster": {"num_cpus": num_cpus},
        }
    )


def once(cluster: ClusterSection) -> ClusterSection:
    """Each unit is tried once: a benchmark that needs a second try measures nothing."""
    return cluster.model_copy(update={"max_attempts": 1})


def do_works(works: list[Work], config: RunConfig) -> None:
    """On Ray, or in this process where the run has one worker."""
    if config.cluster.num_cpus == 1:
        run_here(works, QUIET)
    else:
        run_on_ray(works, once(config.cluster), progress=QUIET, in_turn=True)


def read_epoch(config: RunConfig) -> None:
    """The choice, then the reading of one epoch in a worker."""
    from trainer import choice_stage

    choice_stage.run(config.layout, config.pivot.name, [source.name for source in config.sources])
    work = Work("epoch", [0], 1, 1, 0, "dialogues", partial(EpochReader, config), list, ONE_CPU)
    do_works([work], config)


def extract(config: RunConfig) -> None:
    """The real claim, stores and end of extraction; rows without an engine."""
    works = []
    for section in config.models:
        model = resolve(section, config.digests_path)
        inputs = RowInputs(config.tokens_url(model.name), config.logprobs_url(model.name), config.extraction.k)
        for work in extraction.prepare(config.layout, model, config.extraction, config.cluster):
            works.append(replace(work, make_worker=partial(RowMaker, inputs), needs=ONE_CPU))
    do_works(works, config)


def tokenize(config: RunConfig) -> None:
    """Tokens of all models."""
    for model in config.models:
        tokenizing.tokenize(config, model.name, progress=QUIET)


def align(config: RunConfig) -> None:
    """All sources' rows on the pivot's tokens."""
    for source in config.sources:
        alignment.run(config, source.name, progress=QUIET)


STAGES: dict[str, Callable[[RunConfig], object]] = {
    "dialogues": lambda config: tokenizing.read_dialogues(config, progress=QUIET),
    "tokenize": tokenize,
    "extract": extract,
    "align": align,
    "epoch": read_epoch,
}


def main() -> None:
    """Run all stages."""
    config = RunConfig.model_validate(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    with ray_session(config.cluster) if config.cluster.num_cpus != 1 else contextlib.nullcontext():
        for name, do in STAGES.items():
            print("STAGE", name, flush=True)
            do(config)
        print("DONE", flush=True)


if __name__ == "__main__":
    main()
