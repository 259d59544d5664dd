"""The tokens artifact in memory: what every stage after `tokenize` reads."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .store import ShardPlan, plan_shards, read_arrays, write_arrays


@dataclass(frozen=True)
class Tokens:
    """Dialogues of one split under one model's tokenizer and template.

    `token_ids` int32 [tokens], `is_target` bool [tokens], `content_span` int32 [tokens, 2] (bytes), `offsets` int64
    [dialogues+1] (tokens); `attributes`: model, vocab_size, digests of tokenizer, template and dialogues.
    """

    token_ids: np.ndarray
    is_target: np.ndarray
    content_span: np.ndarray
    offsets: np.ndarray
    attributes: dict[str, Any]

    @classmethod
    def read(cls, url: str) -> "Tokens":
        """Read a tokens artifact."""
        arrays, attributes = read_arrays(url, "tokens")
        return cls(**arrays, attributes=attributes)

    def write(self, url: str) -> None:
        """Write a tokens artifact."""
        names = ("token_ids", "is_target", "content_span", "offsets")
        write_arrays(url, "tokens", {name: getattr(self, name) for name in names}, self.attributes)

    @property
    def num_dialogues(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [dialogues]: tokens of each dialogue."""
        return np.diff(self.offsets)

    @cached_property
    def row_offsets(self) -> np.ndarray:
        """int64 [dialogues+1]: first target row of each dialogue."""
        counts = np.concatenate([[0], np.cumsum(self.is_target)])
        return counts[self.offsets]

    @property
    def num_rows(self) -> int:
        return int(self.row_offsets[-1])

    def tokens_of(self, dialogue: int) -> slice:
        """Where a dialogue stands in the flat arrays."""
        return slice(int(self.offsets[dialogue]), int(self.offsets[dialogue + 1]))

    def target_bytes(self) -> np.ndarray:
        """int64 [dialogues]: bytes of assistant content that each dialogue's target tokens spell."""
        width = np.where(self.is_target, self.content_span[:, 1] - self.content_span[:, 0], 0)
        return np.diff(np.concatenate([[0], np.cumsum(width)])[self.offsets])

    def plan(self, shard_tokens: int) -> ShardPlan:
        """Cut the dialogues into shards."""
        return plan_shards(self.lengths, np.diff(self.row_offsets), shard_tokens)
