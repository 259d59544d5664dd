"""How fast a worker tokenizes, what bounds it, and whether two do it in half the time."""

import argparse
import cProfile
import os
import pstats
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.scale_rows import timed, write_dialogues
from benchmarks.scale_run import QUIET, make_config, once
from cluster import tokenizing
from cluster.pool.run_on_ray import run_on_ray
from cluster.pool.session import ray_session
from fusechat.config import RunConfig
from fusechat.models.resolved_model import resolve
from fusechat.storage.work import Listener, Work
from fusechat.text.model_tokens import TokenMaker
from fusechat.text.tokenize_stage import prepare_tokens


def measure_tokenizing(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second and core of a worker that reads, tokenizes, lays out and writes pieces; and what bounds it."""
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="scale-speed-") as name:
        folder = Path(name)
        write_dialogues(folder / "dialogues.jsonl", arguments.speed_dialogues, arguments.speed_words)
        config = make_config(folder / "run", folder / "dialogues.jsonl", arguments, num_cpus=1)
        tokenizing.read_dialogues(config)
        capture, pivot = config.extraction.capture, resolve(config.pivot, config.digests_path)
        work = prepare_tokens(config.layout, pivot, pivot, capture, progress=QUIET)[0]
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        make: Any = work.make_worker
        worker = make.func(*make.args)
        assert isinstance(worker, TokenMaker)
        worker.start()
        worker.run_unit(0)  # compiles and fills caches
        before, tokens = time.process_time(), 0
        for unit in range(work.num_units):
            tokens += worker.run_unit(unit)["tokens"]
        seconds = time.process_time() - before
        profile = cProfile.Profile()
        profile.runcall(worker.run_unit, 0)
        speedup = _speedup(work, config, arguments) if work.num_units > 1 and arguments.workers > 1 else None
    return {
        "tokenize_tokens_per_s_core": round(tokens / seconds),
        "tokenize_tokens_per_dialogue": round(tokens / arguments.speed_dialogues, 1),
        "tokenize_speedup_2_workers": speedup,
        "profile": _shares(profile),
    }


def _shares(profile: cProfile.Profile) -> dict[str, float]:
    """Share of the whole time of the functions that take most by themselves."""
    stats: Any = pstats.Stats(profile)
    total = sum(entry[2] for entry in stats.stats.values())
    own = sorted(((entry[2], name) for (_, _, name), entry in stats.stats.items()), reverse=True)
    return {name: round(seconds / total, 3) for seconds, name in own[:6]}


class _Busy(Listener):
    """The CPU time of each process from its first unit to its last."""

    def __init__(self) -> None:
        self._spans: dict[int, tuple[float, float]] = {}

    def on_done(self, result: dict[str, Any]) -> None:
        before, after = self._spans.get(result["process"], (float("inf"), 0.0))
        self._spans[result["process"]] = min(before, result["cpu_before"]), max(after, result["cpu_after"])

    def longest(self) -> float:
        """Of the busiest process."""
        return max(after - before for before, after in self._spans.values())


def _speedup(work: Work, config: RunConfig, arguments: argparse.Namespace) -> float:
    """CPU time of one worker over that of the busier of two; the two take turns, because the machine may be loaded."""
    longest: dict[int, list[float]] = {1: [], 2: []}
    with ray_session(config.cluster.model_copy(update={"num_cpus": 2})):
        for _ in range(arguments.rounds):
            for workers in (1, 2):
                busy = _Busy()
                again = replace(work, make_worker=timed(work.make_worker), listener=busy, finish=partial(list, ()))
                run_on_ray([again], once(config.cluster), progress=QUIET, workers_per_work=workers)
                longest[workers].append(busy.longest())
    return round(min(longest[1]) / min(longest[2]), 3)
