"""What the pool of teachers costs, and what it survives: actors without a model on several Ray nodes of one machine.

    python -m benchmarks.bench_pool [--actors 64] [--phases throughput fleet scale] [--seconds 40] [--after 30]

throughput: shards that take no time, so that all time is the driver's, Ray's and the actors' calls.
fleet: shards of 2 to 5 s on a simulated engine (one at a time, two in flight), first undisturbed (the idle share), then
    with faults: a node dies with four actors, a node leaves, a node joins, one actor is ten times slower from the start,
    one shard is poison.
scale: the driver's own CPU time per shard for 1,000, 10,000 and 100,000 shards on four actors.
The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from benchmarks.pool_fleet import IN_FLIGHT, POISON, Fleet
from cluster.pool.pooled_work import PooledWork
from cluster.pool.worker_pool import WorkerPool

ATTEMPTS = 3


def run(pooled: PooledWork, say: Callable[[str], None] = lambda line: None) -> None:
    """Do a work."""
    with WorkerPool(max_attempts=ATTEMPTS, on_event=say) as pool:
        pool.run([pooled])
    if pooled.failure is not None:
        raise pooled.failure


def throughput(fleet: Fleet, actors: int, shards: int) -> dict[str, Any]:
    """Shards a second through the driver, over all but the first tenth."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run(fleet.pooled(actors, shards, folder, lambda result: times.append(time.perf_counter())))
    first = shards // 10
    return {"driver_shards_per_s": round((len(times) - first) / (times[-1] - times[first - 1]), 1)}


def scale(fleet: Fleet, counts: list[int]) -> dict[str, Any]:
    """The driver's CPU time and the clock per shard, over the second half of each count."""
    found = {}
    for number in counts:
        marks: list[tuple[float, float]] = []

        def on_done(result: dict[str, Any], marks: list[tuple[float, float]] = marks) -> None:
            marks.append((time.process_time(), time.perf_counter()))

        with tempfile.TemporaryDirectory() as folder:
            run(fleet.pooled(4, number, folder, on_done))
        half = number // 2
        cpu, wall = (1000 * (marks[-1][i] - marks[half - 1][i]) / (number - half) for i in (0, 1))
        found[str(number)] = {"driver_cpu_ms": round(cpu, 3), "ms": round(wall, 3)}
        print(f"scale: {number} shards: {found[str(number)]}", flush=True)
    pending = ray.remote(_never).options(resources={"nowhere": 1})
    waits = {}
    for number in (128, 2000):
        refs = [pending.remote() for _ in range(number)] + [ray.put(0)]
        begun = time.perf_counter()
        for _ in range(50):
            ray.wait(refs, num_returns=1, timeout=1)
        waits[str(number)] = round(20 * (time.perf_counter() - begun), 3)
    return {"per_shard": found, "ray_wait_ms": waits}


def _never() -> None:
    """Waits for a resource that no node has."""


def fleet_run(fleet: Fleet, actors: int, seconds: float, after: float, slowness: float) -> dict[str, Any]:
    """Undisturbed for `seconds`, then about `after` seconds with faults, until all shards are done."""
    with tempfile.TemporaryDirectory() as folder:
        results: list[dict[str, Any]] = []
        lines: list[str] = []
        busy: dict[int, list[tuple[float, float]]] = {}

        def on_done(result: dict[str, Any]) -> None:
            results.append(result)
            busy.setdefault(result["actor"], []).append((result["begun"], result["ended"]))

        shards = int(actors * (seconds + after) / 3.5)
        pooled = fleet.pooled(actors, shards, folder, on_done, seconds=(2.0, 5.0), slow=actors - 1, slowness=slowness)
        # Ray starts nodes from the main thread only, so the pool works in another.
        worker = threading.Thread(target=run, args=(pooled, lines.append))
        worker.start()
        first, last = _faults(fleet, busy, actors, seconds, pooled)
        worker.join()
        done = {int(path.suffix[1:]) for path in Path(folder).glob("done.*")}
        repeated = [
            path for path in Path(folder).glob("begun.*") if path.stat().st_size > 1 and path.suffix != f".{POISON}"
        ]
        lost = set(range(shards)) - done - set(pooled.set_aside)
    if len(results) != shards - len(pooled.set_aside):
        raise SystemExit(f"{len(results)} results for {shards} shards, {len(pooled.set_aside)} set aside")
    deaths = sum("a worker died" in line for line in lines)
    return {
        "idle_share": round(_idle_share(busy, first, last), 4),
        "shards": shards, "lost_shards": len(lost), "set_aside": sorted(pooled.set_aside),
        "repeated_shards": len(repeated), "in_flight_at_deaths": deaths * IN_FLIGHT, "actors_died": deaths,
        "actors_that_worked": len(busy),
    }  # fmt: skip


def _faults(fleet: Fleet, busy: dict[int, Any], actors: int, seconds: float, pooled: PooledWork) -> tuple[float, float]:
    """Let the fleet alone for a while, then take and give nodes; (begin, end) of the quiet time."""
    while len(busy) < actors - 1:  # the slow one's first shard takes half a minute
        time.sleep(0.2)
    first = time.time()
    time.sleep(seconds)
    last = time.time()
    print(f"fleet: {len(pooled.queue)} shards left; a node dies, one joins, one leaves", flush=True)
    fleet.cluster.remove_node(fleet.doomed, allow_graceful=False)
    fleet.join(8)
    time.sleep(8)
    fleet.cluster.remove_node(fleet.nodes.pop(), allow_graceful=True)
    print(f"fleet: {len(pooled.queue)} shards left after it", flush=True)
    return first, last


def _idle_share(busy: dict[int, list[tuple[float, float]]], first: float, last: float) -> float:
    """Share of the window in which engines of the first actors had nothing to do."""
    shares = []
    for spans in busy.values():
        if min(begun for begun, _ in spans) < first and max(ended for _, ended in spans) > first:
            inside = sum(max(0.0, min(ended, last) - max(begun, first)) for begun, ended in spans)
            shares.append(1 - inside / (last - first))
    print(f"fleet: idle share of the median engine {statistics.median(shares):.4f}, of the worst {max(shares):.4f}")
    return statistics.fmean(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, default=64)
    parser.add_argument("--phases", nargs="+", default=["throughput", "fleet", "scale"])
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--after", type=float, default=30)
    parser.add_argument("--slowness", type=float, default=10)
    parser.add_argument("--shards", type=int, default=8000)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    given = parser.parse_args()
    found: dict[str, Any] = {"actors": given.actors}
    fleet = Fleet(given.actors)
    try:
        for phase in given.phases:
            started = time.perf_counter()
            if phase == "throughput":
                found |= throughput(fleet, given.actors, given.shards)
            elif phase == "scale":
                found |= scale(fleet, given.counts)
            else:
                found |= fleet_run(fleet, given.actors, given.seconds, given.after, given.slowness)
            print(f"{phase}: {time.perf_counter() - started:.0f} s", flush=True)
    finally:
        fleet.close()
    cores = len(os.sched_getaffinity(0))
    print(json.dumps({**found, "machine": f"{platform.machine()}, {cores} cores", "ray": ray.__version__}))


if __name__ == "__main__":
    main()
