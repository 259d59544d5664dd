"""Answering on Ray: a pool of engines answers the questions of `evaluation.questions.sets`, every measured model for itself."""

from evaluation.models import measured_models
from fusechat.config import RunConfig
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import run_here
from inference.answering import stage
from inference.answering.stage import AnsweringModel

from .pool.preflight import check_cluster
from .pool.run_on_ray import Bar, run_on_ray
from .pool.session import ray_session


def run(config: RunConfig, *, progress: Progress) -> list[Artifact]:
    """Answer what is missing, and write each model's answers in the form of their set.

    Returns:
        one artifact per model and set.
    Raises:
        DialogueError: a questions file that cannot be read.
        StorageError: the answers cannot be written.
        ClusterError: an engine could not start, or chunks were set aside. In all cases what was answered is kept.
    """
    models = [
        AnsweringModel(model.id, model.label, str(model.folder), model.fingerprint, model.reader)
        for model in measured_models(config)
    ]
    works = stage.prepare(config, models)
    begun = {work.name: work for work in works if work.missing}
    if not begun:
        return run_here(works, progress)
    total = sum(work.total - work.done for work in works)
    with ray_session(config.cluster), progress.task("answer", total, "questions") as task:
        readers = list(dict.fromkeys(model.reader for model in models if model.label in begun))
        places = {"run.store": config.store_url, "run.output": str(config.run.output / "answers")}
        check_cluster(config, readers, places)
        progress.say(f"answer: starting {len(begun)} models on Ray: {', '.join(begun)}")
        return run_on_ray(
            works, config.cluster, max_attempts=config.cluster.max_attempts, progress=progress,
            workers_per_work=config.cluster.engines, listen=lambda work: Bar(task, work),
        )  # fmt: skip
