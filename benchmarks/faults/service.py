"""A run whose rows a service gives, and one of the service's processes dies meanwhile: the run goes on with the same bytes.

What such a death does to single requests is tested in `tests/cluster/test_service_faults.py`.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cluster.service import control
from cluster.service.records import FOLDER_VARIABLE
from fusechat.config import load_config
from fusechat.progress import Progress

from .command import LONGEST_SECONDS, Running, run, start
from .trial import Disturbed, Tools
from .world import Run, World

VARIANT = "served"
SERVED: dict[str, Any] = {
    "training": {"row_choice": "source"}, "serve": {"port": 0, "requests_in_flight": 4},
    "cluster": {"engines": 1, "num_cpus": 2},
}  # fmt: skip
"""A run whose models stay as engines that give rows; it asks them in extraction, and for the held-out rows of pivot and source."""
VICTIMS = (
    "service engine",
    "service controller",
    "service proxy",
    "service door",
    "service host",
    "service node",
    "service client",
)
"""Whom a fault kills: an engine, Serve's controller or proxy, the door, the process that holds Ray, Ray's own node, the run."""
BEFORE_IT_ASKS = 10.0
"""Seconds within which a run begins to ask."""
BACK_SECONDS = 240.0
"""Within which a service is whole again."""


@lru_cache(maxsize=1)
def environment(world: World) -> dict[str, str]:
    """Start the one service of this process; gives what a run must have in its environment to find it."""
    folder = world.base / "service"
    os.environ[FOLDER_VARIABLE] = str(folder)
    os.environ.pop("FUSECHAT_TOKEN", None)
    control.start(load_config(world.run_file(VARIANT, SERVED)), [], progress=Progress(quiet=True))
    return {FOLDER_VARIABLE: str(folder)}


def end() -> None:
    """End the service, if there is one."""
    if environment.cache_info().currsize:
        control.stop("fusechat", progress=Progress(quiet=True))
        environment.cache_clear()


def kill(whom: str) -> Callable[[Tools], Disturbed]:
    """The fault that kills one such process while a run asks."""

    def fault(tools: Tools) -> Disturbed:
        return _kill(whom, tools)

    return fault


def _kill(whom: str, tools: Tools) -> Disturbed:
    options: dict[str, Any] = {"environment": environment(tools.world)}
    tools.world.undisturbed(VARIANT, lambda whole: run(whole.arguments, **options))
    _wait_until_whole()
    disturbed = tools.world.begin(VARIANT, "extract", tools.folder / "run")
    seconds = tools.draw.uniform(0, 0.6)
    running = start(disturbed.arguments, **options)
    _wait_until_asked(disturbed, running)
    time.sleep(seconds)
    if whom == "service client":
        running.send(signal.SIGKILL)
        victim = "the run"
    else:
        victim = _kill_one(whom.removeprefix("service "), tools.draw)
    ending = running.wait(3 * LONGEST_SECONDS)
    what = f"SIGKILL of {whom} ({victim}) {seconds:.2f} s after the run began to ask"
    return Disturbed(disturbed, what, [ending], VARIANT, killed=whom == "service client", options=options)


def _wait_until_asked(disturbed: Run, running: Running) -> None:
    """Until the first store is claimed."""
    deadline = time.monotonic() + BEFORE_IT_ASKS
    while running.is_alive() and time.monotonic() < deadline and not (disturbed.folder / "logprobs").exists():
        time.sleep(0.01)


def _kill_one(kind: str, draw: random.Random) -> str:
    status = _status()
    if kind == "engine":
        pids = [one["pid"] for engine in status["engines"] for one in engine["replicas"]]
    else:
        pids = status["processes"].get("raylet" if kind == "node" else kind, [])
    if not pids:
        return "none was there"
    pid = draw.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return f"process {pid}"


def _status() -> dict[str, Any]:
    (values,) = control.status()
    return values


def _wait_until_whole() -> None:
    """Until every engine runs again; raises where the service does not come back."""
    deadline = time.monotonic() + BACK_SECONDS
    while _status()["state"] != "ok":
        assert time.monotonic() < deadline, f"the service did not come back within {BACK_SECONDS:g} s: {_status()}"
        time.sleep(0.3)
