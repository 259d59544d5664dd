"""The loop on Ray: gives units to workers in other processes until every unit is done or set aside.

Knows nothing about what a worker does, see `fusechat.storage.work`. A worker whose process dies is replaced and its units
are queued again; a unit that fails `max_attempts` times is set aside. Units are idempotent, so at-least-once is enough. How
many workers a work wants is asked again every few seconds, so that nodes that join late get some. A process whose work has
nothing left serves the next work of the same needs, where that still waits for a place.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from fusechat.errors import ArtifactError, ClusterError, FuseChatError, ModelError, StorageError, UserError, first_line
from fusechat.storage.work import Listener, Work

from .placement import Placement, release, start_actor

WAIT_SECONDS = 1.0
SCALE_SECONDS = 5.0
"""Between two looks at how many processes a work wants."""
FINAL = (StorageError, ArtifactError, ModelError)
"""What no further try can cure: a store that is full, read-only or away for long, damaged inputs, another model."""
MAX_REASON = 300
"""Characters of Ray's account of a death."""
STAND, BEGIN = "stand", "begin"
"""What a process is asked beside units: whether it runs, and to start a work's worker."""


@dataclass(eq=False)
class Job:
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

    def listeners(self) -> tuple[Listener, Listener]:
        return self.work.listener, self.listener


@dataclass(eq=False)
class _Process:
    """One process of the pool and the work that it serves."""

    job: Job
    handle: Any
    group: Any
    stands: bool = False
    """It runs; before, it may wait for room that does not come."""
    ready: bool = False
    """Its worker for `job` has started."""
    works_before: int = 0
    units: dict[int, int] = field(default_factory=dict)
    """unit -> failed attempts, of the units in flight here."""

    def may_serve(self, job: Job) -> bool:
        """Whether it can go on with another work: the same room, and no bundles on other nodes that an engine was spread over."""
        same = self.job.work.needs == job.work.needs and self.job.placement == job.placement
        return same and job.placement.is_on_one_node


class WorkerPool:
    """Does works on processes of their own, for the time of a `with` block."""

    def __init__(
        self,
        *,
        max_attempts: int,
        on_event: Callable[[str], None] = print,
        on_tick: Callable[[], None] = lambda: None,
        keeps_idle: bool = False,
    ) -> None:
        """
        Args:
            max_attempts: tries per unit, and starts in a row that may fail before the first that succeeds.
            on_event: told what went wrong and what is done about it.
            on_tick: called at least every second; what it raises ends the run.
            keeps_idle: processes that have nothing left stay for the next call of `run`.
        """
        self.max_attempts, self.keeps_idle = max_attempts, keeps_idle
        self._say, self._tick = on_event, on_tick
        self._calls: dict[Any, tuple[_Process, int | str]] = {}
        self._processes: list[_Process] = []
        self._idle: list[_Process] = []
        self._jobs: Sequence[Job] = ()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all works. What failed stands in each job's `set_aside` and `failure`."""
        self._jobs, scaled = jobs, float("-inf")
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

    def close(self) -> None:
        """End all processes and give their placement groups back."""
        for process in [*self._processes, *self._idle]:
            self._drop(process)

    def num_ready(self, job: Job) -> int:
        """Workers of a work that are busy or could be."""
        return sum(process.ready for process in self._of(job))

    def _of(self, job: Job) -> list[_Process]:
        return [process for process in self._processes if process.job is job]

    def _scale(self, job: Job) -> None:
        """Start the workers that a work wants and lacks. Those without a place wait: an autoscaler goes by them."""
        if not job.takes_workers():
            return
        own = self._of(job)
        wanted = job.num_workers(len(job.queue) + sum(len(process.units) for process in own))
        if job.failed_starts < 2 * self.max_attempts:
            for _ in range(wanted - len(own)):
                self._add_worker(job)
        elif not own:
            job.failure = ClusterError(f"the last {job.failed_starts} workers did not start")

    def _add_worker(self, job: Job) -> None:
        idle = next((process for process in self._idle if process.may_serve(job)), None)
        if idle is not None:
            self._idle.remove(idle)
            self._processes.append(idle)
            self._serve(idle, job)
            return
        handle, group = start_actor(job.placement, calls_at_once=job.work.needs.units_in_flight)
        process = _Process(job, handle, group)
        self._processes.append(process)
        self._calls[handle.stand.remote()] = (process, STAND)
        self._calls[handle.begin.remote(job.work.make_worker)] = (process, BEGIN)

    def _serve(self, process: _Process, job: Job) -> None:
        """Let a process without units go on with another work."""
        process.job, process.ready, process.works_before = job, False, process.works_before + 1
        self._calls[process.handle.begin.remote(job.work.make_worker)] = (process, BEGIN)

    def _handle(self, ref: Any) -> None:
        process, asked = self._calls.pop(ref, (None, ""))
        if process is None:
            return  # its process was dropped while this call was on its way
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            self._call_failed(process, asked, error)
            return
        except RayError as error:  # death, no memory, no place that could ever hold it
            self._process_died(process, error)
            return
        if asked == STAND:
            process.stands = True
            return
        if isinstance(asked, int):
            attempts = process.units.pop(asked)
            for listener in process.job.listeners():
                listener.on_done({"shard": asked, "attempt": attempts + 1, **result})
        else:
            self._became_ready(process)
        self._feed(process)

    def _became_ready(self, process: _Process) -> None:
        job, process.ready, process.job.failed_starts = process.job, True, 0
        if not job.started:
            job.started = True
            for listener in job.listeners():
                listener.on_started()

    def _feed(self, process: _Process) -> None:
        """Send units until enough are in flight. One that failed before goes alone, so that it harms no other."""
        job = process.job
        while job.queue and len(process.units) < job.work.needs.units_in_flight:
            alone = job.queue[0][1] > 0 or any(process.units.values())
            if process.units and (alone or not self._may_take_ahead(process)):
                break
            unit, attempts = job.queue.popleft()
            process.units[unit] = attempts
            self._calls[process.handle.run_unit.remote(unit)] = (process, unit)
        if not job.queue:
            self._drop_waiting(job)
            if not process.units:
                self._leave(process)

    def _may_take_ahead(self, process: _Process) -> bool:
        """Whether a busy worker may hold one more unit without another one standing idle for it at the end."""
        others = [other for other in self._of(process.job) if other is not process]
        idle = sum(not other.units for other in others)
        return len(process.job.queue) - idle > len(others)

    def _drop_waiting(self, job: Job) -> None:
        """Workers that are still starting have nothing left to do; nothing waits for the slowest node."""
        for other in [other for other in self._of(job) if not other.ready]:
            self._drop(other)

    def _leave(self, process: _Process) -> None:
        """Its work has nothing left: it takes the place of a process that another work waits for, or ends."""
        for job in self._jobs:
            waiting = [other for other in self._of(job) if not other.stands]
            if waiting and job.takes_workers() and process.may_serve(job):
                self._drop(waiting[0])
                self._serve(process, job)
                return
        if not self.keeps_idle:
            self._drop(process)
        else:
            self._processes.remove(process)
            self._idle.append(process)

    def _call_failed(self, process: _Process, asked: int | str, error: RayTaskError) -> None:
        """The process lives, the call raised: the unit's fault, or the worker failed its start (a teacher: its self-check)."""
        job, cause = process.job, error.cause if isinstance(error.cause, FuseChatError) else error
        if not isinstance(asked, int):
            # What is wrong with the first worker is wrong with all; of a later one it may be its node, of one in a process
            # that served before it may be what that left.
            first = not job.started and not process.works_before
            self._start_failed(process, cause, final=first and isinstance(cause, FuseChatError))
            return
        if isinstance(cause, FINAL):
            self._give_up(job, cause)
            return
        self._retry(job, asked, process.units.pop(asked), cause)
        self._feed(process)

    def _process_died(self, process: _Process, error: RayError) -> None:
        if process in self._idle:
            self._idle.remove(process)
        if process not in self._processes:
            return  # another call of the same death was handled before
        job = process.job
        lost, process.units = process.units, {}
        self._say(f"{job.name}: a worker died with shards {sorted(lost)} in flight: {_reason(error)}")
        if not process.ready:
            self._start_failed(process, error, final=False)
            return
        for unit, attempts in lost.items():
            self._retry(job, unit, attempts, error)
        self._drop(process)
        self._scale(job)

    def _start_failed(self, process: _Process, error: BaseException, *, final: bool) -> None:
        job = process.job
        job.failed_starts += not _died_with_its_node(error)
        self._drop(process)
        if final or (job.failed_starts >= self.max_attempts and not job.started):
            self._give_up(job, error)
            return
        self._say(f"{job.name}: a worker did not start: {_reason(error)}")
        self._scale(job)

    def _give_up(self, job: Job, error: BaseException) -> None:
        job.failure = error
        for process in self._of(job):
            self._drop(process)

    def _retry(self, job: Job, unit: int, attempts: int, error: BaseException) -> None:
        why, final = _reason(error), attempts + 1 >= self.max_attempts
        for listener in job.listeners():
            listener.on_failed({"shard": unit, "attempt": attempts + 1, "set_aside": final, "error": why})
        name = job.work.unit_name(unit)
        if final:
            job.set_aside[unit] = why
            self._say(f"{job.name}: {name} set aside after {attempts + 1} attempts: {why}")
            return
        self._say(f"{job.name}: {name} will be tried again ({why})")
        job.queue.append((unit, attempts + 1))

    def _drop(self, process: _Process) -> None:
        """End a process and forget its calls."""
        for processes in (self._processes, self._idle):
            if process in processes:
                processes.remove(process)
                self._calls = {ref: call for ref, call in self._calls.items() if call[0] is not process}
                ray.kill(process.handle)
                release(process.group)


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
        f"  set aside: {job.name}, {job.work.unit_name(unit)}: {why}"
        for job in jobs
        for unit, why in sorted(job.set_aside.items())
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
