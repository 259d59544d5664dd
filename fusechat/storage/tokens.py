"""The tokens artifact, whole in memory, and how it is written; `tokens_reader` reads it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr

from .contracts import CONTRACT_VERSION, TOKENS, TokenField
from .shard_layout import ShardLayout, lay_out_shards
from .write_errors import storage_errors
from .zarr_arrays import ATTRIBUTE, create_long_array, ranges

OF_TOKENS = [spec.name for spec in TOKENS.arrays if spec.axes[0] == "tokens"]
"""The arrays with an element for each token."""


@dataclass(frozen=True)
class Tokens:
    """Dialogues of one split under one model's tokenizer and template.

    `token_ids` int32 [tokens], `is_scored` bool [tokens], `span` int32 [tokens, 2] (bytes), `field` uint8 [tokens]
    (TokenField), `call_digest` uint32 [dialogues], `offsets` int64 [dialogues+1] (tokens); `attributes`: model,
    vocab_size, digests of tokenizer and dialogues, the template and how it is used. A dialogue that was set aside for
    this model has no tokens.
    """

    token_ids: np.ndarray
    is_scored: np.ndarray
    span: np.ndarray
    field: np.ndarray
    call_digest: np.ndarray
    offsets: np.ndarray
    attributes: dict[str, Any]

    @classmethod
    def of_contents(
        cls,
        token_ids: np.ndarray,
        is_scored: np.ndarray,
        span: np.ndarray,
        offsets: np.ndarray,
        attributes: dict[str, Any],
    ) -> "Tokens":
        """Tokens of dialogues without reasoning and tools: what is scored and stands in no content ends a turn."""
        field = np.where(span[:, 0] >= 0, TokenField.CONTENT, np.where(is_scored, TokenField.END_OF_TURN, 0))
        calls = np.zeros(len(offsets) - 1, np.uint32)
        return cls(token_ids, is_scored, span, field.astype(np.uint8), calls, offsets, attributes)

    def write(self, url: str) -> None:
        """Write a tokens artifact; what was there is replaced."""
        arrays = {name: getattr(self, name) for name in TOKENS.names}
        TOKENS.validate(arrays, axes={"dialogues+1": len(self.offsets)}, place=url)
        with storage_errors(url):
            made = create_tokens(url, self.num_tokens, self.num_dialogues)
            for name, values in arrays.items():
                for part in ranges(len(values)):
                    made[name][part.start : part.stop] = values[part.start : part.stop]
            finish_tokens(url, {**self.attributes, "turn_end_ids": self.turn_end_ids()})

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
        rows_before = np.concatenate([[0], np.cumsum(self.is_scored)])
        row_offsets: np.ndarray = rows_before[self.offsets]
        return row_offsets

    @property
    def num_rows(self) -> int:
        return int(self.row_offsets[-1])

    def tokens_of(self, dialogue: int) -> slice:
        """Where a dialogue stands in the flat arrays."""
        return slice(int(self.offsets[dialogue]), int(self.offsets[dialogue + 1]))

    def turn_end_ids(self) -> list[int]:
        """Ids that end an assistant's turn under the template that the tokens were made with."""
        return turn_end_ids(self.token_ids, self.is_scored, self.field)

    def layout(self, shard_tokens: int) -> ShardLayout:
        """Cut the dialogues into shards."""
        return lay_out_shards(self.lengths, np.diff(self.row_offsets), shard_tokens)


def turn_end_ids(token_ids: np.ndarray, is_scored: np.ndarray, field: np.ndarray) -> list[int]:
    """Ids that end an assistant's turn; arrays [tokens] as those of `Tokens`."""
    is_end = is_scored & (field == TokenField.END_OF_TURN)
    # White space may stand between a content and its control token: only the last template token of a turn ends it.
    ids: list[int] = np.unique(token_ids[is_end & ~np.append(is_end[1:], False)]).tolist()
    return ids


def create_tokens(url: str, num_tokens: int, num_dialogues: int) -> dict[str, Any]:
    """Make the arrays of a tokens artifact, empty; whole objects of them may then be written by different processes."""
    axes = {"tokens": num_tokens, "dialogues": num_dialogues, "dialogues+1": num_dialogues + 1}
    group = zarr.open_group(store=url, mode="a")
    made = {}
    for spec in TOKENS.arrays:
        shape = (axes[str(spec.axes[0])], *(int(axis) for axis in spec.axes[1:]))
        made[spec.name] = create_long_array(group, spec.name, shape, spec.dtypes[0], spec.fill_value)
    return made


def finish_tokens(url: str, attributes: dict[str, Any]) -> None:
    """Say that all arrays of a tokens artifact are written."""
    group = zarr.open_group(store=url, mode="a")
    group.attrs[ATTRIBUTE] = {"contract_version": CONTRACT_VERSION, "artifact": "tokens", **attributes}
