"""One target by several workers on a real local Ray: the loss curve of one process (DDP, with a death), errors as raised."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stages_here
import trainer_runs

from cluster import training_job
from cluster.pool.session import ray_session
from fusechat.config import ClusterSection, RunConfig, load_config
from fusechat.errors import ClusterError, ConfigError
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from trainer.inputs import TrainingInputs
from trainer.run_log import read_metrics


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    # Workers import what this process does.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    with ray_session(ClusterSection(num_cpus=2)):
        yield


def two_workers(folder: Path, *changes: str) -> RunConfig:
    return load_config(folder / "run.yaml", ["cluster.training_workers=2", *changes])


def train(config: RunConfig, progress: Progress | None = None) -> Artifact:
    """The target `other`, on this session's Ray."""
    return training_job.run(TrainingInputs.of(config), config.cluster, "other", progress=progress)


def losses(config: RunConfig) -> list[float]:
    return [record["loss"] for record in read_metrics(config.target_path("other"))]


def shipped_sharding() -> dict[str, Any]:
    """FSDP2, which accelerate takes and leaves undone on CPUs: this is DDP."""
    trl = load_config(Path(__file__).parents[2] / "examples" / "fusechat-7b.yaml").training.trl
    return {name: trl[name] for name in ("fsdp", "fsdp_config")}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run whose target one process has trained, over two passes a step."""
    config = trainer_runs.make_run(tmp_path_factory.mktemp("one"), trl={"gradient_accumulation_steps": 2})
    stages_here.train(config, "other")
    return config


def test_error_of_a_worker_comes_back_as_it_was_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/trainer/test_refusals.py has the errors themselves."""

    def fails(job: dict) -> None:
        raise ConfigError(f"{job['target']}: the loss is nan")

    trainer_runs.make_run(tmp_path)
    monkeypatch.setattr(training_job, "train_worker", fails)
    with pytest.raises(ConfigError, match=r"^other: the loss is nan$"):
        train(load_config(tmp_path / "run.yaml"))


def test_two_workers_under_the_shipped_settings_that_die_go_on_to_the_loss_curve_of_one(
    tmp_path: Path, single: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They go on from the last checkpoint, and leave the target where the run keeps it."""
    trl = {"gradient_accumulation_steps": 1, "save_steps": 1, **shipped_sharding()}
    trainer_runs.make_run(tmp_path / "two", trl=trl)
    config = two_workers(tmp_path / "two").with_places({"targets/other": str(tmp_path / "shared")})
    whole = training_job.train_worker

    def dies_once(job: dict) -> None:
        from trainer.fusion_trainer import FusionTrainer

        compute, mark = FusionTrainer.compute_loss, job["inputs"].layout.run_folder / "died"

        def compute_loss(self, *arguments, **keywords):  # type: ignore[no-untyped-def]
            if self.state.global_step == 3 and self.accelerator.process_index == 1 and not mark.exists():
                mark.touch()
                os._exit(1)
            return compute(self, *arguments, **keywords)

        FusionTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
        whole(job)

    monkeypatch.setattr(training_job, "train_worker", dies_once)
    assert train(config, Progress()).url == str(tmp_path / "shared")
    assert (config.run.output / "died").exists() and "2 workers on Ray" in capsys.readouterr().err
    assert losses(config) == pytest.approx(losses(single), abs=1e-5)
    assert stages_here.train(config, "other").counts["steps"] == len(losses(single))


def test_workers_that_do_not_fit_are_refused_at_once(tmp_path: Path) -> None:
    trainer_runs.make_run(tmp_path)
    with pytest.raises(ClusterError, match=r"2 workers with 2 CPUs each, the cluster has 2; lower"):
        train(two_workers(tmp_path, "cluster.training_cpus=2"))


def test_workers_on_a_cluster_that_grows_are_waited_for_on_one_node_with_gpus(tmp_path: Path) -> None:
    trainer_runs.make_run(tmp_path)
    grows = ["cluster.training_workers=8", "cluster.gpus_per_node=8"]
    found = training_job.needs_of(two_workers(tmp_path, *grows, "cluster.max_gpus=32").cluster)
    assert found.scaling().use_gpu and found.scaling().placement_strategy == "STRICT_PACK"
    over_nodes = training_job.needs_of(
        two_workers(tmp_path, "cluster.training_workers=16", "cluster.max_gpus=32").cluster
    )
    assert over_nodes.scaling().placement_strategy == "PACK"
    with pytest.raises(ClusterError, match=r"8 workers with 1 GPUs each, the cluster has or may grow to 4; lower"):
        training_job.needs_of(two_workers(tmp_path, *grows, "cluster.max_gpus=4").cluster)


def test_workers_ask_for_gpus_that_the_cluster_may_grow_to(tmp_path: Path) -> None:
    trainer_runs.make_run(tmp_path)
    growing = two_workers(tmp_path, "cluster.max_gpus=2", "cluster.training_cpus=8")
    assert training_job.needs_of(growing.cluster).each == {"CPU": 8, "GPU": 1}
    with pytest.raises(ClusterError, match=r"2 workers with 1 GPUs each, the cluster has or may grow to 1; lower"):
        train(two_workers(tmp_path, "cluster.max_gpus=1"))
