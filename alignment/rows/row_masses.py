"""Working memory of the projection of one row: masses per pivot id, and the candidates that go on into the next row.

Compiled building blocks of `projection`; knows nothing about texts beyond the vocabulary tables.
"""

from typing import NamedTuple

import numpy as np

from ..vocabulary.vocabulary_trie import longest_match
from .compiled import compiled
from .row_arrays import VocabularyTables

MIN_PROBABILITY = 1e-30
"""A label's probability is never written as less, so that its logprob stays finite."""


class Scratch(NamedTuple):
    """Arrays that live as long as a shard."""

    ids: np.ndarray
    """int32 [entries]: pivot ids of this row, in the order they came."""
    masses: np.ndarray
    """float64 [entries]"""
    slots: np.ndarray
    """int32 [pivot vocabulary]: where an id stands in `ids`, or -1."""
    used: np.ndarray
    """int64 [1]: entries in use."""
    tokens: np.ndarray
    """int32 [candidates]: source ids that spell the text so far and go on."""
    reads: np.ndarray
    """int32 [candidates]: bytes of them that are read."""
    segments: np.ndarray
    """int64 [candidates]: place of their next segment, -1 where the longest match decides."""
    weights: np.ndarray
    """float64 [candidates]: shares of all that fits the text so far."""
    count: np.ndarray  # type: ignore[assignment]  # numba needs a NamedTuple, whose own count nobody calls
    """int64 [1]: candidates in use."""
    ruled_out: np.ndarray
    """bool [source k]: candidates of the next source row that the label just read excludes."""


def new_scratch(vocab_size: int, source_k: int) -> Scratch:
    """Memory for rows over a pivot vocabulary, from source rows of `source_k` entries."""
    entries, candidates = 256 + 64 * source_k, 256 + 32 * source_k
    return Scratch(
        np.empty(entries, np.int32),
        np.empty(entries, np.float64),
        np.full(vocab_size, -1, np.int32),
        np.zeros(1, np.int64),
        np.empty(candidates, np.int32),
        np.empty(candidates, np.int32),
        np.empty(candidates, np.int64),
        np.empty(candidates, np.float64),
        np.zeros(1, np.int64),
        np.zeros(source_k, np.bool_),
    )


@compiled
def clear_masses(scratch: Scratch) -> None:
    """Begin a row: no masses."""
    for entry in range(scratch.used[0]):
        scratch.slots[scratch.ids[entry]] = -1
    scratch.used[0] = 0


@compiled
def add_mass(scratch: Scratch, token_id: int, mass: float) -> None:
    """Add to an id's mass. Ids below 0, and new ids when the memory is full, stay in the row's tail."""
    if token_id < 0 or mass <= 0.0:
        return
    slot = scratch.slots[token_id]
    if slot < 0:
        slot = scratch.used[0]
        if slot == len(scratch.ids):
            return
        scratch.ids[slot], scratch.masses[slot], scratch.slots[token_id] = token_id, 0.0, slot
        scratch.used[0] = slot + 1
    scratch.masses[slot] += mass


@compiled
def push_candidate(scratch: Scratch, token: int, read: int, segment: int, weight: float, length: int) -> float:
    """Keep a candidate that wrote the label and goes on; returns its weight if it ended with the label, else 0.

    Args:
        read: bytes of the candidate that are read, of `length`.
        segment: place of its next segment; -1: the longest match decides.
    """
    if read >= length:
        return weight
    place = scratch.count[0]
    if place < len(scratch.tokens):
        scratch.tokens[place], scratch.reads[place] = token, read
        scratch.segments[place], scratch.weights[place] = segment, weight
        scratch.count[0] = place + 1
    return 0.0


@compiled
def carry_over(scratch: Scratch, tables: VocabularyTables, label: int) -> float:
    """Add what the kept candidates write next, and keep those that write the label; returns the mass that ended."""
    num_kept, ended = scratch.count[0], 0.0
    scratch.count[0] = 0  # those that go on are pushed to the front again, never past the place that is read
    for place in range(num_kept):
        token, read = scratch.tokens[place], scratch.reads[place]
        segment, weight = scratch.segments[place], scratch.weights[place]
        start, stop = tables.source.offsets[token], tables.source.offsets[token + 1]
        if segment >= 0:
            image = tables.segments.token_ids[segment]
            covered = tables.pivot.offsets[image + 1] - tables.pivot.offsets[image]
        else:
            image, covered = longest_match(tables.trie, tables.source.data, start + read, stop, 0)
        add_mass(scratch, image, weight)
        if image == label:
            following = segment + 1 if segment >= 0 else -1
            ended += push_candidate(scratch, token, read + covered, following, weight, stop - start)
    return ended


@compiled
def write_row(scratch: Scratch, label: int, out_ids: np.ndarray, out_logprobs: np.ndarray) -> float:
    """Write the largest masses, descending; the label, if it is an id, always is among them.

    Returns the label's probability. Mass above 1 (the stored label and top-k are rounded apart) is taken from the others.

    Args:
        out_ids: int32 [k].
        out_logprobs: float32 [k], nats; -inf where there is no mass.
    """
    used, k = scratch.used[0], len(out_ids)
    own, total = 0.0, 0.0
    if label >= 0:
        own = scratch.masses[scratch.slots[label]] if scratch.slots[label] >= 0 else 0.0
        own = min(1.0, max(own, MIN_PROBABILITY))
        if scratch.slots[label] >= 0:
            scratch.masses[scratch.slots[label]] = own
    for entry in range(used):
        total += scratch.masses[entry]
    scale = (1.0 - own) / (total - own) if total > 1.0 and total > own else 1.0
    count = 0
    for entry in range(used):  # insertion into the k best so far
        token_id, mass = scratch.ids[entry], scratch.masses[entry]
        if token_id != label:
            mass *= scale
        if mass <= 0.0:
            continue
        place = min(count, k - 1)
        if count == k and mass <= out_logprobs[k - 1]:
            continue
        while place > 0 and out_logprobs[place - 1] < mass:
            out_ids[place], out_logprobs[place] = out_ids[place - 1], out_logprobs[place - 1]
            place -= 1
        out_ids[place], out_logprobs[place] = token_id, mass
        count = min(count + 1, k)
    if label >= 0:
        _force(out_ids, out_logprobs, count, label, own)
    for place in range(k):
        out_logprobs[place] = min(0.0, np.log(out_logprobs[place])) if out_logprobs[place] > 0.0 else -np.inf
    return own


@compiled
def _force(out_ids: np.ndarray, out_masses: np.ndarray, count: int, label: int, mass: float) -> None:
    """Put the label last among the `count` best of k if it is not one of them.

    Args:
        out_ids: int32 [k].
        out_masses: float32 [k], probabilities.
    """
    for place in range(count):
        if out_ids[place] == label:
            return
    place = min(count, len(out_ids) - 1)
    out_ids[place], out_masses[place] = label, mass
