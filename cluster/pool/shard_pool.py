"""Feeds shards to workers (Ray actors) until every shard is written or set aside.

Knows nothing about what a worker does: it has `start() -> dict` and `run_shard(shard) -> dict`, both cheap to send. A worker
that dies is replaced and its shards are queued again; a shard that fails `max_attempts` times is set aside. Shards are
idempotent (the same shard writes the same bytes), so at-least-once is enough. How many workers a job wants is asked again
every few seconds, so that nodes that join late get some.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from fusechat.errors import ArtifactError, ClusterError, FuseChatError, ModelError, StorageError, UserError, first_line

from .placement import release

WAIT_SECONDS = 1.0
SCALE_SECONDS = 5.0
"""Between two looks at how many actors a job wants."""
FINAL = (StorageError, ArtifactError, ModelError)
"""What no further try can cure: a store that is full, read-only or away for long, damaged inputs, another model."""
MAX_REASON = 300
"""Characters of Ray's account of a death."""


@dataclass
class Job:
    """Shards of one store and the workers that may work on them."""

    name: str
    shards: InitVar[list[int]]
    """What is to be done."""
    make_replica: Callable[[], tuple[Any, Any]]
    """-> (actor handle, its placement group or None)."""
    num_replicas: Callable[[int], int]
    """Shards not done yet -> workers wanted now."""
    on_done: Callable[[dict[str, Any]], None]
    """Called with shard, attempt (from 1) and what `run_shard` returned."""
    on_started: Callable[[], None] = lambda: None
    """Called when the first worker is ready."""
    on_failed: Callable[[dict[str, Any]], None] = lambda record: None
    """Called with shard, attempt, set_aside and error when a shard failed or its worker died."""
    shard_name: Callable[[int], str] = "shard {}".format
    """What a shard is called in messages."""
    queue: deque[tuple[int, int]] = field(init=False)
    """(shard, failed attempts so far)."""
    set_aside: dict[int, str] = field(init=False, default_factory=dict)
    """shard -> last error."""
    failed_starts: int = field(init=False, default=0)
    """In a row."""
    started: bool = field(init=False, default=False)
    failure: BaseException | None = field(init=False, default=None)
    """Set when no worker of this job can start, or what is wrong is wrong for every shard; its shards stay undone."""

    def __post_init__(self, shards: list[int]) -> None:
        self.queue = deque((shard, 0) for shard in shards)


@dataclass
class _Replica:
    job: Job
    handle: Any
    group: Any
    ready: bool = False
    shards: dict[int, int] = field(default_factory=dict)
    """shard -> failed attempts, of the shards in flight here."""


class ShardPool:
    """Runs jobs on replicas: `run` returns when all shards of all jobs are done or set aside."""

    def __init__(
        self,
        *,
        shards_in_flight: int,
        max_attempts: int,
        on_event: Callable[[str], None] = print,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            on_tick: called at least every second; what it raises ends the run.
        """
        self.shards_in_flight, self.max_attempts = shards_in_flight, max_attempts
        self._say, self._tick = on_event, on_tick
        self._calls: dict[Any, tuple[_Replica, int | None]] = {}
        self._replicas: list[_Replica] = []

    def run(self, jobs: list[Job]) -> None:
        """Work off all jobs. What failed stands in each job's `set_aside` and `failure`."""
        try:
            scaled = float("-inf")
            while True:
                if time.monotonic() - scaled >= SCALE_SECONDS:
                    scaled = time.monotonic()
                    for job in jobs:
                        self._scale(job)
                if not self._calls:
                    return
                done, _ = ray.wait(list(self._calls), num_returns=1, timeout=WAIT_SECONDS)
                for ref in done:
                    self._handle(ref)
                self._tick()
        finally:
            self.close()

    def close(self) -> None:
        """End all workers and give their placement groups back."""
        for replica in list(self._replicas):
            self._drop(replica)

    def num_ready(self, job: Job) -> int:
        """Workers of a job that are at work or could be."""
        return sum(replica.ready for replica in self._of(job))

    def _of(self, job: Job) -> list[_Replica]:
        return [replica for replica in self._replicas if replica.job is job]

    def _scale(self, job: Job) -> None:
        """Start the workers that a job wants and lacks. Those without a place wait: an autoscaler goes by them."""
        if not job.queue or job.failure is not None:
            return
        here = self._of(job)
        wanted = job.num_replicas(len(job.queue) + sum(len(replica.shards) for replica in here))
        if job.failed_starts < 2 * self.max_attempts:
            for _ in range(wanted - len(here)):
                self._add_replica(job)
        elif not here:
            job.failure = ClusterError(f"the last {job.failed_starts} workers did not start")

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
        except RayError as error:  # death, no memory, no place that could ever hold it
            self._actor_died(replica, error)
        else:
            if shard is None:
                self._became_ready(replica)
            else:
                attempts = replica.shards.pop(shard)
                replica.job.on_done({"shard": shard, "attempt": attempts + 1, **result})
            self._feed(replica)

    def _became_ready(self, replica: _Replica) -> None:
        job, replica.ready, replica.job.failed_starts = replica.job, True, 0
        if not job.started:
            job.started = True
            job.on_started()

    def _feed(self, replica: _Replica) -> None:
        """Send shards until enough are in flight. One that failed before goes alone, so that it harms no other."""
        queue = replica.job.queue
        while queue and len(replica.shards) < self.shards_in_flight:
            alone = queue[0][1] > 0 or any(replica.shards.values())
            if replica.shards and (alone or not self._may_take_ahead(replica)):
                break
            shard, attempts = queue.popleft()
            replica.shards[shard] = attempts
            self._calls[replica.handle.run_shard.remote(shard)] = (replica, shard)
        if not queue:
            self._drop_waiting(replica.job)
            if not replica.shards:
                self._drop(replica)

    def _may_take_ahead(self, replica: _Replica) -> bool:
        """Whether a busy worker may hold one more shard without another one standing idle for it at the end."""
        others = [other for other in self._of(replica.job) if other is not replica]
        idle = sum(not other.shards for other in others)
        return len(replica.job.queue) - idle > len(others)

    def _drop_waiting(self, job: Job) -> None:
        """Workers that are still starting have nothing left to do; nothing waits for the slowest node."""
        for other in [other for other in self._of(job) if not other.ready]:
            self._drop(other)

    def _call_failed(self, replica: _Replica, shard: int | None, error: RayTaskError) -> None:
        """The worker lives, the call raised: the shard's fault, or the worker failed its start (a teacher: its self-check)."""
        cause = error.cause if isinstance(error.cause, FuseChatError) else error
        if shard is None:
            # What is wrong with the first worker is wrong with all; of a later one it may be its node.
            final = isinstance(cause, FuseChatError) and not replica.job.started
            self._start_failed(replica, cause, final=final)
            return
        if isinstance(cause, FINAL):
            self._give_up(replica.job, cause)
            return
        self._retry(replica.job, shard, replica.shards.pop(shard), cause)
        self._feed(replica)

    def _actor_died(self, replica: _Replica, error: RayError) -> None:
        if replica not in self._replicas:
            return  # another call of the same death was handled before
        job = replica.job
        lost, replica.shards = replica.shards, {}
        self._say(f"{job.name}: a worker died with shards {sorted(lost)} in flight: {_reason(error)}")
        if not replica.ready:
            self._start_failed(replica, error, final=False)
            return
        for lost_shard, attempts in lost.items():
            self._retry(job, lost_shard, attempts, error)
        self._drop(replica)
        self._scale(job)

    def _start_failed(self, replica: _Replica, error: BaseException, *, final: bool) -> None:
        job = replica.job
        job.failed_starts += not _died_with_its_node(error)
        self._drop(replica)
        if final or (job.failed_starts >= self.max_attempts and not job.started):
            self._give_up(job, error)
            return
        self._say(f"{job.name}: a worker did not start: {_reason(error)}")
        self._scale(job)

    def _give_up(self, job: Job, error: BaseException) -> None:
        job.failure = error
        for replica in self._of(job):
            self._drop(replica)

    def _retry(self, job: Job, shard: int, attempts: int, error: BaseException) -> None:
        why, final = _reason(error), attempts + 1 >= self.max_attempts
        job.on_failed({"shard": shard, "attempt": attempts + 1, "set_aside": final, "error": why})
        if final:
            job.set_aside[shard] = why
            self._say(f"{job.name}: {job.shard_name(shard)} set aside after {attempts + 1} attempts: {why}")
            return
        self._say(f"{job.name}: {job.shard_name(shard)} will be tried again ({why})")
        job.queue.append((shard, attempts + 1))

    def _drop(self, replica: _Replica) -> None:
        """End a worker and forget its calls."""
        if replica in self._replicas:
            self._replicas.remove(replica)
            self._calls = {ref: call for ref, call in self._calls.items() if call[0] is not replica}
            ray.kill(replica.handle)
            release(replica.group)


def raise_failures(jobs: list[Job]) -> None:
    """End with what failed, if anything did; all that was done is kept.

    Raises:
        UserError: a job's own, as its worker raised it.
        ClusterError: jobs whose workers did not start, and shards that were set aside; all are named.
    """
    failures = {job.name: job.failure for job in jobs if job.failure is not None}
    for failure in failures.values():
        if isinstance(failure, UserError):
            raise failure
    lines = [
        f"  {name}: no worker could start: {failure if isinstance(failure, FuseChatError) else _reason(failure)}"
        for name, failure in failures.items()
    ]
    lines += [
        f"  set aside: {job.name}, {job.shard_name(shard)}: {why}"
        for job in jobs
        for shard, why in sorted(job.set_aside.items())
    ]
    if lines:
        raise ClusterError(
            "not all could be done; the rest is kept, and the same command tries again:\n" + "\n".join(lines)
        ) from next(iter(failures.values()), None)


def _died_with_its_node(error: BaseException) -> bool:
    """A worker that was put on a node which Ray did not know to be dead yet says nothing about the job; only the text tells."""
    return isinstance(error, ActorDiedError) and "its node has died" in str(error)


def _reason(error: BaseException) -> str:
    """What a person wants to know of an error: the last line of a task's, Ray's own reason for a death."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayTaskError) and lines:
        return lines[-1]
    if isinstance(error, RayActorError):
        reasons = [line for line in lines[1:] if ":" not in line.split(" ")[0]]
        return " ".join([*lines[:1], *reasons])[:MAX_REASON]
    return first_line(error)
