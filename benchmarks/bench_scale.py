"""How memory and time grow with the number of dialogues: tokenize, a simulated extraction, align, a training epoch's reading.

    python -m benchmarks.bench_scale [--sizes 1000 20000 200000] [--large] [--pivot DIR] [--source DIR] [--words 12]

Every size is one run in a process of its own on a local Ray of two workers (`--workers 1`: all in one process), with
dialogues of a generator in a temporary folder (`scale_rows`); the stages, stores and ends are the real ones, only the engine
is missing. Memory is the high-water mark of each process, time the CPU time of driver and workers: both survive a machine that
does other things too.
`--large` adds 1,000,000 dialogues. The last line is one JSON object:

- driver_rss_growth, worker_rss_growth: peak at the largest size over the peak at the smallest, of workers the worst stage;
- driver_peak_rss_gib; worker_peak_rss_gib by stage;
- seconds_per_million_dialogues by stage (CPU seconds of all processes, at the largest size), growth_exponent: of the CPU time
  between the two largest sizes;
- tokenize_tokens_per_s_core, and profile: where the time goes; tokenize_speedup_2_workers: CPU time of one worker over that of
  the busier of two, for the same pieces.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.scale_evaluation import evaluate_over_transformers
from benchmarks.scale_rows import write_dialogues
from benchmarks.scale_run import make_config
from benchmarks.scale_speed import measure_tokenizing

LARGE = 1_000_000
SAMPLE_SECONDS = 0.25
GIB = 2**30


@dataclass
class Watched:
    """What the processes of one run took, by stage."""

    driver_peak: int = 0
    worker_peaks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    cpu_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    wall_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def run_size(count: int, arguments: argparse.Namespace) -> Watched:
    """One run, watched from outside."""
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix=f"scale-{count}-") as name:
        folder = Path(name)
        write_dialogues(folder / "dialogues.jsonl", count, arguments.words)
        config = make_config(folder / "run", folder / "dialogues.jsonl", arguments, arguments.workers)
        (folder / "config.json").write_text(json.dumps(config.dump(), default=str), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.scale_run", str(folder / "config.json")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        watched, stage = Watched(), ["start"]
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, stage, watched, over))
        watcher.start()
        assert process.stdout is not None
        lines = []
        began = time.monotonic()
        for line in process.stdout:
            lines.append(line.strip())
            watched.wall_seconds[stage[0]] += time.monotonic() - began
            began = time.monotonic()
            if line.startswith("STAGE "):
                stage[0] = line.split()[1]
        over.set()
        watcher.join()
        if process.wait() or lines[-1:] != ["DONE"]:
            raise SystemExit(f"the run of {count:,} dialogues ended with status {process.returncode}")
        return watched


def _watch(pid: int, stage: list[str], watched: Watched, over: threading.Event) -> None:
    """Sample peaks and CPU times of a driver and its workers; a worker is of the stage in which it is first seen, for it may end
    slowly.
    """
    before: dict[int, float] = {}
    stage_of: dict[int, str] = {}
    driver = psutil.Process(pid)
    while not over.wait(SAMPLE_SECONDS):
        try:
            watched.driver_peak = max(watched.driver_peak, _peak(pid))
            workers = [child for child in driver.children(recursive=True) if "WorkerActor" in " ".join(child.cmdline())]
        except (psutil.Error, OSError):
            continue
        for process in [driver, *workers]:
            try:
                used = process.cpu_times()
                seconds = used.user + used.system
                if process.pid != pid:
                    own = stage_of.setdefault(process.pid, stage[0])
                    watched.worker_peaks[own] = max(watched.worker_peaks[own], _peak(process.pid))
            except (psutil.Error, OSError):
                continue
            watched.cpu_seconds[stage[0]] += seconds - before.get(process.pid, 0.0)
            before[process.pid] = seconds


def _peak(pid: int) -> int:
    """High-water mark of a process's memory, bytes; 0 of one that has ended and is not yet waited for."""
    _, mark, rest = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").partition("VmHWM:")
    return 1024 * int(rest.split()[0]) if mark else 0


def summary(sizes: list[int], runs: dict[int, Watched]) -> dict[str, Any]:
    """The figures of the last line."""
    small, large = runs[sizes[0]], runs[sizes[-1]]
    stages = [stage for stage in large.cpu_seconds if stage != "start"]
    figures: dict[str, Any] = {
        "sizes": sizes,
        "driver_rss_growth": round(large.driver_peak / small.driver_peak, 3),
        "driver_peak_rss_gib": round(max(run.driver_peak for run in runs.values()) / GIB, 3),
        "worker_peak_rss_gib": {
            stage: round(large.worker_peaks[stage] / GIB, 3) for stage in stages if large.worker_peaks[stage]
        },
        "seconds_per_million_dialogues": {
            stage: round(large.cpu_seconds[stage] / sizes[-1] * 1e6, 1) for stage in stages
        },
    }
    grown = {
        stage: round(large.worker_peaks[stage] / small.worker_peaks[stage], 3)
        for stage in stages
        if small.worker_peaks[stage] and large.worker_peaks[stage]
    }
    figures["worker_rss_growth"] = max(grown.values(), default=None)
    figures["worker_rss_growth_by_stage"] = grown
    if len(sizes) > 1:
        before = runs[sizes[-2]]
        ratio = math.log(sizes[-1] / sizes[-2])
        exponents = {
            stage: round(math.log(large.cpu_seconds[stage] / before.cpu_seconds[stage]) / ratio, 3)
            for stage in stages
            if before.cpu_seconds[stage] > 0
        }
        figures |= {"growth_exponent": max(exponents.values()), "growth_exponent_by_stage": exponents}
    return figures


def main() -> None:
    """Run all sizes, then the speed of tokenizing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1_000, 20_000, 200_000], help="numbers of dialogues, ascending"
    )
    parser.add_argument("--large", action="store_true", help=f"and {LARGE:,}")
    parser.add_argument("--pivot", type=Path, default=Path("models/smollm2-135m-instruct"), help="model folder")
    parser.add_argument("--source", type=Path, default=Path("models/velan-moe"), help="model folder")
    parser.add_argument("--words", type=int, default=12, help="words of a question of the runs")
    parser.add_argument(
        "--speed-words", type=int, default=160, help="words of a question where tokens a second are measured"
    )
    parser.add_argument("--speed-dialogues", type=int, default=6_000, help="dialogues there")
    parser.add_argument("--rounds", type=int, default=2, help="of one and two workers in turn")
    parser.add_argument(
        "--workers", type=int, default=2, help="of the runs; 1: driver and worker are one process, without Ray"
    )
    parser.add_argument("--folder", type=Path, help="for temporary files; default: the system's")
    parser.add_argument(
        "--run", type=Path, help="run file of a finished run, whose models are measured: evaluate_over_transformers"
    )
    arguments = parser.parse_args()
    sizes = sorted([*arguments.sizes, *([LARGE] if arguments.large else [])])
    speed = measure_tokenizing(arguments)
    print(json.dumps(speed), flush=True)
    runs = {}
    for size in sizes:
        runs[size] = run_size(size, arguments)
        one = runs[size]
        print(
            f"{size:,} dialogues: driver {one.driver_peak / GIB:.3f} GiB; "
            + "; ".join(
                f"{stage} {one.cpu_seconds[stage]:.1f} s CPU, {one.wall_seconds[stage]:.1f} s"
                + (f", worker {one.worker_peaks[stage] / GIB:.3f} GiB" if one.worker_peaks[stage] else "")
                for stage in one.cpu_seconds
            ),
            flush=True,
        )
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    evaluated = evaluate_over_transformers(arguments.run) if arguments.run else {}
    print(json.dumps({**machine, **summary(sizes, runs), **speed, **evaluated}))


if __name__ == "__main__":
    main()
