"""Extraction: the missing shards of every model's store are scored by engines of a running service, else by a pool of teachers on Ray."""

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from fusechat.config import RunConfig
from fusechat.models.resolved_model import ResolvedModel, resolve
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.lease import hold_store
from fusechat.storage.tokens import TokensReader
from fusechat.storage.work import run_here
from inference import stage
from inference.serving.faces import recipe_of

from .service.attach import Sought, do_served


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

        asked = [
            Sought(work, "score", partial(_recipes, config, model)) for model, work in zip(models, works, strict=True)
        ]
        served = do_served(config.cluster, asked, progress=progress, on_tick=check_leases)
        artifacts = {name: artifact for name, (artifact,) in served.items()}
        left = [work for work in works if work.name not in artifacts]
        if any(work.missing for work in left):
            from .pool.score_on_ray import score_on_ray  # Ray: a run whose engines a service has begins without it

            made = score_on_ray(config, left, progress, check_leases)
        else:
            made = run_here(left, progress)
        artifacts |= dict(zip([work.name for work in left], made, strict=True))
    return {name: artifacts[name] for name in names}


def _recipes(config: RunConfig, model: ResolvedModel, _engine: Mapping[str, Any]) -> list[str]:
    """What an engine of a service that reads a model's tokens must have."""
    template = str(TokensReader(config.tokens_url(model.name)).attributes["template"])
    return [recipe_of("score", model, template, config.extraction)]
