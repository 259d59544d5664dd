"""Training on Ray: one target by several workers (Ray Train), each of which runs the trainer's own stage.

The trainer's inputs and a target's name go in, the finished target comes out. Ray Train places the workers and joins them into one
torch.distributed group; what they do there, how it resumes and what it leaves is `trainer.stage.run`'s. Run folder and
stores must be reachable under the same paths on all nodes.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer

from fusechat.config import ClusterSection
from fusechat.errors import ClusterError, FuseChatError
from fusechat.progress import Progress, repeated
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from trainer.inputs import TrainingInputs

from .pool.session import ray_session

NEWS_SECONDS = 15.0
"""Between two looks at what the workers have logged."""


def run(
    inputs: TrainingInputs, section: ClusterSection, target_name: str, *, progress: Progress | None = None
) -> Artifact:
    """Train one target on `cluster.training_workers` workers.

    Raises:
        ClusterError: the cluster cannot hold the workers, or they died `cluster.training_attempts` times.
        FuseChatError: whatever the stage raises, as it raised it; it is not tried again.
    """
    progress = progress or Progress(quiet=True)
    with ray_session(section):
        needs = needs_of(section)
        progress.say(f"train {target_name}: {needs.workers} workers on Ray")
        with _news(inputs.layout.target_path(target_name), target_name, progress):
            _fit(inputs, target_name, needs.scaling(), section.training_attempts, progress)
    return artifact.load(inputs.layout.target_path(target_name), "target")


def train_worker(job: dict[str, Any]) -> None:
    """One worker: the stage, in the process group that Ray Train has made."""
    from trainer import stage  # here, because Ray Train's controller imports this module too, and trains nothing

    os.chdir(job["folder"])
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    stage.run(job["inputs"], job["target"])


@dataclass(frozen=True)
class Needs:
    """What the workers of one target reserve, and what there is."""

    workers: int
    each: dict[str, float]
    """Of one worker, by Ray's resource names."""
    room: dict[str, float]
    """What the cluster has or may grow to."""
    one_node: bool
    """All on one node: else a growing cluster may add a node for each, and weights are gathered over the network."""

    def targets_at_once(self) -> int:
        """Targets that there is room for, at least one."""
        return int(min(self.room[kind] / (amount * self.workers) for kind, amount in self.each.items()))

    def scaling(self) -> ScalingConfig:
        """In Ray Train's words."""
        return ScalingConfig(
            num_workers=self.workers, use_gpu="GPU" in self.each, resources_per_worker=self.each,
            placement_strategy="STRICT_PACK" if self.one_node else "PACK",
        )  # fmt: skip

    def __str__(self) -> str:
        each = " and ".join(f"{amount:g} {kind}" for kind, amount in self.each.items())
        room = " and ".join(f"{amount:g} {kind}" for kind, amount in self.room.items() if amount not in (0, math.inf))
        return f"{self.workers} worker{'s' * (self.workers > 1)} a target with {each} each, room for {room}"


def needs_of(section: ClusterSection) -> Needs:
    """What one target's workers reserve on the connected Ray.

    Raises:
        ClusterError: the cluster as it stands could never hold them.
    """
    present = ray.cluster_resources()
    room = {"CPU": present.get("CPU", 0.0), "GPU": max(present.get("GPU", 0.0), section.max_gpus or 0)}
    gpus = section.training_gpus if section.training_gpus is not None else float(room["GPU"] > 0)
    each = {"CPU": section.training_cpus, **({"GPU": gpus} if gpus else {})}
    if gpus and section.max_gpus:
        room["CPU"] = math.inf  # GPU nodes yet to come bring their CPUs along; Ray Train waits for them
    for kind, amount in each.items():
        if amount * section.training_workers > room[kind]:
            growth = " or may grow to" if room[kind] > present.get(kind, 0) else ""
            raise ClusterError(
                f"training asks for {section.training_workers} workers with {amount:g} {kind}s each, the cluster has{growth} "
                f"{room[kind]:g}; lower cluster.training_workers or cluster.training_{kind.lower()}s"
            )
    one_node = section.max_gpus is not None and 0 < gpus * section.training_workers <= section.gpus_per_node
    return Needs(section.training_workers, each, room, one_node)


def _fit(inputs: TrainingInputs, name: str, scaling: ScalingConfig, attempts: int, progress: Progress) -> None:
    """Run to the end; workers that died are replaced together, and go on from the last whole checkpoint."""
    job = {"inputs": inputs, "target": name, "folder": os.getcwd()}
    logs = str((inputs.layout.run_folder / "logs" / "ray").absolute())
    for attempt in range(1, attempts + 1):
        ray_run = RunConfig(name=f"train-{name}-{time.time_ns()}", storage_path=logs)
        try:
            TorchTrainer(train_worker, train_loop_config=job, scaling_config=scaling, run_config=ray_run).fit()
            return
        except TrainingFailedError as error:
            cause = _cause(error)
            if isinstance(cause, FuseChatError):
                raise cause from error
            why = (str(cause).strip() or type(cause).__name__).splitlines()[-1]
            progress.say(f"train {name}: attempt {attempt} of {attempts} failed: {why}")
    raise ClusterError(
        f"train {name}: the workers failed {attempts} times, the last time with: {why}; what "
        "was trained is kept, and a further run goes on from it"
    )


def _cause(error: TrainingFailedError) -> BaseException:
    """What a worker raised; the project's own error if any did, because others only lost their company."""
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return error
    causes = list(error.worker_failures.values())
    return next((cause for cause in causes if isinstance(cause, FuseChatError)), causes[0])


@contextmanager
def _news(target: Path, name: str, progress: Progress) -> Iterator[None]:
    """Says now and then where the workers are, from the metrics that they leave in the target's folder."""
    from trainer.run_log import read_metrics

    said = 0

    def watch() -> bool:
        nonlocal said
        last = (read_metrics(target) or [{"step": 0}])[-1]
        if last["step"] > said:
            said = last["step"]
            progress.say(f"train {name}: step {said:,}, loss {last['loss']:.4f}")
        return True

    with repeated(watch, NEWS_SECONDS, "news"):
        yield
