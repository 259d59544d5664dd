"""Tokens in pieces: made by workers in any order, then joined into one tokens artifact, whose bytes depend on no worker.

A piece is one file of arrays and one of counts, which is written last. When all are there, the driver sums the counts to an
index; then each unit of the join writes the whole objects that begin in its piece.
"""

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import zarr

from ..errors import ArtifactError
from .contracts import TokenField
from .files import read_json, write_bytes, write_json
from .tokens import OF_TOKENS, create_tokens
from .work import HERE, Place
from .write_errors import storage_errors
from .zarr_arrays import OBJECT_LENGTH, LongWriter, writable

INDEX = "index.json"


@dataclass(frozen=True)
class PieceCounts:
    """Of one piece: `lengths`, `rows` (scored tokens) and `call_digests`, one for each dialogue, and sums."""

    lengths: list[int]
    rows: list[int]
    call_digests: list[int]
    turns: int
    """Scored turns of the assistant."""
    open_turns: int
    """Those that no token ends."""
    hidden: int
    """Those whose reasoning the template does not show."""
    set_aside: list[tuple[str, str]]
    """Id and reason of the dialogues that the model cannot read."""
    turn_end_ids: list[int]


def write_piece(url: str, piece: int, arrays: dict[str, np.ndarray], counts: PieceCounts) -> None:
    """Write one piece; `arrays`: those of the tokens contract that have an element for each token."""
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
    write_bytes(f"{url}/{piece:06d}.npz", data.getvalue())
    write_json(f"{url}/{piece:06d}.json", asdict(counts), indent=None)


def read_counts(url: str, piece: int) -> PieceCounts:
    """The counts of one piece.

    Raises:
        ArtifactError: it is gone.
    """
    return PieceCounts(**_read(f"{url}/{piece:06d}.json", f"{url}: piece {piece}"))


def _read(url: str, what: str) -> dict[str, Any]:
    document: dict[str, Any] | None = read_json(url)
    if document is None:
        raise ArtifactError(f"{what} is gone; run `fusechat tokenize` again")
    return document


@dataclass(frozen=True)
class TokenIndex:
    """What the join goes by: `starts` [pieces+1], the first token of each piece, and the id that is put behind each dialogue
    to end its last turn (None: none).
    """

    starts: list[int]
    appended_end: int | None

    @classmethod
    def read(cls, pieces: str) -> "TokenIndex":
        """The index beside the pieces.

        Raises:
            ArtifactError: it is gone.
        """
        return cls(**_read(f"{pieces}/{INDEX}", f"{pieces}: its index"))


@dataclass(frozen=True)
class TokenSums:
    """Over all pieces."""

    dialogues: int = 0
    tokens: int = 0
    rows: int = 0
    turns: int = 0
    open_turns: int = 0
    hidden: int = 0
    num_set_aside: int = 0
    set_aside: tuple[tuple[str, str], ...] = ()
    """The first ones."""
    turn_end_ids: tuple[int, ...] = ()

    def end_ids(self, appended: int | None) -> list[int]:
        """Ids that end turns, with one that is put behind each dialogue."""
        return sorted({*self.turn_end_ids, *(() if appended is None else (appended,))})


def sum_counts(url: str, num_pieces: int, max_listed: int) -> TokenSums:
    """Sums of the pieces' counts, as they were made: without an appended end."""
    sums = TokenSums()
    for piece in range(num_pieces):
        one = read_counts(url, piece)
        listed = [*sums.set_aside, *((dialogue, reason) for dialogue, reason in one.set_aside)][:max_listed]
        sums = TokenSums(
            sums.dialogues + len(one.lengths), sums.tokens + sum(one.lengths), sums.rows + sum(one.rows),
            sums.turns + one.turns, sums.open_turns + one.open_turns, sums.hidden + one.hidden,
            sums.num_set_aside + len(one.set_aside), tuple(listed), tuple(sorted({*sums.turn_end_ids, *one.turn_end_ids})),
        )  # fmt: skip
    return sums


def lay_out_pieces(url: str, pieces: str, sums: TokenSums, num_pieces: int, appended_end: int | None) -> None:
    """Make the arrays of a tokens artifact, fill those over dialogues, and write the index that the join goes by.

    Args:
        url: of the artifact.
        pieces: URL of the pieces.
        appended_end: the id that ends each dialogue, where the template ends no turn.
    """
    extra = sum(sum(1 for length in read_counts(pieces, piece).lengths if length) for piece in range(num_pieces))
    num_tokens = sums.tokens + (extra if appended_end is not None else 0)
    with storage_errors(url):
        arrays = create_tokens(url, num_tokens, sums.dialogues)
        starts, first_row = [0], 0
        with (
            LongWriter(arrays["offsets"]) as offsets,
            LongWriter(arrays["row_offsets"]) as row_offsets,
            LongWriter(arrays["call_digest"]) as call_digests,
        ):
            offsets.add(np.zeros(1, np.int64))
            row_offsets.add(np.zeros(1, np.int64))
            for piece in range(num_pieces):
                counts = read_counts(pieces, piece)
                lengths, rows = np.array(counts.lengths, np.int64), np.array(counts.rows, np.int64)
                if appended_end is not None:
                    ended = end_dialogues(_read_arrays(pieces, piece), lengths, appended_end)
                    lengths = lengths + (lengths > 0)
                    rows = _rows_of(ended["is_scored"], lengths)
                ends = starts[-1] + np.cumsum(lengths)
                offsets.add(ends)
                row_offsets.add(first_row + np.cumsum(rows))
                call_digests.add(np.array(counts.call_digests, np.uint32))
                starts.append(int(starts[-1] + lengths.sum()))
                first_row += int(rows.sum())
    write_json(f"{pieces}/{INDEX}", asdict(TokenIndex(starts, appended_end)), indent=None)


@dataclass(frozen=True)
class JoinInputs:
    """All that a worker of the join is told."""

    url: str
    """Of the tokens artifact, whose arrays the driver has made."""
    pieces: str


class TokenJoiner:
    """Writes the objects of a tokens artifact; the number of a unit is that of the piece in which they begin."""

    def __init__(self, inputs: JoinInputs, place: Place = HERE) -> None:
        self._inputs = inputs

    def start(self) -> dict[str, Any]:
        """Open index and arrays."""
        self._index = TokenIndex.read(self._inputs.pieces)
        group = zarr.open_group(store=self._inputs.url, mode="r+")
        self._arrays: dict[str, Any] = {name: writable(group, name) for name in OF_TOKENS}
        return {}

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Write the objects that begin in one piece, and read the pieces that they reach into."""
        starts = self._index.starts
        for first in range(-(-starts[unit] // OBJECT_LENGTH) * OBJECT_LENGTH, starts[unit + 1], OBJECT_LENGTH):
            stop = min(first + OBJECT_LENGTH, starts[-1])
            parts = list(self._tokens(unit, first, stop))
            with storage_errors(self._inputs.url):
                for name in OF_TOKENS:
                    self._arrays[name][first:stop] = np.concatenate([part[name] for part in parts])
        return {"dialogues": len(read_counts(self._inputs.pieces, unit).lengths)}

    def close(self) -> None:
        """Let the arrays go."""
        del self._arrays

    def _tokens(self, piece: int, first: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        starts = self._index.starts
        while piece < len(starts) - 1 and starts[piece] < stop:
            arrays = _read_arrays(self._inputs.pieces, piece)
            if self._index.appended_end is not None:
                lengths = np.array(read_counts(self._inputs.pieces, piece).lengths, np.int64)
                arrays = end_dialogues(arrays, lengths, self._index.appended_end)
            begin = max(first - starts[piece], 0)
            yield {name: array[begin : stop - starts[piece]] for name, array in arrays.items()}
            piece += 1


def _read_arrays(url: str, piece: int) -> dict[str, np.ndarray]:
    import fsspec

    with storage_errors(url), fsspec.open(f"{url}/{piece:06d}.npz", "rb") as file:
        data = io.BytesIO(file.read())
    with np.load(data) as arrays:
        return {name: arrays[name] for name in OF_TOKENS}


def end_dialogues(arrays: dict[str, np.ndarray], lengths: np.ndarray, token_id: int) -> dict[str, np.ndarray]:
    """The arrays of a piece with one token more behind each dialogue that has tokens: it ends the last turn."""
    ends = np.cumsum(lengths)[lengths > 0]
    values = {
        "token_ids": np.int32(token_id), "is_scored": arrays["is_scored"][ends - 1], "span": np.int32(-1),
        "field": np.uint8(TokenField.END_OF_TURN),
    }  # fmt: skip
    return {name: np.insert(array, ends, values[name], axis=0) for name, array in arrays.items()}


def _rows_of(is_scored: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 [dialogues]: scored tokens of each."""
    before = np.concatenate([[0], np.cumsum(is_scored)])
    rows: np.ndarray = np.diff(before[np.concatenate([[0], np.cumsum(lengths)])])
    return rows
