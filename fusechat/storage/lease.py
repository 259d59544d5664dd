"""Who is writing a store: a small document beside the shards that its driver renews, so that a second driver refuses.

The run folder has a lock of its own (`run_lock.py`); a lease is for a store that several run folders share, on an
object store or not. No clock is compared: a holder is alive if its process is there (on the same machine) or if its beat
changes while one looks. Two drivers that take the lease in the same moment both hold it until the next beat, where the
earlier one finds the later one's name and stops; until then both write the same rows of the same recipe.
"""

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil

from ..errors import ArtifactError, BusyError, StorageError
from .artifact import LEASE_FILE, is_finished
from .files import delete, read_json, write_json
from .run_lock import this_process

BEAT_SECONDS = 5.0
"""Between two renewals."""
PATIENCE_SECONDS = 30.0
"""How long a beat is watched for before its holder counts as dead: six missed beats."""
LOOK_SECONDS = 0.5
FIELDS = {"holder": str, "id": str, "host": str, "process": int, "process_started": int | float, "beat": int}
"""Of a lease; what has others is none."""

_held_here: set[str] = set()
"""Ids of the leases that this process holds."""


class Lease:
    """A hold on one store. `check` raises once another driver has taken it."""

    def __init__(self, url: str, beat_seconds: float = BEAT_SECONDS) -> None:
        self.url, self._beat_seconds = f"{url}/{LEASE_FILE}", beat_seconds
        process = psutil.Process()
        self._me: dict[str, Any] = {
            "holder": this_process(),
            "id": uuid.uuid4().hex,
            "host": platform.node(),
            "process": os.getpid(),
            "process_started": process.create_time(),
        }
        self._beats = 0
        self._other = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def take(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Write our name into the store.

        Raises:
            BusyError: another driver holds it and lives.
        """
        current = _read(self.url)
        if current is not None and _is_alive(current, self.url, patience_seconds):
            raise BusyError(
                f"{self.url}: {current['holder']} is writing this store; wait for it, stop it, or choose another run.store"
            )
        self._write()
        _held_here.add(self._me["id"])
        self._thread.start()

    def check(self) -> None:
        """
        Raises:
            BusyError: another driver has taken the store meanwhile (this one stood still, or both began at once).
        """
        if self._other:
            raise BusyError(f"{self.url}: {self._other} has taken this store over; what is finished is kept")

    def end(self) -> None:
        """Give the store back."""
        self._ended.set()
        self._thread.join()
        _held_here.discard(self._me["id"])
        with contextlib.suppress(OSError):
            current = _read(self.url)
            if current is not None and current.get("id") == self._me["id"]:
                delete(self.url)

    def _renew(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            with contextlib.suppress(OSError):  # a store or disk that does not answer now: the next beat will do
                current = _read(self.url)
                if current is not None and current.get("id") != self._me["id"]:
                    self._other = str(current.get("holder"))
                    return
                self._write()

    def _write(self) -> None:
        self._beats += 1
        write_json(self.url, {**self._me, "beat": self._beats})


@contextlib.contextmanager
def hold_store(url: str, if_changed: str) -> Iterator[Lease | None]:
    """Hold a store that is still to be written; None, and nothing is written, for one that is finished: a lease that a driver of
    this machine left there, which died between its last shard's record and the lease's end, is taken away.

    Args:
        if_changed: `run.if_changed`: under `restart` a finished store may be deleted, so it is held as well.
    Raises:
        BusyError: another driver is writing it.
    """
    if if_changed != "restart" and is_finished(url):
        _take_away_of_dead(f"{url}/{LEASE_FILE}")
        yield None
        return
    lease = Lease(url)
    lease.take()
    try:
        yield lease
    finally:
        lease.end()


@contextlib.contextmanager
def hold_stores(urls: Iterable[str], if_changed: str) -> Iterator[Callable[[], None]]:
    """Hold several stores, as `hold_store`; gives a function that raises BusyError once another driver has taken one of them."""
    with contextlib.ExitStack() as stack:
        leases = [stack.enter_context(hold_store(url, if_changed)) for url in urls]

        def check() -> None:
            for lease in leases:
                if lease is not None:
                    lease.check()

        yield check


def _read(url: str) -> dict[str, Any] | None:
    try:
        lease: Any = read_json(url)
    except ArtifactError:  # damaged: whoever wrote it will renew it, or is gone
        return None
    is_whole = isinstance(lease, dict) and all(isinstance(lease.get(name), kind) for name, kind in FIELDS.items())
    return lease if is_whole and lease["process"] > 0 else None


def _take_away_of_dead(url: str) -> None:
    lease = _read(url)
    if lease is not None and lease.get("host") == platform.node() and not _is_alive_here(lease):
        with contextlib.suppress(OSError, StorageError):  # of a store that may only be read
            delete(url)


def _is_alive_here(lease: dict[str, Any]) -> bool:
    """Whether the holder of a lease still runs on this machine."""
    if lease["process"] == os.getpid():
        return lease["id"] in _held_here
    try:
        return bool(abs(psutil.Process(lease["process"]).create_time() - lease["process_started"]) < 1)
    except psutil.NoSuchProcess:
        return False


def _is_alive(lease: dict[str, Any], url: str, patience_seconds: float) -> bool:
    """Whether the holder of a lease still runs."""
    if lease.get("host") == platform.node():
        return _is_alive_here(lease)
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        now = _read(url)
        if now is None:
            return False
        if (now["id"], now["beat"]) != (lease["id"], lease["beat"]):
            return True
    return False
