"""The run file's section on evaluation."""

from typing import Literal

from pydantic import Field

from .config_section import Section


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
    kl_dialogues: int = Field(64, ge=0)
    """Training dialogues, drawn by the run's seed, on whose rows the divergence from each teacher is measured; 0: none."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype of weights and activations; auto: float32 on CPUs, what the checkpoint says on GPUs."""
