"""Which dialogues and rows stand in which shard: lengths in, a layout out. Knows nothing about files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CHUNK_ROWS = 2048
"""Rows of one inner chunk of a store: enough that Zarr's 0.4 ms per chunk do not show, few enough to read one dialogue."""


@dataclass(frozen=True)
class ShardLayout:
    """Which dialogues and rows stand in which shard.

    `shard_offsets` int64 [shards+1]: first dialogue of each shard; `shard_rows` int64 [shards+1]: its first row, counted
    without padding; `row_offsets` int64 [dialogues+1]: first row of each dialogue, in memory or on disk: it is sliced, and
    never read whole. In the arrays on disk shard i begins at row i * capacity.
    """

    shard_offsets: np.ndarray
    shard_rows: np.ndarray
    row_offsets: Any

    @property
    def num_shards(self) -> int:
        return len(self.shard_offsets) - 1

    @property
    def num_dialogues(self) -> int:
        return int(self.shard_offsets[-1])

    @property
    def num_rows(self) -> int:
        return int(self.shard_rows[-1])

    @property
    def capacity(self) -> int:
        """Rows that each shard reserves on disk: the fullest shard, rounded up to whole chunks."""
        return -(-self._fullest // self.chunk_rows) * self.chunk_rows

    @property
    def chunk_rows(self) -> int:
        return max(1, min(CHUNK_ROWS, self._fullest))

    @property
    def _fullest(self) -> int:
        return int(np.diff(self.shard_rows).max(initial=1))

    def dialogues(self, shard: int) -> range:
        """Dialogues of a shard."""
        return range(int(self.shard_offsets[shard]), int(self.shard_offsets[shard + 1]))

    def rows(self, shard: int) -> slice:
        """Rows of a shard, counted without padding."""
        return slice(int(self.shard_rows[shard]), int(self.shard_rows[shard + 1]))

    def num_rows_of(self, shards: Iterable[int]) -> int:
        """Rows of these shards together."""
        return int(np.diff(self.shard_rows)[list(shards)].sum())

    def shard_of(self, dialogue: int) -> int:
        return int(np.searchsorted(self.shard_offsets, dialogue, side="right")) - 1


def lay_out_shards(num_tokens: np.ndarray, num_rows: np.ndarray, shard_tokens: int) -> ShardLayout:
    """Cut dialogues into shards of about equal token count, in order.

    Args:
        num_tokens: int [dialogues], tokens of each dialogue.
        num_rows: int [dialogues], target rows of each dialogue.
        shard_tokens: upper bound of a shard's tokens, but for a single longer dialogue; shards share the tokens evenly.
    """
    starts, rows = (np.concatenate([[0], np.cumsum(of_each)]).astype(np.int64) for of_each in (num_tokens, num_rows))
    return lay_out_blocks([(starts, rows)], int(starts[-1]), rows, shard_tokens)


def lay_out_blocks(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], num_tokens: int, row_offsets: Any, shard_tokens: int
) -> ShardLayout:
    """As `lay_out_shards`, from blocks of consecutive dialogues, of which one at a time is looked at.

    Args:
        blocks: (first token, first row) of each dialogue of the block, and of the dialogue after it, int64 [dialogues+1] both.
        num_tokens: of all blocks.
        row_offsets: first row of each dialogue of all blocks.
    """
    num_shards = max(1, -(-num_tokens // shard_tokens))
    targets: Sequence[float] | np.ndarray = np.arange(1, num_shards) * (num_tokens / num_shards)
    cuts, rows, before, last_row = [0], [0], 0, 0
    for token_starts, row_starts in blocks:
        inside = targets[np.searchsorted(targets, token_starts[0], side="right") :]
        inside = inside[: np.searchsorted(inside, token_starts[-1], side="right")]
        places = np.searchsorted(token_starts, inside, side="left")
        cuts += (places + before).tolist()
        rows += row_starts[places].tolist()
        before, last_row = before + len(token_starts) - 1, int(row_starts[-1])
    shard_offsets, kept = np.unique(np.array([*cuts, before], np.int64), return_index=True)
    shard_rows = np.array([*rows, last_row], np.int64)[kept]
    return ShardLayout(shard_offsets, shard_rows, row_offsets)
