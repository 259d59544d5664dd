"""Alignment on Ray: counters, then aligners, one CPU each, work off the shards of one source.

The bytes are those of `alignment.stage.run`, which is used as it is where there is nothing to share out: one shard at
most is missing, or there is one CPU.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from alignment import stage
from alignment.rows.shard_alignment import ShardAligner, ShardCounter
from alignment.tokens.cooccurrence import Cooccurrence, merge_counts
from alignment.vocabulary.vocabulary_file import has_vocabularies
from fusechat.config import ClusterSection, RunConfig
from fusechat.progress import Progress, ShardLog
from fusechat.storage.artifact import Artifact
from fusechat.storage.lease import Lease, held
from fusechat.storage.row_store import RowStore

from .jobs.working_dir import require_absolute
from .pool.placement import num_workers
from .pool.session import ray_session
from .pool.shard_pool import Job, ShardPool, raise_failures

SHARDS_IN_FLIGHT = 2
"""Per worker: one at work and one that waits, so that none waits for the driver."""


def run(config: RunConfig, source_name: str, *, progress: Progress | None = None) -> Artifact:
    """Align every missing shard of one source on all CPUs of the cluster.

    Raises:
        ArtifactError, AlignmentError, BusyError: as `alignment.stage.run`.
        ClusterError: no worker could start, or shards were set aside. All that was finished is kept.
        ClusterSetupError: no Ray at the given address, or results in a relative path there.
    """
    progress = progress or Progress(quiet=True)
    with held(config.aligned_url(source_name), config.run.if_changed) as lease:
        claim, store = stage.claim_store(config, source_name)
        if claim.artifact is not None:
            return claim.artifact
        assert lease is not None, "a finished store was handed back or refused"
        if len(store.missing_shards()) < 2 or not _has_several_cpus(config.cluster):
            stage.align_here(config, source_name, store, progress=progress)
        else:
            require_absolute(config)
            with ray_session(config.cluster):
                _align(config, source_name, store, lease, progress)
        return stage.finish(claim, store)


def _align(config: RunConfig, source_name: str, store: RowStore, lease: Lease, progress: Progress) -> None:
    """Map the vocabularies and align the missing shards on the connected Ray."""
    if not has_vocabularies(store.url):
        counts = _count(config, source_name, store, lease, progress)
        tokenizers = stage.open_tokenizers(config, source_name)
        stage.map_vocabularies(config, store, source_name, counts, tokenizers, progress=progress)
    missing, done = store.missing_shards(), stage.rows_done(store)
    log = ShardLog(config.log_path(f"align.{source_name}"), source_name)
    with progress.task(f"align {source_name}", store.plan.num_rows, "rows", done=done) as task:

        def on_done(result: dict[str, Any]) -> None:
            task.advance(result["rows"])
            log.done(result)

        _work_off(
            config, f"align {source_name}", ShardAligner, source_name, missing, on_done, lease, progress,
            on_failed=log.failed,
        )  # fmt: skip


def _has_several_cpus(section: ClusterSection) -> bool:
    """A cluster given by address is there because one machine is not enough; a local Ray takes the CPUs it is told."""
    return section.ray_address is not None or (section.num_cpus or os.cpu_count() or 1) > 1


def _count(config: RunConfig, name: str, store: RowStore, lease: Lease, progress: Progress) -> Cooccurrence:
    """Counts of all dialogues, added up as they come: their order does not matter."""
    counts: list[Cooccurrence] = []
    with progress.task(f"count {name}", store.plan.num_dialogues, "dialogues") as task:

        def on_done(result: dict[str, Any]) -> None:
            counts[:] = [merge_counts([*counts, result["counts"]])]
            task.advance(result["dialogues"])

        shards = list(range(store.plan.num_shards))
        _work_off(config, f"count {name}", ShardCounter, name, shards, on_done, lease, progress)
    return counts[0]


def _work_off(
    config: RunConfig,
    job_name: str,
    actor: type,
    source_name: str,
    shards: list[int],
    on_done: Callable[[dict[str, Any]], None],
    lease: Lease,
    progress: Progress,
    on_failed: Callable[[dict[str, Any]], None] = lambda record: None,
) -> None:
    """Run all shards on workers of a class, one CPU each."""

    def make_replica() -> tuple[Any, Any]:
        return ray.remote(actor).options(num_cpus=1).remote(config.dump(), source_name), None

    job = Job(job_name, shards, make_replica, partial(num_workers, num_cpus=1), on_done, on_failed=on_failed)
    pool = ShardPool(
        shards_in_flight=SHARDS_IN_FLIGHT,
        max_attempts=config.extraction.max_attempts,
        on_event=progress.say,
        on_tick=lease.check,
    )
    pool.run([job])
    raise_failures([job])
