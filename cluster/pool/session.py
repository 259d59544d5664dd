"""The Ray that a run uses: one given by address, the one that a submitted job runs on, or a local one of its own."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

import ray

from fusechat.config import ClusterSection
from fusechat.errors import ClusterSetupError

from ..kept_ray import keeper

OBJECT_STORE_BYTES = 100 * 2**20
"""Of a local Ray: rows go to the store, not through Ray, so that hardly any memory is needed."""
CONNECT_SECONDS = 5.0
"""For the first answer at an address; Ray itself would try for a minute."""


@contextlib.contextmanager
def ray_session(section: ClusterSection) -> Iterator[None]:
    """Connect to Ray for the time of a `with` block, or of the `keep_ray` around it; does nothing where a connection is
    already there.

    Raises:
        ClusterSetupError: no Ray answers at the given address, it refuses the token, or runs other versions.
    """
    with contextlib.ExitStack() as own:
        if not ray.is_initialized():
            (keeper() or own).enter_context(_connected(section))
        yield


@contextlib.contextmanager
def _connected(section: ClusterSection) -> Iterator[None]:
    # Ray sees accelerators' absence by itself; without this it also hides them from actors that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if section.ray_address:
        _connect(section.ray_address, "cluster.address" if section.address else "RAY_ADDRESS of the environment")
    else:
        start_local(section.num_cpus, OBJECT_STORE_BYTES)
    try:
        yield
    finally:
        ray.shutdown()


def start_local(num_cpus: int | None, object_store_bytes: int) -> None:
    """A Ray on this machine that ends with this process.

    Args:
        num_cpus: CPUs that it gives; None: all.
    """
    # `local`, because without it Ray joins any cluster that somebody started on this machine.
    ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, object_store_memory=object_store_bytes,
    )  # fmt: skip


def _connect(address: str, origin: str) -> None:
    _check_listener(address, origin)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises plain RuntimeErrors, ConnectionErrors and errors of its own
        raise ClusterSetupError(f"{origin} {address!r}: {_explain(error)}") from error


def _check_listener(address: str, origin: str) -> None:
    """Fail at once where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, or a form that Ray explains itself
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterSetupError(
            f"{origin} {address!r}: no Ray there ({error.strerror or error}); expected HOST:6379 of a running "
            "head, `auto` on one of its nodes, or no address for a local Ray"
        ) from None


def _explain(error: BaseException) -> str:
    """One line of what Ray says in many; the reason may stand in the error before the last."""
    text = " ".join(str(error).split())
    if "ersion mismatch" in text:
        return f"the cluster and this process differ: {text}; use one image for both"
    before = error.__cause__ or error.__context__
    if "uthenticat" in text:
        return "it refused the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own"
    return _explain(before) if before is not None else f"no Ray there: {text.split('. ')[0]}"
