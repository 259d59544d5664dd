"""What the report is told of a run: where things lie, its models, its own section; frozen."""

from dataclasses import dataclass
from typing import Any

from fusechat.config import EvaluationSection, MergeSection, ModelSection, RunConfig, TrainingSection
from fusechat.config.artifacts import ArtifactEntry, artifact_entries
from fusechat.config.layout import RunLayout


@dataclass(frozen=True)
class ReportInputs:
    """All that the report needs of a run beside its artifacts."""

    layout: RunLayout
    pivot: ModelSection
    sources: tuple[ModelSection, ...]
    target_names: tuple[str, ...]
    """Of the targets that learn from sources."""
    measured_ids: tuple[str, ...]
    """Of the models that are evaluated."""
    entries: tuple[ArtifactEntry, ...]
    """All artifacts of the run, in the order of the stages."""
    section: EvaluationSection
    training: TrainingSection
    merge: MergeSection
    compares_rows: bool
    """Divergence from the teachers' rows is measured."""
    has_prompts: bool
    """Models of the run wrote dialogues."""
    seed: int
    run: dict[str, Any]
    """The resolved run as plain values, which the report shows."""

    @classmethod
    def of(cls, config: RunConfig) -> "ReportInputs":
        """What a run says of its report."""
        return cls(
            layout=config.layout,
            pivot=config.pivot,
            sources=tuple(config.sources),
            target_names=tuple(config.target_names),
            measured_ids=tuple(config.measured_ids),
            entries=tuple(artifact_entries(config)),
            section=config.evaluation,
            training=config.training,
            merge=config.merge,
            compares_rows=config.compares_rows,
            has_prompts=bool(config.dialogues.prompts),
            seed=config.run.seed,
            run=config.dump(),
        )

    @property
    def models(self) -> tuple[ModelSection, ...]:
        """The pivot, then the sources."""
        return (self.pivot, *self.sources)
