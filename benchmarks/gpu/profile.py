"""Where the time of a shard goes, as a table of shares; no trace is kept.

In: a function that scores a shard in this process. Out: per section the milliseconds on the host and on the device, and their
shares. Sections are functions of the product and of vLLM that are named for the profiler while it runs.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

HEAD, REDUCTION, COPIES, SCHEDULER, PACKING, WRITING = (
    "product with the head", "top-k reduction", "transfers", "scheduler", "unpacking and packing", "compression and store",
)  # fmt: skip
SECTIONS = (HEAD, REDUCTION, COPIES, SCHEDULER, PACKING, WRITING)


def profile(extract: Callable[[], Any]) -> dict[str, Any]:
    """Run `extract` under torch's profiler, all threads of it.

    Returns:
        seconds in all, device_busy_share (0 on a CPU), and per section host_ms, device_ms and their shares: on the host of
        the wall time (threads overlap, so shares need not add up to 1), on the device of the time that it was busy. `rest` is
        the device's time outside of all sections: the model's forward for the most part.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    options = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with _named(), torch.profiler.profile(activities=activities, experimental_config=options) as profiler:
        started = time.perf_counter()
        extract()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return _summary(profiler, seconds)


def _summary(profiler: Any, seconds: float) -> dict[str, Any]:
    host, device, busy = dict.fromkeys(SECTIONS, 0.0), dict.fromkeys(SECTIONS, 0.0), 0.0
    for event in profiler.events():
        if event.device_type != torch.autograd.DeviceType.CPU:
            # The device's own events; the names of sections appear among them a second time.
            busy += 0 if event.name in host or event.is_user_annotation else event.time_range.elapsed_us() / 1000
        elif event.name in host:
            host[event.name] += event.cpu_time_total / 1000
            device[event.name] += event.device_time_total / 1000
    sections = {
        name: {
            "host_ms": round(host[name], 2),
            "host_share": round(host[name] / 1000 / seconds, 4),
            "device_ms": round(device[name], 2),
            "device_share": round(device[name] / busy, 4) if busy else 0.0,
        }
        for name in SECTIONS
    }
    rest = busy - sum(device.values())
    sections["rest"] = {"device_ms": round(rest, 2), "device_share": round(rest / busy, 4) if busy else 0.0}
    return {"seconds": round(seconds, 3), "device_busy_share": round(busy / 1000 / seconds, 4), "sections": sections}


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Within this, each section's functions run under its name."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from fusechat.storage.row_store import RowStore
    from inference import scoring_worker
    from inference.capture import requests, topk_pooler
    from inference.engine import pooler_models

    places: list[tuple[Any, str, str]] = [
        (pooler_models.ShardLogits, "forward", HEAD),
        (topk_pooler, "reduce_block", REDUCTION),
        (topk_pooler, "merge_ranks", REDUCTION),
        (topk_pooler, "to_device", COPIES),
        (topk_pooler, "to_host", COPIES),
        (Scheduler, "schedule", SCHEDULER),
        (Scheduler, "update_from_output", SCHEDULER),
        (requests, "unpack_rows", PACKING),
        (scoring_worker, "pack_rows", PACKING),
        (RowStore, "write_shard", WRITING),
    ]
    plain = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, section in places:
        setattr(owner, name, _under(section, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, function in plain:
            setattr(owner, name, function)


def _under(section: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        with torch.profiler.record_function(section):
            return function(*arguments, **named)

    return run
