"""One run file: YAML in, a frozen RunConfig out.

Precedence: the YAML file, then each `--set section.field=value` in order (the value is YAML). Unknown keys are refused
with the nearest valid one. A default lives here and nowhere else. Relative paths are relative to the working directory.
Imports nothing heavy, so that the command line answers at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from ..errors import ConfigError
from .cluster import ClusterSection, PlanSection
from .evaluation import EvaluationSection
from .file import load_file, read_overrides
from .layout import Places, RunLayout
from .paths import FolderPath, PathText, expand_within
from .secrets import refuse_hub_keys, refuse_secret_keys
from .section import Name, Section

CONTROL = "sft"
"""Name of the SFT-only control among the targets: trained on the same steps without any rows."""
JOINT = "joint"
"""Name of the target that learns from all sources."""
FUSION_FIELDS = ("sft_weight", "divergence", "temperature", "tail", "row_choice")
"""Fields of `training` that a target without rows does not depend on."""


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


class EngineSection(Section):
    """How one teacher engine is started."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype of the weights and activations; auto: what the checkpoint says."""
    head_dtype: Literal["auto", "model", "float32"] = "auto"
    """Dtype of the logits: auto is float32 on GPUs and the model's own on CPUs, where a float32 head costs a third of the speed."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs (on CPUs: processes) that share one engine."""
    max_num_batched_tokens: int = Field(2048, ge=16)
    """Tokens of one engine step."""
    kv_cache_gib: float = Field(0.5, gt=0)
    """CPU only: memory of the KV cache, GiB."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """GPU only: share of the memory that the engine may take."""
    extra: dict[str, Any] = {}
    """Further arguments of vLLM's engine, by their own names (quantization, expert parallelism, ...)."""

    _no_secret = field_validator("extra")(refuse_secret_keys)
    _paths = field_validator("extra")(expand_within)


class ModelSection(Section):
    """One LLM: the pivot or a source."""

    name: Name
    """Short name; names the folders of its artifacts."""
    model: PathText
    """Local Hugging Face folder or hub id."""
    revision: str | None = None
    """Hub revision."""
    template: PathText = "native"
    """Chat template: `native` (the model's own), `pivot` (the pivot's, as the released code does) or the path of a Jinja file."""
    template_arguments: dict[str, Any] = {}
    """What its chat template is told beside messages and tools (`enable_thinking: false`, ...); a dialogue's own go first."""
    engine: EngineSection = EngineSection()
    """How its engine is started."""


class DialoguesSection(Section):
    """What the models read."""

    train: list[PathText] = Field(min_length=1)
    """Files or dataset folders: JSONL, ShareGPT JSON, Parquet, a saved Hugging Face dataset (`folder::split`), or one of the hub
    (`hub:OWNER/NAME::split`, `hub:OWNER/NAME/CONFIG@REVISION::split`)."""
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


class LoraSection(Section):
    """Low-rank adapters; merged into the weights when the target is saved."""

    r: int = Field(16, ge=1)
    """Rank."""
    alpha: int = Field(32, ge=1)
    """Scale; the update is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: str | list[str] = "all-linear"
    """Modules that get an adapter."""


class TrainingSection(Section):
    """How the pivot is trained with its sources."""

    fusion: Literal["pairwise", "joint", "both"] = "pairwise"
    """A target per source, then merged; one target that learns each dialogue from the source that knows it best; or all of them."""
    sft_weight: float = Field(0.1, ge=0, le=1)
    """Weight of the SFT loss where a row teaches; the fusion loss gets the rest, times the source's trust. Published: 0.9."""
    divergence: Literal["ce", "kl", "reverse_kl"] = "ce"
    """Between the chosen row and the model's distribution."""
    temperature: float = Field(1.0, gt=0)
    """Divides the row's logprobs before they are normalised again."""
    tail: Literal["renormalise", "bucket"] = "bucket"
    """What happens to the mass outside the k entries: normalised away (as released), or one bucket for the rest."""
    row_choice: Literal[
        "trusted", "min_ce", "min_ce_released", "min_ce_token", "average", "source", "pivot", "none"
    ] = "trusted"
    """Which row supervises. trusted: per dialogue the source that beats all others, the pivot and the labels' own frequency,
    as far as it is calibrated; of pivot and source the smaller loss in nats per byte (min_ce, FuseLLM's); by the released
    per-token mean; per token; both, averaged by weight; always one of them; no fusion."""
    train_control: bool = True
    """Also train the SFT-only control of the same steps."""
    lora: LoraSection | None = None
    """Train low-rank adapters instead of all weights."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the target's files; auto: what the weights were trained in, float32 unless `trl.model_init_kwargs.dtype` says
    otherwise, because bfloat16 drops most of a small update before the merge can see it. The fused model's is `merge.dtype`."""
    trl: dict[str, Any] = {}
    """Fields of TRL's SFTConfig; those not given are the published ones (lr 5e-6, cosine, warmup 0.03, 3 epochs, batch 128)."""

    _no_secret = field_validator("trl")(refuse_secret_keys)
    _no_upload = field_validator("trl")(refuse_hub_keys)
    _paths = field_validator("trl")(expand_within)


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
    extraction: ExtractionSection = ExtractionSection()
    alignment: AlignmentSection = AlignmentSection()
    training: TrainingSection = TrainingSection()
    merge: MergeSection = MergeSection()
    evaluation: EvaluationSection = EvaluationSection()
    cluster: ClusterSection = ClusterSection()
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
    def _joint_knows_its_teachers(self) -> "RunConfig":
        training = self.training
        if training.fusion != "pairwise" and training.row_choice != "trusted":
            raise ValueError(
                f"training.fusion: {training.fusion} needs training.row_choice: trusted, found {training.row_choice!r}; "
                "the other choices are between the pivot and one source"
            )
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
    def model_ids(self) -> list[str]:
        """Ids of all models that the run will have, as in `evaluation.models`."""
        sources = [source.name for source in self.sources]
        control = [CONTROL] if self.training.train_control else []
        targets = [f"target.{name}" for name in self.target_names]
        return ["pivot", *control, *targets, "fused", *(f"source.{name}" for name in sources)]

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
