"""What the pool knows of a work and of a process: what is queued, what is in flight, what went wrong."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import ActorDiedError

from fusechat.storage.work import Listener, Work

from .placement import Placement


@dataclass(eq=False)
class PooledWork:
    """A work in the pool: what is queued of it, and what went wrong."""

    work: Work
    placement: Placement
    num_workers: Callable[[int], int]
    """Units not done yet -> workers wanted now."""
    listener: Listener = field(default_factory=Listener)
    """The driver's, told after the work's own."""
    queue: deque[tuple[int, int]] = field(init=False)
    """(unit, failed attempts so far)."""
    set_aside: dict[int, str] = field(init=False, default_factory=dict)
    """unit -> last error."""
    failed_starts: int = field(init=False, default=0)
    """In a row."""
    started: bool = field(init=False, default=False)
    failure: BaseException | None = field(init=False, default=None)
    """Set when no worker of this work can start, or what is wrong is wrong for every unit; its units stay undone."""

    def __post_init__(self) -> None:
        self.queue = deque((unit, 0) for unit in self.work.missing)

    @property
    def name(self) -> str:
        return self.work.name

    def takes_workers(self) -> bool:
        """Whether there is something left that a further worker could do."""
        return bool(self.queue) and self.failure is None

    def count_failed_start(self, error: BaseException) -> None:
        """Count a worker that did not start. Of one that was put on a node which Ray did not know to be dead yet that says
        nothing about the work; only the text tells.
        """
        died_with_its_node = isinstance(error, ActorDiedError) and "its node has died" in str(error)
        self.failed_starts += not died_with_its_node

    def listeners(self) -> tuple[Listener, Listener]:
        return self.work.listener, self.listener


@dataclass(eq=False)
class Process:
    """One process of the pool and the work that it serves."""

    pooled: PooledWork
    handle: Any
    group: Any
    stands: bool = False
    """It runs; before, it may wait for room that does not come."""
    ready: bool = False
    """Its worker for `pooled` has started."""
    works_before: int = 0
    units: dict[int, int] = field(default_factory=dict)
    """unit -> failed attempts, of the units in flight here."""

    def may_serve(self, pooled: PooledWork) -> bool:
        """Whether it can go on with another work: the same room, and no bundles on other nodes that an engine was spread over."""
        same = self.pooled.work.needs == pooled.work.needs and self.pooled.placement == pooled.placement
        return same and pooled.placement.is_on_one_node
