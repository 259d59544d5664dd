"""Which dialogues and rows stand in which shard: lengths in, a layout out. Knows nothing about files."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

CHUNK_ROWS = 2048
"""Rows of one inner chunk of a store: enough that Zarr's 0.4 ms per chunk do not show, few enough to read one dialogue."""


@dataclass(frozen=True)
class ShardLayout:
    """Which dialogues and rows stand in which shard.

    `shard_offsets` int64 [shards+1]: first dialogue of each shard; `row_offsets` int64 [dialogues+1]: first row of each
    dialogue, counted without padding. In the arrays on disk shard i begins at row i * capacity.
    """

    shard_offsets: np.ndarray
    row_offsets: np.ndarray

    @property
    def num_shards(self) -> int:
        return len(self.shard_offsets) - 1

    @property
    def num_dialogues(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def num_rows(self) -> int:
        return int(self.row_offsets[-1])

    @property
    def capacity(self) -> int:
        """Rows that each shard reserves on disk: the fullest shard, rounded up to whole chunks."""
        fullest = int(np.diff(self.row_offsets[self.shard_offsets]).max(initial=1))
        return -(-fullest // self.chunk_rows) * self.chunk_rows

    @property
    def chunk_rows(self) -> int:
        fullest = int(np.diff(self.row_offsets[self.shard_offsets]).max(initial=1))
        return max(1, min(CHUNK_ROWS, fullest))

    def dialogues(self, shard: int) -> range:
        """Dialogues of a shard."""
        return range(int(self.shard_offsets[shard]), int(self.shard_offsets[shard + 1]))

    def rows(self, shard: int) -> slice:
        """Rows of a shard, counted without padding."""
        first, last = self.row_offsets[self.shard_offsets[shard : shard + 2]]
        return slice(int(first), int(last))

    def num_rows_of(self, shards: Iterable[int]) -> int:
        """Rows of these shards together."""
        return int(np.diff(self.row_offsets[self.shard_offsets])[list(shards)].sum())

    def shard_of(self, dialogue: int) -> int:
        return int(np.searchsorted(self.shard_offsets, dialogue, side="right")) - 1


def lay_out_shards(num_tokens: np.ndarray, num_rows: np.ndarray, shard_tokens: int) -> ShardLayout:
    """Cut dialogues into shards of about equal token count, in order.

    Args:
        num_tokens: int [dialogues], tokens of each dialogue.
        num_rows: int [dialogues], target rows of each dialogue.
        shard_tokens: upper bound of a shard's tokens, but for a single longer dialogue; shards share the tokens evenly.
    """
    starts = np.concatenate([[0], np.cumsum(num_tokens)])
    num_shards = max(1, -(-int(starts[-1]) // shard_tokens))
    targets = np.arange(1, num_shards) * (starts[-1] / num_shards)
    cuts = np.searchsorted(starts, targets, side="left")
    shard_offsets = np.unique(np.concatenate([[0], cuts, [len(num_tokens)]])).astype(np.int64)
    return ShardLayout(shard_offsets, np.concatenate([[0], np.cumsum(num_rows)]).astype(np.int64))
