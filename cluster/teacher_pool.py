"""Feeds shards to actors until every shard is written or set aside.

Knows nothing about engines: an actor has `start() -> dict` and `run_shard(shard) -> dict`, both cheap to send. An actor
that dies is replaced and its shards are queued again; a shard that fails `max_attempts` times is set aside. Shards are
idempotent (the same shard writes the same bytes), so at-least-once is enough.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from fusechat.errors import FuseChatError

from .placement import release

WAIT_SECONDS = 1.0


@dataclass
class Job:
    """Shards of one store and the actors that may work on them."""

    name: str
    shards: deque[tuple[int, int]]
    """(shard, failed attempts so far)."""
    make_replica: Callable[[], tuple[Any, Any]]
    """-> (actor handle, its placement group or None)."""
    num_replicas: int
    on_done: Callable[[dict[str, Any]], None]
    """Called with what `run_shard` returned."""
    set_aside: dict[int, str] = field(default_factory=dict)
    """shard -> last error."""
    retries: int = 0
    failed_starts: int = 0
    started: bool = False
    failure: BaseException | None = None
    """Set when no actor of this job can start; its shards stay undone."""


@dataclass
class _Replica:
    job: Job
    handle: Any
    group: Any
    ready: bool = False
    shards: dict[int, int] = field(default_factory=dict)
    """shard -> failed attempts, of the shards in flight here."""


class TeacherPool:
    """Runs jobs on replicas: `run` returns when all shards of all jobs are done or set aside."""

    def __init__(self, *, shards_in_flight: int, max_attempts: int, on_event: Callable[[str], None] = print) -> None:
        self.shards_in_flight, self.max_attempts, self._say = shards_in_flight, max_attempts, on_event
        self._calls: dict[Any, tuple[_Replica, int | None]] = {}
        self._replicas: list[_Replica] = []

    def run(self, jobs: list[Job]) -> None:
        """Work off all jobs. What failed stands in each job's `set_aside` and `failure`."""
        try:
            for job in jobs:
                for _ in range(job.num_replicas):
                    self._add_replica(job)
            while self._calls:
                done, _ = ray.wait(list(self._calls), num_returns=1, timeout=WAIT_SECONDS)
                for ref in done:
                    self._handle(ref)
        finally:
            self.close()

    def close(self) -> None:
        """End all actors and give their placement groups back."""
        for replica in list(self._replicas):
            self._drop(replica)

    def _add_replica(self, job: Job) -> None:
        handle, group = job.make_replica()
        replica = _Replica(job, handle, group)
        self._replicas.append(replica)
        self._calls[handle.start.remote()] = (replica, None)

    def _handle(self, ref: Any) -> None:
        replica, shard = self._calls.pop(ref, (None, None))
        if replica is None:
            return  # its actor was dropped while this call was on its way
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            self._call_failed(replica, shard, error)
        except RayActorError as error:
            self._actor_died(replica, shard, error)
        else:
            if shard is None:
                replica.ready = replica.job.started = True
            else:
                del replica.shards[shard]
                replica.job.on_done({"shard": shard, **result})
            self._feed(replica)

    def _feed(self, replica: _Replica) -> None:
        """Send shards until enough are in flight. One that failed before goes alone, so that it harms no other."""
        queue = replica.job.shards
        while queue and len(replica.shards) < self.shards_in_flight:
            alone = queue[0][1] > 0 or any(replica.shards.values())
            if alone and replica.shards:
                break
            shard, attempts = queue.popleft()
            replica.shards[shard] = attempts
            self._calls[replica.handle.run_shard.remote(shard)] = (replica, shard)
        if not queue:
            self._drop_waiting(replica.job)
            if not replica.shards:
                self._drop(replica)

    def _drop_waiting(self, job: Job) -> None:
        """Engines that are still starting have nothing left to do; nothing waits for the slowest node."""
        for other in [other for other in self._replicas if other.job is job and not other.ready]:
            self._drop(other)

    def _call_failed(self, replica: _Replica, shard: int | None, error: RayTaskError) -> None:
        """The actor lives, the call raised: the shard's fault, or the teacher failed its start or self-check."""
        cause = error.cause if isinstance(error.cause, FuseChatError) else error
        if shard is None:
            self._start_failed(replica, cause, final=isinstance(cause, FuseChatError))
            return
        self._retry(replica.job, shard, replica.shards.pop(shard), cause)
        self._feed(replica)

    def _actor_died(self, replica: _Replica, shard: int | None, error: RayActorError) -> None:
        if replica not in self._replicas:
            return  # another call of the same death was handled before
        job = replica.job
        lost, replica.shards = replica.shards, {}
        self._say(f"{job.name}: an engine died with shards {sorted(lost)} in flight: {_first_line(error)}")
        if not replica.ready:
            self._start_failed(replica, error, final=False)
            return
        for lost_shard, attempts in lost.items():
            self._retry(job, lost_shard, attempts, error)
        self._drop(replica)
        if job.shards:
            self._add_replica(job)

    def _start_failed(self, replica: _Replica, error: BaseException, *, final: bool) -> None:
        job = replica.job
        job.failed_starts += 1
        self._drop(replica)
        if final or (job.failed_starts >= self.max_attempts and not job.started):
            job.failure = error
            for other in [other for other in self._replicas if other.job is job]:
                self._drop(other)
        elif job.shards and job.failed_starts < 2 * self.max_attempts:
            self._add_replica(job)
        elif not any(other.job is job for other in self._replicas):
            job.failure = error

    def _retry(self, job: Job, shard: int, attempts: int, error: BaseException) -> None:
        if attempts + 1 >= self.max_attempts:
            job.set_aside[shard] = _first_line(error)
            self._say(f"{job.name}: shard {shard} set aside after {attempts + 1} attempts: {_first_line(error)}")
            return
        job.retries += 1
        self._say(f"{job.name}: shard {shard} will be tried again ({_first_line(error)})")
        job.shards.append((shard, attempts + 1))

    def _drop(self, replica: _Replica) -> None:
        """End an actor and forget its calls."""
        if replica in self._replicas:
            self._replicas.remove(replica)
            self._calls = {ref: call for ref, call in self._calls.items() if call[0] is not replica}
            ray.kill(replica.handle)
            release(replica.group)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (
        lines[-1] if isinstance(error, RayTaskError) and lines else lines[0] if lines else type(error).__name__
    ).strip()
