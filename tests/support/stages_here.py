"""The stages of a run, each in this process: a run in, the artifact out."""

from alignment import stage as alignment_stage
from evaluation import stage as evaluation_stage
from evaluation.inputs import ReportInputs
from fusechat.config import RunConfig
from fusechat.models.resolved_model import resolve
from fusechat.progress import Progress
from fusechat.storage.artifact import Artifact
from fusechat.storage.lease import hold_store
from fusechat.storage.work import Work, run_here
from fusechat.text import tokenize_stage
from merge import stage as merge_stage

QUIET = Progress(quiet=True)


def reading_works(config: RunConfig, progress: Progress = QUIET) -> list[Work]:
    """What is left of reading the dialogues."""
    return tokenize_stage.prepare_reading(
        config.layout, resolve(config.pivot, config.digests_path), config.dialogues, config.extraction.capture,
        progress=progress,
    )  # fmt: skip


def token_works(config: RunConfig, name: str, progress: Progress = QUIET) -> list[Work]:
    """What is left of the tokens of one model."""
    return tokenize_stage.prepare_tokens(
        config.layout, *(resolve(one, config.digests_path) for one in (config.model_named(name), config.pivot)),
        config.extraction.capture, progress=progress,
    )  # fmt: skip


def prepare_dialogues(config: RunConfig, *, progress: Progress = QUIET) -> Artifact:
    """Read, check, cut and split the dialogues, range after range."""
    return run_here(reading_works(config, progress), progress)[0]


def tokenize(config: RunConfig, name: str, *, progress: Progress = QUIET) -> list[Artifact]:
    """Tokens of both splits for one model."""
    return run_here(token_works(config, name, progress), progress)


def tokenize_run(config: RunConfig) -> list[Artifact]:
    """The dialogues, then the tokens of all models."""
    return [prepare_dialogues(config), *(one for model in config.models for one in tokenize(config, model.name))]


def align(config: RunConfig, source: str) -> Artifact:
    """Rows of one source on the pivot's tokens, shard after shard."""
    layout = config.layout
    with hold_store(layout.aligned_url(source), layout.if_changed):
        model = config.model_named(source)
        works = alignment_stage.prepare(layout, config.pivot, model, config.alignment, config.extraction)
        return run_here(works, QUIET)[0]


def train(config: RunConfig, target: str, *, progress: Progress = QUIET) -> Artifact:
    """One target, or the control."""
    from trainer import stage  # TRL: seconds
    from trainer.inputs import TrainingInputs

    return stage.run(TrainingInputs.of(config), target, progress=progress)


def merge(config: RunConfig) -> Artifact:
    """The fused model."""
    pivot, seed = resolve(config.pivot, config.digests_path), config.run.seed
    works = merge_stage.prepare(config.layout, pivot, config.merge, config.merged_names, seed=seed, progress=QUIET)
    return run_here(works, QUIET)[0]


def write_report(config: RunConfig) -> Artifact:
    """The report, of what was measured."""
    return evaluation_stage.run(ReportInputs.of(config))
