"""What candidates write: the entries of source rows, cut into the pivot's tokens.

Compiled building blocks of `chain_loops`. A candidate is an entry of a source row that is not the row's label. Each
function adds masses to the pivot row in `scratch` and keeps the candidates that go on behind the label. Knows nothing
about the order in which rows are read, nor about files.
"""

from typing import NamedTuple

import numpy as np

from ..tokens.token_alignment import SpanAlignment, TargetRows
from ..vocabulary.piece_segmentation import longest_of_segments
from ..vocabulary.vocabulary_trie import Surfaces, Trie, descend, longest_match
from .compiled import inlined
from .row_arrays import SourceRows, VocabularyTables
from .row_masses import Scratch, add_mass, push_candidate


class ChainInputs(NamedTuple):
    """What the walk reads of a shard."""

    pivot: TargetRows
    source: TargetRows
    alignment: SpanAlignment
    rows: SourceRows
    tables: VocabularyTables


@inlined
def open_row(inputs: ChainInputs, scratch: Scratch, i: int, j: int, weight: float, any_ruled_out: bool) -> float:
    """Add what the candidates of source row j write at pivot row i, where both begin.

    Args:
        weight: probability of the text before the row.
        any_ruled_out: `scratch.ruled_out` names candidates that the label before has excluded.
    Returns:
        The mass of the candidates that end with the label.
    """
    pivot, source, rows, tables = inputs.pivot, inputs.source, inputs.rows, inputs.tables
    label, ended = pivot.token_ids[i], 0.0
    p_extra = _template_bytes(
        tables.pivot, label, pivot.ends[i] - pivot.starts[i], pivot.opens_turn[i], pivot.is_end_of_turn[i]
    )
    s_label = source.token_ids[j]
    s_extra = _template_bytes(
        tables.source, s_label, source.ends[j] - source.starts[j], source.opens_turn[j], source.is_end_of_turn[j]
    )
    data, offsets = tables.source.data, tables.source.offsets
    for c in range(rows.topk_ids.shape[1]):
        candidate, mass = rows.topk_ids[j, c], weight * rows.topk_probs[j, c]
        if mass <= 0.0 or candidate == s_label or (any_ruled_out and scratch.ruled_out[c]):
            continue
        if s_extra == 0 and p_extra == 0:
            ended += _open_candidate(tables, scratch, candidate, mass, label)
            continue
        start, stop = offsets[candidate], offsets[candidate + 1]
        if s_extra > 0 and not _same_bytes(data, start, stop, offsets[s_label], s_extra):
            continue
        if s_extra != p_extra:
            front = tables.pivot.offsets[label]
            node = descend(tables.trie, tables.pivot.data, front, front + p_extra, 0)
            image, covered = (-1, 0) if node < 0 else longest_match(tables.trie, data, start + s_extra, stop, node)
            add_mass(scratch, image, mass)
            if image == label:
                ended += push_candidate(scratch, candidate, s_extra + covered, -1, mass, stop - start)
            continue
        ended += _open_candidate(tables, scratch, candidate, mass, label)
    return ended


@inlined
def other_tokens(inputs: ChainInputs, scratch: Scratch, i: int, j: int, weight: float) -> float:
    """Add what the pivot would write from row i's first byte on, were candidates of source row j written in mid-token.

    Args:
        weight: probability of the text before row j.
    Returns:
        The mass of the candidates that end with the label.
    """
    pivot, source, rows, tables = inputs.pivot, inputs.source, inputs.rows, inputs.tables
    label = pivot.token_ids[i]
    front, back = tables.pivot.offsets[label], tables.pivot.offsets[label + 1]
    front_extra = _template_bytes(tables.pivot, label, pivot.ends[i] - pivot.starts[i], pivot.opens_turn[i], False)
    rest = back - front - front_extra - (source.starts[j] - pivot.starts[i])  # bytes of the label from row j on
    if rest <= 0 or back - front < front_extra + pivot.ends[i] - pivot.starts[i]:
        return 0.0  # a normalising tokenizer: its piece does not show where row j begins
    node = descend(tables.trie, tables.pivot.data, front, back - rest, 0)
    if node < 0:
        return 0.0
    before, _ = longest_match(tables.trie, tables.pivot.data, front, back - rest, 0)
    ended = 0.0
    for c in range(rows.topk_ids.shape[1]):
        candidate, mass = rows.topk_ids[j, c], weight * rows.topk_probs[j, c]
        if mass <= 0.0 or candidate == source.token_ids[j]:
            continue
        image, covered, segment = longest_of_segments(tables.trie, tables.segments, tables.pivot, candidate, node)
        add_mass(scratch, image if covered > 0 else before, mass)
        if image == label:
            ended += push_candidate(scratch, candidate, covered, segment, mass, tables.candidates[candidate, 2])
    return ended


@inlined
def longer_tokens(inputs: ChainInputs, scratch: Scratch, i: int, last: int, weight: float) -> float:
    """Give the longer pivot tokens, of which the label is the front, their share of the path.

    Candidates of the source row after `last` may join the label to a longer token. Having read the label, the pivot
    knows that they were not written: `scratch.ruled_out` marks them.

    Args:
        weight: probability of the path with row `last` read.
    Returns:
        The probability of the marked candidates in their row.
    """
    pivot, source, rows, tables = inputs.pivot, inputs.source, inputs.rows, inputs.tables
    j = last + 1
    if (
        pivot.is_end_of_turn[i]
        or j == len(source.token_ids)
        or source.opens_turn[j]
        or source.starts[j] != source.ends[last]
    ):
        return 0.0
    label = pivot.token_ids[i]
    front, back = tables.pivot.offsets[label], tables.pivot.offsets[label + 1]
    width = pivot.ends[i] - pivot.starts[i]
    if back - front != width + _template_bytes(tables.pivot, label, width, pivot.opens_turn[i], False):
        return 0.0
    node = tables.nodes[label]
    if node < 0 or tables.trie.first_child[node] == tables.trie.first_child[node + 1]:
        return 0.0
    first_child, last_child = tables.trie.first_child[node], tables.trie.first_child[node + 1]
    ruled_out = 0.0
    for c in range(rows.topk_ids.shape[1]):
        candidate, prob = rows.topk_ids[j, c], rows.topk_probs[j, c]
        scratch.ruled_out[c] = False
        if prob <= 0.0 or candidate == source.token_ids[j]:
            continue
        if _child(tables.trie, first_child, last_child, tables.candidates[candidate, 3]) < 0:
            continue
        image, covered, _ = longest_of_segments(tables.trie, tables.segments, tables.pivot, candidate, node)
        if covered > 0:
            scratch.ruled_out[c] = True
            ruled_out += prob
            add_mass(scratch, image, weight * prob)
    share: float = min(ruled_out, 1.0 - rows.label_probs[j])
    return share


@inlined
def _open_candidate(tables: VocabularyTables, scratch: Scratch, candidate: int, mass: float, label: int) -> float:
    """Add a candidate at a shared boundary: its first segment if that is the label, else its image under the map.

    Returns its mass if it ends with the label, else 0.
    """
    image, first = tables.candidates[candidate, 0], tables.candidates[candidate, 1]
    if first < 0:
        add_mass(scratch, image, 0.0 if image == label else mass)
        return 0.0
    if first == label or image == label:
        image = first  # only what spells the label may add to it: the label's mass is what the next row begins with
    add_mass(scratch, image, mass)
    if first != label:
        return 0.0
    covered = tables.pivot.offsets[label + 1] - tables.pivot.offsets[label]
    segment = tables.segments.offsets[candidate] + 1
    return push_candidate(scratch, candidate, covered, segment, mass, tables.candidates[candidate, 2])


@inlined
def _template_bytes(surfaces: Surfaces, token_id: int, width: int, opens_turn: bool, is_end_of_turn: bool) -> int:
    """Bytes at the front of a turn's first token that belong to the template (the space before the first word).

    Args:
        width: bytes of content that the token stands for.
    """
    if not opens_turn or is_end_of_turn:
        return 0
    extra: int = max(0, surfaces.offsets[token_id + 1] - surfaces.offsets[token_id] - width)
    return extra


@inlined
def _child(trie: Trie, first: int, last: int, byte: int) -> int:
    """The child, of those from `first` to `last`-1, that a byte leads to, or -1; also -1 for no byte (-1)."""
    while first < last and trie.bytes[first] < byte:
        first += 1
    return first if first < last and trie.bytes[first] == byte else -1


@inlined
def _same_bytes(data: np.ndarray, start: int, stop: int, other: int, length: int) -> bool:
    """Whether `length` bytes from `start` (and before `stop`) equal those from `other`; data is uint8 [bytes]."""
    if stop - start < length:
        return False
    same = 0
    while same < length and data[start + same] == data[other + same]:
        same += 1
    return same == length
