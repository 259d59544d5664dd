"""Rows for notebooks: the record of one dialogue's rows, and a finished store read one dialogue at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArtifactError
from ..storage.artifact import RECORD_FILE, read_record
from ..storage.row_store import RowStore
from ..storage.tokens import Tokens
from ..storage.tokens_reader import TokensReader

if TYPE_CHECKING:
    from inference.capture.rows import TopKRows


@dataclass(frozen=True)
class Rows:
    """Top-k rows of one dialogue's scored tokens, in their order.

    `topk_ids` int32 [rows, k]; `topk_logprobs` float32 [rows, k], nats over the whole vocabulary, descending, -inf pads;
    `label_logprob` float32 [rows], of the token that stands there; `kind` uint8 [rows], RowKind, of aligned rows only.
    Where ids were chosen: `chosen_logprobs` float32 [rows, m], -inf where the id is padding, and `rest_logprob` float32
    [rows], of all other ids together.
    `token_ids` int32 [tokens] and `is_scored` bool [tokens] are of the vocabulary that the rows are over.
    """

    token_ids: np.ndarray
    is_scored: np.ndarray
    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    label_logprob: np.ndarray
    kind: np.ndarray | None = None
    chosen_logprobs: np.ndarray | None = None
    rest_logprob: np.ndarray | None = None

    @classmethod
    def of_engine(cls, token_ids: np.ndarray, is_scored: np.ndarray, rows: "TopKRows") -> "Rows":
        """The rows that an engine gave of a dialogue."""
        return cls(
            token_ids, is_scored, rows.topk_ids, rows.topk_logprobs, rows.label_logprob,
            chosen_logprobs=rows.chosen_logprobs, rest_logprob=rows.rest_logprob,
        )  # fmt: skip


class OpenRows:
    """A logprobs or aligned store, read one dialogue at a time: `len`, indexing and iteration give `Rows`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        record = read_record(f"{self.url}/{RECORD_FILE}")
        if record is None or record["kind"] not in ("logprobs", "aligned"):
            raise ArtifactError(
                f"{url}: found {'nothing finished' if record is None else record['kind']}, expected a finished store of "
                "rows, such as runs/quickstart/logprobs/smollm2"
            )
        self.record: dict[str, Any] = record
        self.store = RowStore.open(self.url, record["kind"])

    @cached_property
    def _tokens(self) -> TokensReader:
        from .inspection import tokens_url_of

        parents = self.record["parents"]
        return TokensReader(tokens_url_of(self.url, parents.get("tokens") or parents.get("pivot_tokens")))

    def __len__(self) -> int:
        return self.store.layout.num_dialogues

    def __getitem__(self, dialogue: int) -> Rows:
        if not 0 <= dialogue < len(self):
            raise IndexError(f"{self.url}: dialogue {dialogue}, expected 0 to {len(self) - 1}")
        tokens: Tokens = self._tokens.read(range(dialogue, dialogue + 1))
        arrays = self.store.read_dialogue(dialogue)
        return Rows(
            tokens.token_ids, tokens.is_scored, arrays["topk_ids"].astype(np.int32), arrays["topk_logprobs"],
            arrays["label_logprob"], arrays.get("kind"),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Rows]:
        return map(self.__getitem__, range(len(self)))


def open_rows(url: str | Path) -> OpenRows:
    """Open a finished store of rows.

    Args:
        url: folder or URL of a logprobs or aligned artifact.
    Raises:
        ArtifactError: there is none, it is not finished, or (when read) damaged.
    """
    return OpenRows(str(url))
