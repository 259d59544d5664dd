"""The Ray that a run uses: one given by address, or a local one that the run starts and stops itself."""

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

from fusechat.config import ClusterSection
from fusechat.errors import ClusterError

OBJECT_STORE_BYTES = 100 * 2**20
"""Of a local Ray: rows go to the store, not through Ray, so that hardly any memory is needed."""


@contextlib.contextmanager
def ray_session(section: ClusterSection) -> Iterator[None]:
    """Connect to Ray for the time of a `with` block; does nothing where a connection is already there.

    Raises:
        ClusterError: no Ray answers at the given address.
    """
    if ray.is_initialized():
        yield
        return
    # Ray sees accelerators' absence by itself; without this it also hides them from actors that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        if section.address:
            ray.init(address=section.address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                # "local": without it Ray joins whatever cluster was last started on this machine.
                address="local", num_cpus=section.num_cpus, include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR, object_store_memory=OBJECT_STORE_BYTES,
            )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"cluster.address {section.address!r}: no Ray there: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
