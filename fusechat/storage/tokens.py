"""The tokens artifact in memory: what every stage after `tokenize` reads."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr

from ..errors import ArtifactError, ContractError
from .artifact import storage_errors
from .contracts import CONTRACT_VERSION, TOKENS, TokenField
from .row_store import ATTRIBUTE, DAMAGE, read_array, whole_array, write_array
from .shard_layout import ShardLayout, lay_out_shards

_OF_TOKENS = [spec.name for spec in TOKENS.arrays if spec.axes[0] == "tokens"]


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

    @classmethod
    def read(cls, url: str) -> "Tokens":
        """Read a tokens artifact.

        Raises:
            ArtifactError: there is none, or it is damaged.
            ContractError: it does not obey the contract.
        """
        with _reading(url):
            group = zarr.open_group(store=url, mode="r")
            arrays = {name: read_array(group, name) for name in TOKENS.names}
            attributes: dict[str, Any] = dict(group.attrs[ATTRIBUTE])  # type: ignore[arg-type]  # an object
        TOKENS.validate(arrays, axes={"dialogues+1": len(arrays["offsets"])}, place=url)
        return cls(**arrays, attributes=attributes)

    def write(self, url: str) -> None:
        """Write a tokens artifact; what was there is replaced."""
        arrays = {name: getattr(self, name) for name in TOKENS.names}
        TOKENS.validate(arrays, axes={"dialogues+1": len(self.offsets)}, place=url)
        with storage_errors(url):
            group = zarr.open_group(store=url, mode="a")
            for name, values in arrays.items():
                write_array(group, name, values, fill_value=TOKENS.spec(name).fill_value)
            group.attrs[ATTRIBUTE] = {"contract_version": CONTRACT_VERSION, "artifact": "tokens", **self.attributes}

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

    def target_bytes(self) -> np.ndarray:
        """int64 [dialogues]: bytes of reasoning, content and tool calls that each dialogue's scored tokens spell."""
        width = np.where(self.is_scored, self.span[:, 1] - self.span[:, 0], 0)
        return np.diff(np.concatenate([[0], np.cumsum(width)])[self.offsets])

    def turn_end_ids(self) -> list[int]:
        """Ids that end an assistant's turn under the template that the tokens were made with."""
        is_end = self.is_scored & (self.field == TokenField.END_OF_TURN)
        # White space may stand between a content and its control token: only the last template token of a turn ends it.
        is_last = is_end & ~np.append(is_end[1:], False)
        ids: list[int] = np.unique(self.token_ids[is_last]).tolist()
        return ids

    def layout(self, shard_tokens: int) -> ShardLayout:
        """Cut the dialogues into shards."""
        return lay_out_shards(self.lengths, np.diff(self.row_offsets), shard_tokens)


class TokensReader:
    """A tokens artifact read by ranges of dialogues, so that memory does not grow with the corpus.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        with _reading(url):
            self._group = zarr.open_group(store=url, mode="r")
            self._arrays: dict[str, Any] = {name: whole_array(self._group, name) for name in TOKENS.names}
            self.attributes: dict[str, Any] = dict(self._group.attrs[ATTRIBUTE])  # type: ignore[arg-type]  # an object
            self.offsets = read_array(self._group, "offsets")

    @property
    def num_dialogues(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [dialogues]: tokens of each dialogue."""
        return np.diff(self.offsets)

    def read(self, dialogues: range) -> Tokens:
        """The tokens of consecutive dialogues, counted from 0.

        Raises:
            ArtifactError: they are damaged.
            ContractError: they do not obey the contract.
            StorageAwayError: the store does not answer.
        """
        first, last = int(self.offsets[dialogues.start]), int(self.offsets[dialogues.stop])
        with _reading(self.url):
            arrays = {name: np.asarray(self._arrays[name][first:last]) for name in _OF_TOKENS}
            arrays["call_digest"] = np.asarray(self._arrays["call_digest"][dialogues.start : dialogues.stop])
        arrays["offsets"] = self.offsets[dialogues.start : dialogues.stop + 1] - first
        TOKENS.validate(arrays, axes={"dialogues+1": len(arrays["offsets"])}, place=self.url)
        return Tokens(**arrays, attributes=self.attributes)

    def layout(self, shard_tokens: int) -> ShardLayout:
        """Cut the dialogues into shards, as `Tokens.layout`.

        Raises:
            ArtifactError: they are damaged.
        """
        with _reading(self.url):
            rows = np.concatenate([[0], np.cumsum(read_array(self._group, "is_scored"))])[self.offsets]
        return lay_out_shards(self.lengths, np.diff(rows), shard_tokens)


@contextlib.contextmanager
def _reading(url: str) -> Iterator[None]:
    """What goes wrong while tokens are read, in words."""
    try:
        with storage_errors(url):
            yield
    except (ArtifactError, ContractError):
        raise
    except (FileNotFoundError, KeyError):
        raise ArtifactError(f"{url}: found no tokens; run `fusechat tokenize` first") from None
    except DAMAGE as error:
        raise ArtifactError(
            f"{url}: damaged ({error}); delete this folder and run `fusechat tokenize`: it makes the same tokens again"
        ) from None
