"""What the command line does with a service: starts, changes, shows and ends it."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from fusechat.config import RunConfig
from fusechat.errors import ClusterError, ClusterSetupError, FuseChatError
from fusechat.progress import Progress
from inference.serving.client import Connection

from .host import FAILED
from .records import ServiceRecord, all_records, path_of, read_record, remove_record, write_private, write_record
from .spec import ServiceSpec, make_spec

LOG_LINES = 12
"""Of the log of a service that did not start."""


def start(config: RunConfig, names: Sequence[str], *, progress: Progress) -> ServiceRecord:
    """Start the run's models as a service, or change the one of that name; returns when every engine answers.

    Args:
        names: models; empty: all of the run.
    Raises:
        ConfigError, ModelError: as `make_spec`.
        ClusterSetupError: no Ray at cluster.address, or too few CPUs or GPUs.
        ClusterError: an engine did not start.
    """
    name, before = config.serve.name, read_record(config.serve.name)
    runs = before is not None and before.keeper is not None and before.keeper.alive
    on_cluster = config.cluster.ray_address is not None
    if runs and on_cluster:
        raise ClusterSetupError(f"{name}: a service of that name runs on a local Ray; stop it first, or set serve.name")
    port = int(before.address.rpartition(":")[2]) if before is not None and runs else None
    spec = make_spec(config, names, port=port or (config.serve.port if on_cluster else None))
    progress.say(f"serve: {name}: starting {len(spec.faces)} engines: {', '.join(face.id for face in spec.faces)}")
    if on_cluster:
        return _on_cluster(spec)
    write_private(path_of(name, "spec"), pickle.dumps(spec))
    if before is not None and runs:
        return _change(before, spec)
    return _start_local(name)


def _on_cluster(spec: ServiceSpec) -> ServiceRecord:
    from ..pool.session import ray_session
    from .deploy import deploy

    with ray_session(spec.cluster):
        import ray

        deploy(spec)
        record = spec.record(ray.get_runtime_context().gcs_address, None)
    write_record(record)
    return record


def _change(record: ServiceRecord, spec: ServiceSpec) -> ServiceRecord:
    """Another spec on the local Ray that runs already."""
    # A local Ray asks for a token of its own accord; whoever joins it by address has to be told so before Ray is imported.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ..pool.session import ray_session
    from .deploy import deploy

    with ray_session(spec.cluster.model_copy(update={"address": record.ray_address})):
        deploy(spec)
    changed = spec.record(record.ray_address, record.keeper)
    write_record(changed)
    return changed


def _start_local(name: str) -> ServiceRecord:
    """A process that holds a local Ray, and wait until it says that the service answers, or why not."""
    for suffix in ("json", FAILED):
        path_of(name, suffix).unlink(missing_ok=True)
    log = path_of(name, "log")
    # Not in the command's session: neither its end nor its terminal's ends the service.
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "cluster.service.host", "--keep", name], stdin=subprocess.DEVNULL, stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        while keeper.poll() is None:
            record = read_record(name)
            if record is not None:
                return record
            time.sleep(0.2)
    except BaseException:  # whoever interrupts the start does not want half a service
        keeper.terminate()
        keeper.wait()
        raise
    failed = path_of(name, FAILED)
    if failed.exists():
        raise ClusterError(failed.read_text(encoding="utf-8"))
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    raise ClusterError(f"{name}: the service did not start; the end of {log}:\n" + "\n".join(last))


def stop(name: str, *, progress: Progress) -> None:
    """End a service and all that was started for it.

    Raises:
        ClusterSetupError: no service of that name was started from here, or its cluster does not answer.
    """
    record = read_record(name)
    if record is None:
        raise ClusterSetupError(f"{name}: no such service was started on this machine by this user")
    if record.keeper is not None:
        _end_keeper(record)
    else:
        from fusechat.config import ClusterSection

        from ..pool.session import ray_session
        from .deploy import remove

        with ray_session(ClusterSection(address=record.ray_address)):
            remove(name)
    remove_record(name)
    progress.say(f"serve: {name}: stopped")


def _end_keeper(record: ServiceRecord) -> None:
    keeper = record.keeper
    if keeper is None or not keeper.alive:
        return
    os.kill(keeper.pid, signal.SIGTERM)
    while keeper.alive:
        time.sleep(0.1)


def status(*, name: str | None = None) -> list[dict[str, Any]]:
    """What is known of the services that were started here: plain values, a record for each.

    Args:
        name: of one service; None: all.
    """
    return [_status(record) for record in all_records() if name in (None, record.name)]


def _status(record: ServiceRecord) -> dict[str, Any]:
    values: dict[str, Any] = {"name": record.name, "address": record.address, "ray": record.ray_address, "engines": []}
    values["processes"] = {} if record.keeper is None else _processes(record.keeper.pid)
    if not record.may_run:
        return {**values, "state": "gone"}
    try:
        with Connection(record.address, token=record.token(), patience=0) as connection:
            return {**values, **connection.status()}
    except FuseChatError as error:
        return {**values, "state": "away", "why": str(error)}


def _processes(keeper: int) -> dict[str, list[int]]:
    """Processes of a local service by what they are: keeper, host, raylet, gcs_server, controller, proxy, door."""
    import psutil

    processes: dict[str, list[int]] = {"keeper": [keeper]}
    marks = {
        "cluster.service.host": "host", "gcs_server": "gcs_server", "raylet/raylet": "raylet", "ServeController": "controller",
        "ProxyActor": "proxy", "door": "door",
    }  # fmt: skip
    try:
        children = psutil.Process(keeper).children(recursive=True)
    except psutil.NoSuchProcess:
        return {}
    for child in children:
        try:
            title = " ".join(child.cmdline()[:3])
        except psutil.Error:
            continue
        for mark, kind in marks.items():
            if mark in title:
                processes.setdefault(kind, []).append(child.pid)
                break
    return processes
