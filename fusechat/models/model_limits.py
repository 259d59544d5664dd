"""What a model's configuration says of its limits: a folder in; positions and columns of the head out.

A config.json may leave out what is its architecture's default, so transformers reads it. One of an architecture that
transformers does not know says what it says. Imports transformers where it reads a folder, but for the positions of common
architectures whose config.json states them: a run that finds its engines in a service would wait for that import alone.
"""

import math
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import ModelError
from .model_files import read_model_config

POSITION_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
)
"""What architectures call their number of positions."""
PLAIN_TYPES = frozenset({
    "gemma2", "gemma3_text", "llama", "mistral", "mixtral", "olmo2", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
})  # fmt: skip
"""Model types whose configuration has no number of positions but `max_position_embeddings`, and no scaling that is not written."""
STRETCHED = ("linear", "dynamic", "ntk")
"""Types of rotary scaling whose factor comes on top of the positions that the config states, as vLLM reads it. Of yarn, llama3
and longrope the stated number is the stretched one already."""


def position_limit(folder: Path) -> int | None:
    """Positions that a model was made for; None if its config does not say."""
    written = read_model_config(folder)  # an unreadable one is named here
    values = written if _states_positions(written) else architecture_values(folder, written)
    return positions_of(values, str(values.get("model_type", "")))


def vocabulary_columns(folder: Path) -> int | None:
    """Rows of a model's embedding, columns of its head; None if neither its config nor its architecture says."""
    size = _text(architecture_values(folder, read_model_config(folder))).get("vocab_size")
    if not size:
        return None
    if not isinstance(size, int) or size < 0:
        raise ModelError(f"{folder}/config.json: vocab_size is {str(size)[:80]!r}, expected a whole number; correct it")
    return size


def positions_of(values: dict[str, Any], model_type: str) -> int | None:
    """Positions by the plain values of a whole configuration."""
    text = _text(values)
    stated = [int(text[key]) for key in POSITION_KEYS if _is_number(text.get(key)) and text[key] > 0]
    if not stated:
        return None
    # Gemma 3 states the stretched number.
    factor = 1.0 if "gemma3" in model_type else max([1.0, *map(_stretch, _rotary(text))])
    return int(min(stated) * factor)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _rotary(text: dict[str, Any]) -> list[dict[str, Any]]:
    """The rotary parameters; models that mix layers have some for each kind of layer."""
    entries = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(entries, dict):
        return []
    nested = [entry for entry in entries.values() if isinstance(entry, dict)]
    return nested or [entries]


def _stretch(rotary: dict[str, Any]) -> float:
    kind, factor = rotary.get("rope_type", rotary.get("type")), rotary.get("factor")
    return float(factor) if isinstance(kind, str) and kind in STRETCHED and _is_number(factor) else 1.0


def _text(values: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that is about text."""
    return values.get("text_config") or values


def _states_positions(written: dict[str, Any]) -> bool:
    """Whether a config.json says all that transformers would say of its positions."""
    positions, kind = written.get("max_position_embeddings"), written.get("model_type")
    is_plain = isinstance(kind, str) and kind in PLAIN_TYPES and "text_config" not in written
    return is_plain and _is_number(positions) and positions > 0


def architecture_values(folder: Path, written: dict[str, Any]) -> dict[str, Any]:
    """The folder's configuration with its architecture's defaults, as plain values.

    Args:
        written: what its config.json holds.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        text = config.get_text_config()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, StrictDataclassError):
        return written  # of an architecture that transformers does not know, or as it does not know it
    if text is config:
        return {**written, **config.to_dict()}
    return {**written, "model_type": config.model_type, "text_config": text.to_dict()}
