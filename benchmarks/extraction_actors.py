"""One and two teacher actors on a local Ray, each on a core of its own, over the same shards."""

import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import ray

from cluster.pool.session import ray_session
from fusechat.config import ClusterSection
from fusechat.models.resolved_model import resolve
from inference import stage
from inference.scoring_worker import ScoringWorker

IN_FLIGHT = 2


class PinnedWorker(ScoringWorker):
    """A teacher that keeps to one core, compression and all."""

    def pin(self, core: int) -> None:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {core})


def measure(config: Any, rounds: int, say: Callable[[str], None]) -> dict[int, list[float]]:
    """Number of actors -> seconds for all shards in each round; a first round does not count."""
    model = resolve(config.model_named("teacher"), config.digests_path)
    _, store = stage.claim_store(config.layout, model, config.extraction)
    cores = sorted(os.sched_getaffinity(0))[:2]
    seconds_of: dict[int, list[float]] = {1: [], 2: []}
    with ray_session(ClusterSection(num_cpus=2)):
        make: Any = ray.remote(PinnedWorker).options(num_cpus=1, max_concurrency=IN_FLIGHT)
        actors = [
            make.remote(stage.scoring_inputs(config.layout, model, config.extraction, config.cluster)) for _ in cores
        ]
        ray.get([actor.start.remote() for actor in actors])
        ray.get([actor.pin.remote(core) for actor, core in zip(actors, cores, strict=True)])
        for number in range(rounds + 1):
            for count, seconds in seconds_of.items():
                for array in ("topk_ids", "topk_logprobs", "label_logprob"):
                    shutil.rmtree(f"{store.url}/{array}/c", ignore_errors=True)
                taken = _work_off(actors[:count], list(range(store.layout.num_shards)))
                say(f"round {number} {count} actors: {taken:.2f} s")
                if number:
                    seconds.append(taken)
    return seconds_of


def _work_off(actors: list[Any], shards: list[int]) -> float:
    """Seconds until all shards are written, `IN_FLIGHT` at an actor at a time."""
    started = time.perf_counter()
    waiting: dict[Any, Any] = {}
    free = [actor for actor in actors for _ in range(IN_FLIGHT)]
    while shards or waiting:
        while free and shards:
            actor = free.pop(0)
            waiting[actor.run_unit.remote(shards.pop(0))] = actor
        done, _ = ray.wait(list(waiting))
        for ref in done:
            ray.get(ref)
            free.append(waiting.pop(ref))
    return time.perf_counter() - started
