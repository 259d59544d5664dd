"""What training is told of a run: where things lie, the models, its own section; frozen, and cheap to send to a worker."""

from dataclasses import dataclass

from fusechat.config import JOINT, ModelSection, RunConfig, TrainingSection
from fusechat.config.layout import RunLayout
from fusechat.config.recipe import Recipe

from .recipe import target_recipe


@dataclass(frozen=True)
class TrainingInputs:
    """All that decides the targets of a run."""

    layout: RunLayout
    pivot: ModelSection
    """Its folder is looked up where the trainer stands."""
    sources: tuple[ModelSection, ...]
    names: tuple[str, ...]
    """Of all that the run trains."""
    section: TrainingSection
    seed: int
    max_tokens: int
    """Longest dialogue, tokens of the pivot."""
    dialogue_files: tuple[str, ...]
    """Of dialogues and of prompts, as the run file names them, for the targets' cards."""
    is_round: bool = False
    """The run is a round of another: its pivot is a student that wrote some of the dialogues."""
    least_probability: float = 0.0
    """Of a token of the student's answer under its teacher; behind a less probable one there are no rows."""

    @classmethod
    def of(cls, config: RunConfig) -> "TrainingInputs":
        """What a run says of its training."""
        return cls(
            config.layout, config.pivot, tuple(config.sources), tuple(config.trained_names), config.training,
            config.run.seed, config.dialogues.max_tokens, (*config.dialogues.train, *config.dialogues.prompts),
            config.rounds.number > 0, config.rounds.least_probability,
        )  # fmt: skip

    @property
    def source_names(self) -> list[str]:
        """In the run file's order."""
        return [source.name for source in self.sources]

    def recipe(self, target_name: str) -> Recipe:
        """What decides a target, but for the pivot's files."""
        recipe = target_recipe(
            target_name, self.section, self.pivot.name, self.source_names, seed=self.seed, max_tokens=self.max_tokens
        )
        own = {"least_probability": self.least_probability} if self.is_round else {}
        return Recipe({**recipe.settings, **own}, recipe.parents)

    def teachers(self, target_name: str) -> list[ModelSection]:
        """The sources that a target learns from."""
        return [source for source in self.sources if target_name in (JOINT, source.name)]
