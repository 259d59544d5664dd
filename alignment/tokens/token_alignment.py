"""Pairs the target tokens of two tokenizations of the same dialogues, by the bytes they stand for.

In: the tokens of a run of dialogues, once in the pivot's and once in the source's tokens. Out: for each target row of
the pivot, the source row that was open at its first byte. Linear in the tokens. Knows nothing about vocabularies or
distributions. Positions are bytes in the fields of a dialogue, which do not depend on the template, so two teachers under
two templates meet on the same bytes. Tool calls, which each template spells in its own form, meet where both spell the
same bytes; they then count as bytes of the dialogue, at the place where they stand.
"""

from typing import NamedTuple

import numpy as np

from fusechat.compilation import kept
from fusechat.errors import AlignmentError
from fusechat.storage.contracts import TokenField
from fusechat.storage.tokens import Tokens

_CALLS, _MARK = int(TokenField.TOOL_CALLS), int(TokenField.MARK)


class TargetRows(NamedTuple):
    """The target tokens of a run of dialogues, one entry per row of a row store."""

    token_ids: np.ndarray
    """int32 [rows]"""
    starts: np.ndarray
    """int32 [rows]: first byte; for an end-of-turn token or a mark, where the field before it ends."""
    ends: np.ndarray
    """int32 [rows]: byte after the last; equal to `starts` for end-of-turn tokens."""
    is_end_of_turn: np.ndarray
    """bool [rows]: a scored token that stands for no byte of a field: it ends a turn, or marks where a field begins or ends."""
    opens_turn: np.ndarray
    """bool [rows]: first of a stretch of scored tokens: of a turn, of the field behind a mark, of calls that stand apart."""
    offsets: np.ndarray
    """int64 [dialogues+1]: first row of each dialogue."""
    is_apart: np.ndarray
    """bool [rows]: of a tool call that the other side spells in other bytes; meets nothing."""

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)


class SpanAlignment(NamedTuple):
    """Where each pivot row meets the source."""

    source_row: np.ndarray
    """int64 [pivot rows]: the source row whose token holds the pivot token's first byte; -1: none does."""
    inside: np.ndarray
    """int32 [pivot rows]: bytes of that source token that lie before the pivot token; 0: both begin here."""


def both_target_rows(pivot: Tokens, source: Tokens, dialogues: range) -> tuple[TargetRows, TargetRows]:
    """The target rows of consecutive dialogues on both sides.

    Args:
        dialogues: indices into both tokens, a contiguous range.
    """
    part = slice(dialogues.start, dialogues.stop)
    calls_meet = pivot.call_digest[part] == source.call_digest[part]
    return target_rows(pivot, dialogues, calls_meet), target_rows(source, dialogues, calls_meet)


def target_rows(tokens: Tokens, dialogues: range, calls_meet: np.ndarray) -> TargetRows:
    """The target rows of one side.

    Args:
        dialogues: indices into `tokens`, a contiguous range.
        calls_meet: bool [dialogues], both sides spell the dialogue's tool calls in the same bytes.
    """
    first, last = int(tokens.offsets[dialogues.start]), int(tokens.offsets[dialogues.stop])
    offsets = tokens.offsets[dialogues.start : dialogues.stop + 1] - first
    block = slice(first, last)
    return collect_target_rows(
        tokens.token_ids[block], tokens.is_scored[block], tokens.span[block], offsets, tokens.field[block], calls_meet
    )


def collect_target_rows(
    token_ids: np.ndarray,
    is_scored: np.ndarray,
    span: np.ndarray,
    offsets: np.ndarray,
    field: np.ndarray,
    calls_meet: np.ndarray,
) -> TargetRows:
    """Target rows from the arrays of the tokens contract.

    Args:
        token_ids: int32 [tokens].
        is_scored: bool [tokens].
        span: int32 [tokens, 2], bytes; -1 for marks and for the template's own.
        offsets: int64 [dialogues+1], tokens.
        field: uint8 [tokens], TokenField.
        calls_meet: bool [dialogues].
    Raises:
        AlignmentError: spans that run backwards; the text would not be covered in order.
    """
    rows = int(np.count_nonzero(is_scored))
    out = TargetRows(
        np.empty(rows, np.int32),
        np.empty(rows, np.int32),
        np.empty(rows, np.int32),
        np.empty(rows, np.bool_),
        np.empty(rows, np.bool_),
        np.empty(len(offsets), np.int64),
        np.empty(rows, np.bool_),
    )
    backwards = _collect(token_ids, is_scored, span, offsets, field, calls_meet, *out)
    if backwards >= 0:
        raise AlignmentError(
            f"token {backwards}: span {span[backwards].tolist()} begins before the one before it; "
            "expected spans in the order of the text: tokenize the dialogues again"
        )
    return out


@kept
def _collect(
    token_ids: np.ndarray, is_scored: np.ndarray, span: np.ndarray, offsets: np.ndarray, field: np.ndarray,
    calls_meet: np.ndarray, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, is_end_of_turn: np.ndarray,
    opens_turn: np.ndarray, row_offsets: np.ndarray, is_apart: np.ndarray,
) -> int:  # fmt: skip
    """Fill the arrays of TargetRows; returns the first token whose span runs backwards, or -1."""
    row = 0
    row_offsets[0] = 0
    for dialogue in range(len(offsets) - 1):
        field_end, call_end, last_start = 0, 0, 0
        before_is_scored, before_is_apart, before_is_mark = False, False, False
        for token in range(offsets[dialogue], offsets[dialogue + 1]):
            start, end = span[token, 0], span[token, 1]
            is_call = field[token] == _CALLS
            apart = is_call and not calls_meet[dialogue]
            stands = start >= 0 and not apart
            if stands and is_call:
                call_end = max(call_end, end)
                start, end = start + field_end, end + field_end
            elif stands:
                field_end = max(field_end, end)
                start, end = start + call_end, end + call_end
            if stands:
                if start < last_start or end < start:
                    return token
                last_start = start
            if is_scored[token]:
                ids[row] = token_ids[token]
                is_end_of_turn[row] = not stands and not apart
                is_apart[row] = apart
                starts[row] = start if stands else field_end + call_end
                ends[row] = end if stands else field_end + call_end
                opens_turn[row] = not before_is_scored or before_is_apart != apart or (before_is_mark and stands)
                row += 1
            before_is_scored, before_is_apart = is_scored[token], is_scored[token] and apart
            before_is_mark = is_scored[token] and field[token] == _MARK
        row_offsets[dialogue + 1] = row
    return -1


def align_spans(pivot: TargetRows, source: TargetRows) -> SpanAlignment:
    """Find, for each pivot row, the source row that is open at its first byte.

    End-of-turn tokens and marks meet those at the same place (same fields before them), in order. A pivot token
    that stands for no byte (a lone word-start mark) meets only its like. Monotone in every dialogue.

    Args:
        pivot, source: target rows of the same dialogues.
    Raises:
        AlignmentError: another number of dialogues.
    """
    if len(pivot.offsets) != len(source.offsets):
        raise AlignmentError(
            f"pivot tokens of {len(pivot.offsets) - 1} dialogues meet source tokens of {len(source.offsets) - 1}; "
            "expected the same dialogues: tokenize both again"
        )
    source_row = np.full(pivot.num_rows, -1, np.int64)
    inside = np.zeros(pivot.num_rows, np.int32)
    _walk(
        pivot.starts, pivot.ends, pivot.is_end_of_turn, pivot.opens_turn, pivot.is_apart, pivot.offsets,
        source.starts, source.ends, source.is_end_of_turn, source.opens_turn, source.is_apart, source.offsets,
        source_row, inside,
    )  # fmt: skip
    return SpanAlignment(source_row, inside)


@kept
def _walk(
    p_start: np.ndarray, p_end: np.ndarray, p_eot: np.ndarray, p_opens: np.ndarray, p_apart: np.ndarray,
    p_offsets: np.ndarray, s_start: np.ndarray, s_end: np.ndarray, s_eot: np.ndarray, s_opens: np.ndarray,
    s_apart: np.ndarray, s_offsets: np.ndarray, source_row: np.ndarray, inside: np.ndarray,
) -> None:  # fmt: skip
    """Fill the arrays of SpanAlignment from those of both sides' TargetRows."""
    for dialogue in range(len(p_offsets) - 1):
        first, stop = s_offsets[dialogue], s_offsets[dialogue + 1]
        content, eot = first, first
        for i in range(p_offsets[dialogue], p_offsets[dialogue + 1]):
            start = p_start[i]
            if p_apart[i]:
                continue
            if not p_eot[i]:
                content = _next_content(s_start, s_end, s_eot, s_apart, content, stop, start, p_end[i])
                both = content < stop and s_start[content] <= start
                if both and (s_end[content] == s_start[content]) == (p_end[i] == start):
                    source_row[i], inside[i] = content, start - s_start[content]
                    content += p_end[i] == start
            elif i > p_offsets[dialogue] and p_eot[i - 1] and not p_opens[i]:
                # The second end-of-turn token of a turn meets the second, if the first met the first.
                if source_row[i - 1] >= 0 and eot < stop and s_eot[eot] and not s_opens[eot]:
                    source_row[i] = eot
                    eot += 1
            else:
                while eot < stop and (s_start[eot] < start or not (s_eot[eot] or s_start[eot] > start)):
                    eot += 1
                if eot < stop and s_eot[eot] and s_start[eot] == start:
                    source_row[i] = eot
                    eot += 1


@kept
def _next_content(
    s_start: np.ndarray, s_end: np.ndarray, s_eot: np.ndarray, s_apart: np.ndarray,
    content: int, stop: int, start: int, end: int,
) -> int:  # fmt: skip
    """The first source token, from `content` on, that holds byte `start` or begins after it.

    A lone word-start mark (no byte) counts as holding its place for a pivot token that is one too.
    """
    while content < stop:
        if s_start[content] > start and not s_apart[content]:
            break
        mark = s_start[content] == start and s_end[content] == start and end == start
        if not s_eot[content] and not s_apart[content] and (s_end[content] > start or mark):
            break
        content += 1
    return content
