"""What a merge will do, decided before anything is written: checked inputs in, a recipe of output shards out.

A recipe is plain data, so that shards can be merged one after the other, in several processes, or on several machines
that see the same folders.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusechat.errors import ModelError, StorageError

from .compute.parameters import check_parameters, find_method, try_method
from .files.tensors import ITEM_BYTES, MERGEABLE, FileTensor, first_not_finite
from .group import BLOCK, Block, TensorGroup
from .inputs import Inputs, same_bytes, summary
from .methods import Method

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_LAYER = re.compile(r"(.*\.(?:layers|h|blocks|block)\.\d+)\.")


@dataclass(frozen=True)
class TensorRecipe:
    """One tensor of the output."""

    name: str
    dtype: str
    """safetensors dtype."""
    shape: tuple[int, ...]
    merged: bool
    """False: copied from the base, where all models have the same bytes."""

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class MergeRecipe:
    """A whole merge."""

    method: str | Method
    parameters: dict[str, Any]
    base: str
    targets: dict[str, str]
    out: str
    dtype: str
    shards: tuple[tuple[TensorRecipe, ...], ...]
    fingerprint: str
    """Digest of all that decides the output."""
    file_sizes: dict[str, int] = field(default_factory=dict)
    """Path -> bytes of every weight file that is read."""
    scopes: dict[str, list[float]] = field(default_factory=dict)
    """Layer or model -> mean squared update of each target, for methods whose `granularity` asks for it."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Per target, how its vocabulary was joined."""
    rounds: bool = False
    """Merged tensors are written in fewer bits than a target has: updates below a weight's last bit are lost."""

    @property
    def method_name(self) -> str:
        return self.method if isinstance(self.method, str) else self.method.__name__

    def shard_name(self, index: int) -> str:
        """File name of a shard, as transformers names them."""
        count = len(self.shards)
        return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def make_recipe(
    *,
    method: str | Method,
    base: str | Path,
    targets: Mapping[str, str | Path],
    out: str | Path,
    parameters: Mapping[str, Any],
    dtype: str = "auto",
    max_shard_bytes: int = 5 * 10**9,
    pool: ThreadPoolExecutor,
) -> MergeRecipe:
    """Check everything and lay the recipe; reads all weights once, writes nothing.

    Raises:
        ConfigError: unknown method or parameter, a value out of range, no targets.
        ModelError: inputs that are damaged, hold NaN or infinity, do not fit each other, or a target that equals the base.
        StorageError: not enough free space for the output.
    """
    function = find_method(method)
    checked = check_parameters(function, parameters)
    inputs = Inputs(base, targets)
    try_method(function, checked, list(targets))
    check_finite(inputs, pool.map)
    check_changed(inputs)
    shards = _shards(inputs, dtype, max_shard_bytes)
    _check_space(Path(out), sum(tensor.num_bytes for shard in shards for tensor in shard))
    decides = {
        "method": f"{function.__module__}.{function.__qualname__}",
        "parameters": checked,
        "targets": list(targets),
        "models": [checkpoint.identity() for checkpoint in inputs.checkpoints],
        "shards": [[asdict(tensor) for tensor in shard] for shard in shards],
    }
    granularity = checked.get("granularity", "matrix")
    return MergeRecipe(
        method=method, parameters=checked,
        base=str(base), targets={name: str(path) for name, path in targets.items()}, out=str(out), dtype=dtype,
        shards=shards, file_sizes=inputs.file_sizes(),
        fingerprint=hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:16],
        scopes=_scope_mean_squares(inputs, granularity, pool.map) if granularity != "matrix" else {},
        notes=summary(inputs), rounds=_rounds(inputs, shards),
    )  # fmt: skip


def _rounds(inputs: Inputs, shards: Sequence[Sequence[TensorRecipe]]) -> bool:
    narrowest = min(ITEM_BYTES[tensor.dtype] for shard in shards for tensor in shard if tensor.merged)
    tensors = (tensor for target in inputs.targets.values() for tensor in target.tensors.values())
    return any(tensor.dtype in MERGEABLE and ITEM_BYTES[tensor.dtype] > narrowest for tensor in tensors)


def scope_of(name: str, granularity: str) -> str:
    """The layer (or `model`) that a tensor belongs to; a tensor in no layer is a layer of its own."""
    if granularity == "model":
        return "model"
    layer = _LAYER.match(name)
    return layer[1] if layer else name


def check_finite(inputs: Inputs, map_: Callable[..., Any] = map) -> None:
    """Raise ModelError for the first NaN or infinity in any weight, with file, tensor and place."""
    tensors = [tensor for model in inputs.checkpoints for tensor in model.tensors.values() if tensor.dtype in MERGEABLE]
    tensors.sort(key=lambda tensor: -tensor.num_bytes)
    pieces = [
        (tensor, start, min(start + 16 * BLOCK, tensor.num_elements))
        for tensor in tensors
        for start in range(0, tensor.num_elements, 16 * BLOCK)
    ]
    for tensor, place in zip((piece[0] for piece in pieces), map_(_find_not_finite, pieces), strict=True):
        if place is not None:
            index = [int(i) for i in np.unravel_index(place, tensor.shape)]
            raise ModelError(
                f"{tensor.file}: tensor {tensor.name!r}: NaN or infinity at {index}; expected finite weights"
            )


def _find_not_finite(piece: tuple[FileTensor, int, int]) -> int | None:
    tensor, first, last = piece
    item_bytes = ITEM_BYTES[tensor.dtype]
    memory = np.empty(min(BLOCK, last - first) * item_bytes, np.uint8)
    for start in range(first, last, BLOCK):
        raw = memory[: min(BLOCK, last - start) * item_bytes]
        tensor.read_raw(start, raw)
        place = first_not_finite(raw, tensor.dtype)
        if place is not None:
            return start + place
    return None


def check_changed(inputs: Inputs) -> None:
    """Raise ModelError for a target that equals the base, and for tensors that cannot be merged and differ."""
    for tensor in inputs.base_tensors.values():
        if tensor.dtype not in MERGEABLE:
            for other in inputs.sources(tensor.name):
                if isinstance(other, FileTensor) and not same_bytes(tensor, other):
                    raise ModelError(
                        f"{other.file}: tensor {other.name!r} ({other.dtype}) differs from the base's and cannot be merged"
                    )
    for number, (name, target) in enumerate(inputs.targets.items()):
        if not any(_differs(tensor, inputs.sources(tensor.name)[number]) for tensor in inputs.merged_tensors()):
            raise ModelError(
                f"{target.folder}: target {name!r} equals the base in every tensor; leave it out, it has nothing to merge"
            )


def _differs(tensor: FileTensor, other: Any) -> bool:
    if other is tensor:
        return False
    group = TensorGroup(tensor.name, tensor, [other], [""])
    blocks = (Block(group, index) for index in range(group.num_blocks))
    return any(block.deltas.any() for block in blocks)


def _shards(inputs: Inputs, dtype: str, max_shard_bytes: int) -> tuple[tuple[TensorRecipe, ...], ...]:
    """Tensors in the order of the base's files, cut into shards of at most max_shard_bytes (one tensor at least)."""
    shards: list[list[TensorRecipe]] = [[]]
    size = 0
    for tensor in inputs.base_tensors.values():
        merged = tensor.dtype in MERGEABLE
        recipe = TensorRecipe(
            tensor.name, DTYPES.get(dtype, tensor.dtype) if merged else tensor.dtype, tensor.shape, merged
        )
        if shards[-1] and size + recipe.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(recipe)
        size += recipe.num_bytes
    return tuple(tuple(shard) for shard in shards)


def _check_space(out: Path, num_bytes: int) -> None:
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    # Of an earlier call; whole shards are used again, partial ones overwritten.
    earlier_bytes = sum(path.stat().st_size for path in out.glob("**/*.safetensors*")) if out.is_dir() else 0
    free = shutil.disk_usage(existing).free
    if free + earlier_bytes < num_bytes:
        raise StorageError(
            f"{out}: the fused model needs {num_bytes / 1e6:,.1f} MB, {existing} has {free / 1e6:,.1f} MB free; free some, "
            "then start the same command again, or choose another place"
        )


def _scope_mean_squares(inputs: Inputs, granularity: str, map_: Callable[..., Any]) -> dict[str, list[float]]:
    names = list(inputs.targets)

    def squares(tensor: FileTensor) -> np.ndarray:
        group = TensorGroup(tensor.name, tensor, inputs.sources(tensor.name), names)
        return group.mean_squares() * tensor.num_elements

    tensors: Sequence[FileTensor] = inputs.merged_tensors()
    totals: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for tensor, total in zip(tensors, map_(squares, tensors), strict=True):
        scope = scope_of(tensor.name, granularity)
        totals[scope] = totals.get(scope, 0) + total
        sizes[scope] = sizes.get(scope, 0) + tensor.num_elements
    return {scope: (totals[scope] / max(sizes[scope], 1)).tolist() for scope in totals}
