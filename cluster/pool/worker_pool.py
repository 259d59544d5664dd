"""The loop on Ray: gives units to workers in other processes until every unit is done or set aside.

Knows nothing about what a worker does, see `fusechat.storage.work`. A worker whose process dies is replaced and its units
are queued again; a unit that fails `max_attempts` times is set aside. Units are idempotent, so at-least-once is enough. How
many workers a work wants is asked again every few seconds, so that nodes that join late get some. A process whose work has
nothing left serves the next work of the same needs, where that still waits for a place.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fusechat.errors import ArtifactError, ClusterError, FuseChatError, ModelError, StorageError

from .failures import reason_of
from .placement import release, start_actor
from .pooled_work import PooledWork, Process

WAIT_SECONDS = 1.0
SCALE_SECONDS = 5.0
"""Between two looks at how many processes a work wants."""
FINAL = (StorageError, ArtifactError, ModelError)
"""What no further try can cure: a store that is full, read-only or away for long, damaged inputs, another model."""
STAND, BEGIN = "stand", "begin"
"""What a process is asked beside units: whether it runs, and to start a work's worker."""


class WorkerPool:
    """Does works on processes of their own, for the time of a `with` block."""

    def __init__(self, *, max_attempts: int, on_event: Callable[[str], None], keeps_idle: bool = False) -> None:
        """
        Args:
            max_attempts: tries per unit, and starts in a row that may fail before the first that succeeds.
            on_event: told what went wrong and what is done about it.
            keeps_idle: processes that have nothing left stay for the next call of `run`.
        """
        self.max_attempts, self.keeps_idle = max_attempts, keeps_idle
        self._say = on_event
        self.on_tick: Callable[[], None] = lambda: None
        """Called at least every second; what it raises ends the run."""
        self._calls: dict[Any, tuple[Process, int | str]] = {}
        self._processes: list[Process] = []
        self._idle: list[Process] = []
        self._works: Sequence[PooledWork] = ()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, works: Sequence[PooledWork]) -> None:
        """Do all works. What failed stands in each one's `set_aside` and `failure`."""
        self._works, scaled = works, float("-inf")
        while True:
            if time.monotonic() - scaled >= SCALE_SECONDS:
                scaled = time.monotonic()
                for pooled in works:
                    self._scale(pooled)
            if not self._calls:
                return
            for ref in ray.wait(list(self._calls), num_returns=1, timeout=WAIT_SECONDS)[0]:
                self._handle(ref)
            self.on_tick()

    def close(self) -> None:
        """End all processes and give their placement groups back."""
        for process in [*self._processes, *self._idle]:
            self._drop(process)

    def num_ready(self, pooled: PooledWork) -> int:
        """Workers of a work that are busy or could be."""
        return sum(process.ready for process in self._of(pooled))

    def _of(self, pooled: PooledWork) -> list[Process]:
        return [process for process in self._processes if process.pooled is pooled]

    def _scale(self, pooled: PooledWork) -> None:
        """Start the workers that a work wants and lacks. Those without a place wait: an autoscaler goes by them."""
        if not pooled.takes_workers():
            return
        own = self._of(pooled)
        wanted = pooled.num_workers(len(pooled.queue) + sum(len(process.units) for process in own))
        if pooled.failed_starts < 2 * self.max_attempts:
            for _ in range(wanted - len(own)):
                self._add_worker(pooled)
        elif not own:
            pooled.failure = ClusterError(f"the last {pooled.failed_starts} workers did not start")

    def _add_worker(self, pooled: PooledWork) -> None:
        idle = next((process for process in self._idle if process.may_serve(pooled)), None)
        if idle is not None:
            self._idle.remove(idle)
            self._processes.append(idle)
            self._serve(idle, pooled)
            return
        for other in list(self._idle):  # of other needs: it would hold the room that the new one waits for
            self._drop(other)
        handle, group = start_actor(pooled.placement, calls_at_once=pooled.work.needs.units_in_flight)
        process = Process(pooled, handle, group)
        self._processes.append(process)
        self._calls[handle.stand.remote()] = (process, STAND)
        self._calls[handle.begin.remote(pooled.work.make_worker)] = (process, BEGIN)

    def _serve(self, process: Process, pooled: PooledWork) -> None:
        """Let a process without units go on with another work."""
        process.pooled, process.ready, process.works_before = pooled, False, process.works_before + 1
        self._calls[process.handle.begin.remote(pooled.work.make_worker)] = (process, BEGIN)

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
            for listener in process.pooled.listeners():
                listener.on_done({"shard": asked, "attempt": attempts + 1, **result})
        else:
            self._became_ready(process)
        self._feed(process)

    def _became_ready(self, process: Process) -> None:
        pooled, process.ready, process.pooled.failed_starts = process.pooled, True, 0
        if not pooled.started:
            pooled.started = True
            for listener in pooled.listeners():
                listener.on_started()

    def _feed(self, process: Process) -> None:
        """Send units until enough are in flight. One that failed before goes alone, so that it harms no other."""
        pooled = process.pooled
        while pooled.queue and len(process.units) < pooled.work.needs.units_in_flight:
            alone = pooled.queue[0][1] > 0 or any(process.units.values())
            if process.units and (alone or not self._may_take_ahead(process)):
                break
            unit, attempts = pooled.queue.popleft()
            process.units[unit] = attempts
            self._calls[process.handle.run_unit.remote(unit)] = (process, unit)
        if not pooled.queue:
            self._drop_waiting(pooled)
            if not process.units:
                self._leave(process)

    def _may_take_ahead(self, process: Process) -> bool:
        """Whether a busy worker may hold one more unit without another one standing idle for it at the end."""
        others = [other for other in self._of(process.pooled) if other is not process]
        idle = sum(not other.units for other in others)
        return len(process.pooled.queue) - idle > len(others)

    def _drop_waiting(self, pooled: PooledWork) -> None:
        """Workers that are still starting have nothing left to do; nothing waits for the slowest node."""
        for other in [other for other in self._of(pooled) if not other.ready]:
            self._drop(other)

    def _leave(self, process: Process) -> None:
        """Its work has nothing left: it takes the place of a process that another work waits for, or ends."""
        for pooled in self._works:
            waiting = [other for other in self._of(pooled) if not other.stands]
            if waiting and pooled.takes_workers() and process.may_serve(pooled):
                self._drop(waiting[0])
                self._serve(process, pooled)
                return
        is_waited_for = any(not other.stands for other in self._processes)
        if not self.keeps_idle or is_waited_for:
            self._drop(process)
        else:
            self._processes.remove(process)
            self._idle.append(process)

    def _call_failed(self, process: Process, asked: int | str, error: RayTaskError) -> None:
        """The process lives, the call raised: the unit's fault, or the worker failed its start (a teacher: its self-check)."""
        pooled, cause = process.pooled, error.cause if isinstance(error.cause, FuseChatError) else error
        if not isinstance(asked, int):
            # What is wrong with the first worker is wrong with all; of a later one it may be its node, of one in a process
            # that served before it may be what that left.
            first = not pooled.started and not process.works_before
            self._start_failed(process, cause, final=first and isinstance(cause, FuseChatError))
            return
        if isinstance(cause, FINAL):
            self._give_up(pooled, cause)
            return
        self._retry(pooled, asked, process.units.pop(asked), cause)
        self._feed(process)

    def _process_died(self, process: Process, error: RayError) -> None:
        if process in self._idle:
            self._idle.remove(process)
        if process not in self._processes:
            return  # another call of the same death was handled before
        pooled = process.pooled
        lost, process.units = process.units, {}
        self._say(f"{pooled.name}: a worker died with shards {sorted(lost)} in flight: {reason_of(error)}")
        if not process.ready:
            self._start_failed(process, error, final=False)
            return
        for unit, attempts in lost.items():
            self._retry(pooled, unit, attempts, error)
        self._drop(process)
        self._scale(pooled)

    def _start_failed(self, process: Process, error: BaseException, *, final: bool) -> None:
        pooled = process.pooled
        pooled.count_failed_start(error)
        self._drop(process)
        if final or (pooled.failed_starts >= self.max_attempts and not pooled.started):
            self._give_up(pooled, error)
            return
        self._say(f"{pooled.name}: a worker did not start: {reason_of(error)}")
        self._scale(pooled)

    def _give_up(self, pooled: PooledWork, error: BaseException) -> None:
        pooled.failure = error
        for process in self._of(pooled):
            self._drop(process)

    def _retry(self, pooled: PooledWork, unit: int, attempts: int, error: BaseException) -> None:
        why, final = reason_of(error), attempts + 1 >= self.max_attempts
        for listener in pooled.listeners():
            listener.on_failed({"shard": unit, "attempt": attempts + 1, "set_aside": final, "error": why})
        name = pooled.work.unit_name(unit)
        if final:
            pooled.set_aside[unit] = why
            self._say(f"{pooled.name}: {name} set aside after {attempts + 1} attempts: {why}")
            return
        self._say(f"{pooled.name}: {name} will be tried again ({why})")
        pooled.queue.append((unit, attempts + 1))

    def _drop(self, process: Process) -> None:
        """End a process and forget its calls."""
        for processes in (self._processes, self._idle):
            if process in processes:
                processes.remove(process)
                self._calls = {ref: call for ref, call in self._calls.items() if call[0] is not process}
                ray.kill(process.handle)
                release(process.group)
