"""The one list of a run's artifacts: a run in; for each artifact its stage, step, name and place out.

Pipeline, status, summary and report go by it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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
        yield ArtifactEntry("extract", "", name, config.logprobs_url(name))
    for source in config.sources:
        yield ArtifactEntry("align", source.name, source.name, config.aligned_url(source.name))
    if config.training.row_choice == "trusted":
        yield ArtifactEntry("train", "choice", "choice", config.choice_url)
    for name in config.trained_names:
        yield ArtifactEntry("train", "", name, str(config.target_path(name)))
    yield ArtifactEntry("merge", "", "", str(config.fused_path))
    for answer_set in config.evaluation.questions.sets:
        for model_id in config.measured_ids:
            place = str(config.answers_path(answer_set.name, model_id))
            yield ArtifactEntry("answer", "", f"{answer_set.name} {model_id}", place)
    yield ArtifactEntry("evaluate", "", "report", str(config.report_path))
