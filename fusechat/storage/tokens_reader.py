"""Tokens read by ranges of dialogues, as stages do, so that memory does not grow with the corpus."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import zarr

from ..errors import ArtifactError, ContractError
from .contracts import CONTRACT_VERSION, TOKENS
from .shard_layout import ShardLayout, lay_out_blocks
from .tokens import OF_TOKENS, Tokens
from .write_errors import storage_errors
from .zarr_arrays import ATTRIBUTE, DAMAGE, LongArray, ranges

OFFSETS_IN_MEMORY = 1 << 18
"""Dialogues whose offsets are looked at together."""
TOKENS_IN_MEMORY = 1 << 18
"""Tokens that are read together where all are gone through."""
_FIELDS = [name for name in TOKENS.names if name != "row_offsets"]


def read_tokens(url: str) -> Tokens:
    """A whole tokens artifact.

    Raises:
        ArtifactError: there is none, or it is damaged.
        ContractError: it does not obey the contract.
    """
    reader = TokensReader(url)
    return reader.read(range(reader.num_dialogues))


class TokensReader:
    """A tokens artifact on disk.

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
            if (offsets[1:] < offsets[:-1]).any() or offsets[0] < 0 or offsets[-1] > self.num_tokens:
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
