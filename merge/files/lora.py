"""LoRA adapters as targets: an adapter folder in, the base's tensors with its low-rank updates out (arXiv 2106.09685).

The sum is taken in float32 and not rounded to the checkpoint's dtype before it is merged. Knows nothing about methods.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusechat.errors import ModelError
from fusechat.models.model_files import read_small_json

from ..compute import kernels
from .checkpoint import ADAPTER_CONFIG, Checkpoint
from .tensors import MERGEABLE, FileTensor, TensorSource

LARGEST_ALPHA = 1e9
"""Scales beyond it are damage."""
_PREFIX = "base_model.model."
_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")
_REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "biases of its own",
    "use_bdlora": "block-diagonal factors",
    "use_qalora": "pooled inputs (QA-LoRA)",
    "alora_invocation_tokens": "updates that hold from some token on only (aLoRA)",
    "arrow_config": "routing between adapters (Arrow)",
    "kasa_config": "a diagonal between its factors, on a truncated base (KaSA)",
    "monteclora_config": "sampled factors (MonteCLoRA)",
    "layer_replication": "a base whose layers are repeated",
}
"""Fields of PEFT's LoraConfig under which base + scale * B @ A is not what the adapter computes."""
_KEEPING_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` under which PEFT leaves the base's own weights as they are. PiSSA, OLoRA, CorDA and LoRA-GA
subtract the first B @ A from the base, LoftQ quantizes it; what a later PEFT may add is not known, and refused too."""


@dataclass(frozen=True)
class LowRankTensor:
    """base + scale * up @ down, or its transpose where the layer stores its weight transposed."""

    base: TensorSource
    up: np.ndarray
    """float32 [rows, r]"""
    down: np.ndarray
    """float32 [r, width]"""
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        width = self.down.shape[1]
        first, last = start // width, -(-stop // width)
        rows = np.zeros((last - first, width), np.float32)
        kernels.add_low_rank(self.up, self.down, np.float32(self.scale), first, rows)
        self.base.read(start, stop, out)
        out += rows.reshape(-1)[start - first * width : stop - first * width]

    def read_ahead(self) -> None:
        self.base.read_ahead()


def adapted_tensors(adapter: Checkpoint, base: dict[str, FileTensor]) -> dict[str, TensorSource]:
    """Name -> tensor of the base with the adapter laid on; tensors that the adapter leaves alone are not listed.

    Raises:
        ModelError: a form of adapter that is not plain LoRA, factors without a partner, shapes or names that do not
            fit the base.
    """
    settings = _settings(adapter)
    factors: dict[str, dict[str, FileTensor]] = {}
    whole: dict[str, FileTensor] = {}
    for key, tensor in adapter.tensors.items():
        name = key.removeprefix(_PREFIX)
        pair = _PAIR.match(name)
        if pair:
            factors.setdefault(pair["module"], {})[(pair["embedding"] or "") + pair["side"]] = tensor
            continue
        name = name.replace(".base_layer.", ".")  # an embedding that PEFT saved beside its factors
        if name not in base:
            raise ModelError(f"{tensor.file}: tensor {key!r} is no LoRA factor, and the base has no {name!r}")
        if tensor.shape != base[name].shape:
            raise ModelError(
                f"{tensor.file}: tensor {key!r} has shape {list(tensor.shape)}, the base's {list(base[name].shape)}"
            )
        whole[name] = tensor
    tensors: dict[str, TensorSource] = dict(whole)
    for module, sides in factors.items():
        name = f"{module}.weight"
        if name not in base:
            raise ModelError(f"{adapter.folder}: adapts {name!r}, which the base does not have")
        tensors[name] = _low_rank(adapter, whole.get(name, base[name]), module, sides, settings)
    return tensors


def _settings(adapter: Checkpoint) -> dict[str, Any]:
    path = adapter.folder / ADAPTER_CONFIG
    try:
        settings = read_small_json(path)
        _check_numbers(settings)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable: {error}") from None
    if settings.get("peft_type", "LORA") != "LORA":
        raise ModelError(f"{path}: peft_type is {settings['peft_type']!r}, expected LORA; merge it into its base first")
    for field, meaning in _REFUSED.items():
        if settings.get(field):
            raise ModelError(f"{path}: {field}: the adapter has {meaning}; merge it into its base with PEFT first")
    start = settings.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _KEEPING_BASE:
        raise ModelError(
            f"{path}: init_lora_weights is {start!r}: the factors are right on the base that this changed, not on the base "
            "itself; expected plain LoRA: save it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion="
            "the adapter as it was before training), or merge it into its own base first"
        )
    return settings


def _check_numbers(settings: dict[str, Any]) -> None:
    """Raises ValueError for a scale that is no number, or a pattern that is none."""
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"alpha_pattern is {type(patterns).__name__}, expected an object")
    for value in (settings.get("lora_alpha") or 0, *patterns.values()):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST_ALPHA:
            raise ValueError(f"found the scale {str(value)[:80]!r}, expected a number below {LARGEST_ALPHA:g}")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"alpha_pattern: {pattern[:80]!r} is no pattern: {error}") from None


def _low_rank(
    adapter: Checkpoint, base: FileTensor, module: str, sides: dict[str, FileTensor], settings: dict[str, Any]
) -> LowRankTensor:
    embedding = "embedding_A" in sides or "embedding_B" in sides
    prefix = "embedding_" if embedding else ""
    down_file, up_file = sides.get(f"{prefix}A"), sides.get(f"{prefix}B")
    if down_file is None or up_file is None or len(sides) != 2:
        raise ModelError(f"{adapter.folder}: module {module!r} has the factors {sorted(sides)}, expected A and B")
    for file in (down_file, up_file):
        if file.dtype not in MERGEABLE:
            raise ModelError(
                f"{file.file}: tensor {file.name!r} is {file.dtype}, expected one of {', '.join(MERGEABLE)}"
            )
    down, up = _load(down_file), _load(up_file)
    if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0] or not down.shape[0]:
        raise ModelError(f"{adapter.folder}: module {module!r}: factors {up.shape} and {down.shape} do not multiply")
    rank = down.shape[0]
    alpha = _by_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha") or rank)
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    if embedding or settings.get("fan_in_fan_out"):
        up, down = np.ascontiguousarray(down.T), np.ascontiguousarray(up.T)
    if (up.shape[0], down.shape[1]) != base.shape:
        raise ModelError(
            f"{adapter.folder}: module {module!r}: its update is {[up.shape[0], down.shape[1]]}, the base's tensor "
            f"{base.name!r} {list(base.shape)}"
        )
    return LowRankTensor(base, up, down, scale)


def _load(tensor: FileTensor) -> np.ndarray:
    values = np.empty(tensor.num_elements, np.float32)
    tensor.read(0, values.size, values)
    return values.reshape(tensor.shape)


def _by_pattern(patterns: dict[str, float] | None, module: str, default: float) -> float:
    """The entry whose key is the module's name or its end, as a regular expression; PEFT's rule."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
