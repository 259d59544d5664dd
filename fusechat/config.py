"""One run file: YAML in, a frozen RunConfig out.

Precedence: the YAML file, then each `--set section.field=value` in order (the value is YAML). Unknown keys are refused
with the nearest valid one. A default lives here and nowhere else. Relative paths are relative to the working directory.
Imports nothing heavy, so that the command line answers at once.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name that is also a folder name."""


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, field docstrings kept for docs/configuration.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunSection(Section):
    """Where a run lives."""

    output: Path = Path("runs/run")
    """Folder of the run: models, reports, logs; on a filesystem that all nodes share."""
    store: str | None = None
    """URL (`s3://`, `gs://`) or folder of the tokens, logprobs and aligned stores; default: the run's folder."""
    seed: int = 0
    """Seed of everything random."""
    if_changed: Literal["refuse", "restart"] = "refuse"
    """What to do with artifacts that another plan made: refuse and show the difference, or delete them and start afresh."""


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


class ModelSection(Section):
    """One LLM: the pivot or a source."""

    name: Name
    """Short name; names the folders of its artifacts."""
    model: str
    """Local Hugging Face folder or hub id."""
    revision: str | None = None
    """Hub revision."""
    template: str = "native"
    """Chat template: `native` (the model's own), `pivot` (the pivot's, as the released code does) or the path of a Jinja file."""
    engine: EngineSection = EngineSection()
    """How its engine is started."""


class DialoguesSection(Section):
    """What the models read."""

    train: list[str] = Field(min_length=1)
    """Files or dataset folders: JSONL, ShareGPT JSON, Parquet, a saved Hugging Face dataset."""
    held_out: list[str] = []
    """Files of held-out dialogues; if empty, `held_out_share` of the training dialogues is held out by the hash of the id."""
    held_out_share: float = Field(0.02, ge=0, lt=1)
    """Share of the dialogues held out where no file is given."""
    max_tokens: int = Field(2048, ge=16)
    """Longest dialogue in the pivot's tokens; a longer one is cut after its last whole turn that fits."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """A dialogue that breaks the rules ends the run, or is left out, counted and listed."""


class ExtractionSection(Section):
    """How the teachers score."""

    k: int = Field(10, ge=1, le=1024)
    """Tokens kept per row."""
    capture: Literal["topk_pooler", "prompt_logprobs"] = "topk_pooler"
    """The project's own top-k pooler, or vLLM's public prompt logprobs (the reference; slower)."""
    shard_tokens: int = Field(131_072, ge=64)
    """Tokens of one shard, the unit of work and of resumption."""
    shards_in_flight: int = Field(2, ge=1)
    """Shards an engine holds at once, so that it does not drain between two."""
    max_attempts: int = Field(3, ge=1)
    """Tries per shard before it is set aside."""
    storage_patience_seconds: float = Field(600, ge=0)
    """How long scored rows wait for a store that does not answer before their shard counts as failed, seconds."""
    replicas: int | None = Field(None, ge=1)
    """Engines per source; default: as many as the cluster has room for at any time, at most one per shard."""
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
    """How the pivot is trained with one source."""

    sft_weight: float = Field(0.9, ge=0, le=1)
    """Weight of the SFT loss; the fusion loss gets the rest."""
    divergence: Literal["ce", "kl", "reverse_kl"] = "ce"
    """Between the chosen row and the model's distribution."""
    temperature: float = Field(1.0, gt=0)
    """Divides the row's logprobs before they are normalised again."""
    tail: Literal["renormalise", "bucket"] = "renormalise"
    """What happens to the mass outside the k entries: normalised away (as released), or one bucket for the rest."""
    row_choice: Literal["min_ce", "min_ce_released", "min_ce_token", "average", "source", "pivot", "none"] = "min_ce"
    """Which row supervises: per dialogue the smaller loss in nats per byte; the released per-token mean; per token;
    both, averaged by weight; always one of them; no fusion."""
    train_control: bool = True
    """Also train the SFT-only control of the same steps."""
    lora: LoraSection | None = None
    """Train low-rank adapters instead of all weights."""
    trl: dict[str, Any] = {}
    """Fields of TRL's SFTConfig; those not given are the published ones (lr 5e-6, cosine, warmup 0.03, 3 epochs, batch 128)."""


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


class EvaluationSection(Section):
    """How good the models are."""

    batch_tokens: int = Field(4096, ge=64)
    """Tokens of one evaluation batch."""
    exact_match_kinds: list[str] = []
    """Kinds of dialogue whose last assistant turn is a short exact answer: models are asked, and compared by exact match."""
    max_new_tokens: int = Field(48, ge=1)
    """Longest answer, tokens."""
    samples: list[str] = []
    """Prompts answered by the pivot, the SFT-only control and the fused model, to look at."""
    models: list[str] | None = None
    """Models to measure, out of `pivot`, `sft`, `target.NAME`, `fused`, `source.NAME`; default: all of them."""
    sources: bool = True
    """Also measure the sources, each under its own tokenizer and template (only where `models` names none)."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype of weights and activations; auto: float32 on CPUs, what the checkpoint says on GPUs."""


class ClusterSection(Section):
    """Where the run's Ray lives."""

    address: str | None = None
    """Ray address (`auto`, `host:port`); default: a local Ray that the run starts and stops."""
    num_cpus: int | None = Field(None, ge=1)
    """CPUs of the local Ray; default: all."""
    teacher_cpus: float = Field(1, gt=0)
    """CPUs that one engine reserves."""
    gpus_per_node: int = Field(8, ge=1)
    """GPUs of the largest node: a wider engine is spread over nodes."""


class RunConfig(Section):
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

    @model_validator(mode="after")
    def _names_differ(self) -> "RunConfig":
        names = [model.name for model in self.models]
        reserved = {"sft", "fused"} & set(names)
        if len(set(names)) < len(names) or reserved:
            raise ValueError(f"model names {names} must differ from each other and from 'sft' and 'fused'")
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
    def store_url(self) -> str:
        """Base URL or folder of the stores."""
        return (self.run.store or str(self.run.output)).rstrip("/")

    def tokens_url(self, name: str, split: str = "train") -> str:
        """Tokens artifact of a model; split is `train` or `held_out`."""
        return f"{self.store_url}/tokens/{name}" + ("" if split == "train" else f".{split}")

    def logprobs_url(self, name: str) -> str:
        """Logprobs store of a model."""
        return f"{self.store_url}/logprobs/{name}"

    def aligned_url(self, source: str) -> str:
        """Aligned store of a source."""
        return f"{self.store_url}/aligned/{source}"

    def target_path(self, name: str) -> Path:
        """Model folder of a target (a source's name, or `sft` for the control)."""
        return self.run.output / "targets" / name

    @property
    def dialogues_path(self) -> Path:
        """Folder of the checked dialogues, train.jsonl and held_out.jsonl."""
        return self.run.output / "dialogues"

    @property
    def fused_path(self) -> Path:
        return self.run.output / "fused"

    @property
    def report_path(self) -> Path:
        return self.run.output / "report"

    def dump(self) -> dict[str, Any]:
        """The resolved run as plain values."""
        return self.model_dump(mode="json")


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a run file and apply `section.field=value` overrides.

    Raises:
        ConfigError: a missing or broken file, an unknown key (the nearest valid one is named), a value out of range.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such run file; see examples/quickstart.yaml for one") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected sections such as pivot, sources, dialogues")
    for override in overrides:
        _apply_override(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, item) for item in error.errors())) from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected section.field=value")
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        if isinstance(node, dict):
            node = node.setdefault(part, {})
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            raise ConfigError(f"--set {override}: {'.'.join(parents[:depth])} has no {part!r}")
    value = yaml.safe_load(text)
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"--set {override}: {'.'.join(parents)} is {type(node).__name__}, it has no {last!r}")


def _explain(path: Path, item: Any) -> str:
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        found = f" (found {item['input']!r})" if not isinstance(item["input"], dict) else ""
        return f"{path}: {location or 'run file'}: {item['msg']}{found}"
    fields = sorted(_fields_at(item["loc"][:-1]))
    near = difflib.get_close_matches(str(item["loc"][-1]), fields, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(fields)}"
    return f"{path}: {location}: unknown key; {hint}"


def _fields_at(location: tuple[Any, ...]) -> dict[str, Any]:
    model: type[BaseModel] = RunConfig
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _section_type(model.model_fields[part].annotation) or model
    return model.model_fields


def _section_type(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
