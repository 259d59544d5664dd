"""The compiled walk of `row_rule: chain`: from the rows of a source to rows on the pivot's tokens.

The walk goes once over the pivot's tokens. Beside them it follows the source's own tokens, whose probabilities are all
known (teacher forcing); this is the path. It also follows candidates: source tokens that the source held possible and
that spell the same text so far. A pivot row is what the path and the candidates write next. The label's probability is
the share of both that writes the label, so the product of the labels' probabilities over a text is the source's own.

Three examples. A line names a side, a token of the text `playing`, and the row at that token; a single letter is a
token as well. `tests/alignment/test_chain.py` computes each example's pivot lines from its source lines.

The pivot's token is longer than the source's. Its probability is a product: .5 * .8. A candidate at the inner boundary
writes another long token: .5 * .2.

    source  play     play .5  run .3  stop .2
    source  ing      ing .8  s .2
    pivot   playing  playing .4  run .3  stop .2  plays .1

The source's token is longer than the pivot's. All that begins with `play` adds up. The second row holds what remains of
each candidate. Nobody knows what would follow the candidate `play`, so its .1 is in no entry: it stays in the tail.

    source  playing  playing .6  plays .3  play .1
    pivot   play     play 1
    pivot   ing      ing .6  s .3

Both sides have the same tokens, and a candidate is longer. The candidate `playing` writes `play` and then `ing`. So the
first label has .4 + .5, and of this .9 the second label has .4 + .5 * .8.

    source  play     play .5  playing .4  run .1
    source  ing      ing .8  s .2
    pivot   play     play .9  run .1
    pivot   ing      ing .8889  s .1111

`projection.project_chain` makes the arrays, `chain_candidates` says what candidates write. Knows nothing about files.
"""

from typing import NamedTuple

import numpy as np

from fusechat.storage.contracts import RowKind

from .chain_candidates import ChainInputs, longer_tokens, open_row, other_tokens
from .compiled import compiled, inlined
from .row_arrays import PivotRows
from .row_masses import Scratch, add_mass, carry_over, clear_masses, write_row

_EXACT, _MAPPED, _INSIDE, _END = (int(k) for k in (RowKind.EXACT, RowKind.MAPPED, RowKind.INSIDE, RowKind.END_OF_TURN))


class Path(NamedTuple):
    """The source's own tokens up to the place where the walk stands."""

    source_row: int
    """The first source row that the walk has not read to its end; -1: unknown, as after a token without a row."""
    weight: float
    """Probability: the path's share of all that spells the text so far."""
    ruled_out: float
    """Probability that row `source_row` gives to candidates that the last label has excluded."""


@compiled
def walk_chain(inputs: ChainInputs, scratch: Scratch, out: PivotRows) -> int:
    """Write the pivot rows of a shard; rows that the source says nothing about stay EMPTY.

    Returns:
        Number of rows whose pivot token ends in another source token than it begins in.
    """
    num_chained = 0
    path = Path(-1, 1.0, 0.0)
    for i in range(len(inputs.pivot.token_ids)):
        path = _path_at(inputs, scratch, i, path)
        if path.source_row >= 0:
            path, is_chained = _write_pivot_row(inputs, scratch, out, i, path)
            num_chained += is_chained
    return num_chained


@inlined
def _path_at(inputs: ChainInputs, scratch: Scratch, i: int, path: Path) -> Path:
    """The path at the first byte of pivot row i.

    A path that is unknown begins anew where both sides have a boundary; it then has weight 1 and no candidates.
    """
    source, label_probs = inputs.source, inputs.rows.label_probs
    j = inputs.alignment.source_row[i]
    source_row, weight, ruled_out = path
    if j < 0 or inputs.pivot.opens_turn[i]:
        source_row = -1
    while (
        0 <= source_row < j
        and source.starts[source_row] == source.ends[source_row]
        and not source.is_end_of_turn[source_row]
    ):
        weight *= label_probs[source_row] / (1.0 - ruled_out)  # a word-start mark of its own: it spells no byte
        source_row, ruled_out = source_row + 1, 0.0
    is_known = j >= 0 and _is_known(inputs, j)
    if is_known and source_row == j:
        return Path(source_row, weight, ruled_out)
    scratch.count[0] = 0
    if is_known and inputs.alignment.inside[i] == 0:
        return Path(j, 1.0, 0.0)
    return Path(-1, 1.0, 0.0)


@inlined
def _write_pivot_row(inputs: ChainInputs, scratch: Scratch, out: PivotRows, i: int, path: Path) -> tuple[Path, bool]:
    """Write pivot row i from the path and the candidates; returns the path after it, and whether the row is chained."""
    pivot, source, label_probs = inputs.pivot, inputs.source, inputs.rows.label_probs
    j, inside, label = path.source_row, inputs.alignment.inside[i], pivot.token_ids[i]
    weight, ruled_out = path.weight, path.ruled_out
    clear_masses(scratch)
    ended = carry_over(scratch, inputs.tables, label)
    if inside == 0:
        ended += open_row(inputs, scratch, i, j, weight / (1.0 - ruled_out), ruled_out > 0.0)
        weight *= label_probs[j] / (1.0 - ruled_out)
    last, weight, crossed = _cross_boundaries(inputs, scratch, i, j, weight)
    if last < 0:
        scratch.count[0] = 0
        return Path(-1, 1.0, 0.0), False
    ended += crossed
    meets = source.ends[last] == pivot.ends[i]
    if meets and ended > 0.0:  # what ended where the path has a boundary goes on as the path does
        scratch.masses[scratch.slots[label]] -= ended
        weight += ended
    ruled_out = longer_tokens(inputs, scratch, i, last, weight) if meets else 0.0
    weight *= 1.0 - ruled_out
    add_mass(scratch, label, weight)
    total = write_row(scratch, label, out.topk_ids[i], out.topk_logprobs[i])
    out.label_logprob[i] = min(0.0, np.log(total))
    out.kind[i] = _kind(pivot.is_end_of_turn[i], inside, meets and last == j)
    for place in range(scratch.count[0]):  # from here on, all that wrote the label is all there is
        scratch.weights[place] /= total
    return Path(last + 1 if meets else last, weight / total, ruled_out), last > j


@inlined
def _kind(is_end_of_turn: bool, inside: int, same_bytes: bool) -> int:
    """The RowKind of a row that was written."""
    if is_end_of_turn:
        return _END
    if inside > 0:
        return _INSIDE
    return _EXACT if same_bytes else _MAPPED


@inlined
def _is_known(inputs: ChainInputs, j: int) -> bool:
    """False for the unknown token (its probability is not that of the text) and for rows without a score."""
    label, offsets = inputs.source.token_ids[j], inputs.tables.source.offsets
    spells_bytes = offsets[label + 1] > offsets[label]
    is_scored: bool = inputs.rows.label_probs[j] > 0.0
    return (spells_bytes or inputs.source.is_end_of_turn[j]) and is_scored


@inlined
def _cross_boundaries(inputs: ChainInputs, scratch: Scratch, i: int, j: int, weight: float) -> tuple[int, float, float]:
    """Follow the path through the source's boundaries inside pivot token i.

    At each of them, candidates of the row there write other tokens from the pivot token's first byte on.

    Returns:
        The source row that covers the token's last byte (-1: none), the path's weight, and the mass of candidates that
        ended with the label.
    """
    pivot, source, label_probs = inputs.pivot, inputs.source, inputs.rows.label_probs
    ended, end = 0.0, pivot.ends[i]
    while source.ends[j] < end:
        following = j + 1
        if following == len(source.token_ids) or source.opens_turn[following] or source.is_end_of_turn[following]:
            return -1, weight, ended
        if source.starts[following] != source.ends[j] or not _is_known(inputs, following):
            return -1, weight, ended
        ended += other_tokens(inputs, scratch, i, following, weight)
        weight *= label_probs[following]
        j = following
    if pivot.is_end_of_turn[i] and (i + 1 == len(pivot.token_ids) or pivot.opens_turn[i + 1]):
        while j + 1 < len(source.token_ids) and not source.opens_turn[j + 1] and source.is_end_of_turn[j + 1]:
            j += 1
            weight *= label_probs[j]  # the source ends its turn with several tokens, the pivot with one
    return j, weight, ended
