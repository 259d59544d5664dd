"""A Ray of several nodes on this machine: engines, their ranks, workers of every stage and whole nodes are killed at work."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import psutil

from .command import Running, start
from .trial import Disturbed, Tools
from .world import ON_RAY, SPREAD, Run, World

VARIANTS: dict[str, dict[str, Any]] = {"ray": ON_RAY, "spread": SPREAD}
OBJECT_STORE = 80 * 2**20
"""Bytes, of each node."""
LONGEST_WAIT = 240.0
"""Seconds until the process that is to be killed must be there."""
RANK = ("VLLM::Worker", "multiprocessing.spawn")
"""Names of a rank's process: vLLM renames it, but not in every environment."""
VICTIMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "engine": ("ray", "extract", ("ray::WorkerActor",)), "pool worker": ("ray", "align", ("ray::WorkerActor",)),
    "merge worker": ("ray", "merge", ("ray::WorkerActor",)), "training worker": ("ray", "train", ("ray::RayTrainWorker",)),
    "node": ("ray", "align", ("raylet",)), "rank": ("spread", "extract", RANK),
}  # fmt: skip
"""Whom a fault kills -> which run, the stage from which it is done, and what the process may be called."""


class Nodes:
    """A head without CPUs and one node that stays; more come and die."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": OBJECT_STORE}
        )
        self.stays = self.add()

    def add(self) -> Any:
        """A node with two CPUs."""
        return self.cluster.add_node(num_cpus=2, object_store_memory=OBJECT_STORE)

    def processes(self, names: Sequence[str]) -> list[psutil.Process]:
        """Processes of all nodes that are called so."""
        known = []
        for node in self.cluster.worker_nodes:
            for info in node.all_processes.get("raylet", []):
                with contextlib.suppress(psutil.NoSuchProcess):
                    known += psutil.Process(info.process.pid).children(recursive=True)
        return [process for process in known if _called(process, names)]


def _called(process: psutil.Process, names: Sequence[str]) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        command = " ".join(process.cmdline())
        return any(name in command for name in names)
    return False


@lru_cache(maxsize=1)
def nodes() -> Nodes:
    """The one cluster of this process."""
    return Nodes()


def prepare(world: World, variant: str) -> None:
    """The undisturbed run that faults are compared with, done on the cluster."""
    world.run_file(variant, VARIANTS[variant])
    world.undisturbed(variant, lambda run: start(_on_cluster(run).arguments, alone=False).wait(900))


def _on_cluster(run: Run, *more: str) -> Run:
    return Run(run.file, run.folder, (*run.overrides, f"cluster.address={nodes().cluster.address}", *more))


def kill(whom: str) -> Callable[[Tools], Disturbed]:
    """The fault that kills one such process while it works."""

    def fault(tools: Tools) -> Disturbed:
        return _kill(whom, tools)

    return fault


def _kill(whom: str, tools: Tools) -> Disturbed:
    draw, (variant, stage, names) = tools.draw, VICTIMS[whom]
    prepare(tools.world, variant)
    run = _on_cluster(tools.world.begin(variant, stage, tools.folder / "run"))
    seconds = draw.uniform(0, 4)
    with _doomed_node(whom == "node") as doomed:
        running = start(run.arguments, alone=False)
        killed = _kill_node(running, doomed, seconds) if doomed else _kill_one(running, names, seconds, draw)
        ending = running.wait(900)
    what = f"SIGKILL of {whom} ({killed}) {seconds:.2f} s after it stood, from {stage} on"
    return Disturbed(run, what, [ending], variant, options={"alone": False})


@contextlib.contextmanager
def _doomed_node(wanted: bool) -> Iterator[Any]:
    node = nodes().add() if wanted else None
    try:
        yield node
    finally:
        if node is not None and node in nodes().cluster.worker_nodes:
            nodes().cluster.remove_node(node, allow_graceful=False)


def _kill_one(running: Running, names: Sequence[str], seconds: float, draw: random.Random) -> str:
    victims = _wait_for(running, lambda: nodes().processes(names))
    time.sleep(seconds)
    victims = nodes().processes(names) or victims
    victim = draw.choice(victims) if victims else None
    if victim is None:
        return "none was there"
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.kill()
    return f"process {victim.pid}"


def _kill_node(running: Running, node: Any, seconds: float) -> str:
    _wait_for(running, lambda: nodes().processes(["ray::WorkerActor"]))
    time.sleep(seconds)
    workers = psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
    nodes().cluster.remove_node(node, allow_graceful=False)
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    return f"{len(workers)} processes"


def _wait_for(running: Running, look: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    deadline = time.monotonic() + LONGEST_WAIT
    while running.is_alive() and time.monotonic() < deadline:
        if seen := look():
            return seen
        time.sleep(0.1)
    return []


def end() -> None:
    """End the cluster, if there is one."""
    if nodes.cache_info().currsize:
        nodes().cluster.shutdown()
