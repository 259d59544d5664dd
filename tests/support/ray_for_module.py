"""A local Ray for the tests of one module, whose functions its workers are sent whole."""

import contextlib
import sys
from collections.abc import Iterator

from ray import cloudpickle

from cluster.pool.session import ray_session
from fusechat.config import ClusterSection


@contextlib.contextmanager
def ray_for_module(name: str, *, num_cpus: int) -> Iterator[None]:
    """A Ray for the time of a `with` block; workers do not find the tests' modules, so `name`d one is sent by value."""
    module = sys.modules[name]
    with ray_session(ClusterSection(num_cpus=num_cpus)):
        cloudpickle.register_pickle_by_value(module)
        yield
        cloudpickle.unregister_pickle_by_value(module)
