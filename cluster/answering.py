"""Measured models at work: they score the held-out dialogues, answer questions and do lm-eval's tasks.

A running service that has a model's engine does what it may of that; one pool on Ray does the rest.

Three passes, the processes kept between them. First whatever needs no rows of others: the pivot and the sources score the held-out
dialogues, and all models answer. Then the sources' held-out rows are laid on the pivot's tokens, here. Last the trained models
score, and every model over the pivot's vocabulary scores the ids of the teachers' rows. Large models go first, so that no process
is left with one when the others have nothing more to do.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment import held_out as aligned_held_out
from fusechat.config import ModelSection, RunConfig
from fusechat.models.measured_models import MeasuredModel, count_parameters, measured_models
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact
from fusechat.storage.lease import hold_stores
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import Work, run_here
from inference.answering import stage as answers
from inference.harness import stage as harness
from inference.held_out import stage as held_out
from inference.held_out.teachers import TeacherSample, teacher_samples
from inference.measuring import MeasuringSettings
from inference.serving.faces import FaceName

from .pool.preflight import check_cluster
from .pool.run_on_ray import new_pool, run_on_ray
from .pool.session import ray_session
from .pool.worker_pool import WorkerPool
from .service.attach import Sought, do_served


def run(config: RunConfig, *, progress: Progress) -> list[Artifact]:
    """Let the measured models do what is missing.

    Returns:
        the artifacts of all models: rows on the held-out dialogues, answers per set, lm-eval's figures, chosen logprobs.
    Raises:
        DialogueError: a questions file that cannot be read.
        StorageError: results cannot be written.
        ArtifactError: a model is not finished, or another recipe's work stands in a folder.
        BusyError: another driver is writing one of the stores.
        ClusterError: an engine could not start, or units were set aside. In all cases what was done is kept.
    """
    models = measured_models(config.layout, config.pivot, config.sources, config.measured_ids)
    models.sort(key=lambda model: -(count_parameters(model.folder) or 0))
    settings = MeasuringSettings(config.evaluation.held_out, config.extraction, config.cluster)
    urls = [config.held_out_url(model.id) for model in models]
    readers = [config.model_named(name) for name in dict.fromkeys(model.reader for model in models)]
    with (
        hold_stores(urls, config.run.if_changed) as check_leases,
        Passes(config, readers, progress, check_leases) as passes,
    ):
        asked: list[Work | Sought] = []
        for model in models:
            if model.is_given:
                asked += _scoring(config, [model], settings, [])
            asked += _asked(config, model, settings)
        made = passes.run(asked)
        _align_held_out(config, [model for model in models if model.is_given], progress)
        teachers = _teachers(config)
        own = [model for model in models if model.reader == config.pivot.name]
        return made + passes.run(_scoring(config, own, settings, teachers))


class Passes:
    """Works one set after the other, on one Ray and one pool that are opened when first needed; a `with` block."""

    def __init__(
        self, config: RunConfig, readers: Sequence[ModelSection], progress: Progress, check_leases: Callable[[], None]
    ) -> None:
        """
        Args:
            readers: models of the run whose engines the measured models have.
        """
        self._config, self._readers, self._progress, self._check_leases = config, readers, progress, check_leases
        self._stack = contextlib.ExitStack()
        self._pool: WorkerPool | None = None

    def __enter__(self) -> "Passes":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, asked: Sequence[Work | Sought]) -> list[Artifact]:
        """Do what is missing of the works, and finish them; what a service may do is sought there first."""
        sought = [one for one in asked if isinstance(one, Sought)]
        served = do_served(self._config.cluster, sought, progress=self._progress, on_tick=self._check_leases)
        works = [one.work if isinstance(one, Sought) else one for one in asked]
        own = self.do_own([work for work in works if work.name not in served])
        return [made for artifacts in served.values() for made in artifacts] + own

    def do_own(self, works: list[Work]) -> list[Artifact]:
        """Let engines of the run's own do works."""
        if not any(work.missing for work in works):
            return run_here(works, self._progress)
        cluster = self._config.cluster
        return run_on_ray(
            works, cluster, progress=self._progress, pool=self._pool or self._open(), workers_per_work=cluster.engines,
            label="answer", on_tick=lambda ready: self._check_leases(),
        )  # fmt: skip

    def _open(self) -> WorkerPool:
        config = self._config
        self._stack.enter_context(ray_session(config.cluster))
        check_cluster(config, self._readers, {"run.store": config.store_url, "run.output": str(config.run.output)})
        self._progress.say("answer: starting the measured models on Ray")
        pool = new_pool(config.cluster, self._progress, keeps_idle=True)
        self._pool = self._stack.enter_context(pool)
        return self._pool


def _scoring(
    config: RunConfig, models: Sequence[MeasuredModel], settings: MeasuringSettings, teachers: list[TeacherSample]
) -> list[Work | Sought]:
    """Scoring: the held-out dialogues, and the teachers' ids."""
    return [
        _may_be_served(config, model, settings, "score", work)
        for model in models
        for work in held_out.prepare(
            config.layout, model, config.model_named(model.reader), settings, teachers, seed=config.run.seed
        )
    ]


def _asked(config: RunConfig, model: MeasuredModel, settings: MeasuringSettings) -> list[Work | Sought]:
    """Answers, and lm-eval's tasks: their workers may run code that a model writes, so they ask engines of their own."""
    layout, reader, section, seed = (
        config.layout, config.model_named(model.reader), config.evaluation, config.run.seed,
    )  # fmt: skip
    works = answers.prepare(layout, model, reader, section, settings, seed=seed)
    asked = [_may_be_served(config, model, settings, "generate", work) for work in works]
    return [*asked, *harness.prepare(layout, model, reader, section.lm_eval, settings, seed=seed)]


def _may_be_served(
    config: RunConfig, model: MeasuredModel, settings: MeasuringSettings, face: FaceName, work: Work
) -> Work | Sought:
    """A service has the run's models, not those that the run trains."""
    if not model.is_given:
        return work

    def recipes(engine: Mapping[str, Any]) -> list[str]:
        resolved = resolve(config.model_named(model.reader), config.digests_path)
        template = str(TokensReader(config.tokens_url(model.reader)).attributes["template"])
        return settings.served_recipes(face, resolved, template, engine)

    return Sought(work, face, recipes)


def _align_held_out(config: RunConfig, given: Sequence[MeasuredModel], progress: Progress) -> None:
    """Lay each measured source's held-out rows on the pivot's tokens, where training's rows of it are finished."""
    if not config.compares_rows:
        return
    for name in (model.name for model in given if model.role == "source"):
        rows = artifact.load(config.held_out_url(f"source.{name}"), "logprobs")
        if not rows.counts["rows"] or not artifact.is_finished(config.aligned_url(name)):
            continue
        run_here(
            aligned_held_out.prepare(
                config.layout, config.pivot, config.model_named(name), config.alignment, config.extraction
            ),
            progress,
        )


def _teachers(config: RunConfig) -> list[TeacherSample]:
    """Whose ids are scored."""
    if not config.compares_rows:
        return []
    wanted = config.evaluation.held_out.divergence_dialogues
    names = [source.name for source in config.sources]
    return [
        sample
        for split in ("train", "held_out")
        for sample in teacher_samples(
            config.layout, config.pivot.name, names, split=split, num_dialogues=wanted, seed=config.run.seed
        )
    ]
