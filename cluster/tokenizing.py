"""Tokenizing on Ray: workers of one CPU each read ranges of the dialogue files, tokenize pieces of them and join these.

The bytes are those of `fusechat.text.tokenize_stage` in one process. Where there is nothing to share out the works are done
in this process: few pieces are missing, or there is one CPU.
"""

from fusechat.config import ClusterSection, RunConfig
from fusechat.config.layout import RunLayout
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.work import Work, run_here
from fusechat.text import tokenize_stage

from .jobs.working_dir import require_absolute
from .pool.cpus import has_several_cpus
from .pool.run_on_ray import run_on_ray
from .pool.session import ray_session

SHARED_PIECES = 4
"""Fewer are done sooner, of some seconds each, than workers start."""


def read_dialogues(config: RunConfig, *, progress: Progress | None = None) -> Artifact:
    """Read, check, cut and split the dialogues on all CPUs of the cluster.

    Raises:
        ClusterError: no worker could start, or pieces were set aside. All that was finished is kept.
        ClusterSetupError: no Ray at the given address, or results in a relative path there.
        The errors of `tokenize_stage.prepare_reading`.
    """
    progress, capture = progress or Progress(quiet=True), config.extraction.capture
    pivot = resolve(config.pivot, config.digests_path)
    works = tokenize_stage.prepare_reading(config.layout, pivot, config.dialogues, capture, progress=progress)
    return _do(works, config.cluster, config.layout, progress)[0]


def tokenize(config: RunConfig, name: str, *, progress: Progress | None = None) -> list[Artifact]:
    """Tokenize both splits for one model on all CPUs of the cluster.

    Returns:
        the tokens artifacts of train and held_out.
    Raises:
        ClusterError, ClusterSetupError: as `read_dialogues`.
        The errors of `tokenize_stage.prepare_tokens` and of its workers.
    """
    progress, capture = progress or Progress(quiet=True), config.extraction.capture
    model, pivot = (resolve(one, config.digests_path) for one in (config.model_named(name), config.pivot))
    works = tokenize_stage.prepare_tokens(config.layout, model, pivot, capture, progress=progress)
    return _do(works, config.cluster, config.layout, progress)


def _do(works: list[Work], cluster: ClusterSection, layout: RunLayout, progress: Progress) -> list[Artifact]:
    if max(len(work.missing) for work in works) < SHARED_PIECES or not has_several_cpus(cluster):
        return run_here(works, progress)
    require_absolute(cluster, layout)
    with ray_session(cluster):
        return run_on_ray(works, cluster, progress=progress, in_turn=True)
