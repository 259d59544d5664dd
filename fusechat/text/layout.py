"""Lays a dialogue's tokens on its fields: an encoded text and where the fields stand in it in; scores, spans, fields out."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from ..errors import DialogueError
from ..storage.contracts import TokenField
from .dialogues import Dialogue
from .rendered import Rendered, Turn
from .token_spans import place_on_contents

_TEMPLATE, _CALLS, _MARK, _END = (
    int(field) for field in (TokenField.TEMPLATE, TokenField.TOOL_CALLS, TokenField.MARK, TokenField.END_OF_TURN)
)
_FIELDS = {"reasoning": int(TokenField.REASONING), "content": int(TokenField.CONTENT)}


@dataclass(frozen=True)
class Measured:
    """An encoded text: [tokens] ids, byte ranges and masks; `regions` [ranges, 2], the bytes of `Rendered.said` in `data`."""

    data: bytes
    token_ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    is_control: np.ndarray
    in_content: np.ndarray
    regions: np.ndarray


@dataclass(frozen=True)
class TokenizedDialogue:
    """`token_ids` int32 [tokens]; `is_scored` bool [tokens]; `span` int32 [tokens, 2], bytes; `field` uint8 [tokens].

    Spans of fields are in order, never overlap, and cover every byte of every field but those that the template (or a
    control token beside it) strips or hides; -1, -1 for marks and for tokens of the template. A token that stands on both
    sides of a field's edge has the field's part. A token that spells no byte of its own (a word-start mark put before a
    field, or one of several tokens for one normalised character) has an empty span. `call_digest`: of the tool calls'
    bytes and of where they stand among the fields; 0: none. `hidden`: as in `Rendered`. `turns`: of the assistant that are
    scored; `open_turns`: those of them that no token ends.
    """

    token_ids: np.ndarray
    is_scored: np.ndarray
    span: np.ndarray
    field: np.ndarray
    call_digest: int = 0
    hidden: tuple[tuple[int, str], ...] = ()
    turns: int = 0
    open_turns: int = 0

    def __len__(self) -> int:
        return len(self.token_ids)


def lay_out(dialogue: Dialogue, rendered: Rendered, measured: Measured) -> TokenizedDialogue:
    """Tokens with what they are of.

    Raises:
        DialogueError: the tokenizer drops a whole field.
    """
    return _Layout(dialogue, rendered, measured).made()


class _Layout:
    """One dialogue's tokens while they are laid out."""

    def __init__(self, dialogue: Dialogue, rendered: Rendered, measured: Measured) -> None:
        self._dialogue, self._rendered, self._measured = dialogue, rendered, measured
        self._byte_of: dict[int, int] = {}
        for place, region in zip(rendered.said, measured.regions.tolist(), strict=True):
            self._byte_of.update(zip(place, region, strict=True))
        pieces = [piece for piece in rendered.pieces if piece.covered is not None]
        fields, offsets = dialogue.fields, dialogue.field_offsets
        bases = [
            offsets[piece.field] + len(fields[piece.field].text[: piece.covered[0]].encode()) if piece.covered else 0
            for piece in pieces
        ]
        regions = np.array([self._bytes(piece.start, piece.end) for piece in pieces], np.int64).reshape(-1, 2)
        placed = place_on_contents(measured.starts, measured.ends, measured.is_control, regions, bases)
        self._span = placed.spans
        self._field = np.zeros(len(measured.token_ids), np.uint8)
        self._is_scored = np.zeros(len(measured.token_ids), bool)
        self._tokens: dict[int, list[tuple[int, int]]] = {}
        for piece, (first, after) in zip(pieces, placed.tokens, strict=True):
            if first == after and rendered.text[piece.start : piece.end].strip():
                raise DialogueError(
                    f"dialogue {dialogue.id!r}: the tokenizer drops all of message {piece.message + 1} "
                    f"({rendered.text[piece.start : piece.end][:20]!a}), expected at least one token for it; remove the dialogue"
                )
            self._field[first:after] = _FIELDS[piece.name]
            self._tokens.setdefault(piece.message, []).append((first, after))
        self._call_bytes = self._digest = self._turns = self._open_turns = 0

    def made(self) -> TokenizedDialogue:
        for turn in self._rendered.turns:
            self._add_turn(turn)
        self._is_scored[:1] = False  # nothing stands before the first token that could predict it
        return TokenizedDialogue(
            self._measured.token_ids, self._is_scored, self._span.astype(np.int32), self._field, self._digest,
            self._rendered.hidden, self._turns, self._open_turns,
        )  # fmt: skip

    def _bytes(self, start: int, end: int) -> tuple[int, int]:
        return self._byte_of[start], self._byte_of[end]

    def _add_turn(self, turn: Turn) -> None:
        measured, own = self._measured, self._tokens.get(turn.message, [])
        if turn.calls is not None:
            self._add_calls(*self._bytes(*turn.calls))
        start, end = self._bytes(turn.start, turn.end)
        edges = [(first, after) for first, after in own]
        if not own or turn.calls is not None or turn.is_led:
            first = int(np.searchsorted(measured.ends, start, side="right"))
            edges.append((first, max(first, int(np.searchsorted(measured.starts, end, side="left")))))
        first, after = min(first for first, _ in edges), max(after for _, after in edges)
        within = self._field[first:after]
        within[within == _TEMPLATE] = _MARK
        until = None if turn.until is None else self._byte_of[turn.until]
        ending = _end_of_turn(measured, self._span, after, until)
        self._field[ending] = _END
        if self._dialogue.messages[turn.message].is_trained:
            self._is_scored[first:after] = True
            self._is_scored[ending] = True
            self._turns += 1
            self._open_turns += ending.start == ending.stop

    def _add_calls(self, start: int, end: int) -> None:
        """Spans into the tool calls' own bytes, for the tokens that spell nothing else."""
        measured = self._measured
        first = int(np.searchsorted(measured.ends, start, side="right"))
        after = int(np.searchsorted(measured.starts, end, side="left"))
        own = first + np.flatnonzero(self._span[first:after, 0] < 0)
        before = max([0, *self._span[:first][self._field[:first] != _CALLS, 1].tolist()])
        shift = self._call_bytes - start
        self._span[own, 0] = np.clip(measured.starts[own], start, end) + shift
        self._span[own, 1] = np.clip(measured.ends[own], start, end) + shift
        self._field[own] = _CALLS
        self._call_bytes += end - start
        self._digest = zlib.crc32(f"{before} ".encode() + measured.data[start:end], self._digest) or 1


def _end_of_turn(measured: Measured, spans: np.ndarray, after: int, until: int | None) -> slice:
    """The tokens that end a turn: those from `after` to the next control token if only white space lies between, else one.

    Every one of them belongs to the template; where no such token follows, none. Where it is known which byte ends them
    (`until`), they are those up to there.
    """
    if until is not None:
        stop = max(after, int(np.searchsorted(measured.starts, until, side="left")))
        if (spans[after:stop, 0] < 0).all():
            return slice(after, stop)
    controls = np.flatnonzero(measured.is_control[after:])
    if len(controls):
        control = after + int(controls[0])
        between = measured.data[int(measured.ends[after - 1]) if after else 0 : int(measured.starts[control])]
        if not between.strip() and (spans[after : control + 1, 0] < 0).all():
            return slice(after, control + 1)
    is_template = after < len(spans) and spans[after, 0] < 0
    return slice(after, after + 1 if is_template else after)
