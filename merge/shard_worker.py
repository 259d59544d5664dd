"""The work that is left of a begun merge, and the worker that does it: one output shard after the other."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fusechat.errors import ModelError, StorageError
from fusechat.storage.artifact import Artifact
from fusechat.storage.files import read_json
from fusechat.storage.work import HERE, Needs, Place, Work

from .inputs import Inputs
from .recipe import MergeRecipe
from .shard_merge import WORK_FOLDER, merge_shard, new_thread_pool, read_shard_record

MEGABYTE = 1e6
"""Bytes."""
CLUSTER_THREADS = 4
"""Of a worker beside others, and the CPUs it reserves: enough for a network disk, few enough to fit between other work."""


class ShardWorker:
    """Holds the inputs of a merge open and merges one shard per call."""

    def __init__(self, recipe: MergeRecipe, threads: int | None, place: Place = HERE) -> None:
        """
        Args:
            threads: that read, merge and write; default: one per CPU that the place has.
        """
        self._recipe, self._threads, self._place = recipe, threads or place.cpus, place

    def start(self) -> dict[str, Any]:
        """Open the inputs, and see that this machine has the folders that the recipe was made from.

        Raises:
            StorageError: the output folder here is not the one in which the merge was begun.
            ModelError: inputs that are not there, or not those of the recipe.
        """
        work = Path(self._recipe.out) / WORK_FOLDER
        begun = read_json(str(work / "plan.json")) or {}
        if begun.get("fingerprint") != self._recipe.fingerprint:
            raise StorageError(
                f"{work}: this machine does not see the merge that was begun there; workers need the run's output and "
                "the models under the same paths, on a file system that they share"
            )
        self._inputs = Inputs(self._recipe.base, self._recipe.targets)
        sizes, planned = self._inputs.file_sizes(), self._recipe.file_sizes
        different = [path for path in {**planned, **sizes} if planned.get(path) != sizes.get(path)]
        if different:
            path = different[0]
            raise ModelError(
                f"{path}: {sizes.get(path)} bytes on this machine, {planned.get(path)} where the merge was planned; "
                "expected the same models everywhere"
            )
        self._pool = new_thread_pool(self._threads)
        return {}

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Merge one shard; -> {"MB": written}."""
        on_part = self._place.on_part or (lambda amount: None)
        merge_shard(self._recipe, unit, self._inputs, self._pool, lambda num_bytes: on_part(num_bytes / MEGABYTE))
        return {"MB": _num_bytes(self._recipe, unit) / MEGABYTE}

    def close(self) -> None:
        """End the threads; what they had not begun is left."""
        self._pool.shutdown(cancel_futures=True)


def shard_work(recipe: MergeRecipe, *, threads: int | None, finish: Callable[[], list[Artifact]]) -> Work:
    """What is left of a begun merge.

    Args:
        threads: of a worker; default: one per usable core here, and CLUSTER_THREADS on a cluster.
        finish: called when all shards are whole.
    """
    sizes = [_num_bytes(recipe, index) for index in range(len(recipe.shards))]
    missing = [index for index in range(len(sizes)) if read_shard_record(recipe, index) is None]
    return Work(
        name=f"merge {recipe.method_name}",
        missing=missing,
        num_units=len(sizes),
        total=sum(sizes) / MEGABYTE,
        done=(sum(sizes) - sum(sizes[index] for index in missing)) / MEGABYTE,
        measure="MB",
        make_worker=partial(ShardWorker, _with_absolute_paths(recipe), threads),
        finish=finish,
        needs=Needs(cpus=threads or CLUSTER_THREADS),
        unit_name=recipe.shard_name,
    )


def _num_bytes(recipe: MergeRecipe, index: int) -> int:
    return sum(tensor.num_bytes for tensor in recipe.shards[index])


def _with_absolute_paths(recipe: MergeRecipe) -> MergeRecipe:
    """Other processes start in folders of their own, so that relative paths would mean others there."""
    return replace(
        recipe,
        base=_absolute(recipe.base),
        out=_absolute(recipe.out),
        targets={name: _absolute(folder) for name, folder in recipe.targets.items()},
        file_sizes={_absolute(path): size for path, size in recipe.file_sizes.items()},
    )


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
