"""`fusechat run` as a process that can be disturbed: a command in, how it ended out.

Drivers are forked from a process that has everything imported and has the shim preloaded (`shim.c`), so that one begins in
no time. With `alone`, engines live in the driver and nothing starts Ray; without, the driver is the product's own.
"""

import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

SHIM = Path(__file__).with_name("shim.c")
FAIL_WRITES, FAIL_CHANGES, KILL = 1, 2, 3
"""What the shim does at a chosen operation; as in shim.c."""
LONGEST_SECONDS = 300
"""A command that takes longer hangs; an undisturbed one takes some seconds."""


@dataclass(frozen=True)
class Trap:
    """What happens to the driver itself, set before it begins."""

    folder: str = ""
    """Below it files fail."""
    kind: int = 0
    after: int = 0
    """Bytes (FAIL_WRITES) or operations that succeed before."""
    error: int = 0
    """errno of what fails."""
    clock_after: int = -1
    """Readings of the clock before it jumps; -1: never."""
    clock_shift: int = 0
    """Seconds."""
    memory: int = 0
    """Bytes of address space beyond what is taken already; 0: no limit."""


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    status: int
    """Negative: the signal that ended it; `HUNG` where it had to be ended here."""
    stdout: str
    stderr: str
    seconds: float


HUNG = 1000


@dataclass
class Running:
    """A driver at work. `process` is not waited for by anybody else."""

    process: Any
    pid: int
    folder: tempfile.TemporaryDirectory[str]
    started: float = field(default_factory=time.monotonic)

    def is_alive(self) -> bool:
        return bool(self.process.is_alive())

    def send(self, number: int) -> None:
        """A signal to the driver and all that it started in its session."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return

    def wait(self, seconds: float = LONGEST_SECONDS) -> Ending:
        """Wait for its end; one that does not come is made."""
        self.process.join(seconds)
        hung = self.is_alive()
        if hung:
            self.send(signal.SIGKILL)
            self.process.join()
        texts = [Path(self.folder.name, name).read_text(errors="replace") for name in ("stdout", "stderr")]
        self.folder.cleanup()
        return Ending(HUNG if hung else self.process.exitcode, texts[0], texts[1], time.monotonic() - self.started)


@lru_cache(maxsize=1)
def _fork_server() -> Any:
    """The multiprocessing context whose server is warm; its first child takes as long as all imports."""
    library = Path(tempfile.mkdtemp(prefix="faults.")) / "shim.so"
    compiler = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(compiler, check=True, capture_output=True)
    os.environ["FAULTS_SHIM"] = str(library)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.faults.warm"])
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(library)
    try:
        first = context.Process(target=_nothing)
        first.start()
        first.join()
    finally:
        del os.environ["LD_PRELOAD"]
        if before is not None:
            os.environ["LD_PRELOAD"] = before
    return context


def start_server() -> None:
    """Start the process that drivers are forked from; before any threads are."""
    _fork_server()


def _nothing() -> None:
    """The first child, whose start starts the server."""


def start(
    arguments: list[str],
    *,
    alone: bool = True,
    trap: Trap = Trap(),
    environment: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Running:
    """Start `fusechat ARGUMENTS`.

    Args:
        alone: the driver's engines live in it.
        prepare: called in the driver before it begins.
    """
    folder = tempfile.TemporaryDirectory(prefix="faults.")
    process = _fork_server().Process(
        target=_drive, args=(arguments, folder.name, alone, trap, environment or {}, prepare)
    )
    process.start()
    return Running(process, process.pid, folder)


def run(arguments: list[str], **options: Any) -> Ending:
    """The same, and wait for its end."""
    return start(arguments, **options).wait()


def _drive(
    arguments: list[str],
    folder: str,
    alone: bool,
    trap: Trap,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.environ.pop("LD_PRELOAD", None)  # what the driver starts is not disturbed
    os.environ.update(environment)
    sys.argv = ["fusechat", *arguments]
    from cluster import answering
    from cluster.pool import score_on_ray
    from fusechat.app.cli import main
    from fusechat.storage.work import run_here

    if alone:
        here: Any
        for here in (score_on_ray, answering):
            here.run_on_ray = lambda works, *_, progress, **__: run_here(works, progress)
            here.ray_session = lambda section: contextlib.nullcontext()
            here.check_cluster = lambda *_: None
    if prepare is not None:
        prepare()
    _set(trap)
    main()


def _set(trap: Trap) -> None:
    shim = ctypes.CDLL(os.environ["FAULTS_SHIM"])
    if trap.kind:
        shim.fault_files(trap.folder.encode(), trap.kind, ctypes.c_long(trap.after), trap.error)
    if trap.clock_after >= 0:
        shim.fault_clock(ctypes.c_long(trap.clock_after), ctypes.c_long(trap.clock_shift))
    if trap.memory:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + trap.memory, resource.RLIM_INFINITY))
