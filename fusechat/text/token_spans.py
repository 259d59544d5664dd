"""Where tokens stand in a text and in the contents within it: the tokenizer's character offsets in, byte ranges out.

Offsets are the ground truth, because they follow every normalisation. Two things they cannot say, and this module adds:
how tokens divide one character among them (byte-level and byte-fallback tokens), and that a word-start mark put before a
text stands for no byte of it. Knows nothing about
dialogues: a content is a range of the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class TextBytes:
    """A text in UTF-8, and the byte at which each character begins."""

    def __init__(self, text: str) -> None:
        self.data = text.encode()
        self._starts: np.ndarray | None = None
        if not text.isascii():
            codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
            widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
            self._starts = np.concatenate([[0], np.cumsum(widths)])

    def byte_of(self, character: np.ndarray) -> np.ndarray:
        """int64: the byte offsets of character offsets (the text's end included)."""
        return character if self._starts is None else self._starts[character]


def byte_ranges(
    text: TextBytes, token_ids: Sequence[int], offsets: Sequence[tuple[int, int]], surfaces: Sequence[bytes | None]
) -> tuple[np.ndarray, np.ndarray]:
    """The byte range [start, end) of each token; ranges are in order and never overlap.

    Where tokens share characters and together spell exactly those (or a space and those, the space being a word-start
    mark that the tokenizer put there), each gets the bytes it spells. Otherwise a normalisation stands between the text
    and its tokens, and no division would be true: a token then ends where the next one begins, so that of tokens on one
    and the same range the last gets all of it and the others none.

    Args:
        token_ids: [tokens].
        offsets: [tokens] character ranges, as `tokenizers` gives them.
        surfaces: `fusechat.text.token_surface.token_surfaces` of the tokenizer.
    Returns:
        starts and ends, int64 [tokens], bytes.
    """
    table = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    starts = np.maximum.accumulate(text.byte_of(table[:, 0]))
    ends = np.maximum(np.maximum.accumulate(text.byte_of(table[:, 1])), starts)
    shares = np.flatnonzero(starts[1:] < ends[:-1])
    if len(shares):
        first_of_group = np.flatnonzero(np.diff(shares, prepend=-2) > 1)
        for run in np.split(shares, first_of_group[1:]):
            _divide(text.data, slice(int(run[0]), int(run[-1]) + 2), token_ids, starts, ends, surfaces)
    return starts, ends


def _divide(
    data: bytes,
    group: slice,
    token_ids: Sequence[int],
    starts: np.ndarray,
    ends: np.ndarray,
    surfaces: Sequence[bytes | None],
) -> None:
    """Divide the bytes that a group of tokens shares, in place."""
    begin, end = int(starts[group.start]), int(ends[group.stop - 1])
    spelled = [surfaces[token_id] for token_id in token_ids[group]]
    known = [surface for surface in spelled if surface is not None]
    if len(known) == len(spelled):
        joined, shared = b"".join(known), data[begin:end]
        is_marked = joined == b" " + shared
        if joined == shared or is_marked:
            edges = np.cumsum([len(surface) for surface in known]) - is_marked + begin
            edges = np.maximum(edges, begin)
            starts[group], ends[group] = np.concatenate([[begin], edges[:-1]]), edges
            return
    ends[group.start : group.stop - 1] = starts[group.start + 1 : group.stop]


def overlap_any(starts: np.ndarray, ends: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """bool [tokens]: which ranges share bytes with one of the regions (int64 [regions, 2], in order and disjoint)."""
    regions = regions[regions[:, 0] < regions[:, 1]]
    begun = np.searchsorted(regions[:, 0], ends, side="left")
    over = np.searchsorted(regions[:, 1], starts, side="right")
    return begun > over


@dataclass(frozen=True)
class Placed:
    """Tokens laid on contents: `spans` int64 [tokens, 2] (-1 outside of contents) and each content's tokens [first, stop)."""

    spans: np.ndarray
    tokens: list[tuple[int, int]]


def place_on_contents(
    starts: np.ndarray, ends: np.ndarray, is_control: np.ndarray, regions: np.ndarray, bases: Sequence[int]
) -> Placed:
    """Lay tokens on contents, so that the tokens of a content cover each byte of it once.

    Bytes that no token spells (white space that a pre-tokenizer drops) go to the token after them, at a content's end to
    the one before. White space that a control token swallows goes to none. A token that reaches from one content into
    the next has one span over both. A content all of whose bytes are dropped has no tokens.

    Args:
        starts, ends: byte ranges of the tokens in the text, as `byte_ranges` gives them.
        is_control: bool [tokens].
        regions: int64 [contents, 2], where the contents stand in the text, bytes.
        bases: [contents] where they stand in what spans point into, bytes.
    """
    spans = np.full((len(starts), 2), -1, dtype=np.int64)
    tokens: list[tuple[int, int]] = []
    for (begin, stop), base in zip(regions.tolist(), bases, strict=True):
        left, right = _without_swallowed(starts, ends, is_control, begin, stop)
        after = int(np.searchsorted(starts, right, side="left"))
        first = min(
            int(np.searchsorted(ends, left, side="right")), int(np.searchsorted(starts, left, side="left")), after
        )
        if left == right:
            first = after
        if first < after:
            edges = np.clip(ends[first:after], left, right) + (base - begin)
            edges[-1] = right + (base - begin)
            shared_start = spans[first, 0]
            spans[first:after, 0] = np.concatenate([[left + (base - begin)], edges[:-1]])
            spans[first:after, 1] = edges
            if shared_start >= 0:
                spans[first, 0] = shared_start
        tokens.append((first, after))
    return Placed(spans, tokens)


def _without_swallowed(
    starts: np.ndarray, ends: np.ndarray, is_control: np.ndarray, begin: int, stop: int
) -> tuple[int, int]:
    """The range without the white space at its ends that control tokens beside it take in (`rstrip`, `lstrip`)."""
    first = int(np.searchsorted(ends, begin, side="right"))
    if first < len(starts) and is_control[first] and starts[first] < begin:
        begin = min(int(ends[first]), stop)
    last = int(np.searchsorted(starts, stop, side="left")) - 1
    if last >= 0 and is_control[last] and ends[last] > stop:
        stop = max(int(starts[last]), begin)
    return begin, stop
