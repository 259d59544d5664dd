"""Pairs the target tokens of two tokenizations of the same dialogues, by the bytes they stand for.

In: the tokens of a run of dialogues, once in the pivot's and once in the source's tokens. Out: for each target row of
the pivot, the source row that was open at its first byte. Linear in the tokens. Knows nothing about vocabularies or
distributions. Positions are bytes in the concatenated message contents of a dialogue, which do not depend on the
template, so two teachers under two templates meet on the same bytes.
"""

from typing import NamedTuple

import numpy as np

from fusechat.compilation import kept
from fusechat.errors import AlignmentError
from fusechat.storage.tokens import Tokens


class TargetRows(NamedTuple):
    """The target tokens of a run of dialogues, one entry per row of a row store."""

    token_ids: np.ndarray
    """int32 [rows]"""
    starts: np.ndarray
    """int32 [rows]: first content byte; for an end-of-turn token, where the content before it ends."""
    ends: np.ndarray
    """int32 [rows]: byte after the last; equal to `starts` for end-of-turn tokens."""
    is_end_of_turn: np.ndarray
    """bool [rows]: a target token that stands for no content."""
    opens_turn: np.ndarray
    """bool [rows]: the token before it in the dialogue is not a target."""
    offsets: np.ndarray
    """int64 [dialogues+1]: first row of each dialogue."""

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)


class SpanAlignment(NamedTuple):
    """Where each pivot row meets the source."""

    source_row: np.ndarray
    """int64 [pivot rows]: the source row whose token holds the pivot token's first byte; -1: none does."""
    inside: np.ndarray
    """int32 [pivot rows]: bytes of that source token that lie before the pivot token; 0: both begin here."""


def target_rows(tokens: Tokens, dialogues: range) -> TargetRows:
    """The target rows of consecutive dialogues.

    Args:
        dialogues: indices into `tokens`, a contiguous range.
    """
    first, last = int(tokens.offsets[dialogues.start]), int(tokens.offsets[dialogues.stop])
    offsets = tokens.offsets[dialogues.start : dialogues.stop + 1] - first
    block = slice(first, last)
    return collect_target_rows(tokens.token_ids[block], tokens.is_target[block], tokens.content_span[block], offsets)


def collect_target_rows(
    token_ids: np.ndarray, is_target: np.ndarray, content_span: np.ndarray, offsets: np.ndarray
) -> TargetRows:
    """Target rows from the arrays of the tokens contract.

    Args:
        token_ids: int32 [tokens].
        is_target: bool [tokens].
        content_span: int32 [tokens, 2], bytes; -1 for template-only tokens.
        offsets: int64 [dialogues+1], tokens.
    Raises:
        AlignmentError: spans that run backwards; the text would not be covered in order.
    """
    rows = int(np.count_nonzero(is_target))
    out = TargetRows(
        np.empty(rows, np.int32),
        np.empty(rows, np.int32),
        np.empty(rows, np.int32),
        np.empty(rows, np.bool_),
        np.empty(rows, np.bool_),
        np.empty(len(offsets), np.int64),
    )
    backwards = _collect(token_ids, is_target, content_span, offsets, *out)
    if backwards >= 0:
        raise AlignmentError(
            f"token {backwards}: content span {content_span[backwards].tolist()} begins before the one before it; "
            "expected spans in the order of the text: tokenize the dialogues again"
        )
    return out


@kept
def _collect(token_ids, is_target, content_span, offsets, ids, starts, ends, is_end_of_turn, opens_turn, row_offsets):
    """Fill the arrays of TargetRows; returns the first token whose span runs backwards, or -1."""
    row = 0
    row_offsets[0] = 0
    for dialogue in range(len(offsets) - 1):
        content_end, last_start, before_is_target = 0, 0, False
        for token in range(offsets[dialogue], offsets[dialogue + 1]):
            start, end = content_span[token, 0], content_span[token, 1]
            if start >= 0:
                if start < last_start or end < start:
                    return token
                last_start, content_end = start, max(content_end, end)
            if is_target[token]:
                ids[row] = token_ids[token]
                is_end_of_turn[row] = start < 0
                starts[row] = start if start >= 0 else content_end
                ends[row] = end if start >= 0 else content_end
                opens_turn[row] = not before_is_target
                row += 1
            before_is_target = is_target[token]
        row_offsets[dialogue + 1] = row
    return -1


def align_spans(pivot: TargetRows, source: TargetRows) -> SpanAlignment:
    """Find, for each pivot row, the source row that is open at its first byte.

    End-of-turn tokens meet end-of-turn tokens of the same turn (same content before them), in order. A pivot token
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
        pivot.starts, pivot.ends, pivot.is_end_of_turn, pivot.opens_turn, pivot.offsets,
        source.starts, source.ends, source.is_end_of_turn, source.opens_turn, source.offsets, source_row, inside,
    )  # fmt: skip
    return SpanAlignment(source_row, inside)


@kept
def _walk(p_start, p_end, p_eot, p_opens, p_offsets, s_start, s_end, s_eot, s_opens, s_offsets, source_row, inside):
    for dialogue in range(len(p_offsets) - 1):
        first, stop = s_offsets[dialogue], s_offsets[dialogue + 1]
        content, eot = first, first
        for i in range(p_offsets[dialogue], p_offsets[dialogue + 1]):
            start = p_start[i]
            if not p_eot[i]:
                content = _next_content(s_start, s_end, s_eot, content, stop, start, p_end[i])
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
def _next_content(s_start, s_end, s_eot, content, stop, start, end):
    """The first source token, from `content` on, that holds byte `start` or begins after it.

    A lone word-start mark (no byte) counts as holding its place for a pivot token that is one too.
    """
    while content < stop:
        if s_start[content] > start:
            break
        mark = s_start[content] == start and s_end[content] == start and end == start
        if not s_eot[content] and (s_end[content] > start or mark):
            break
        content += 1
    return content
