"""`python -m cluster.service.host NAME`: holds the local Ray of one service, and the service in it, until it is told to end.

Goes in: the service's spec, which the command wrote. Comes out: its record, once every engine answers; else a line that says
why not. `--keep` runs a second such process as a child and starts it anew whenever it dies, with Ray and all that is in it.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import psutil

from fusechat.errors import ClusterError, FuseChatError, first_line

from .records import Process, path_of, write_private, write_record
from .spec import ServiceSpec

OBJECT_STORE_BYTES = 400 * 2**20
"""Of the local Ray: bodies of requests and replies go through it. Taken as it is used."""
LOOK_SECONDS = 1.0
"""Between two looks at whether Ray's node lives."""
RAY_STARTS = 3
"""A busy machine may take longer for one than Ray waits."""
REST_SECONDS = (1, 2, 5, 10, 30)
"""Between a death and the next start; the last one again and again."""
STEADY_SECONDS = 300.0
"""A host that lived so long starts the count anew."""
END_SECONDS = 40.0
FAILED = "failed"
"""Suffix of the file that says why a service did not start."""


def keep(name: str) -> None:
    """Run a host, and another one whenever it dies."""
    stop = _on_end()
    deaths = 0
    while not stop.is_set():
        began = time.monotonic()
        host = subprocess.Popen([sys.executable, "-m", "cluster.service.host", name])
        while host.poll() is None and not stop.wait(0.2):
            pass
        if stop.is_set():
            _end(host)
            return
        if not path_of(name).exists():
            return  # it never answered: the command says why
        deaths = 0 if time.monotonic() - began > STEADY_SECONDS else deaths + 1
        stop.wait(REST_SECONDS[min(deaths, len(REST_SECONDS) - 1)])


def host(name: str) -> int:
    """Start Ray and the service, write the record, and wait."""
    stop = _on_end()
    spec: ServiceSpec = pickle.loads(path_of(name, "spec").read_bytes())  # written by this user's own command
    import ray

    from .deploy import deploy

    try:
        _start_ray(spec)
        deploy(spec)
    except FuseChatError as error:
        write_private(path_of(name, FAILED), str(error).encode())
        ray.shutdown()
        return 1
    write_record(spec.record(ray.get_runtime_context().gcs_address, Process.of(os.getppid())))
    node = _node_processes()
    while not stop.wait(LOOK_SECONDS):
        if not all(process.alive for process in node):
            _end_children()  # Ray's own shutdown would wait for what is dead
    ray.shutdown()
    return 0


def _node_processes() -> list[Process]:
    """What a node of Ray cannot do without: its raylet and its control store. Nobody else tells a driver that they died."""
    children = psutil.Process().children()
    return [Process.of(child.pid) for child in children if child.name() in ("raylet", "gcs_server")]


def _end_children() -> NoReturn:
    """Kill all that this process started, and end it without Ray's own farewell."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(1)


def _start_ray(spec: ServiceSpec) -> None:
    """Start the local Ray; raises ClusterError where it does not come up."""
    # Ray lets its workers give way to all other processes; engines that stay are what somebody waits for.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    from ..pool.session import start_local

    for attempt in range(1, RAY_STARTS + 1):
        try:
            start_local(spec.cluster.num_cpus, OBJECT_STORE_BYTES)
            return
        except Exception as error:  # plain Exceptions, of a node that took longer than Ray waits
            ray.shutdown()
            if attempt == RAY_STARTS:
                raise ClusterError(f"{spec.serve.name}: Ray did not start here: {first_line(error)}") from error


def _on_end() -> threading.Event:
    """Set when this process is told to end."""
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return stop


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(arguments: list[str]) -> int:
    """The command."""
    *options, name = arguments
    run: Callable[[str], int | None] = keep if options == ["--keep"] else host
    return run(name) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
