"""What a stage has left to do, and the loop that does it in this process; `cluster/pool/` has the loop on Ray.

A stage's `prepare` gives its works. A work names the units that are missing (shards, chunks) and says how a worker for them
is made; a worker does one unit at a time. Units are idempotent: the same unit writes the same bytes, whoever does it and
however often. Knows nothing about Ray, engines or what a unit holds.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..progress import Progress, append_json_line
from .artifact import Artifact


class Worker(Protocol):
    """Does units of one work. Cheap to make and to send; what is heavy happens in `start`."""

    def start(self) -> dict[str, Any]:
        """Open what the units need, once per process.

        Returns:
            plain values that say how it went.
        """
        ...

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Do one unit.

        Returns:
            plain values; among them, under the name that the work's `measure` gives, how much was done.
        """
        ...

    def close(self) -> None:
        """Give back what `start` opened: the process may serve another work next."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a worker stands."""

    owns_process: bool = False
    """It is there for this worker and its like: one may end it when its engine dies, so that whoever started it sees a death,
    not an error, and leave out of it what they do not need."""
    executor_backend: str | None = None
    """Who starts the further ranks of its engine, in vLLM's words; None: the engine decides."""
    cpus: int | None = None
    """CPUs that it reserved; None: it has the machine."""
    on_part: Callable[[float], None] | None = None
    """Told of parts of a unit as they are done, in the work's measure; None where nobody listens."""


HERE = Place()


@dataclass(frozen=True)
class Needs:
    """What one worker reserves. A process may serve works of equal needs one after the other."""

    cpus: float = 1.0
    """CPUs of a worker without an engine; where no machine has so many, all of the largest."""
    engine_ranks: int = 0
    """GPUs (on CPUs: processes) of its engine; 0: it has none."""
    units_in_flight: int = 1
    """Units that a worker is given at once, so that it never waits for the driver."""


class Listener:
    """Told what becomes of a work's units, in the driver. Does nothing itself."""

    def on_started(self) -> None:
        """The first worker is ready."""

    def on_done(self, result: dict[str, Any]) -> None:
        """A unit is done: `shard`, `attempt` (from 1) and what `run_unit` returned."""

    def on_failed(self, record: dict[str, Any]) -> None:
        """A unit failed, or its worker died: `shard`, `attempt`, `set_aside` (not tried again) and `error`."""


class DoneLog(Listener):
    """Writes a JSON line for each unit that was done: of what model, and what its worker counted."""

    def __init__(self, path: Path, model_name: str) -> None:
        self._path, self._model = path, model_name

    def on_done(self, result: dict[str, Any]) -> None:
        append_json_line(self._path, {"model": self._model, **result})


class UnitLog(Listener):
    """Writes a JSON line for each unit that was done, or failed; `time` is seconds since this log was opened."""

    def __init__(self, path: Path, model_name: str) -> None:
        self._path, self._model, self._opened = path, model_name, time.time()

    def on_done(self, result: dict[str, Any]) -> None:
        self._write("done", result)

    def on_failed(self, record: dict[str, Any]) -> None:
        event = "set_aside" if record["set_aside"] else "retried"
        self._write(event, {key: value for key, value in record.items() if key != "set_aside"})

    def _write(self, event: str, record: dict[str, Any]) -> None:
        passed = round(time.time() - self._opened, 3)
        append_json_line(self._path, {"model": self._model, "time": passed, "event": event, **record})


@dataclass(frozen=True)
class Work:
    """What is left of one artifact, or of one step towards it."""

    name: str
    """What people read: `align gemma3`."""
    missing: Sequence[int]
    """Numbers of the units that are not done."""
    num_units: int
    """Of the whole work."""
    total: float
    """Of the whole work, in its measure."""
    done: float
    """Of that, before anything was done here."""
    measure: str
    """What is counted: `rows`."""
    make_worker: Callable[[Place], Worker]
    """Can be sent to another process."""
    finish: Callable[[], list[Artifact]]
    """Called when all units are done, also where none was missing; the artifacts that this makes whole."""
    needs: Needs = Needs()
    listener: Listener = field(default_factory=Listener)
    """The stage's own; the driver may have others."""
    unit_name: Callable[[int], str] = "shard {}".format
    """What a unit is called in messages."""


def nothing_left(name: str, make_artifacts: Callable[[], list[Artifact]]) -> Work:
    """A work without units: what is finished already, or takes no worker."""
    return Work(name, (), 0, 0, 0, "", _no_worker, make_artifacts)


def done_before(name: str, made: Artifact) -> Work:
    """The work of an artifact that is finished already."""
    return nothing_left(name, lambda: [made])


def _no_worker(place: Place) -> Worker:
    raise AssertionError("a work without units asks for no worker")


def run_here(works: Sequence[Work], progress: Progress) -> list[Artifact]:
    """Do what is missing in this process, one work after the other, and finish each.

    Returns:
        the artifacts of all works.
    Raises:
        Exception: whatever a worker or a `finish` raises; units that are done are kept.
    """
    artifacts = []
    for work in works:
        if work.missing:
            _run_units(work, progress)
        artifacts += work.finish()
    return artifacts


def _run_units(work: Work, progress: Progress) -> None:
    with progress.task(work.name, work.total, work.measure, done=work.done) as task:
        before = 0.0

        def on_part(amount: float) -> None:
            nonlocal before
            before += amount
            task.advance(amount)

        worker = work.make_worker(Place(on_part=on_part))
        worker.start()
        work.listener.on_started()
        try:
            for unit in work.missing:
                result = worker.run_unit(unit)
                task.advance(result[work.measure] - before)
                before = 0.0
                work.listener.on_done({"shard": unit, "attempt": 1, **result})
        finally:
            worker.close()
