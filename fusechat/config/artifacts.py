"""The one list of a run's artifacts: a run in; for each artifact its stage, step, name and place out.

Pipeline, status, summary and report go by it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .round_run import ROUND_STAGES, round_runs
from .run import RunConfig


@dataclass(frozen=True)
class ArtifactEntry:
    """One artifact of a run, finished or not."""

    stage: str
    """That makes it: `extract`."""
    step: str
    """Of the stage, where it has several; else empty."""
    name: str
    """What people read beside the stage."""
    url: str
    """Folder or URL."""
    store: str = ""
    """Kind of the rows, where it is a row store."""


def artifact_entries(config: RunConfig) -> list[ArtifactEntry]:
    """All artifacts that the run makes, in the order of the stages; the report comes last."""
    return list(_entries(config))


def _entries(config: RunConfig) -> Iterator[ArtifactEntry]:
    names = [model.name for model in config.models]
    if config.dialogues.prompts:
        yield ArtifactEntry("write", "", "prompts", str(config.prompts_path))
        for writer in config.writers:
            yield ArtifactEntry("write", "", f"answers {writer.name}", str(config.written_answers_path(writer.name)))
        yield ArtifactEntry("write", "", "dialogues", str(config.written_path))
    yield ArtifactEntry("tokenize", "dialogues", "dialogues", str(config.dialogues_path))
    for name in names:
        for split in ("train", "held_out"):
            yield ArtifactEntry("tokenize", name, f"{name} {split}", config.tokens_url(name, split))
    for name in names:
        yield ArtifactEntry("extract", "", name, config.logprobs_url(name), "logprobs")
    for source in config.sources:
        yield ArtifactEntry("align", source.name, source.name, config.aligned_url(source.name), "aligned")
    if config.training.row_choice == "trusted":
        yield ArtifactEntry("train", "choice", "choice", config.choice_url)
    for name in config.trained_names:
        yield ArtifactEntry("train", "", name, str(config.target_path(name)))
    yield ArtifactEntry("merge", "", "", str(config.fused_path))
    for number, one in enumerate(round_runs(config), 1):
        yield ArtifactEntry("rounds", f"{number} ask", f"{number} asked", str(one.asked_path))
        for entry in _entries(one):
            if entry.stage in ROUND_STAGES:
                step = f"{number} {entry.stage} {entry.step}".rstrip()
                yield ArtifactEntry("rounds", step, f"{number} {entry.stage} {entry.name}", entry.url, entry.store)
    for model_id in config.measured_ids:
        yield from _entries_of_measured(config, model_id)
    yield ArtifactEntry("evaluate", "", "report", str(config.report_path))


def _entries_of_measured(config: RunConfig, model_id: str) -> Iterator[ArtifactEntry]:
    """What one measured model leaves; chosen logprobs on held-out dialogues, which depend on what was held out, are not listed."""
    yield ArtifactEntry("answer", "", f"held_out {model_id}", config.held_out_url(model_id), "logprobs")
    if config.compares_rows and not model_id.startswith("source."):
        for teacher in config.models:
            url = config.chosen_url(model_id, "train", teacher.name)
            yield ArtifactEntry("answer", "", f"chosen {model_id} {teacher.name}", url)
    for name in config.evaluation.set_names(model_id):
        yield ArtifactEntry("answer", "", f"{name} {model_id}", str(config.answers_path(name, model_id)))
    if config.evaluation.lm_eval.tasks:
        yield ArtifactEntry("answer", "", f"lm-eval {model_id}", str(config.harness_path(model_id)))
