"""The tokens artifact: in memory whole (`Tokens`), or read by ranges of dialogues (`TokensReader`), as stages do."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr

from ..errors import ArtifactError, ContractError
from .contracts import CONTRACT_VERSION, TOKENS, TokenField
from .shard_layout import ShardLayout, lay_out_blocks, lay_out_shards
from .write_errors import storage_errors
from .zarr_arrays import ATTRIBUTE, DAMAGE, LongArray, create_long_array, ranges

OF_TOKENS = [spec.name for spec in TOKENS.arrays if spec.axes[0] == "tokens"]
"""The arrays with an element for each token."""
OFFSETS_IN_MEMORY = 1 << 18
"""Dialogues whose offsets are looked at together."""
TOKENS_IN_MEMORY = 1 << 20
"""Tokens that are read together where all are gone through."""
_FIELDS = [name for name in TOKENS.names if name != "row_offsets"]


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
        reader = TokensReader(url)
        return reader.read(range(reader.num_dialogues))

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


class TokensReader:
    """A tokens artifact read by ranges of dialogues, so that memory does not grow with the corpus.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        with _reading(url):
            self._group = zarr.open_group(store=url, mode="r")
            self.attributes: dict[str, Any] = dict(self._group.attrs[ATTRIBUTE])  # type: ignore[arg-type]  # an object
            version = self.attributes["contract_version"]
            if version != CONTRACT_VERSION:
                raise ValueError(f"of contract version {str(version)[:80]}, expected {CONTRACT_VERSION}")
            self._arrays = {name: LongArray(url, self._group, name) for name in TOKENS.names}
            self.num_tokens = int(self._arrays["token_ids"].shape[0])
            self._check_lengths()

    def _check_lengths(self) -> None:
        """Raises ValueError for arrays of other lengths than the offsets say."""
        lengths = {name: int(array.shape[0]) for name, array in self._arrays.items()}
        axes = {"tokens": self.num_tokens, "dialogues": self.num_dialogues, "dialogues+1": self.num_dialogues + 1}
        for spec in TOKENS.arrays:
            if lengths[spec.name] != axes[str(spec.axes[0])]:
                raise ValueError(f"{spec.name} has {lengths[spec.name]} elements, expected {axes[str(spec.axes[0])]}")
        for name, last in (("offsets", self.num_tokens), ("row_offsets", None)):
            if int(self._arrays[name][0]) != 0 or (last is not None and int(self._arrays[name][-1]) != last):
                raise ValueError(f"{name} do not rise from 0 to the last token")

    @property
    def num_dialogues(self) -> int:
        return int(self._arrays["offsets"].shape[0]) - 1

    @cached_property
    def num_rows(self) -> int:
        """Target tokens of all dialogues."""
        with _reading(self.url):
            return int(self._arrays["row_offsets"][-1])

    @property
    def lengths(self) -> np.ndarray:
        """int64 [dialogues]: tokens of each dialogue; 8 bytes for each of the corpus."""
        return np.diff(self.offsets_of(range(self.num_dialogues)))

    def longest(self) -> int:
        """Tokens of the longest dialogue."""
        return max((int(np.diff(tokens).max(initial=0)) for tokens, _ in self.blocks()), default=0)

    def offsets_of(self, dialogues: range) -> np.ndarray:
        """int64 [dialogues+1]: first token of each of consecutive dialogues, and of the one after them."""
        return self._offsets("offsets", dialogues)

    def row_offsets_of(self, dialogues: range) -> np.ndarray:
        """int64 [dialogues+1]: first row likewise."""
        return self._offsets("row_offsets", dialogues)

    def _offsets(self, name: str, dialogues: range) -> np.ndarray:
        with _reading(self.url):
            offsets = self._arrays[name][dialogues.start : dialogues.stop + 1]
            if (np.diff(offsets) < 0).any() or offsets[0] < 0 or offsets[-1] > self.num_tokens:
                raise ValueError(f"{name} do not rise")
        return offsets

    def turn_end_ids(self) -> list[int]:
        """As `Tokens.turn_end_ids`."""
        with _reading(self.url):
            return [int(token_id) for token_id in self.attributes["turn_end_ids"]]

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`offsets_of` and `row_offsets_of` of all dialogues, a block of them in memory at a time."""
        for part in ranges(self.num_dialogues, OFFSETS_IN_MEMORY):
            yield self.offsets_of(part), self.row_offsets_of(part)

    def parts(self, num_tokens: int = TOKENS_IN_MEMORY) -> Iterator[range]:
        """All dialogues in consecutive ranges of about so many tokens, at least one dialogue each."""
        for block in ranges(self.num_dialogues, OFFSETS_IN_MEMORY):
            starts, first = self.offsets_of(block), 0
            while first < len(block):
                stop = int(np.searchsorted(starts, starts[first] + num_tokens, side="right")) - 1
                stop = min(max(stop, first + 1), len(block))
                yield range(block.start + first, block.start + stop)
                first = stop

    def read(self, dialogues: range) -> Tokens:
        """The tokens of consecutive dialogues, counted from 0.

        Raises:
            ArtifactError: they are damaged.
            ContractError: they do not obey the contract.
            StorageAwayError: the store does not answer.
        """
        offsets, rows = self.offsets_of(dialogues), self.row_offsets_of(dialogues)
        arrays = self.read_arrays(OF_TOKENS, slice(int(offsets[0]), int(offsets[-1])))
        with _reading(self.url):
            arrays["call_digest"] = self._arrays["call_digest"][dialogues.start : dialogues.stop]
        arrays["offsets"], arrays["row_offsets"] = offsets - offsets[0], rows - rows[0]
        TOKENS.validate(arrays, axes={"dialogues+1": len(offsets)}, place=self.url)
        tokens = Tokens(**{name: arrays[name] for name in _FIELDS}, attributes=self.attributes)
        if not np.array_equal(tokens.row_offsets, arrays["row_offsets"]):
            raise ArtifactError(_damage_text(self.url, "row_offsets are not those of is_scored"))
        return tokens

    def read_arrays(self, names: Sequence[str], tokens: slice) -> dict[str, np.ndarray]:
        """Some of the arrays over tokens, of a range of these.

        Raises:
            ArtifactError: they are damaged.
        """
        with _reading(self.url):
            return {name: self._arrays[name][tokens] for name in names}

    def layout(self, shard_tokens: int) -> ShardLayout:
        """Cut the dialogues into shards, as `Tokens.layout`.

        Raises:
            ArtifactError: they are damaged.
        """
        return lay_out_blocks(self.blocks(), self.num_tokens, self._arrays["row_offsets"], shard_tokens)


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


def _damage_text(url: str, reason: object) -> str:
    return f"{url}: damaged ({reason}); delete this folder and run `fusechat tokenize`: it makes the same tokens again"


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
        raise ArtifactError(_damage_text(url, error)) from None
