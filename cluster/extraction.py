"""Extraction: the missing shards of every model's store are scored by engines of a running service, else by a pool of teachers on Ray."""

from fusechat.config import RunConfig
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.lease import hold_stores
from fusechat.storage.tokens_reader import TokensReader
from fusechat.storage.work import Work, run_here
from inference import stage

from .service.attach import do_works, sought_as


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
    with hold_stores(map(config.logprobs_url, names), config.run.if_changed) as check_leases:
        models = [resolve(config.model_named(name), config.digests_path) for name in names]
        asked = []
        for model in models:
            works = stage.prepare(config.layout, model, config.extraction, config.cluster)
            template = str(TokensReader(config.tokens_url(model.name)).attributes["template"])
            asked += [sought_as(work, "score", model, template, config.extraction) for work in works]

        def do_own(works: list[Work]) -> list[Artifact]:
            if not any(work.missing for work in works):
                return run_here(works, progress)
            from .pool.score_on_ray import score_on_ray  # Ray: a run whose engines a service has begins without it

            return score_on_ray(config, works, progress, check_leases)

        return do_works(config.cluster, asked, do_own, progress=progress, on_tick=check_leases)
