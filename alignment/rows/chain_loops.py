"""The compiled walk of `row_rule: chain`: one pass over a shard's pivot tokens, the source's path and its candidates beside it.

`projection.project_chain` says what the rule is and gives the arrays; here they are filled. Knows nothing about files.
"""

import numpy as np

from fusechat.storage.contracts import RowKind

from ..vocabulary.piece_segmentation import longest_of_segments
from ..vocabulary.vocabulary_trie import descend, longest_match
from .compiled import compiled
from .row_masses import add_mass, carry_over, clear_masses, push_candidate, write_row

_EXACT, _MAPPED, _INSIDE, _END = (int(k) for k in (RowKind.EXACT, RowKind.MAPPED, RowKind.INSIDE, RowKind.END_OF_TURN))


@compiled
def walk_chain(pivot, source, alignment, rows, tables, scratch, out_ids, out_logprobs, out_label, out_kind):
    chained = 0
    # The next source row that the path has not read to its end, or -1: unknown, start afresh at a shared boundary.
    # `weight`: share of the path among all that fits the text so far; `cut`: share already known not to go on here.
    cursor, weight, cut = -1, 1.0, 0.0
    for i in range(len(pivot.token_ids)):
        j, inside, label = alignment.source_row[i], alignment.inside[i], pivot.token_ids[i]
        if pivot.opens_turn[i] or j < 0:
            cursor, weight, cut, scratch.count[0] = -1, 1.0, 0.0, 0
        if j >= 0:
            while (
                0 <= cursor < j and source.starts[cursor] == source.ends[cursor] and not source.is_end_of_turn[cursor]
            ):
                weight *= rows.label_probs[cursor] / (1.0 - cut)  # a word-start mark of its own: it spells no byte
                cursor, cut = cursor + 1, 0.0
        if j < 0 or (cursor != j and inside > 0) or not _is_known(source, rows, tables, j):
            cursor = -1
            continue
        if cursor != j:
            weight, cut, scratch.count[0] = 1.0, 0.0, 0
        clear_masses(scratch)
        ended = carry_over(scratch, tables, label)
        if inside == 0:
            ended += _open_row(pivot, source, rows, tables, scratch, i, j, weight / (1.0 - cut), cut > 0.0)
            weight *= rows.label_probs[j] / (1.0 - cut)
        last, weight, crossed = _cross_boundaries(pivot, source, rows, tables, scratch, i, j, weight)
        if last < 0:
            cursor, scratch.count[0] = -1, 0
            continue
        ended += crossed
        meets = source.ends[last] == pivot.ends[i]
        if meets and ended > 0.0:  # what ended where the path has a boundary goes on as the path does
            scratch.masses[scratch.slots[label]] -= ended
            weight += ended
        cut = _longer_tokens(pivot, source, rows, tables, scratch, i, last, weight) if meets else 0.0
        weight *= 1.0 - cut
        add_mass(scratch, label, weight)
        total = write_row(scratch, label, out_ids[i], out_logprobs[i])
        out_label[i] = min(0.0, np.log(total))
        out_kind[i] = _kind(pivot.is_end_of_turn[i], inside, meets and last == j)
        chained += last > j
        weight /= total  # from here on, all that wrote the label is all there is
        for h in range(scratch.count[0]):
            scratch.weights[h] /= total
        cursor = last + 1 if meets else last
    return chained


@compiled
def _kind(is_end_of_turn, inside, same_bytes):
    if is_end_of_turn:
        return _END
    if inside > 0:
        return _INSIDE
    return _EXACT if same_bytes else _MAPPED


@compiled
def _is_known(source, rows, tables, j):
    """False for the unknown token (its probability is not that of the text) and for rows without a score."""
    label = source.token_ids[j]
    spelled = tables.source.offsets[label + 1] > tables.source.offsets[label]
    return (spelled or source.is_end_of_turn[j]) and rows.label_probs[j] > 0.0


@compiled
def _template_bytes(surfaces, token_id, width, opens_turn, is_end_of_turn):
    """Bytes at the front of a turn's first token that belong to the template (the space before the first word)."""
    if not opens_turn or is_end_of_turn:
        return 0
    return max(0, surfaces.offsets[token_id + 1] - surfaces.offsets[token_id] - width)


@compiled
def _open_row(pivot, source, rows, tables, scratch, i, j, weight, any_cut):
    """Add what the candidates of source row j write at pivot row i; returns the mass of those that end with the label."""
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
        if mass <= 0.0 or candidate == s_label or (any_cut and scratch.cut[c]):
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


@compiled
def _open_candidate(tables, scratch, candidate, mass, label):
    """A candidate at a shared boundary: its first segment if that is the label, else its image under the map."""
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


@compiled
def _cross_boundaries(pivot, source, rows, tables, scratch, i, j, weight):
    """Follow the source's path through the boundaries inside pivot token i.

    At each, candidates of the row there write other tokens from the pivot token's first byte on.
    Returns the source row that covers the token's last byte (-1: none), the path's weight, and the mass that ended.
    """
    ended, end = 0.0, pivot.ends[i]
    while source.ends[j] < end:
        following = j + 1
        if following == len(source.token_ids) or source.opens_turn[following] or source.is_end_of_turn[following]:
            return -1, weight, ended
        if source.starts[following] != source.ends[j] or not _is_known(source, rows, tables, following):
            return -1, weight, ended
        ended += _other_tokens(pivot, source, rows, tables, scratch, i, following, weight)
        weight *= rows.label_probs[following]
        j = following
    if pivot.is_end_of_turn[i] and (i + 1 == len(pivot.token_ids) or pivot.opens_turn[i + 1]):
        while j + 1 < len(source.token_ids) and not source.opens_turn[j + 1] and source.is_end_of_turn[j + 1]:
            j += 1
            weight *= rows.label_probs[j]  # the source ends its turn with several tokens, the pivot with one
    return j, weight, ended


@compiled
def _other_tokens(pivot, source, rows, tables, scratch, i, j, weight):
    """What the pivot would write from row i's first byte on, were candidates of source row j written in mid-token."""
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


@compiled
def _longer_tokens(pivot, source, rows, tables, scratch, i, last, weight):
    """The share of the path that goes on into a pivot token longer than the label, after source row `last`.

    Marks the candidates of the next row that do, and adds their mass to those longer tokens: having read the label,
    the pivot knows that they were not written.
    """
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
    cut = 0.0
    for c in range(rows.topk_ids.shape[1]):
        candidate, prob = rows.topk_ids[j, c], rows.topk_probs[j, c]
        scratch.cut[c] = False
        if prob <= 0.0 or candidate == source.token_ids[j]:
            continue
        if _child(tables.trie, first_child, last_child, tables.candidates[candidate, 3]) < 0:
            continue
        image, covered, _ = longest_of_segments(tables.trie, tables.segments, tables.pivot, candidate, node)
        if covered > 0:
            scratch.cut[c] = True
            cut += prob
            add_mass(scratch, image, weight * prob)
    return min(cut, 1.0 - rows.label_probs[j])


@compiled
def _child(trie, first, last, byte):
    """The child, of those from `first` to `last`-1, that a byte leads to, or -1; also -1 for no byte (-1)."""
    while first < last and trie.bytes[first] < byte:
        first += 1
    return first if first < last and trie.bytes[first] == byte else -1


@compiled
def _same_bytes(data, start, stop, other, length):
    if stop - start < length:
        return False
    same = 0
    while same < length and data[start + same] == data[other + same]:
        same += 1
    return same == length
