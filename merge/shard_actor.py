"""A worker that merges shards of a plan, as a plain class; who starts it, where and how often is not known here."""

from pathlib import Path
from typing import Any

from fusechat.errors import ModelError, StorageError
from fusechat.storage.artifact import read_json

from .checkpoint_merge import thread_pool
from .inputs import Inputs
from .plan import MergePlan
from .shard_merge import WORK_FOLDER, merge_shard


class ShardActor:
    """Holds the inputs open and merges one shard per call."""

    def __init__(self, plan: MergePlan, threads: int) -> None:
        """threads: that read, merge and write."""
        self._plan, self._threads = plan, threads
        self._inputs: Inputs | None = None

    def start(self) -> dict[str, Any]:
        """Open the inputs, and see that this machine has the folders that the plan was made from.

        Raises:
            StorageError: the output folder here is not the one in which the merge was begun.
            ModelError: inputs that are not there, or not those of the plan.
        """
        work = Path(self._plan.out) / WORK_FOLDER
        begun = read_json(str(work / "plan.json")) or {}
        if begun.get("fingerprint") != self._plan.fingerprint:
            raise StorageError(
                f"{work}: this machine does not see the merge that was begun there; workers need the run's output and "
                "the models under the same paths, on a file system that they share"
            )
        self._inputs = Inputs(self._plan.base, self._plan.targets)
        found, planned = self._inputs.file_sizes(), self._plan.file_sizes
        different = [path for path in {**planned, **found} if planned.get(path) != found.get(path)]
        if different:
            path = different[0]
            raise ModelError(
                f"{path}: {found.get(path)} bytes on this machine, {planned.get(path)} where the merge was planned; "
                "expected the same models everywhere"
            )
        return {}

    def run_shard(self, shard: int) -> dict[str, Any]:
        """Merge one shard; -> {"bytes": written}."""
        assert self._inputs is not None, "start comes first"
        with thread_pool(self._threads) as pool:
            merge_shard(self._plan, shard, self._inputs, pool)
        return {"bytes": sum(tensor.num_bytes for tensor in self._plan.shards[shard])}
