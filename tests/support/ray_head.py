"""A real Ray head with its dashboard on loopback, with token authentication, in a process of its own.

`python ray_head.py DASHBOARD_PORT NUM_CPUS` prints the address of the control store, then waits until standard input ends.
"""

import contextlib
import functools
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

TOKEN = "0123456789abcdef" * 4


@dataclass
class Node:
    """A further node of a head on this machine."""

    process: subprocess.Popen[str]

    def kill(self) -> None:
        """Kill it with all that it started, as when a machine is lost."""
        lost = [*psutil.Process(self.process.pid).children(recursive=True), self.process]
        for one in lost:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()


@dataclass
class Head:
    """A running head; `stop` ends it."""

    dashboard: str
    """http URL."""
    address: str
    """Of the control store, host:port."""
    process: subprocess.Popen[str]

    def environment(self, **more: str) -> dict[str, str]:
        """For a process that talks to this head."""
        return environment(**more)

    @contextlib.contextmanager
    def node(self, num_cpus: int = 1) -> Iterator[Node]:
        """A node that joins, for the time of a `with` block or until it is killed."""
        command = [
            "ray", "start", "--block", f"--address={self.address}", f"--num-cpus={num_cpus}", "--node-ip-address=127.0.0.1",
            f"--object-store-memory={80 * 2**20}", "--dashboard-agent-listen-port=0",
        ]  # fmt: skip
        process = subprocess.Popen(
            command,
            env=environment(),
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        node = Node(process)
        try:
            assert process.stdout is not None
            shown = []
            while "Ray runtime started" not in "".join(shown):
                shown.append(process.stdout.readline())
                assert shown[-1], "".join(shown)
            yield node
        finally:
            if node.process.poll() is None:
                node.kill()

    def stop(self) -> None:
        """End the head and all that it started."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(30)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)


def environment(**more: str) -> dict[str, str]:
    """This process's, with the token, this interpreter first in PATH, and nothing of another Ray."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **more}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start_head(num_cpus: int = 2) -> Head:
    """Start a head; takes some seconds."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, __file__, str(port), str(num_cpus)], env=environment(), text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "the head did not start"
    return Head(f"http://127.0.0.1:{port}", address, process)


def main(port: str, num_cpus: str) -> None:
    import ray
    from ray._private.parameter import RayParams
    from ray._private.utils import write_ray_address

    # Jobs go to no node whose agent found its port taken by another Ray on this machine; `init` has no argument for it.
    RayParams.__init__ = functools.partialmethod(RayParams.__init__, dashboard_agent_listen_port=0)  # type: ignore[method-assign]
    folder = tempfile.mkdtemp(prefix="ray.", dir="/tmp")  # short: Ray's sockets lie in it
    context = ray.init(
        address="local", num_cpus=int(num_cpus), include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=int(port),
        _node_ip_address="127.0.0.1", log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=80 * 2**20, _temp_dir=folder,
    )  # fmt: skip
    # A job asks this file where its Ray is; without a folder of its own it would be told of another Ray of this machine.
    write_ray_address(context.address_info["gcs_address"], folder)
    print(context.address_info["gcs_address"], flush=True)
    sys.stdin.read()
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
