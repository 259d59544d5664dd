"""One run file: YAML in, a frozen RunConfig out.

Precedence: the YAML file, then each `--set section.field=value` in order (the value is YAML). Unknown keys are refused
with the nearest valid one. A default lives here and nowhere else. Relative paths are relative to the working directory.
Imports nothing heavy, so that the command line answers at once.
"""

import difflib
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from .config_section import Name, Section
from .errors import ConfigError
from .evaluation_config import EvaluationSection

CONTROL = "sft"
"""Name of the SFT-only control among the targets."""
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE)
ENV_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


class RunSection(Section):
    """Where a run lives."""

    output: Path = Path("runs/run")
    """Folder of the run: models, reports, logs; on a filesystem that all nodes share."""
    store: str | None = None
    """URL (`s3://`, `gs://`) or folder of the tokens, logprobs and aligned stores; default: the run's folder."""
    seed: int = 0
    """Seed of everything random."""
    places: dict[str, str] = {}
    """Artifacts that stand elsewhere than in the run's folder or store (`aligned/NAME: folder or URL`); `fusechat ablate` sets it."""
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
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the target's files; auto: what the weights were trained in, float32 unless `trl.model_init_kwargs.dtype` says
    otherwise, because bfloat16 drops most of a small update before the merge can see it. The fused model's is `merge.dtype`."""
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


class ClusterSection(Section):
    """Where the run's Ray lives, and what its workers reserve."""

    address: str | None = None
    """Ray address (`auto`, `host:port`); default: a local Ray that the run starts and stops."""
    num_cpus: int | None = Field(None, ge=1)
    """CPUs of the local Ray; default: all."""
    teacher_cpus: float = Field(1, gt=0)
    """CPUs that one engine reserves."""
    gpus_per_node: int = Field(8, ge=1)
    """GPUs of the largest node: a wider engine is spread over nodes."""
    training_workers: int = Field(1, ge=1)
    """Processes that train one target together (Ray Train, DDP or FSDP2); 1: this process alone, without Ray."""
    training_cpus: float = Field(1, gt=0)
    """CPUs that one training worker reserves."""
    training_gpus: float | None = Field(None, ge=0)
    """GPUs that one training worker reserves; default: 1 where the cluster has any, else 0."""
    training_attempts: int = Field(3, ge=1)
    """Tries per target when a worker dies; each goes on from the last whole checkpoint."""
    max_gpus: int | None = Field(None, ge=1)
    """GPUs that an autoscaling cluster may grow to, from none if need be; default: those it has when extraction begins."""
    working_dir_excludes: list[str] = []
    """More of the working directory that `submit` leaves at home, in gitignore's syntax."""
    working_dir_mib: float = Field(100, gt=0)
    """Largest working directory that `submit` sends, MiB."""
    env_vars: dict[str, str] = {}
    """Environment of a submitted job; a secret only as a reference to the nodes' own, such as `HF_TOKEN: ${HF_TOKEN}`."""

    @field_validator("env_vars")
    @classmethod
    def _no_secret(cls, values: dict[str, str]) -> dict[str, str]:
        for name, value in values.items():
            if SECRET_NAME.search(name) and not ENV_REFERENCE.fullmatch(value):
                raise ValueError(
                    f"{name} is called like a secret, and the cluster shows a job's environment to everybody; set it "
                    f"on the nodes and write {name}: ${{{name}}}"
                )
        return values


class PlanSection(Section):
    """What `fusechat plan` reckons with; decides nothing in a run."""

    gpus: int = Field(8, ge=1)
    """GPUs of the fleet."""
    gpu_memory_gib: float = Field(79.6, gt=0)
    """Memory of one GPU, GiB; the default is an 80 GB card."""
    tflops: float = Field(989, gt=0)
    """Peak of one GPU in 16 bits without sparsity, TFLOP/s; the default is an H100 SXM."""
    prefill_utilisation: float = Field(0.5, gt=0, le=1)
    """Share of the peak that scoring reaches."""
    training_utilisation: float = Field(0.35, gt=0, le=1)
    """Share of the peak that training reaches."""
    price_per_gpu_hour: float | None = Field(None, ge=0)
    """Price of one GPU for an hour, in any currency."""
    tokens: int | None = Field(None, ge=1)
    """Training tokens per model; default: counted where dialogues are tokenized, else estimated from the files."""
    tokens_per_dialogue: float = Field(1000, gt=0)
    """Mean length of a dialogue, where `tokens` is given."""
    response_share: float = Field(0.6, gt=0, le=1)
    """Share of the tokens that the assistant says, where `tokens` is given."""
    bytes_per_token: float = Field(4.0, gt=0)
    """UTF-8 bytes that one token spells, where dialogues are not tokenized yet."""
    tokens_per_second: dict[str, float] = {}
    """Measured rates: model name -> prefill tokens a second of one engine; in place of the FLOPs and the utilisation."""
    training_tokens_per_second: float | None = Field(None, gt=0)
    """Measured rate of training one target, tokens a second of one GPU."""
    cpus: int = Field(32, ge=1)
    """Cores that tokenize and align."""
    cpu_tokens_per_second: float = Field(20_000, gt=0)
    """Tokens that one core tokenizes, or aligns, in a second."""
    store_mib_per_second: float = Field(500, gt=0)
    """Rate at which one process reads and writes models, MiB/s."""


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
    plan: PlanSection = PlanSection()

    @model_validator(mode="after")
    def _names_differ(self) -> "RunConfig":
        names = [model.name for model in self.models]
        reserved = {CONTROL, "fused"} & set(names)
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
    def model_ids(self) -> list[str]:
        """Ids of all models that the run will have, as in `evaluation.models`."""
        sources = [source.name for source in self.sources]
        control = [CONTROL] if self.training.train_control else []
        targets = [f"target.{name}" for name in sources]
        return ["pivot", *control, *targets, "fused", *(f"source.{name}" for name in sources)]

    @property
    def measured_ids(self) -> list[str]:
        """Those of them that are evaluated."""
        section, known = self.evaluation, self.model_ids
        wanted = section.models or [name for name in known if section.sources or not name.startswith("source.")]
        return [name for name in known if name in wanted]

    @property
    def store_url(self) -> str:
        """Base URL or folder of the stores."""
        return (self.run.store or str(self.run.output)).rstrip("/")

    def _place(self, key: str, base: str | Path) -> str:
        return self.run.places.get(key) or f"{base}/{key}"

    def tokens_url(self, name: str, split: str = "train") -> str:
        """Tokens artifact of a model; split is `train` or `held_out`."""
        return self._place(f"tokens/{name}" + ("" if split == "train" else f".{split}"), self.store_url)

    def logprobs_url(self, name: str) -> str:
        """Logprobs store of a model."""
        return self._place(f"logprobs/{name}", self.store_url)

    def aligned_url(self, source: str) -> str:
        """Aligned store of a source."""
        return self._place(f"aligned/{source}", self.store_url)

    def target_path(self, name: str) -> Path:
        """Model folder of a target (a source's name, or `sft` for the control)."""
        return Path(self._place(f"targets/{name}", self.run.output))

    def answers_path(self, answer_set: str, model_id: str) -> Path:
        """Folder of a model's answers to a set of questions."""
        return self.run.output / "answers" / answer_set / model_id

    @property
    def dialogues_path(self) -> Path:
        """Folder of the checked dialogues, train.jsonl and held_out.jsonl."""
        return Path(self._place("dialogues", self.run.output))

    @property
    def fused_path(self) -> Path:
        return Path(self._place("fused", self.run.output))

    @property
    def report_path(self) -> Path:
        return self.run.output / "report"

    @property
    def measured_path(self) -> Path:
        """Folder of what was measured of each model."""
        return Path(self._place("report/models", self.run.output))

    def dump(self) -> dict[str, Any]:
        """The resolved run as plain values."""
        return self.model_dump(mode="json")


Loaded = TypeVar("Loaded", bound=Section)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a run file and apply `section.field=value` overrides.

    Raises:
        ConfigError: a missing or broken file, an unknown key (the nearest valid one is named), a value out of range.
    """
    return load_file(path, overrides, RunConfig)


def load_file(path: str | Path, overrides: list[str] | tuple[str, ...], root: type[Loaded]) -> Loaded:
    """Read a YAML file of some root section; errors as for `load_config`."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such run file; see examples/ for some") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(values, dict):
        expected = ", ".join(list(root.model_fields)[:4])
        raise ConfigError(f"{path}: found {type(values).__name__}, expected keys such as {expected}")
    for override in overrides:
        _apply_override(values, override)
    try:
        return root.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, item, root) for item in error.errors())) from None


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


def _explain(path: Path, item: Any, root: type[BaseModel]) -> str:
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        found = f" (found {item['input']!r})" if not isinstance(item["input"], dict) else ""
        return f"{path}: {location or 'run file'}: {item['msg']}{found}"
    fields = sorted(_fields_at(item["loc"][:-1], root))
    near = difflib.get_close_matches(str(item["loc"][-1]), fields, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(fields)}"
    return f"{path}: {location}: unknown key; {hint}"


def _fields_at(location: tuple[Any, ...], root: type[BaseModel]) -> dict[str, Any]:
    model = root
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _section_type(model.model_fields[part].annotation) or model
    return model.model_fields


def _section_type(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
