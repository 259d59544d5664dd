"""One run file: YAML in, a frozen RunConfig out.

Precedence: the YAML file, then each `--set section.field=value` in order (the value is YAML). Unknown keys are refused
with the nearest valid one. A default lives here and nowhere else. Relative paths are relative to the working directory.
Imports nothing heavy, so that the command line answers at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from ..errors import ConfigError
from .cluster import ClusterSection, PlanSection
from .evaluation import EvaluationSection
from .file import load_file, read_overrides
from .layout import Places, RunLayout
from .models import ModelSection
from .paths import FolderPath, PathText
from .rounds import RoundsSection
from .section import Section
from .serve import ServeSection
from .training import CONTROL, JOINT, TrainingSection
from .writing import WritingSection


class RunSection(Section):
    """Where a run lives."""

    output: FolderPath = Path("runs/run")
    """Folder of the run: models, reports, logs; on a filesystem that all nodes share."""
    store: PathText | None = None
    """URL (`s3://`, `gs://`) or folder of the tokens, logprobs and aligned stores; default: the run's folder."""
    seed: int = 0
    """Seed of everything random."""
    if_changed: Literal["refuse", "restart"] = "refuse"
    """What to do with artifacts that another recipe made: refuse and show the difference, or delete them and start afresh."""


class DialoguesSection(Section):
    """What the models read."""

    train: list[PathText] = []
    """Files or dataset folders: JSONL, ShareGPT JSON, Parquet, a saved Hugging Face dataset (`folder::split`), or one of the hub
    (`hub:OWNER/NAME::split`, `hub:OWNER/NAME/CONFIG@REVISION::split`). May be left out where there are prompts."""
    prompts: list[PathText] = []
    """Files of prompts, in any form of questions (`.txt`, `prompt`, `instruction`, ...) or of dialogues, whose last answer is
    then a reference; the writers answer them (`writing`), and the answers that are kept are read beside `train`."""
    held_out: list[PathText] = []
    """Files of held-out dialogues; if empty, `held_out_share` of the training dialogues is held out by the hash of the messages."""
    held_out_share: float = Field(0.02, ge=0, lt=1)
    """Share of the dialogues held out where no file is given."""
    max_tokens: int = Field(2048, ge=16)
    """Longest dialogue in the pivot's tokens; a longer one is cut after its last whole turn that fits."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """A dialogue that breaks the rules ends the run, or is left out, counted and listed."""
    ignore_keys: list[str] = []
    """Keys of rows, messages and tool calls that are left unread on purpose; any other key of a message that FuseChat does
    not know is refused, and a column of a row that it does not know is counted and named."""
    on_overlap: Literal["refuse", "keep"] = "refuse"
    """Held-out dialogues that are also training dialogues end the run, or are kept, named in the record and in the report."""


class ExtractionSection(Section):
    """How the teachers score."""

    k: int = Field(10, ge=1, le=1024)
    """Tokens kept per row."""
    capture: Literal["topk_pooler", "prompt_logprobs"] = "topk_pooler"
    """The project's own top-k pooler, or vLLM's public prompt logprobs (the reference; slower)."""
    shard_tokens: int = Field(131_072, ge=64)
    """Tokens of one shard, the unit of work and of resumption."""
    self_check_dialogues: int = Field(4, ge=0)
    """Dialogues that each teacher scores against a plain transformers forward before it may write; 0: none."""
    logprob_step: float = Field(1 / 32, gt=0, le=0.25)
    """Grid on which top-k logprobs are stored, nats."""


class AlignmentSection(Section):
    """How source rows become pivot rows."""

    token_rule: Literal["span", "released"] = "span"
    """Byte spans (exact, linear in the text), or the released code's dynamic time warping."""
    vocabulary_rule: Literal["frequency", "released", "min_edit", "exact"] = "frequency"
    """How a source id is mapped to a pivot id."""
    row_rule: Literal["chain", "map"] = "chain"
    """Chain rule over the bytes (the label's probability and rows inside a source token are exact), or the plain map of each row."""


class MergeSection(Section):
    """How the targets become the fused model."""

    method: str = "sce"
    """A name of `merge.methods`."""
    parameters: dict[str, Any] = {}
    """The method's own parameters."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype of the fused weights; auto: the pivot's."""
    threads: int | None = Field(None, ge=1)
    """Threads of the merge; default: one per core, and on a cluster four per worker."""
    max_shard_bytes: int = Field(5 * 10**9, ge=1)
    """Largest file of the fused model, bytes (a single tensor may exceed it)."""


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
