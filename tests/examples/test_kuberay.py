"""The KubeRay example: fields that exist, groups that hold each source, and an entry point that runs."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_schema import ConfigMap, RayJob, VolumeClaim, WorkerGroup, parse
from paper_sources import CONFIGS
from pydantic import ValidationError

from fusechat.config import RunConfig, load_config
from trainer.arguments import PUBLISHED_BATCH, training_arguments

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "kuberay"
HUB_IDS = {
    "openchat": "openchat/openchat_3.5", "starling": "berkeley-nest/Starling-LM-7B-alpha",
    "solar": "NousResearch/Nous-Hermes-2-SOLAR-10.7B", "internlm2": "internlm/internlm2-chat-20b",
    "mixtral": "mistralai/Mixtral-8x7B-Instruct-v0.1", "qwen": "Qwen/Qwen1.5-72B-Chat",
}  # fmt: skip


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    texts = yaml.safe_load_all((EXAMPLE / "rayjob.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in texts}


@pytest.fixture(scope="module")
def job(documents: dict[str, Any]) -> RayJob:
    parsed = parse(documents["RayJob"])
    assert isinstance(parsed, RayJob)
    return parsed


@pytest.fixture
def shipped(documents: dict[str, Any], tmp_path: Path) -> RunConfig:
    """The run file of the config map."""
    (tmp_path / "run.yaml").write_text(documents["ConfigMap"]["data"]["run.yaml"])
    return load_config(tmp_path / "run.yaml")


def gpus(group: WorkerGroup) -> int:
    return int(group.template.spec.containers[0].resources.limits["nvidia.com/gpu"])


def test_every_field_is_one_of_the_api(documents: dict[str, Any]) -> None:
    assert isinstance(parse(documents["ConfigMap"]), ConfigMap)
    assert isinstance(parse(documents["PersistentVolumeClaim"]), VolumeClaim)
    broken = json.loads(json.dumps(documents["RayJob"]))
    broken["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(ValidationError, match="maxReplica"):
        parse(broken)


def test_groups_scale_from_zero_retry_and_go_when_done(job: RayJob) -> None:
    cluster = job.spec.rayClusterSpec
    assert cluster.enableInTreeAutoscaling and all(group.minReplicas == 0 for group in cluster.workerGroupSpecs)
    assert job.spec.backoffLimit > 0 and job.spec.shutdownAfterJobFinishes
    assert cluster.authOptions.mode == "token" and cluster.headGroupSpec.rayStartParams["num-cpus"] == "0"
    for template in (cluster.headGroupSpec.template, *(group.template for group in cluster.workerGroupSpecs)):
        container = template.spec.containers[0]
        shm = next(mount.name for mount in container.volumeMounts if mount.mountPath == "/dev/shm")
        volume = next(volume for volume in template.spec.volumes if volume.name == shm)
        assert volume.emptyDir is not None and volume.emptyDir.medium == "Memory"
        assert container.image == cluster.headGroupSpec.template.spec.containers[0].image


def test_a_group_holds_each_source_and_all_groups_are_what_the_run_counts_on(job: RayJob, shipped: RunConfig) -> None:
    groups = job.spec.rayClusterSpec.workerGroupSpecs
    sizes = {gpus(group) for group in groups}
    assert {model.engine.tensor_parallel_size for model in shipped.models} <= sizes
    assert max(sizes) == shipped.cluster.gpus_per_node
    assert sum(gpus(group) * group.maxReplicas for group in groups) == shipped.cluster.max_gpus == shipped.plan.gpus


def test_one_node_trains_a_target_with_all_its_gpus_in_the_published_batches(job: RayJob, shipped: RunConfig) -> None:
    workers = shipped.cluster.training_workers
    assert workers == shipped.cluster.gpus_per_node == max(map(gpus, job.spec.rayClusterSpec.workerGroupSpecs))
    assert shipped.training.trl["fsdp"] is True and set(shipped.measured_ids) == set(shipped.model_ids)
    arguments = training_arguments(
        shipped.training.trl, seed=shipped.run.seed, max_tokens=shipped.dialogues.max_tokens, num_processes=workers
    )
    sizes = [arguments[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps")]
    assert workers * sizes[0] * sizes[1] == PUBLISHED_BATCH


def test_no_secret_stands_in_the_manifest(documents: dict[str, Any], job: RayJob) -> None:
    cluster = job.spec.rayClusterSpec
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        container = group.template.spec.containers[0]
        assert [item.secretRef.name for item in container.envFrom if item.secretRef] == ["fusechat-secrets"]
        assert not [item for item in container.env if re.search("TOKEN|SECRET|KEY", item.name)]


def test_entry_point_reads_the_mounted_run_file(job: RayJob, documents: dict[str, Any]) -> None:
    command = shlex.split(job.spec.entrypoint)
    container = job.spec.rayClusterSpec.headGroupSpec.template.spec.containers[0]
    folder = next(mount.mountPath for mount in container.volumeMounts if mount.name == "run-file")
    assert command == ["fusechat", "run", "-c", f"{folder}/run.yaml"]
    assert set(documents["ConfigMap"]["data"]) == {"run.yaml"}


def run_entry_point(job: RayJob, stage: str, run_file: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The manifest's command with another stage and file, `fusechat` being this checkout's."""
    command = job.spec.entrypoint.replace("fusechat run", f"{shlex.quote(sys.executable)} -m fusechat {stage}")
    command = command.replace("/etc/fusechat/run.yaml", shlex.quote(str(run_file)))
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


def test_entry_point_runs_locally_on_tiny_models(job: RayJob, run_file: Path) -> None:
    first = run_entry_point(job, "tokenize", run_file)
    assert first.returncode == 0 and "tokenize mixtral: done" in first.stderr, first.stderr
    retried = run_entry_point(job, "tokenize", run_file)
    assert retried.returncode == 0 and "tokenize mixtral: done before, skipped" in retried.stderr


def test_shipped_run_fits_its_groups_according_to_the_plan(
    job: RayJob, documents: dict[str, Any], tmp_path: Path
) -> None:
    for name, hub_id in HUB_IDS.items():
        cached = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}"
        (cached / "snapshots" / "abc").mkdir(parents=True)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("abc")
        (cached / "snapshots" / "abc" / "config.json").write_text(json.dumps(CONFIGS[name]))
    text = documents["ConfigMap"]["data"]["run.yaml"].replace("plan:", "plan:\n  tokens: 95000000")
    (tmp_path / "run.yaml").write_text(
        text.replace("/runs/", f"{tmp_path}/runs/").replace("s3://my-bucket", str(tmp_path))
    )
    shown = run_entry_point(job, "plan", tmp_path / "run.yaml", HF_HUB_CACHE=str(tmp_path / "hub"))
    assert shown.returncode == 0, shown.stderr
    assert "72.29 G" in shown.stdout and "set it to" not in shown.stdout


def test_image_has_the_manifests_ray_and_the_projects_python(job: RayJob) -> None:
    text = (EXAMPLE / "Dockerfile").read_text(encoding="utf-8")
    version = job.spec.rayClusterSpec.rayVersion
    assert f"ray[default]=={version}" in text
    assert f"ray=={version}" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"]["gpu"] == ["vllm~=0.32.0"] and '"vllm~=0.32.0"' in text
    assert re.search(r"FROM python:3\.11", text) and project["requires-python"].startswith(">=3.11")
