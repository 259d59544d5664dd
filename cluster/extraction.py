"""Extraction: the missing shards of every model's store are scored by engines of a running service, else by a pool of teachers on Ray."""

import contextlib
from collections.abc import Callable
from functools import partial

from fusechat.config import RunConfig
from fusechat.models.resolved_model import ResolvedModel, resolve
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.lease import hold_store
from fusechat.storage.tokens import TokensReader
from fusechat.storage.work import Work, run_here
from inference import stage
from inference.serving.faces import recipe_of
from inference.serving.remote_engine import served_work

from .service.attach import RunningServices, run_served


def run(config: RunConfig, names: list[str], *, progress: Progress) -> dict[str, Artifact]:
    """Score what is missing for the named models.

    Returns:
        name -> finished logprobs artifact.
    Raises:
        BusyError: another driver is writing one of the stores.
        StorageError: a store cannot be written.
        ClusterError: a teacher could not start or failed its self-check, or shards were set aside. In all cases what was
            finished is kept.
    """
    with contextlib.ExitStack() as stack:
        leases = [stack.enter_context(hold_store(config.logprobs_url(name), config.run.if_changed)) for name in names]
        models = [resolve(config.model_named(name), config.digests_path) for name in names]
        works = [
            work for model in models for work in stage.prepare(config.layout, model, config.extraction, config.cluster)
        ]

        def check_leases() -> None:
            for lease in leases:
                if lease is not None:
                    lease.check()

        artifacts = _from_services(config, models, works, progress, check_leases)
        left = [work for work in works if work.name not in artifacts]
        if any(work.missing for work in left):
            from .pool.score_on_ray import score_on_ray  # Ray: a run whose engines a service has begins without it

            made = score_on_ray(config, left, progress, check_leases)
        else:
            made = run_here(left, progress)
        artifacts |= dict(zip([work.name for work in left], made, strict=True))
    return {name: artifacts[name] for name in names}


def _from_services(
    config: RunConfig,
    models: list[ResolvedModel],
    works: list[Work],
    progress: Progress,
    check_leases: Callable[[], None],
) -> dict[str, Artifact]:
    """Do the works whose engine a running service has; gives their artifacts by name."""
    begun = [(model, work) for model, work in zip(models, works, strict=True) if work.missing]
    if not begun:
        return {}
    services = RunningServices(config.cluster, progress=progress)
    served = {}
    for model, work in begun:
        tokens = TokensReader(config.tokens_url(model.name))
        template = str(tokens.attributes["template"])
        engine = services.find(
            "score", model.name, partial(recipe_of, "score", model, template, config.extraction), tokens.longest()
        )
        if engine is not None:
            served[model.name] = served_work(work, engine)
    return {name: run_served(work, progress, on_tick=check_leases) for name, work in served.items()}
