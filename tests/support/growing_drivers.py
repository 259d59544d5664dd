"""Drivers of stages on a cluster that has no node yet, for a process of their own.

A process that had a local Ray asks for that one's token ever after. A head without tokens cannot call it then, and takes it for gone.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar
from unittest import mock

import ray
from evaluation_runs import finish_earlier_stages, finish_rows
from gated_teachers import SimulatedTeacher, gate_of, gated
from plain_measuring import PlainHeldOutWorker

import inference.held_out.stage
import inference.stage
from cluster import answering, extraction
from fusechat.config import RunConfig, load_config
from fusechat.progress import Progress

OVERRIDES = (
    "cluster.max_gpus=1",
    "cluster.service=off",
    "evaluation.exact.kinds=[]",
    "evaluation.questions.samples=[]",
)
Made = TypeVar("Made")


def in_own_process(drive: Callable[[Path, str], Made], run_file: Path, address: str) -> Made:
    """What a driver gives, or what it raises."""
    no_token = mock.patch.dict(os.environ, RAY_AUTH_MODE="disabled")  # as growing_cluster's head
    with no_token, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(drive, run_file, address).result()


def extract(run_file: Path, address: str) -> tuple[list[int], set[str]]:
    """Rows per model, and the processes that made them."""
    inference.stage.prepare = gated(SimulatedTeacher)  # this process ends after it
    config = ready_run(run_file, address)
    rows = extraction.run(config, [model.name for model in config.models], progress=Progress(quiet=True))
    nodes = {file.read_text() for file in gate_of(config.layout).glob("start.*")}
    return [made.counts["rows"] for made in rows.values()], nodes


def measure(run_file: Path, address: str) -> list[tuple[str, int]]:
    """Kind and rows of every artifact that measuring leaves."""
    inference.held_out.stage.HeldOutWorker = PlainHeldOutWorker  # type: ignore[misc]  # this process ends after it
    config = ready_run(run_file, address)
    finish_rows(config)
    return [(made.kind, made.counts["rows"]) for made in answering.run(config, progress=Progress(quiet=True))]


def ready_run(run_file: Path, address: str) -> RunConfig:
    """A run whose stages before extraction are done, on a cluster that has neither CPUs nor GPUs."""
    ray.init(address=address, log_to_driver=False)
    resources = ray.cluster_resources()
    ray.shutdown()
    assert not {"CPU", "GPU"} & set(resources)
    config = load_config(run_file, [*OVERRIDES, f"cluster.address={address}"])
    finish_earlier_stages(config)
    return config
