"""The base and the targets of a merge, opened and laid on one another: for each tensor of the base, one source per model.

Everything that does not fit is refused here, with file and tensor. Knows nothing about methods or output.
"""

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusechat.errors import ConfigError, ModelError

from .files.checkpoint import Checkpoint
from .files.lora import adapted_tensors
from .files.tensors import MERGEABLE, FileTensor, TensorSource
from .files.vocabulary import JoinedTensor, RowMap, is_vocabulary_tensor, join_rows, read_vocabulary
from .group import BLOCK

_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_RECOMPUTED = ("rotary_emb.inv_freq",)
"""Ends of names of buffers that old checkpoints hold and every loader computes itself."""
_SHOWN = 5


class Inputs:
    """Base and targets, their files open."""

    def __init__(self, base: str | Path, targets: Mapping[str, str | Path]) -> None:
        """Open and compare.

        Raises:
            ModelError: broken files; another architecture, tokenizer or shape than the base's; missing or extra tensors.
            ConfigError: no targets, or a target in the base's own folder.
        """
        _allow_open_files()
        if not targets:
            raise ConfigError("targets: found none, expected at least one model to merge into the base")
        for name, folder in targets.items():
            if Path(folder).resolve() == Path(base).resolve():
                raise ConfigError(f"target {name!r}: {folder} is the base itself; a target differs from the base")
        self.base = Checkpoint(base)
        if self.base.is_adapter:
            raise ModelError(f"{base}: the base is an adapter; expected a whole model")
        self.base_tensors = {name: t for name, t in self.base.tensors.items() if not name.endswith(_RECOMPUTED)}
        self.targets = {name: Checkpoint(path) for name, path in targets.items()}
        self.row_maps: dict[str, RowMap] = {}
        self._sources = {name: self._lay_on_base(name, target) for name, target in self.targets.items()}

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [self.base, *self.targets.values()]

    def file_sizes(self) -> dict[str, int]:
        """Path -> bytes of every weight file."""
        files = dict.fromkeys(tensor.file for model in self.checkpoints for tensor in model.tensors.values())
        return {str(path): path.stat().st_size for path in files}

    def merged_tensors(self) -> list[FileTensor]:
        """The base's tensors that are merged, in the order of its files."""
        return [tensor for tensor in self.base_tensors.values() if tensor.dtype in MERGEABLE]

    def sources(self, name: str) -> list[TensorSource]:
        """A tensor of each target, in the base's shape."""
        return [self._sources[target][name] for target in self.targets]

    def _lay_on_base(self, name: str, target: Checkpoint) -> dict[str, TensorSource]:
        if target.is_adapter:
            return dict(self.base_tensors) | adapted_tensors(target, self.base_tensors)
        self._check_architecture(target)
        tensors = self._same_names(target)
        config, target_config = self.base.config, target.config
        joined: dict[str, TensorSource] = {}
        for tensor in self.base_tensors.values():
            other = tensors[tensor.name]
            rows = is_vocabulary_tensor(tensor.name, tensor.shape, config)
            if rows and is_vocabulary_tensor(other.name, other.shape, target_config):
                row_map = self._row_map(name, target, tensor, other)
                if not row_map.is_identity or other.shape[0] != tensor.shape[0]:
                    _check_shape(target, tensor, other, tensor.shape[1:], other.shape[1:])
                    joined[tensor.name] = JoinedTensor(other, tensor, row_map.rows)
                    continue
            _check_shape(target, tensor, other, tensor.shape, other.shape)
        return dict(tensors) | joined

    def _row_map(self, name: str, target: Checkpoint, base_tensor: FileTensor, other: FileTensor) -> RowMap:
        if name not in self.row_maps:
            folders = self.base.folder, target.folder
            same = same_file(*(folder / "tokenizer.json" for folder in folders))
            ours, theirs = (None if same else read_vocabulary(folder) for folder in folders)
            self.row_maps[name] = join_rows(
                ours, theirs, base_tensor.shape[0], other.shape[0], same_tokenizer=same, folder=target.folder
            )
        return self.row_maps[name]

    def _check_architecture(self, target: Checkpoint) -> None:
        for field in ("model_type", "architectures"):
            ours, theirs = self.base.config.get(field), target.config.get(field)
            if ours != theirs:
                raise ModelError(
                    f"{target.folder}/config.json: another architecture: {field} is {theirs!r}, the base's {ours!r}; "
                    "targets must be trained from the pivot"
                )

    def _same_names(self, target: Checkpoint) -> dict[str, FileTensor]:
        """The target's tensors under the base's names; a tied head is taken from the embedding."""
        tensors = {name: tensor for name, tensor in target.tensors.items() if not name.endswith(_RECOMPUTED)}
        embedding = next((tensor for name, tensor in tensors.items() if name.endswith(_EMBEDDING)), None)
        head = next((name for name in (*self.base_tensors, *tensors) if name.endswith(_HEAD)), None)
        if head and embedding and head not in tensors and target.config.get("tie_word_embeddings", True):
            tensors[head] = embedding
        elif head and embedding and head in tensors and head not in self.base_tensors:
            if not same_bytes(tensors[head], embedding):
                raise ModelError(
                    f"{tensors[head].file}: tensor {head!r} differs from its embedding, and the base ties the two; "
                    "expected targets trained from the pivot with tied embeddings"
                )
            del tensors[head]
        missing = [name for name in self.base_tensors if name not in tensors]
        extra = [name for name in tensors if name not in self.base_tensors]
        for names, what in ((missing, "lacks tensors that the base has"), (extra, "has tensors that the base lacks")):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                raise ModelError(f"{target.folder}: {what}: {', '.join(names[:_SHOWN])}{more}")
        return tensors


def _allow_open_files() -> None:
    """Every weight file stays open; six models of 200 files are more than the usual limit, which may be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _check_shape(
    target: Checkpoint, tensor: FileTensor, other: FileTensor, ours: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    if ours != theirs:
        raise ModelError(
            f"{other.file}: tensor {other.name!r} has shape {list(other.shape)}, the base's {list(tensor.shape)} "
            f"({tensor.file}); targets must have the pivot's shape"
        )
    if (tensor.dtype in MERGEABLE) != (other.dtype in MERGEABLE) or (
        tensor.dtype not in MERGEABLE and tensor.dtype != other.dtype
    ):
        raise ModelError(f"{other.file}: tensor {other.name!r} is {other.dtype}, the base's {tensor.dtype}")


def same_file(a: Path, b: Path) -> bool:
    """True if both files are there and hold the same bytes."""
    return a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes()


def same_bytes(a: FileTensor, b: FileTensor) -> bool:
    """True if two tensors hold the same bytes."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return all(
        np.array_equal(a.raw(start, stop), b.raw(start, stop))
        for start in range(0, a.num_elements, BLOCK)
        for stop in [min(start + BLOCK, a.num_elements)]
    )


def summary(inputs: Inputs) -> dict[str, Any]:
    """Notes for the report: what was joined or dropped, per target."""
    notes: dict[str, Any] = {}
    for name, row_map in inputs.row_maps.items():
        if row_map.dropped or row_map.missing or not row_map.is_identity:
            notes[name] = {
                "rows_from_base": int((row_map.rows < 0).sum()),
                "tokens_dropped": row_map.dropped,
                "tokens_missing": row_map.missing,
            }
    return notes
