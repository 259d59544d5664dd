"""What bench_pool puts in the place of machines and engines: Ray nodes on this machine, actors without a model."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster.pool.placement import Placement
from cluster.pool.pooled_work import PooledWork
from fusechat.storage.work import Listener, Needs, Place, Work

SEAT = "seat"
"""What an actor takes of its node, in place of CPUs and GPUs that this machine does not have."""
IN_FLIGHT = 2
POISON = 20


class SimulatedTeacher:
    """The actor interface with a sleep in the engine's place."""

    def __init__(
        self,
        folder: str,
        shortest: float,
        longest: float,
        slow: int | None,
        slowness: float,
        together: int,
        place: Place,
    ) -> None:
        self.folder, self.slow, self.slowness, self.together = Path(folder), slow, slowness, together
        self.shortest, self.spread = shortest, longest - shortest
        self.engine = threading.Lock()

    def start(self) -> dict[str, Any]:
        """Takes the next number, and waits for the others: shards that take no time would be gone before the last process is up."""
        for self.number in count():
            with contextlib.suppress(FileExistsError):
                (self.folder / f"started.{self.number}").touch(exist_ok=False)
                break
        if self.number != self.slow:
            self.slowness = 1.0
        while sum(1 for _ in self.folder.glob("started.*")) < self.together:
            time.sleep(0.5)
        return {}

    def run_unit(self, unit: int) -> dict[str, Any]:
        if not self.spread:
            return {"rows": 1}
        with (self.folder / f"begun.{unit}").open("a") as file:
            file.write("x")
        if unit == POISON:
            raise ValueError("poison")
        with self.engine:
            begun = time.time()
            time.sleep((self.shortest + self.spread * (unit * 0.61803 % 1)) * self.slowness)
            ended = time.time()
        (self.folder / f"done.{unit}").touch()
        return {"rows": 1, "actor": self.number, "begun": begun, "ended": ended}

    def close(self) -> None:
        """Nothing was opened."""


@dataclass(frozen=True)
class SeatPlacement(Placement):
    """One seat of a node."""

    def actor_options(self, group: Any) -> dict[str, Any]:
        return {"num_cpus": 0, "resources": {SEAT: 1}, "max_restarts": 0}


class Results(Listener):
    """Passes the results of units on."""

    def __init__(self, on_done: Callable[[dict[str, Any]], None]) -> None:
        self._on_done = on_done

    def on_done(self, result: dict[str, Any]) -> None:
        self._on_done(result)


class Fleet:
    """Nodes on this machine, and works of simulated teachers on them."""

    def __init__(self, actors: int) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        per_node = -(-actors // 4)
        self.nodes = [self.join(per_node) for _ in range(3)] + [self.join(max(1, actors - 3 * per_node - 4))]
        self.doomed = self.join(4)

    def join(self, actors: int) -> Any:
        """A node with room for so many actors."""
        return self.cluster.add_node(num_cpus=1, resources={SEAT: actors}, object_store_memory=80 * 2**20)

    def pooled(
        self, actors: int, shards: int, folder: str, on_done: Callable[[dict[str, Any]], None], *,
        seconds: tuple[float, float] = (0, 0), slow: int | None = None, slowness: float = 10.0,
    ) -> PooledWork:  # fmt: skip
        """Shards for so many actors; the actor numbered `slow` takes `slowness` times as long."""
        make_worker = partial(SimulatedTeacher, folder, *seconds, slow, slowness, actors)
        work = Work(
            name="simulated", missing=range(shards), num_units=shards, total=shards, done=0, measure="rows",
            make_worker=make_worker, finish=list, needs=Needs(units_in_flight=IN_FLIGHT),
        )  # fmt: skip
        return PooledWork(work, SeatPlacement(0, 0, "uni"), lambda left: min(actors, left), Results(on_done))

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()
