"""A Ray head without CPUs whose autoscaler adds nodes on this machine (Ray's fake provider), in processes of its own.

Ray's own `AutoscalingCluster` stops every Ray of the machine before it starts, so the head is started here.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray_head

START_SECONDS = 60.0


def autoscaling_config(head: str, *, node: dict[str, float], most: int) -> dict[str, object]:
    """From no node to `most` of one kind, with these resources; `head`: its address."""
    types = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "engines": {"resources": node, "node_config": {}, "min_workers": 0, "max_workers": most},
    }
    return {
        "cluster_name": "growing",
        "provider": {"type": "fake_multinode", "gcs_address": head},
        "auth": {},
        "docker": {},
        "max_workers": most,
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 10,
        "upscaling_speed": 1.0,
        **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
    }


@contextmanager
def growing_cluster(folder: Path, *, node: dict[str, float], most: int) -> Iterator[str]:
    """Gives the head's address for the time of a `with` block.

    Args:
        folder: for the configuration and the head's output.
    """
    config, port = folder / "autoscaling.json", ray_head.free_port()
    address = f"127.0.0.1:{port}"
    config.write_text(json.dumps(autoscaling_config(address, node=node, most=most)))
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0",
               "--include-dashboard=false", "--object-store-memory=83886080", f"--autoscaling-config={config}",
               "--disable-usage-stats", "--dashboard-agent-listen-port=0", f"--ray-client-server-port={ray_head.free_port()}"]  # fmt: skip
    environment = {**ray_head.environment(), "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1",
                   "RAY_enable_autoscaler_v2": "0", "RAY_AUTH_MODE": "disabled"}  # fmt: skip
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(folder / "head.log", head)
            yield address
        finally:
            head.terminate()
            try:
                head.wait(30)
            finally:
                if head.poll() is None:
                    os.killpg(head.pid, signal.SIGKILL)
                _end_nodes(address)


def _end_nodes(address: str) -> None:
    """The nodes that the autoscaler started: they are nobody's children, and would wait a while for a head that is gone."""
    for process in psutil.process_iter(["cmdline"]):
        if any(address in part for part in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _wait_for(log: Path, head: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in log.read_text():
        assert head.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.1)
