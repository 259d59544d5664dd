"""Rows of embeddings and heads, joined by token: two tokenizers in, for each row of the base the target's row out.

A target may have tokens added, or its vocabulary padded to another length, or its rows in another order. The fused
model has the base's rows. A base token that the target lacks keeps the base's row; a target's own tokens are dropped
and counted. Knows nothing about methods.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusechat.errors import ModelError
from fusechat.models.model_files import read_small_json

from .tensors import TensorSource

_VOCABULARY_TENSORS = ("embed", "wte", "lm_head", "output.weight", "output.bias")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a folder."""

    tokens: dict[str, int]
    """Token -> id, added tokens included."""
    added: frozenset[str]


@dataclass(frozen=True)
class RowMap:
    """Which row of a target stands for each row of the base."""

    rows: np.ndarray
    """int64 [base rows]; -1: the target has none."""
    dropped: list[str]
    """Tokens of the target that the base does not have."""
    missing: list[str]
    """Tokens of the base that the target does not have."""

    @property
    def is_identity(self) -> bool:
        return bool((self.rows == np.arange(len(self.rows))).all())


def is_vocabulary_tensor(name: str, shape: tuple[int, ...], config: dict[str, Any]) -> bool:
    """True if the tensor's rows are tokens."""
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return bool(shape) and shape[0] == size and any(part in name for part in _VOCABULARY_TENSORS)


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The tokens of a folder's tokenizer; None where it has no tokenizer.

    Raises:
        ModelError: a tokenizer that cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return _read_with_transformers(folder) if any((folder / name).is_file() for name in _TOKENIZER_FILES) else None
    try:
        document = read_small_json(path)
        model = document["model"]["vocab"]
        tokens = dict(model) if isinstance(model, dict) else {piece: i for i, (piece, _) in enumerate(model)}
        added = {str(item["content"]): int(item["id"]) for item in document.get("added_tokens") or []}
        _check_token_ids([*tokens.values(), *added.values()])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(f"{path}: not a readable tokenizer: {str(error)[:300]}") from None
    return Vocabulary({**tokens, **added}, frozenset(added))


def _check_token_ids(ids: list[Any]) -> None:
    """Raises ValueError for what is no id of a token: rows are picked by it."""
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < 2**31:
            raise ValueError(
                f"found the token id {str(token_id)[:80]!r}, expected a whole number from 0 to {2**31 - 1}"
            )


def _read_with_transformers(folder: Path) -> Vocabulary:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{folder}: its tokenizer cannot be loaded: {str(error).splitlines()[0]}") from None
    return Vocabulary(dict(tokenizer.get_vocab()), frozenset(tokenizer.get_added_vocab()))


def join_rows(
    base: Vocabulary | None,
    target: Vocabulary | None,
    base_rows: int,
    target_rows: int,
    *,
    same_tokenizer: bool,
    folder: Path,
) -> RowMap:
    """Join the rows of a target to those of the base.

    Args:
        base_rows, target_rows: rows of the embedding, padding included.
        same_tokenizer: the tokenizer files are known to be equal; the vocabularies may then be None.
        folder: the target's, for messages.
    Raises:
        ModelError: tokens of the base's own vocabulary are unknown to the target: it is another tokenizer; or the
            numbers of rows differ and there are no tokenizers to join them by.
    """
    if same_tokenizer or base is None or target is None or base.tokens == target.tokens:
        if base_rows != target_rows and not same_tokenizer and (base is None or target is None):
            raise ModelError(
                f"{folder}: its embedding has {target_rows} rows, the base's {base_rows}, and rows can only be joined by "
                "token: put the tokenizer files of both into their folders"
            )
        rows = np.arange(base_rows)
        rows[target_rows:] = -1
        return RowMap(rows, [], [])
    missing = [token for token in base.tokens if token not in target.tokens]
    foreign = [token for token in missing if token not in base.added]
    if foreign:
        raise ModelError(
            f"{folder}: another tokenizer: it lacks {len(foreign):,} of the base's {len(base.tokens):,} tokens, for example "
            f"{foreign[0]!r}; targets must be trained from the pivot"
        )
    rows = np.full(base_rows, -1, np.int64)
    for token, row in base.tokens.items():
        other = target.tokens.get(token, -1)
        if row < base_rows and other < target_rows:
            rows[row] = other
    padding = np.arange(max(base.tokens.values()) + 1, base_rows)
    shared = padding[(padding > max(target.tokens.values())) & (padding < target_rows)]
    rows[shared] = shared  # neither names these rows: they are padding in both
    return RowMap(rows, [token for token in target.tokens if token not in base.tokens], missing)


@dataclass(frozen=True)
class JoinedTensor:
    """A target's tensor with its rows in the base's order; rows it lacks are the base's."""

    target: TensorSource
    base: TensorSource
    rows: np.ndarray
    """int64 [base rows]"""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        width = math.prod(self.shape[1:])
        position = start
        for first, count, row in _runs(self.rows[start // width : -(-stop // width)], start // width):
            last = min(stop, (first + count) * width)
            part = out[position - start : last - start]
            if row < 0:
                self.base.read(position, last, part)
            else:
                shift = (row - first) * width
                self.target.read(position + shift, last + shift, part)
            position = last

    def read_ahead(self) -> None:
        self.target.read_ahead()


def _runs(rows: np.ndarray, first: int) -> list[tuple[int, int, int]]:
    """Stretches of rows that follow each other in the target: (first base row, count, first target row or -1)."""
    steps = np.where(rows[1:] < 0, rows[:-1] < 0, (rows[1:] == rows[:-1] + 1) & (rows[:-1] >= 0))
    starts = np.flatnonzero(np.concatenate([[True], ~steps]))
    counts = np.diff(np.append(starts, len(rows)))
    return [(first + int(start), int(count), int(rows[start])) for start, count in zip(starts, counts, strict=True)]
