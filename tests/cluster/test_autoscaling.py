"""A cluster that has no node yet: what a stage asks of Ray makes the autoscaler start one, for extraction and for measuring."""

from pathlib import Path

import pytest
import ray
from evaluation_runs import finish_earlier_stages, finish_rows
from gated_teachers import SimulatedTeacher, gate_of, gated
from growing_cluster import growing_cluster
from plain_measuring import PlainHeldOutWorker

import inference.held_out.stage
import inference.stage
from cluster import answering, extraction
from fusechat.config import RunConfig, load_config
from fusechat.progress import Progress

NODE = {"CPU": 2, "GPU": 1, "object_store_memory": 83886080}
OVERRIDES = (
    "cluster.max_gpus=1",
    "cluster.service='off'",
    "evaluation.exact.kinds=[]",
    "evaluation.questions.samples=[]",
)


def ready_run(run_file: Path, address: str) -> RunConfig:
    """A run whose stages before extraction are done, on a cluster that has neither CPUs nor GPUs."""
    ray.init(address=address, log_to_driver=False)
    resources = ray.cluster_resources()
    ray.shutdown()
    assert not {"CPU", "GPU"} & set(resources)
    config = load_config(run_file, [*OVERRIDES, f"cluster.address={address}"])
    finish_earlier_stages(config)
    return config


def test_extraction_gets_its_node_from_an_autoscaler_that_begins_at_none(
    tmp_path: Path, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference.stage, "prepare", gated(SimulatedTeacher))
    with growing_cluster(tmp_path, node=NODE, most=1) as address:
        config = ready_run(run_file, address)
        rows = extraction.run(config, [model.name for model in config.models], progress=Progress(quiet=True))
    assert all(made.counts["rows"] > 0 for made in rows.values())
    assert len({file.read_text() for file in gate_of(config.layout).glob("start.*")}) == 1, "all on the new node"


def test_measuring_gets_its_node_from_an_autoscaler_that_begins_at_none(
    tmp_path: Path, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference.held_out.stage, "HeldOutWorker", PlainHeldOutWorker)
    with growing_cluster(tmp_path, node=NODE, most=1) as address:
        config = ready_run(run_file, address)
        finish_rows(config)
        made = answering.run(config, progress=Progress(quiet=True))
    assert {artifact.kind for artifact in made} == {"logprobs", "chosen"}
    assert all(artifact.counts["rows"] > 0 for artifact in made)
