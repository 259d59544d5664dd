"""How the experiments run: a world and a seed is a unit, in a process of its own; every arm of it leaves one JSON file.

In: names of worlds, seeds and arms, and what runs an arm. Out: files below `results/`, read back as table.Results. What is
finished is not run again. Knows nothing about what an arm is.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from .table import Results
from .worlds import WORLDS

SOURCELESS = ("sft", "smoothing", "oracle")
"""Arms in which no source has a part."""


class Arms(Protocol):
    """What runs the arms of one unit."""

    def run(self, arm: str) -> dict[str, Any]:
        """Train and measure one; `figures` as of table.Figures."""
        ...


def run_all(module: str, units: list[str], options: list[str], jobs: int) -> None:
    """`python -m MODULE --only UNIT OPTIONS` for every unit (`WORLD:SEED`), so many at once, one thread each."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    waiting, failed = list(units), []
    while waiting or running:
        while waiting and len(running) < jobs:
            unit = waiting.pop(0)
            command = [sys.executable, "-m", module, "--only", unit, *options]
            running[unit] = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        time.sleep(0.5)
        for unit in [unit for unit, process in running.items() if process.poll() is not None]:
            failed += [unit] if running.pop(unit).returncode else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; what is finished is kept, run again")


def run_arms(out: Path, world: str, number: int, arms: list[str], make: Callable[[], Arms]) -> None:
    """All arms of one unit that have no file yet; `make` is called where there is one."""
    missing = [arm for arm in arms if not result_file(out, world, number, arm).exists()]
    made = make() if missing else None
    for arm in missing:
        assert made is not None
        started, cpu = time.monotonic(), time.process_time()
        figures = made.run(arm)
        seconds = {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        _write(result_file(out, world, number, arm), {**figures, **seconds})
        print(f"{world} {number} {arm} ({seconds['seconds']:.0f} s)", file=sys.stderr, flush=True)


def read_results(out: Path, world: str, seeds: int, arms: list[str]) -> Results:
    """The figures of what is finished; a seed of which nothing is has no entry."""
    results: Results = {}
    for seed in range(seeds):
        files = {arm: result_file(out, world, seed, arm) for arm in arms}
        figures = {arm: json.loads(file.read_text())["figures"] for arm, file in files.items() if file.exists()}
        if figures:
            results[seed] = figures
    return results


def result_file(out: Path, world: str, seed: int, arm: str) -> Path:
    """Where an arm leaves its figures; worlds that differ only in their sources share the arms that read none."""
    if arm in SOURCELESS and replace(WORLDS[world], sources=()) == replace(WORLDS["B"], sources=()):
        world = "B"
    return out / "results" / world / str(seed) / f"{arm}.json"


def _write(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Another worker may write the same arm, of a world that shares it.
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(values) + "\n")
    partial.rename(file)
