"""The process environment of an engine, in one place. Must run before vLLM is imported; leaves alone what is set already.

Knows nothing about models; imports nothing heavy.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec


def prepare_environment(tensor_parallel_size: int) -> None:
    """Set what an engine of this many ranks wants, where the user has not.

    - `VLLM_ENABLE_V1_MULTIPROCESSING`: 0: the engine lives in this process (its further ranks do not), which starts in
      seconds where a process of its own takes the better part of a minute.
    - `VLLM_CPU_OMP_THREADS_BIND`: `nobind`, because two engines on one host would bind to the same cores.
    - `OMP_NUM_THREADS`: the cores shared by the ranks, or each rank would start a thread per core.
    - `VLLM_NO_USAGE_STATS`, `VLLM_LOGGING_LEVEL`: no report to the outside, errors only.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, cores // tensor_parallel_size)),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    os.environ.update({name: value for name, value in wanted.items() if name not in os.environ})


@contextlib.contextmanager
def ranks_of_their_own() -> Iterator[None]:
    """Start an engine within this: its further ranks then begin with `inference/engine/rank.py`.

    A spawned process runs the main script of its parent again before anything else: in a Ray worker an import of Ray, in a
    script without `if __name__ == "__main__"` the whole script. Which one it is, Python takes from the main module's spec.
    """
    main = sys.modules["__main__"]
    spec, main.__spec__ = main.__spec__, find_spec("inference.engine.rank")
    try:
        yield
    finally:
        main.__spec__ = spec
