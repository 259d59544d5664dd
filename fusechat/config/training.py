"""The section of training, and what its targets are called."""

from typing import Any, Literal

from pydantic import Field, field_validator

from .paths import expand_within
from .secrets import refuse_hub_keys, refuse_secret_keys
from .section import Section

CONTROL = "sft"
"""Name of the SFT-only control among the targets: trained on the same steps without any rows."""
JOINT = "joint"
"""Name of the target that learns from all sources."""
FUSION_FIELDS = ("sft_weight", "divergence", "temperature", "tail", "row_choice", "fading")
"""Fields of `training` that a target without rows does not depend on."""


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
    divergence: Literal["ce", "kl"] = "ce"
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
    fading: bool = True
    """Under `trusted`, a source's rows on a kind of dialogue weigh less when the student has made up for more than half of the
    source's lead there, and nothing when it has drawn level; read off dialogues that the student meets for the first time."""
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
