"""One shard of the output: a recipe in, a whole safetensors file and a record of its tensors out.

Blocks are read, merged and written by a few threads; while one waits for the disk, another works. A large tensor is cut
over the threads and read a block at a time, small ones are shared out whole and kept for all passes over them. Memory is
one small tensor of all models per thread, whatever the model's size.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusechat.errors import ArtifactError, ModelError
from fusechat.storage.files import read_json, write_json
from fusechat.storage.seals import file_digest, is_whole, sealed
from fusechat.storage.write_errors import storage_errors

from .compute.parameters import find_method
from .files.shard_writer import ShardWriter
from .files.tensors import ITEM_BYTES, first_not_finite, narrow
from .group import KEPT_ELEMENTS, Block, BlockMerge, Memory, TensorGroup
from .inputs import Inputs
from .recipe import MergeRecipe, TensorRecipe, scope_of

READ_AHEAD = 4
"""Tensors that the system is asked to read before they are wanted."""
WORK_FOLDER = ".merge"
"""Below the output folder: the recipe, and the shards that are whole."""


def new_thread_pool(threads: int | None) -> ThreadPoolExecutor:
    """Worker threads, one per usable core by default."""
    return ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)), thread_name_prefix="merge")


def shard_record_path(recipe: MergeRecipe, index: int) -> Path:
    """The record of a shard, written after its file: the mark that the shard is whole."""
    return Path(recipe.out) / WORK_FOLDER / f"shard-{index + 1:05d}.json"


def merge_shard(
    recipe: MergeRecipe,
    index: int,
    inputs: Inputs,
    pool: ThreadPoolExecutor,
    on_done: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Merge and write one shard; its record is written last.

    Args:
        on_done: told the bytes of each tensor when it is written.
    Raises:
        StorageError: the disk is full or the folder read-only; nothing of the shard stays.
        ModelError: a merged weight does not fit the output's dtype.
    """
    path = Path(recipe.out) / WORK_FOLDER / recipe.shard_name(index)
    with storage_errors(path):
        writer = ShardWriter(path, recipe.shards[index])
        try:
            records = {}
            for name, record, size in _merged(recipe, recipe.shards[index], inputs, writer, pool):
                records[name] = record
                on_done(size)
        except BaseException:
            writer.discard()
            raise
        writer.close()
        record = sealed({"fingerprint": recipe.fingerprint, "sha256": file_digest(path), "tensors": records})
        write_json(str(shard_record_path(recipe, index)), record, indent=None)


def _merged(
    recipe: MergeRecipe,
    tensors: tuple[TensorRecipe, ...],
    inputs: Inputs,
    writer: ShardWriter,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[str, dict[str, Any], int]]:
    large = [tensor for tensor in tensors if _size(tensor) > KEPT_ELEMENTS]
    small = [tensor for tensor in tensors if _size(tensor) <= KEPT_ELEMENTS]
    following = dict(zip([tensor.name for tensor in small], small[READ_AHEAD:], strict=False))
    memory = Memory()
    for tensor in large:
        yield tensor.name, _merge_tensor(recipe, tensor, inputs, writer, pool.map, memory), tensor.num_bytes

    def merge_small(tensor: TensorRecipe) -> dict[str, Any]:
        if tensor.name in following:
            _read_ahead(inputs, following[tensor.name].name)
        return _merge_tensor(recipe, tensor, inputs, writer, map, memory)

    for tensor, record in zip(small, pool.map(merge_small, small), strict=True):
        yield tensor.name, record, tensor.num_bytes


def _size(tensor: TensorRecipe) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


def _read_ahead(inputs: Inputs, name: str) -> None:
    inputs.base_tensors[name].read_ahead()
    for source in inputs.sources(name):
        source.read_ahead()


def _merge_tensor(
    recipe: MergeRecipe,
    tensor: TensorRecipe,
    inputs: Inputs,
    writer: ShardWriter,
    map_blocks: Callable[..., Iterable[Any]],
    memory: Memory,
) -> dict[str, Any]:
    """Merge and write one tensor; returns its record."""
    base, item_bytes = inputs.base_tensors[tensor.name], ITEM_BYTES[tensor.dtype]
    if not tensor.merged or _size(tensor) == 0:
        writer.write(tensor.name, 0, base.raw(0, base.num_elements))
        return {}
    group = TensorGroup(tensor.name, base, inputs.sources(tensor.name), list(inputs.targets), map_blocks, memory)
    if recipe.scopes:
        group.scope_mean_squares = np.array(recipe.scopes[scope_of(tensor.name, recipe.parameters["granularity"])])
    merge: BlockMerge = find_method(recipe.method)(group, **recipe.parameters)

    def store(block: Block) -> BlockFigures:
        values = np.ascontiguousarray(merge.merge(block), np.float32)
        raw = np.empty(values.size * item_bytes, np.uint8)
        narrow(values, tensor.dtype, raw)
        if first_not_finite(raw, tensor.dtype) is not None:
            raise ModelError(
                f"{recipe.out}: tensor {tensor.name!r}: a merged weight does not fit {tensor.dtype}; set dtype: float32, or "
                "look at the method's weights and scale"
            )
        writer.write(tensor.name, block.start * item_bytes, raw)
        return BlockFigures(block.squares, block.mass, block.kept_mass)

    return _record(merge, group.map(store))


class BlockFigures(NamedTuple):
    """What one block adds to the report; float64 [n] each."""

    squares: np.ndarray
    mass: np.ndarray | None
    kept_mass: np.ndarray | None


def _record(merge: BlockMerge, blocks: list[BlockFigures]) -> dict[str, Any]:
    record: dict[str, Any] = {"update_norm": np.sqrt(np.sum([block.squares for block in blocks], axis=0)).tolist()}
    if merge.coefficients is not None:
        record["coefficients"] = [float(value) for value in merge.coefficients]
    masses = [block.mass for block in blocks if block.mass is not None]
    if masses:
        mass, kept = np.sum(masses, axis=0), np.sum([b.kept_mass for b in blocks if b.kept_mass is not None], axis=0)
        record["erased_share"] = (1 - np.divide(kept, mass, out=np.ones_like(kept), where=mass > 0)).tolist()
    return record


def read_shard_record(recipe: MergeRecipe, index: int) -> dict[str, Any] | None:
    """The tensors' records of a shard that is whole; None where it is not (or another recipe made it)."""
    path = shard_record_path(recipe, index)
    if not path.is_file():
        return None
    try:
        record: Any = read_json(str(path))
    except ArtifactError:
        return None
    whole = is_whole(record) and {"fingerprint", "sha256", "tensors"} <= record.keys()
    return record["tensors"] if whole and record["fingerprint"] == recipe.fingerprint else None


def remove_damaged(recipe: MergeRecipe) -> None:
    """Delete the records of shards whose file is not as it was written: they are merged again."""
    for index in range(len(recipe.shards)):
        name = recipe.shard_name(index)
        if read_shard_record(recipe, index) is None:
            continue
        expected = read_json(str(shard_record_path(recipe, index)))["sha256"]  # type: ignore[index]  # the record is whole
        files = [path for path in (Path(recipe.out) / WORK_FOLDER / name, Path(recipe.out) / name) if path.is_file()]
        if not files or file_digest(files[0]) != expected:
            shard_record_path(recipe, index).unlink()
