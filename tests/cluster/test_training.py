"""The train stage chooses by resources: in this process, in turn on Ray, or side by side; one failure ends no other target."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_runs
from stages_here import train

from cluster import training, training_job
from cluster.pool.session import ray_session
from fusechat.app import pipeline
from fusechat.config import ClusterSection, RunConfig, load_config
from fusechat.errors import ConfigError
from fusechat.progress import Progress
from trainer import stage
from trainer.inputs import TrainingInputs

NAMES = ["other", "sft"]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with ray_session(ClusterSection(num_cpus=2)):
        yield


def on_ray(folder: Path, *changes: str) -> RunConfig:
    """A run whose Ray is there already; `auto` is never asked."""
    return load_config(folder / "run.yaml", ["cluster.address=auto", *changes])


def test_one_machine_trains_in_this_process_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = trainer_runs.make_run(tmp_path, trl={"num_train_epochs": 1})
    monkeypatch.setattr(training_job, "run", lambda *_, **__: pytest.fail("Ray was asked for"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    step = next(step for step in pipeline.steps(config) if step.stage == "train")
    made = step.make(config, Progress())
    assert list(made) == NAMES and made["other"].counts["steps"] == 6
    assert "train: other, sft in turn, in this process" in capsys.readouterr().err
    monkeypatch.setattr(stage, "run", lambda *_, **__: pytest.fail("trained again"))
    assert step.make(config, Progress()) == made


@pytest.mark.parametrize(
    ("found", "changes", "alone"),
    [
        (1, [], True),
        (2, [], False),
        (1, ["cluster.training_workers=2"], False),
        (0, ["cluster.address=auto"], False),
        (1, ["cluster.training_gpus=0.5"], False),
        (0, ["cluster.training_gpus=0.5"], True),
        (1, ["cluster.training_gpus=1"], True),
    ],
)
def test_ray_is_asked_where_there_is_something_to_share_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: int, changes: list[str], alone: bool
) -> None:
    trainer_runs.make_run(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: found)
    assert training.trains_here(load_config(tmp_path / "run.yaml", changes).cluster) is alone


@pytest.mark.usefixtures("local_ray")
def test_targets_are_trained_side_by_side_where_both_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = trainer_runs.make_run(tmp_path / "one", trl={"num_train_epochs": 1})
    for name in NAMES:
        train(expected, name)
    trainer_runs.make_run(tmp_path / "two", trl={"num_train_epochs": 1})
    config, work = on_ray(tmp_path / "two"), training_job.train_worker

    def waits_for_the_other(job: dict[str, Any]) -> None:
        import time

        here = job["inputs"].layout.run_folder
        (here / f"began.{job['target']}").touch()
        while len(list(here.glob("began.*"))) < 2:
            time.sleep(0.05)
        work(job)

    monkeypatch.setattr(training_job, "train_worker", waits_for_the_other)
    made = training.run(config, NAMES, progress=Progress())
    assert {name: made[name].counts["steps"] for name in NAMES} == {"other": 6, "sft": 6}
    for name in NAMES:
        assert trainer_runs.losses(config, name) == pytest.approx(trainer_runs.losses(expected, name), abs=1e-5)
    shown = capsys.readouterr().err
    assert "train: other, sft on Ray, up to 2 side by side: 1 worker a target with 1 CPU each, room for 2 CPU" in shown


@pytest.mark.usefixtures("local_ray")
def test_a_failure_lets_the_others_end_and_begins_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer_runs.make_run(tmp_path)
    begun, failed = threading.Event(), threading.Event()
    finished: list[str] = []

    class Said(Progress):
        def say(self, text: str) -> None:
            if text == "train bad: failed: no such thing":
                failed.set()

    def train(inputs: TrainingInputs, section: ClusterSection, name: str, *, progress: Progress) -> Any:
        if name == "bad":
            begun.wait()
            raise ConfigError("no such thing")
        begun.set()
        failed.wait()
        finished.append(name)

    monkeypatch.setattr(training_job, "run", train)
    with pytest.raises(ConfigError, match="no such thing"):
        config = on_ray(tmp_path)
        training.train_on_ray(TrainingInputs.of(config), config.cluster, ["bad", "good", "later"], Said())
    assert finished == ["good"]


@pytest.mark.usefixtures("local_ray")
def test_targets_that_do_not_fit_together_go_in_turn(tmp_path: Path) -> None:
    trainer_runs.make_run(tmp_path)
    assert training_job.needs_of(on_ray(tmp_path, "cluster.training_workers=2").cluster).targets_at_once() == 1
    assert training_job.needs_of(on_ray(tmp_path, "cluster.training_cpus=0.5").cluster).targets_at_once() == 4
    growing = ["cluster.max_gpus=32", "cluster.training_workers=8", "cluster.training_cpus=4"]
    assert training_job.needs_of(on_ray(tmp_path, *growing).cluster).targets_at_once() == 4
