"""Source rows in, pivot rows out: whole shards at once, in compiled loops.

Knows nothing about files or tokenizers: it reads the arrays of the contract, the span alignment and `VocabularyTables`.
Two row rules:

- `chain` (default) keeps what the source said about the text, not about its tokens. Between two pivot boundaries it
  carries the weights of everything the source could have written so far: the path of its own tokens (known: teacher
  forcing) and every top-k candidate that spells the bytes read so far in the pivot's tokens. A row is what those
  would write next; the label's probability is the share that goes on with it. So the product of the label's
  probabilities over a text is the source's own (the chain rule), inside a source token the row is conditioned on the
  bytes already read, and a pivot token longer than a source token collects the product of its parts. Candidates whose
  going on is unknown stay in the tail.
- `map` is the plain map of each row where both tokenizers have a boundary; elsewhere there is no row. Probabilities of
  two source ids with one image add up.
"""

from typing import Any, NamedTuple

import numpy as np

from fusechat.storage.contracts import RowKind

from ..tokens.token_alignment import SpanAlignment, TargetRows
from ..vocabulary.piece_segmentation import Segments
from ..vocabulary.vocabulary_trie import Surfaces, Trie, nodes_of
from .chain_loops import walk_chain
from .compiled import compiled
from .row_masses import add_mass, clear_masses, new_scratch, write_row

_MAPPED, _END = int(RowKind.MAPPED), int(RowKind.END_OF_TURN)


class VocabularyTables(NamedTuple):
    """What the two vocabularies are to each other."""

    source: Surfaces
    pivot: Surfaces
    trie: Trie
    """Over the pivot's reachable ids."""
    segments: Segments
    """Pivot ids that spell each source id."""
    source_to_pivot: np.ndarray
    """int32 [source vocabulary], -1: unmapped."""
    candidates: np.ndarray
    """int32 [source vocabulary, 4], what the loops ask of every candidate, side by side: its image, its first segment
    (-1: none), its length in bytes, its first byte."""
    nodes: np.ndarray
    """int32 [pivot vocabulary]: the trie's node that the bytes of each pivot id lead to, -1: none."""


def make_tables(
    source: Surfaces, pivot: Surfaces, trie: Trie, segments: Segments, source_to_pivot: np.ndarray
) -> VocabularyTables:
    """Lay out the tables of the loops."""
    size = len(source.offsets) - 1
    candidates = np.full((size, 4), -1, np.int32)
    candidates[:, 0] = source_to_pivot
    spelled = np.flatnonzero(np.diff(segments.offsets) > 0)
    candidates[spelled, 1] = segments.token_ids[segments.offsets[spelled]]
    candidates[:, 2] = np.diff(source.offsets)
    some = np.flatnonzero(candidates[:, 2] > 0)
    candidates[some, 3] = source.data[source.offsets[some]]
    return VocabularyTables(source, pivot, trie, segments, source_to_pivot, candidates, nodes_of(trie, pivot))


class SourceRows(NamedTuple):
    """Rows of a logprobs store, as probabilities."""

    topk_ids: np.ndarray
    """int32 [rows, k]"""
    topk_probs: np.ndarray
    """float64 [rows, k], 0 where padded"""
    label_probs: np.ndarray
    """float64 [rows]"""


class Projection(NamedTuple):
    """Pivot rows; the arrays of the aligned contract."""

    topk_ids: np.ndarray
    """int32 [pivot rows, k]"""
    topk_logprobs: np.ndarray
    """float32 [pivot rows, k], nats, descending, -inf padded"""
    label_logprob: np.ndarray
    """float32 [pivot rows], nats; NaN in EMPTY rows"""
    kind: np.ndarray
    """uint8 [pivot rows], RowKind"""
    num_chained: int
    """Rows whose pivot token is longer than the source token it begins with."""


def source_rows(arrays: dict[str, np.ndarray]) -> SourceRows:
    """Rows of the logprobs contract as probabilities."""
    return SourceRows(
        arrays["topk_ids"].astype(np.int32),
        np.exp(arrays["topk_logprobs"].astype(np.float64)),
        np.exp(arrays["label_logprob"].astype(np.float64)),
    )


def project_chain(
    pivot: TargetRows, source: TargetRows, alignment: SpanAlignment, rows: SourceRows, tables: VocabularyTables, k: int
) -> Projection:
    """Pivot rows by the chain rule over the bytes.

    Args:
        pivot, source: target rows of the same dialogues; `rows` are the source's.
        k: entries of each pivot row; the label always is one of them.
    """
    out = _empty_projection(pivot.num_rows, k)
    scratch = new_scratch(len(tables.pivot.offsets) - 1, rows.topk_ids.shape[1])
    chained = walk_chain(pivot, source, alignment, rows, tables, scratch, *out)
    return Projection(*out, chained)  # type: ignore[call-arg]


def project_map(
    pivot: TargetRows, alignment: SpanAlignment, rows: SourceRows, source_to_pivot: np.ndarray, vocab_size: int, k: int
) -> Projection:
    """Pivot rows by the plain map of the source row at the same boundary.

    A label outside the row's entries gets an even share of the tail.

    Args:
        vocab_size: of the pivot.
    """
    out = _empty_projection(pivot.num_rows, k)
    scratch = new_scratch(vocab_size, rows.topk_ids.shape[1])
    _project_map(pivot.token_ids, pivot.is_end_of_turn, alignment, rows, source_to_pivot, vocab_size, scratch, *out)
    return Projection(*out, 0)  # type: ignore[call-arg]


def pass_through(arrays: dict[str, np.ndarray], k: int) -> Projection:
    """Rows of a source with the pivot's tokenizer, cut or padded to k."""
    ids, logprobs = arrays["topk_ids"].astype(np.int32)[:, :k], arrays["topk_logprobs"].astype(np.float32)[:, :k]
    if (missing := k - ids.shape[1]) > 0:
        ids = np.pad(ids, ((0, 0), (0, missing)))
        logprobs = np.pad(logprobs, ((0, 0), (0, missing)), constant_values=-np.inf)
    kind = np.full(len(ids), RowKind.IDENTITY, np.uint8)
    return Projection(ids, logprobs, arrays["label_logprob"], kind, 0)


def _empty_projection(rows: int, k: int) -> tuple[Any, ...]:
    return (
        np.zeros((rows, k), np.int32),
        np.full((rows, k), -np.inf, np.float32),
        np.full(rows, np.nan, np.float32),
        np.zeros(rows, np.uint8),
    )


@compiled
def _project_map(
    token_ids,
    is_end_of_turn,
    alignment,
    rows,
    source_to_pivot,
    vocab_size,
    scratch,
    out_ids,
    out_logprobs,
    out_label,
    out_kind,
):
    k = out_ids.shape[1]
    for i in range(len(token_ids)):
        j = alignment.source_row[i]
        if j < 0 or alignment.inside[i] > 0:
            continue
        clear_masses(scratch)
        for c in range(rows.topk_ids.shape[1]):
            add_mass(scratch, source_to_pivot[rows.topk_ids[j, c]], rows.topk_probs[j, c])
        write_row(scratch, -1, out_ids[i], out_logprobs[i])
        mass = 0.0
        for c in range(k):
            mass += np.exp(out_logprobs[i, c])
            if out_ids[i, c] == token_ids[i] and out_logprobs[i, c] > -np.inf:
                out_label[i] = out_logprobs[i, c]
        if np.isnan(out_label[i]):
            out_label[i] = np.log(max(1.0 - mass, 1e-12) / max(vocab_size - k, 1))
        out_kind[i] = _END if is_end_of_turn[i] else _MAPPED
