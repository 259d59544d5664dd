"""One run file: YAML in, a frozen RunConfig out.

Precedence: the YAML file, then each `--set section.field=value` in order (the value is YAML). Unknown keys are refused
with the nearest valid one. A default lives here and nowhere else. Relative paths are relative to the working directory.
Imports nothing heavy, so that the command line answers at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from ..errors import ConfigError
from .cluster import ClusterSection, PlanSection
from .evaluation import EvaluationSection
from .file import load_file, read_overrides
from .layout import Places, RunLayout
from .models import ModelSection
from .rounds import RoundsSection
from .section import Section
from .serve import ServeSection
from .stages import AlignmentSection, DialoguesSection, ExtractionSection, MergeSection, RunSection
from .training import CONTROL, JOINT, TrainingSection
from .writing import WritingSection


class RunConfig(Section, Places):
    """A whole run."""

    run: RunSection = RunSection()
    pivot: ModelSection
    sources: list[ModelSection] = Field(min_length=1)
    dialogues: DialoguesSection
    writing: WritingSection = WritingSection()
    extraction: ExtractionSection = ExtractionSection()
    alignment: AlignmentSection = AlignmentSection()
    training: TrainingSection = TrainingSection()
    merge: MergeSection = MergeSection()
    rounds: RoundsSection = RoundsSection()
    evaluation: EvaluationSection = EvaluationSection()
    cluster: ClusterSection = ClusterSection()
    serve: ServeSection = ServeSection()
    plan: PlanSection = PlanSection()
    _places: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _names_differ(self) -> "RunConfig":
        names = [model.name for model in self.models]
        reserved = {CONTROL, JOINT, "fused"} & set(names)
        if len(set(names)) < len(names) or reserved:
            raise ValueError(f"model names {names} must differ from each other and from 'sft', 'joint' and 'fused'")
        return self

    @model_validator(mode="after")
    def _has_something_to_read(self) -> "RunConfig":
        if not self.dialogues.train and not self.dialogues.prompts:
            raise ValueError("dialogues: found neither train nor prompts, expected files of one of them, or of both")
        self.writing.check_models([model.name for model in self.models])
        if self.writing != WritingSection() and not self.dialogues.prompts:
            raise ValueError("writing: there are no prompts to answer; name files of them in dialogues.prompts")
        return self

    @model_validator(mode="after")
    def _joint_knows_its_teachers(self) -> "RunConfig":
        training = self.training
        if training.fusion != "pairwise" and training.row_choice != "trusted":
            raise ValueError(
                f"training.fusion: {training.fusion} needs training.row_choice: trusted, found {training.row_choice!r}; "
                "the other choices are between the pivot and one source"
            )
        return self

    @model_validator(mode="after")
    def _rounds_know_their_teachers(self) -> "RunConfig":
        if self.rounds.count and self.training.row_choice != "trusted":
            raise ValueError(
                f"rounds.count: {self.rounds.count} needs training.row_choice: trusted, found {self.training.row_choice!r}: "
                "who teaches an answer is read off the choice"
            )
        return self

    @model_validator(mode="after")
    def _serves_what_it_has(self) -> "RunConfig":
        self.serve.check_models([model.name for model in self.models])
        return self

    @model_validator(mode="after")
    def _evaluates_what_it_has(self) -> "RunConfig":
        self.evaluation.check_models(self.model_ids)
        return self

    @property
    def models(self) -> list[ModelSection]:
        """The pivot, then the sources."""
        return [self.pivot, *self.sources]

    def model_named(self, name: str) -> ModelSection:
        """The pivot or source of that name."""
        for model in self.models:
            if model.name == name:
                return model
        raise ConfigError(f"no model is named {name!r}; the run has {[model.name for model in self.models]}")

    @property
    def writers(self) -> list[ModelSection]:
        """The models that answer the prompts."""
        names = self.writing.writers or [source.name for source in self.sources]
        return [self.model_named(name) for name in names]

    @property
    def scorers(self) -> list[ModelSection]:
        """The models that score answers of others, for a rule that asks for it."""
        names = self.writing.scorers or [source.name for source in self.sources]
        return [self.model_named(name) for name in names]

    @property
    def model_ids(self) -> list[str]:
        """Ids of all models that the run will have, as in `evaluation.models`."""
        sources = [source.name for source in self.sources]
        control = [CONTROL] if self.training.train_control else []
        targets = [f"target.{name}" for name in self.target_names]
        rounds = [f"round.{number}" for number in range(1, self.rounds.count + 1)]
        return ["pivot", *control, *targets, "fused", *rounds, *(f"source.{name}" for name in sources)]

    @property
    def target_names(self) -> list[str]:
        """The targets that learn from sources: one per source, the joint one, or both."""
        pairs = [source.name for source in self.sources] if self.training.fusion != "joint" else []
        return pairs + ([JOINT] if self.training.fusion != "pairwise" else [])

    @property
    def trained_names(self) -> list[str]:
        """All that is trained: the targets, and the SFT-only control."""
        return self.target_names + ([CONTROL] if self.training.train_control else [])

    @property
    def merged_names(self) -> list[str]:
        """The targets that become the fused model: the pairs, or the joint one where there are none."""
        return [name for name in self.target_names if name != JOINT] or [JOINT]

    @property
    def measured_ids(self) -> list[str]:
        """Those of them that are evaluated."""
        return self.evaluation.measured(self.model_ids)

    @property
    def compares_rows(self) -> bool:
        """Whether the divergence from the teachers' rows is measured: it is asked for, and the capture gives chosen ids."""
        return self.evaluation.held_out.divergence_dialogues > 0 and self.extraction.capture == "topk_pooler"

    @property
    def layout(self) -> RunLayout:
        """Where everything of the run lies: what a stage is given in place of the whole run."""
        return RunLayout(self.run_folder, self.store_url, self.places, self.run.if_changed)

    @property
    def run_folder(self) -> Path:
        return self.run.output

    @property
    def store_url(self) -> str:
        return (self.run.store or str(self.run.output)).rstrip("/")

    @property
    def places(self) -> dict[str, str]:
        return self._places

    def with_places(self, places: Mapping[str, str]) -> "RunConfig":
        """The same run with artifacts that stand elsewhere than in its folder or store; no run file says so, `ablate` does.

        Args:
            places: artifact (`aligned/NAME`) -> folder or URL. `dump` leaves them out.
        """
        placed = self.model_copy()
        placed._places = dict(places)
        return placed

    def dump(self) -> dict[str, Any]:
        """The resolved run as plain values."""
        return self.model_dump(mode="json")


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a run file and apply `section.field=value` overrides.

    Raises:
        ConfigError: a missing or broken file, an unknown key (the nearest valid one is named), a value out of range.
    """
    return load_file(path, read_overrides(overrides), RunConfig)
