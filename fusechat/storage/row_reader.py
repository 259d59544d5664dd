"""Rows of a range of dialogues, whatever the shards that they stand in: a store and dialogues in, arrays out."""

import numpy as np

from .row_store import RowStore


class RowReader:
    """Reads ranges of dialogues from one store; keeps the last shard it read, so that ranges in order read each once."""

    def __init__(self, store: RowStore) -> None:
        self.store = store
        self._shard, self._block = -1, {}  # type: int, dict[str, np.ndarray]

    def read(self, dialogues: range) -> dict[str, np.ndarray]:
        """The contract's arrays for the rows of consecutive dialogues, at least one.

        Raises:
            ArtifactError: a shard is not written or damaged.
        """
        layout = self.store.layout
        first, stop = self.store.row_offsets_of(dialogues)[[0, -1]].tolist()
        parts = []
        for shard in range(layout.shard_of(dialogues.start), layout.shard_of(dialogues.stop - 1) + 1):
            if shard != self._shard:
                self._shard, self._block = shard, self.store.read_shard(shard)
            rows = layout.rows(shard)
            wanted = slice(max(first, rows.start) - rows.start, min(stop, rows.stop) - rows.start)
            parts.append({name: array[wanted] for name, array in self._block.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
