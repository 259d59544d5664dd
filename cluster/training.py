"""The train stage over all targets of a run: in turn, or side by side where the cluster has room for several.

Resources decide, and what was chosen is said. A machine without a second accelerator trains in this process, one target
after the other, each with all its cores. Elsewhere every target is a Ray Train job of its own (`training_job`), and as
many run at once as fit.
"""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

from fusechat.config import ClusterSection, RunConfig
from fusechat.models.process_memory import without_garbage_collection
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from trainer.inputs import TrainingInputs
from trainer.target_claim import claim_target

from .pool.session import ray_session


def run(config: RunConfig, names: list[str], *, progress: Progress) -> dict[str, Artifact]:
    """Train the targets that are not finished.

    Returns:
        name -> finished target.
    Raises:
        ClusterError: the cluster cannot hold the workers of one target, or they kept dying.
        FuseChatError: whatever the trainer's stage raises. The targets that were being trained beside it are finished
            first; those not begun are left.
    """
    inputs = TrainingInputs.of(config)
    pivot = resolve(inputs.pivot, inputs.layout.digests_path)
    finished = {name: claim_target(inputs, pivot, name).artifact for name in names}
    left = [name for name, artifact in finished.items() if artifact is None]
    if not left:
        return {name: artifact for name, artifact in finished.items() if artifact is not None}
    for name in (name for name in names if name not in left):
        progress.say(f"train {name}: done before, skipped")
    if trains_here(config.cluster):
        with without_garbage_collection():  # transformers and PEFT: 1.0 s of 3.8
            from trainer import stage
        progress.say(f"train: {', '.join(left)} in turn, in this process")
        made = {name: stage.run(inputs, name, progress=progress) for name in left}
    else:
        made = train_on_ray(inputs, config.cluster, left, progress)
    return {name: finished[name] or made[name] for name in names}


def trains_here(section: ClusterSection) -> bool:
    """Whether there is nothing to share out: one worker a target, no cluster, and no second accelerator on this machine.

    One accelerator of which a worker asks for a part is shared out.
    """
    import torch

    devices = torch.accelerator.device_count()
    alone = section.training_workers == 1 and not section.ray_address
    return alone and (devices == 0 or (devices == 1 and (section.training_gpus is None or section.training_gpus >= 1)))


def train_on_ray(
    inputs: TrainingInputs, section: ClusterSection, names: list[str], progress: Progress
) -> dict[str, Artifact]:
    """Train targets as Ray Train jobs, as many side by side as fit; raises as `run`."""
    from . import training_job

    stop = threading.Event()

    def train(name: str) -> Artifact | None:
        if stop.is_set():
            return None
        try:
            return training_job.run(inputs, section, name, progress=progress)
        except BaseException as error:
            stop.set()
            progress.say(f"train {name}: failed: {error}")
            raise

    with ray_session(section):
        needs = training_job.needs_of(section)
        at_once = min(needs.targets_at_once(), len(names))
        how = f"up to {at_once} side by side" if at_once > 1 else "in turn"
        progress.say(f"train: {', '.join(names)} on Ray, {how}: {needs}")
        threads = ThreadPoolExecutor(at_once, thread_name_prefix="train")
        try:
            jobs = {name: threads.submit(train, name) for name in names}
            wait(jobs.values())
        finally:  # not waited for: whoever interrupts the run ends this session, and with it the jobs
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
    for error in filter(None, (job.exception() for job in jobs.values())):
        raise error
    return {name: artifact for name, job in jobs.items() if (artifact := job.result()) is not None}
