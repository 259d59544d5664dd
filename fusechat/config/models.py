"""Sections of a model and of its engine."""

from typing import Any, Literal

from pydantic import Field, field_validator

from .paths import PathText, expand_within
from .secrets import refuse_secret_keys
from .section import Name, Section


class EngineSection(Section):
    """How one engine is started."""

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
